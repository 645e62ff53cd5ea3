//! The machine's moves: each takes it from one well-formed state to another. Only [`Core::step`] calls them.

use std::collections::BTreeSet;

use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, RequestId};

use super::{ATTEMPT_MS_MIN, ATTEMPTS_MAX, Active, Admission, Answer, Core, Output, PAUSE_MS, PAUSE_MS_MAX, Phase};
use crate::plan::{Candidate, Plan, missing, plan};
use crate::request::{Predictions, RequestStatus};

impl Core {
    pub(super) fn admit(&mut self, now: u64, admission: Admission, bound: usize, out: &mut Vec<Output>) {
        let id = admission.request;
        if self.requests.contains_key(&id) {
            return;
        }
        self.books.total += 1;
        if self.requests.len() >= bound {
            self.books.shed += 1;
            out.push(Output::Shed(id));
            return;
        }
        self.seq += 1;
        let deadline = now.saturating_add(admission.within_ms.saturating_sub(admission.elapsed_ms));
        self.requests.insert(
            id,
            Active {
                admission,
                seq: self.seq,
                admitted: now,
                deadline,
                first_sent: None,
                attempts: 0,
                failed_on: BTreeSet::new(),
                pauses: 0,
                reason: None,
                phase: Phase::Admitted,
                due: None,
            },
        );
        self.set_due(id, Some(deadline));
    }

    pub(super) fn abandon(&mut self, now: u64, id: RequestId, reason: String) {
        if self.is_active(&id) {
            // Nobody was told its id, so there is no outcome to deliver: it only has to be booked.
            let mut unused = Vec::new();
            self.finish(now, id, RequestStatus::Failed, None, Some(reason), &mut unused);
            self.done.remove(&id);
            self.requests.remove(&id);
        }
    }

    pub(super) fn set_nodes(&mut self, now: u64, mut nodes: Vec<Candidate>, out: &mut Vec<Output>) {
        nodes.sort_by(|a, b| a.peer.name.cmp(&b.peer.name));
        nodes.dedup_by(|a, b| a.peer.id == b.peer.id);
        for node in &mut nodes {
            let known = self.nodes.iter().find(|n| n.peer.id == node.peer.id);
            (node.in_flight, node.failures) = known.map_or((0, 0), |n| (n.in_flight, n.failures));
        }
        let old = std::mem::replace(&mut self.nodes, nodes);
        for gone in old {
            if self.nodes.iter().all(|n| n.peer.id != gone.peer.id) {
                self.lost(now, gone.peer.id, out);
            }
        }
    }

    pub(super) fn lost(&mut self, now: u64, node: NodeId, out: &mut Vec<Output>) {
        let ids: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, a)| matches!(&a.phase, Phase::Running { peer } if peer.id == node))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let reason = match &self.requests[&id].phase {
                Phase::Running { peer } => format!("node {} was lost", peer.name),
                Phase::Admitted | Phase::Queued { .. } | Phase::Done(_) => continue,
            };
            self.release(&node);
            // It may come back and do better: a restart is not held against the node.
            self.retry(now, id, reason, out);
        }
    }

    pub(super) fn answered(&mut self, now: u64, id: RequestId, peer: &Peer, answer: Answer, out: &mut Vec<Output>) {
        match answer {
            Answer::Done(predictions) => {
                self.node_mut(&peer.id, |n| n.failures = 0);
                self.finish(now, id, RequestStatus::Completed, Some(predictions), None, out);
            }
            Answer::Failed { reason, permanent: true } => {
                self.finish(now, id, RequestStatus::Failed, None, Some(reason), out);
            }
            Answer::Failed { reason, permanent: false } => {
                let reason = format!("node {}: {reason}", peer.name);
                self.attempt_failed(now, id, peer, reason, out);
            }
        }
    }

    /// Counts a failure of this node and looks for another.
    pub(super) fn attempt_failed(
        &mut self,
        now: u64,
        id: RequestId,
        peer: &Peer,
        reason: String,
        out: &mut Vec<Output>,
    ) {
        self.release(&peer.id);
        self.node_mut(&peer.id, |n| n.failures = n.failures.saturating_add(1));
        if let Some(active) = self.requests.get_mut(&id) {
            active.failed_on.insert(peer.id);
        }
        self.retry(now, id, reason, out);
    }

    /// Puts a request whose node is released back into the queue, unless it has had enough tries.
    fn retry(&mut self, now: u64, id: RequestId, reason: String, out: &mut Vec<Output>) {
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        active.reason = Some(reason.clone());
        active.phase = Phase::Queued { not_before: 0 };
        let attempt = active.attempts;
        if attempt >= ATTEMPTS_MAX {
            let reason = format!("{attempt} attempts failed; the last: {reason}");
            self.finish(now, id, RequestStatus::Failed, None, Some(reason), out);
        } else {
            out.push(Output::Replanned { request: id, attempt, reason });
            self.enqueue(id, 0);
        }
    }

    pub(super) fn tick(&mut self, now: u64, out: &mut Vec<Output>) {
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            let Some(active) = self.requests.get_mut(&id) else {
                continue;
            };
            active.due = None;
            let deadline = active.deadline;
            if deadline <= now {
                let reason = self.late(id);
                self.finish(now, id, RequestStatus::Expired, None, Some(reason), out);
                continue;
            }
            match &active.phase {
                Phase::Running { peer } => {
                    let peer = peer.clone();
                    let reason = format!("node {} did not answer in its share of the time", peer.name);
                    self.attempt_failed(now, id, &peer, reason, out);
                }
                // Its pause is over: the dispatch after this step plans it.
                Phase::Queued { .. } | Phase::Admitted => {
                    self.set_due(id, Some(deadline));
                }
                Phase::Done(_) => {}
            }
        }
    }

    /// Plans what waits, oldest first, while any node is free.
    pub(super) fn dispatch(&mut self, now: u64, out: &mut Vec<Output>) {
        if self.queue.is_empty() || !self.any_free() {
            return;
        }
        let waiting: Vec<(u64, RequestId)> = self.queue.iter().map(|(seq, id)| (*seq, *id)).collect();
        for (seq, id) in waiting {
            let Some(active) = self.requests.get(&id) else {
                continue;
            };
            let Phase::Queued { not_before } = active.phase else {
                continue;
            };
            if not_before > now || active.deadline <= now {
                continue;
            }
            match plan(&active.admission.needs, &self.nodes, &active.failed_on, self.rules()) {
                Plan::Choice(peer) => {
                    self.queue.remove(&seq);
                    self.send(now, id, peer, out);
                    if !self.any_free() {
                        return;
                    }
                }
                Plan::Busy | Plan::Nobody => {}
                Plan::Exhausted => self.pause(now, id),
            }
        }
    }

    /// Every node that would do has failed on it: all get another try, after a while.
    fn pause(&mut self, now: u64, id: RequestId) {
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        let pause = (PAUSE_MS << active.pauses.min(10)).min(PAUSE_MS_MAX);
        active.pauses += 1;
        active.failed_on.clear();
        self.enqueue(id, now.saturating_add(pause));
    }

    fn any_free(&self) -> bool {
        self.nodes.iter().any(|n| n.in_flight < self.config.per_node_in_flight)
    }

    fn send(&mut self, now: u64, id: RequestId, peer: Peer, out: &mut Vec<Output>) {
        let Some(active) = self.requests.get(&id) else {
            return;
        };
        let mut others = active.failed_on.clone();
        others.insert(peer.id);
        let plan = plan(&active.admission.needs, &self.nodes, &others, self.rules());
        let alternative = matches!(plan, Plan::Choice(_) | Plan::Busy);
        let left = active.deadline - now;
        // With nobody else to ask, cutting the attempt short would only lose work.
        let share = if alternative { (left / 2).max(ATTEMPT_MS_MIN).min(left) } else { left };
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        active.attempts += 1;
        active.first_sent.get_or_insert(now);
        active.reason = None;
        let until = now + share;
        active.phase = Phase::Running { peer: peer.clone() };
        let attempt = active.attempts;
        self.set_due(id, Some(until));
        self.node_mut(&peer.id, |n| n.in_flight += 1);
        self.last = Some(peer.name.clone());
        out.push(Output::Send { to: peer, request: id, attempt, left_ms: share });
    }

    fn finish(
        &mut self,
        now: u64,
        id: RequestId,
        status: RequestStatus,
        result: Option<Predictions>,
        error: Option<String>,
        out: &mut Vec<Output>,
    ) {
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        let view = Box::new(active.view(now, id, status, result, error));
        let durable = active.admission.durable;
        let seq = active.seq;
        let before = std::mem::replace(&mut active.phase, Phase::Done(view.clone()));
        if let Phase::Running { peer } = before {
            self.release(&peer.id);
        }
        self.queue.remove(&seq);
        self.set_due(id, None);
        self.books.close(status, view.metadata.processing_time_ms);
        if durable {
            self.done.insert(id);
        } else {
            self.requests.remove(&id);
        }
        out.push(Output::Finished { view, durable });
    }

    /// Why a request was not answered in time.
    fn late(&self, id: RequestId) -> String {
        let Some(active) = self.requests.get(&id) else {
            return String::new();
        };
        let within = format!("not answered within {} ms", active.admission.within_ms);
        match &active.phase {
            Phase::Running { peer } => format!("{within}: node {} was still at it", peer.name),
            Phase::Admitted | Phase::Queued { .. } | Phase::Done(_) => {
                format!("{within}: {}", self.waits_for(active))
            }
        }
    }

    /// What a request in the queue waits for.
    pub(super) fn waits_for(&self, active: &Active) -> String {
        if let Some(reason) = &active.reason {
            return reason.clone();
        }
        match plan(&active.admission.needs, &self.nodes, &active.failed_on, self.rules()) {
            Plan::Nobody => missing(&active.admission.needs, &self.nodes),
            Plan::Choice(_) => "its turn has not come".to_owned(),
            Plan::Busy => "every node that would do is busy".to_owned(),
            Plan::Exhausted => "every node that would do has failed".to_owned(),
        }
    }

    pub(super) fn enqueue(&mut self, id: RequestId, not_before: u64) {
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        active.phase = Phase::Queued { not_before };
        self.queue.insert(active.seq, id);
        let deadline = active.deadline;
        let due = if not_before > 0 { not_before.min(deadline) } else { deadline };
        self.set_due(id, Some(due));
    }

    fn set_due(&mut self, id: RequestId, due: Option<u64>) {
        let Some(active) = self.requests.get_mut(&id) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut active.due, due) {
            self.timers.remove(&(old, id));
        }
        if let Some(at) = due {
            self.timers.insert((at, id));
        }
    }

    /// The node that runs this attempt of this request.
    pub(super) fn running(&self, id: RequestId, attempt: u32) -> Option<Peer> {
        match self.requests.get(&id) {
            Some(Active { phase: Phase::Running { peer }, attempts, .. }) if *attempts == attempt => Some(peer.clone()),
            Some(_) | None => None,
        }
    }

    fn release(&mut self, node: &NodeId) {
        self.node_mut(node, |n| n.in_flight = n.in_flight.saturating_sub(1));
    }

    fn node_mut(&mut self, node: &NodeId, change: impl FnOnce(&mut Candidate)) {
        if let Some(found) = self.nodes.iter_mut().find(|n| n.peer.id == *node) {
            change(found);
        }
    }
}
