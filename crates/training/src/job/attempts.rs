//! How attempts open, close and end, and the job with them.

use aivillage_base::wire::Receipt;

use super::*;

impl Job {
    /// Closes or abandons the attempt if its time has come.
    pub(super) fn advance(&mut self, now: Now, step: &mut Step) {
        while let Some(round) = self.round.as_mut().filter(|r| r.waits()) {
            match round.verdict(now) {
                Verdict::Wait => return,
                verdict @ (Verdict::Next | Verdict::Close | Verdict::Abandon { .. }) => self.act(now, verdict, step),
            }
        }
    }

    /// Does what the attempt wants next.
    fn act(&mut self, now: Now, verdict: Verdict, step: &mut Step) {
        let Some(round) = &mut self.round else { return };
        match verdict {
            Verdict::Wait => {}
            Verdict::Next => match round.next(now) {
                Ok(changed) => {
                    let publishing = *round.stage() == Stage::Publishing;
                    let key = round.key().clone();
                    step.changes.push(Change::Round(Box::new(round.record(now))));
                    self.note_opening(step);
                    for member in changed {
                        match member.state {
                            // What it said of keys is for the record, not for people.
                            MemberState::Invited | MemberState::Counted(_) => {
                                step.changes.push(Change::Words(key.clone(), Box::new(member)));
                            }
                            MemberState::Declined(_)
                            | MemberState::Failed { .. }
                            | MemberState::Refused { .. }
                            | MemberState::Carried
                            | MemberState::Silent => self.member_changed(Some(member), step),
                        }
                    }
                    match publishing {
                        true => step.effects.extend(self.compute(now)),
                        false => self.tell_all(step),
                    }
                }
                Err(reason) => self.abandon(now, reason, true, step),
            },
            Verdict::Close => {
                let left_out = round.close(now);
                let unmasking = *round.stage() == Stage::Unmasking;
                let key = round.key().clone();
                step.changes.push(Change::Round(Box::new(round.record(now))));
                self.note_opening(step);
                for member in left_out {
                    if member.state == MemberState::Silent {
                        let key = member.works_on(&key).clone();
                        let gone = Down::RoundClosed { key, outcome: "published".into() };
                        step.effects.push(Effect::Send(member.peer.clone(), gone));
                    }
                    self.member_changed(Some(member), step);
                }
                match unmasking {
                    true => self.tell_all(step),
                    false => step.effects.extend(self.compute(now)),
                }
            }
            Verdict::Abandon { reason, members_failed } => {
                self.record.withheld.extend(round.withheld());
                self.abandon(now, reason, members_failed, step);
            }
        }
    }

    /// Once it is asked that a sum be opened, another attempt at the round is of the same nodes.
    fn note_opening(&mut self, step: &mut Step) {
        let opening = self.round.as_ref().and_then(Round::opening);
        if opening.is_some() && opening != self.record.opening {
            self.record.opening = opening;
            step.changes.push(self.job_change());
        }
    }

    /// Sends every member what it has to act on in secure aggregation.
    fn tell_all(&self, step: &mut Step) {
        let members = self.round.iter().flat_map(Round::members);
        members.for_each(|member| self.tell(&member.peer, step));
        self.ask_helper(step);
    }

    pub(super) fn abandon(&mut self, now: Now, reason: String, members_failed: bool, step: &mut Step) {
        let Some(round) = &self.round else { return };
        let secure = round.secure().is_some();
        let record = round.end(now, Stage::Abandoned { reason: reason.clone() });
        if members_failed {
            self.record.failures_in_row += 1;
        }
        self.close_attempt(record, step);
        if self.record.failures_in_row >= FAILURES_MAX {
            let reason = format!("{FAILURES_MAX} attempts in a row failed; the last: {reason}");
            self.end(now, Life::Failed { reason }, step);
        } else {
            // Under secure aggregation with a pause, until the next tick: a member that answers every invitation with an
            // alarm must not keep everybody busy.
            if !secure {
                self.recruit(now, step);
            }
            step.changes.push(self.job_change());
        }
    }

    /// Ends the attempt under way: its record takes its members in, everything else of it goes.
    pub(super) fn close_attempt(&mut self, mut record: RoundRecord, step: &mut Step) {
        self.round = None;
        for member in &mut record.members {
            // Keys and shares have done their work: what is not kept cannot be stolen.
            member.secure = None;
        }
        let masked = record.secure.is_some();
        let abandoned = matches!(record.stage, Stage::Abandoned { .. });
        let retained: BTreeSet<&NodeName> = record.retained().map(|(name, _)| name).collect();
        let mut stored = Vec::new();
        for member in &record.members {
            let counted = member.counted().filter(|c| !c.inline && !retained.contains(&member.peer.name));
            stored.extend(counted.map(|c| c.payload.digest));
            let waits = match member.state {
                MemberState::Invited | MemberState::Carried => abandoned,
                MemberState::Counted(_) => masked,
                MemberState::Declined(_) | MemberState::Failed { .. } | MemberState::Refused { .. } => false,
                MemberState::Silent => masked,
            };
            if waits {
                let key = member.works_on(&record.key).clone();
                let outcome = if abandoned { "abandoned" } else { "published" };
                let gone = Down::RoundClosed { key, outcome: outcome.into() };
                step.effects.push(Effect::Send(member.peer.clone(), gone));
            }
        }
        stored.extend(record.helped().filter(|c| !c.inline).map(|c| c.payload.digest));
        let helper = record.secure.iter().filter_map(|secure| Some(secure.helper.as_ref()?.peer.name.clone()));
        let names = record.members.iter().map(|m| m.peer.name.clone()).chain(helper);
        let (kept, gone): (Vec<_>, Vec<_>) = names.partition(|name| retained.contains(name));
        step.changes.push(Change::Forget(record.key.clone(), gone));
        if !kept.is_empty() {
            step.changes.push(Change::Fold(record.key.clone(), kept));
        }
        step.changes.push(Change::Round(Box::new(record.clone())));
        if !stored.is_empty() {
            step.effects.push(Effect::DeleteBlobs(stored));
        }
        let view = record.view(&record.members, record.elapsed_ms);
        step.effects.push(Effect::Event(EventKind::RoundEnded(Box::new(view))));
        self.last = Some(record);
    }

    /// Ends the job.
    pub(super) fn end(&mut self, now: Now, life: Life, step: &mut Step) {
        if let Some(round) = &self.round {
            let reason = match &life {
                Life::Failed { reason } => format!("the job failed: {reason}"),
                Life::Cancelled | Life::Created | Life::Running | Life::Completed { .. } => {
                    format!("the job was {}", life.status().as_str())
                }
            };
            let record = round.end(now, Stage::Abandoned { reason });
            self.close_attempt(record, step);
        }
        self.record.life = life;
        self.record.ended_ms = Some(now.wall_ms);
        self.at_work.clear();
        self.waiting_for = None;
        step.changes.push(self.job_change());
        let status = self.status();
        let reason = match &self.record.life {
            Life::Failed { reason } => Some(reason.clone()),
            Life::Created | Life::Running | Life::Completed { .. } | Life::Cancelled => None,
        };
        for candidate in self.candidates.values() {
            let ended = Down::JobEnded {
                job: self.record.spec.job_id.clone(),
                status: status.as_str().into(),
                receipt: self.record.receipts.get(&candidate.peer.name).cloned(),
            };
            step.effects.push(Effect::Send(candidate.peer.clone(), ended));
        }
        step.effects.push(Effect::Event(EventKind::Status { status, reason }));
    }

    /// Opens the next attempt if it can be opened; else says what it waits for.
    pub(super) fn recruit(&mut self, now: Now, step: &mut Step) {
        if self.round.is_some() || self.record.life != Life::Running {
            return;
        }
        if self.record.rounds_done >= self.record.spec.total_rounds {
            if !self.busy {
                self.busy = true;
                step.effects.extend(self.finish());
            }
            return;
        }
        let at_work = self.still_useful();
        let found = recruit::cohort(&self.record, &self.candidates, &at_work, self.rules.selection);
        let (architecture, cohort) = match found {
            Ok(found) => found,
            Err(waiting_for) => {
                if self.waiting_for.as_ref() != Some(&waiting_for) {
                    let round = self.record.rounds_done + 1;
                    let event = EventKind::Recruiting { round, waiting_for: waiting_for.clone() };
                    step.effects.push(Effect::Event(event));
                }
                self.waiting_for = Some(waiting_for);
                return;
            }
        };
        self.waiting_for = None;
        if let Err(reason) = self.record.spec.fits(&architecture) {
            self.end(now, Life::Failed { reason }, step);
            return;
        }
        match self.first_model() {
            None if self.busy => {}
            None => {
                self.busy = true;
                step.effects.push(Effect::Initialise(architecture));
            }
            Some(model) => {
                self.record.architecture = Some(architecture);
                self.record.model = Some(model);
                self.open(now, model, &cohort, step);
            }
        }
    }

    fn first_model(&self) -> Option<BlobRef> {
        let start = match &self.record.spec.start {
            Start::Model(model) => model.bundle,
            Start::Recipe(_) => None,
        };
        self.record.model.or(start)
    }

    fn open(&mut self, now: Now, model: BlobRef, cohort: &[Peer], step: &mut Step) {
        self.record.attempts += 1;
        let key = RoundKey {
            job: self.record.spec.job_id.clone(),
            round: self.record.rounds_done + 1,
            attempt: self.record.attempts,
        };
        let (limits, start) = match (self.limits(), self.start_point(&key, model, cohort)) {
            (Some(limits), Some(Ok(start))) => (limits, start),
            (_, Some(Err(reason))) => {
                self.end(now, Life::Failed { reason }, step);
                return;
            }
            (_, None) | (None, _) => return,
        };
        let mut round = Round::open(now, key.clone(), start, cohort, limits);
        for (name, (base, left_ms)) in std::mem::take(&mut self.at_work) {
            let stale = key.round - base.key.round > limits.buffer.map_or(0, |b| b.max_staleness);
            if !stale {
                round.carry(&name, base, left_ms);
            }
        }
        step.changes.push(self.job_change());
        step.changes.push(Change::Round(Box::new(round.record(now))));
        for member in round.members() {
            step.changes.push(Change::Member(key.clone(), Box::new(member)));
        }
        let carried = |peer: &&Peer| round.member(&peer.name).is_some_and(|m| m.base.is_some());
        let invited: Vec<Peer> = cohort.iter().filter(|peer| !carried(peer)).cloned().collect();
        self.round = Some(round);
        let names = cohort.iter().map(|p| p.name.clone()).collect();
        let opened = EventKind::RoundOpened { round: key.round, attempt: key.attempt, invited: names };
        step.effects.push(Effect::Event(opened));
        for peer in &invited {
            step.effects.extend(self.invite(now, peer));
        }
    }

    /// Members at work whose updates can still count in the next round.
    fn still_useful(&self) -> BTreeSet<NodeName> {
        let Some(buffer) = self.record.spec.strategy.rule().buffer() else { return BTreeSet::new() };
        let round = self.record.rounds_done + 1;
        let useful = self.at_work.iter().filter(|(_, (base, _))| round - base.key.round <= buffer.max_staleness);
        useful.map(|(name, _)| name.clone()).collect()
    }

    /// A node that comes while updates are buffered is taken in at once, if there is a place for it.
    pub(super) fn admit(&mut self, now: Now, peer: &Peer, step: &mut Step) {
        let max = self.record.spec.max_participants as usize;
        let Some(candidate) = self.candidates.get(&peer.name) else { return };
        let eligible = recruit::eligible(&self.record, candidate);
        let Some(round) = self.round.as_mut().filter(|r| eligible && r.members().len() < max) else { return };
        let Some(member) = round.admit(now, peer) else { return };
        self.member_changed(Some(member), step);
        step.effects.extend(self.invite(now, peer));
    }

    /// Invites a member again: one that was carried works on the newest model from now on.
    pub(super) fn invite_anew(&mut self, now: Now, peer: &Peer, step: &mut Step) {
        let member = self.round.as_mut().and_then(|round| round.renew(&peer.name));
        self.member_changed(member, step);
        step.effects.extend(self.invite(now, peer));
    }

    /// Why `counted` updates are too few for a model; None if they are enough.
    pub(super) fn too_few(&self, counted: usize) -> Option<String> {
        let spec = &self.record.spec;
        let (needed, why) = spec.strategy.rule().cohort_min();
        let min = self.limits()?.min;
        if counted >= min {
            return None;
        }
        let mut reason = format!("{counted} usable updates, {min} needed");
        if counted < needed as usize {
            reason.push_str(&format!(": strategy `{}` needs at least {needed} ({why})", spec.strategy.name()));
        }
        Some(reason)
    }

    /// Nodes that keep state of their own learn with their next message which of their updates counted.
    pub(super) fn note_receipts(&mut self, record: &RoundRecord) {
        if !self.record.spec.nodes_keep_state() {
            return;
        }
        for member in &record.members {
            if let Some(counted) = member.counted() {
                let receipt = Receipt { key: member.works_on(&record.key).clone(), digest: counted.payload.digest };
                self.record.receipts.insert(member.peer.name.clone(), receipt);
            }
        }
    }
}
