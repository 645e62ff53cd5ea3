//! One job, as a pure machine: it recruits, runs rounds one after the other, and ends.
//!
//! `step(now, input)` changes the machine and says, in a [`Step`], what to persist ([`Change`]) and what to do once that
//! is durable ([`Effect`]). Effects can be lost: [`Job::resume`] gives again those that a restarted shell owes.

use std::collections::{BTreeMap, BTreeSet};

use aivillage_base::ports::Payload;
use aivillage_base::time::Now;
use aivillage_base::wire::secure::SecureUp;
use aivillage_base::wire::{BlobRef, Declined, Down, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, NodeName};

use crate::config::Selection;
use crate::record::{Base, Counted, JobRecord, Life, MemberRecord, MemberState, RoundRecord, Saved, Stage};
use crate::recruit::{self, Candidate};
use crate::round::{CARRIED_RETRY_MS, Due, Round, Verdict, Word};
use crate::spec::Start;
use crate::step::{Change, ComputeError, Effect, Input, Made, Step};
use crate::view::{EventKind, JobStatus};

/// Attempts in a row that may fail because of members before the job is given up.
const FAILURES_MAX: u32 = 3;
/// Pause before an unanswered invitation is sent again, in milliseconds.
const REMIND_MS: u64 = 5_000;

mod attempts;
mod helped;
mod orders;

/// What the operator decides, as far as a job needs it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Who is chosen when there are more than places.
    pub selection: Selection,
    /// How long a silent member is waited for, in milliseconds.
    pub silence_ms: u64,
    /// Up to how many members of a secure round each masks with all others; above, the graph is drawn.
    pub full_graph_max: u32,
}

/// Tells one state of what a job offers from another, without making the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offers {
    round: Option<(RoundKey, u64)>,
    carried: Vec<NodeName>,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    record: JobRecord,
    rules: Rules,
    round: Option<Round>,
    /// The attempt that ended last, for members who repeat themselves.
    last: Option<RoundRecord>,
    candidates: BTreeMap<NodeName, Candidate>,
    /// Members of the last attempt that are still at work for it, with the time they have left in milliseconds.
    at_work: BTreeMap<NodeName, (Base, u64)>,
    waiting_for: Option<String>,
    /// The first model is being made, or the last one is on its way into the catalogue: asked for once.
    busy: bool,
}

impl Job {
    /// A job as it was persisted; nobody is connected yet.
    #[must_use]
    pub fn restore(now: Now, saved: Saved, rules: Rules) -> Self {
        let (open, ended): (Vec<_>, Vec<_>) = saved.attempts.into_iter().partition(RoundRecord::is_open);
        let mut job = Self {
            record: saved.record,
            rules,
            round: None,
            last: ended.into_iter().next_back(),
            candidates: BTreeMap::new(),
            at_work: BTreeMap::new(),
            waiting_for: None,
            busy: false,
        };
        if let (Some(round), Some(limits)) = (open.into_iter().next_back(), job.limits()) {
            job.round = Some(Round::restore(now, round, saved.members, limits));
        }
        job
    }

    /// The job's record.
    #[must_use]
    pub fn record(&self) -> &JobRecord {
        &self.record
    }

    /// The attempt under way.
    #[must_use]
    pub fn round(&self) -> Option<&Round> {
        self.round.as_ref()
    }

    /// What recruiting waits for, in words.
    #[must_use]
    pub fn waiting_for(&self) -> Option<&str> {
        self.waiting_for.as_deref()
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        self.record.life.status()
    }

    /// What nodes may fetch: members of the attempt under way, and those that are carried into the next one.
    #[must_use]
    pub fn offered(&self) -> BTreeMap<Digest, BTreeSet<Peer>> {
        let mut offered = self.round.as_ref().map(Round::offered).unwrap_or_default();
        for (name, (base, _)) in &self.at_work {
            if let Some(candidate) = self.candidates.get(name) {
                offered.entry(base.model.digest).or_default().insert(candidate.peer.clone());
            }
        }
        offered
    }

    /// Differs whenever [`Self::offered`] does.
    #[must_use]
    pub fn offers(&self) -> Offers {
        let round = self.round.as_ref().map(|round| (round.key().clone(), round.offers()));
        Offers { round, carried: self.at_work.keys().cloned().collect() }
    }

    /// May this node fetch this blob?
    #[must_use]
    pub fn offers_to(&self, peer: &Peer, digest: &Digest) -> bool {
        let carried = self.candidates.get(&peer.name).filter(|c| c.peer == *peer);
        let carried = carried.and_then(|c| self.at_work.get(&c.peer.name));
        self.round.as_ref().is_some_and(|r| r.offers_to(peer, digest))
            || carried.is_some_and(|(base, _)| base.model.digest == *digest)
    }

    /// Blobs that nodes may still fetch or that the attempt under way is made from: they must stay.
    #[must_use]
    pub fn needed(&self) -> BTreeSet<Digest> {
        let carried = self.at_work.values().map(|(base, _)| base.model.digest);
        let state = self.record.state.iter().map(|slot| slot.blob.digest);
        let newest = self.record.model.iter().map(|model| model.digest);
        let offered = self.round.iter().flat_map(|round| round.offered().into_keys());
        carried.chain(state).chain(newest).chain(offered).collect()
    }

    /// What would be said to this update by its header alone; None = its bytes are wanted.
    #[must_use]
    pub fn offer(&self, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        if let Some(round) = self.round.as_ref().filter(|r| r.hears(peer, &header.key)) {
            return round.offer(peer, header);
        }
        if let Some(reply) = self.offer_after_end(peer, header) {
            return Some(reply);
        }
        let next = self.record.rounds_done + 1;
        if let Some(round) = self.round.as_ref().filter(|r| r.replaced(peer, &header.key)) {
            let detail = format!(
                "{} was invited anew, to {}: an update for {} comes too late to count in it",
                peer.name,
                round.key(),
                header.key
            );
            return Some(UpdateReply::Refused { reason: "stale".into(), detail });
        }
        let detail = match self.status() {
            JobStatus::Created | JobStatus::Running => {
                format!("{} is not open: the job is at round {next}", header.key)
            }
            ended @ (JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled) => {
                format!("the job is {}", ended.as_str())
            }
        };
        Some(UpdateReply::Refused { reason: "late".into(), detail })
    }

    /// What the attempt that ended last says to this update: it counts already, or its turn comes with the next attempt.
    fn offer_after_end(&self, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        let last = self.last.as_ref().filter(|r| matches!(r.stage, Stage::Done { .. }))?;
        let member = last.members.iter().find(|m| m.peer == *peer && *m.works_on(&last.key) == header.key)?;
        if member.counted().is_some_and(|c| c.is(header)) {
            return Some(UpdateReply::Accepted);
        }
        let goes_on = self.status() == JobStatus::Running && self.record.rounds_done < self.record.spec.total_rounds;
        let waits = goes_on && self.round.is_none() && member.state == MemberState::Carried;
        waits.then_some(UpdateReply::Retry { after_ms: CARRIED_RETRY_MS })
    }

    /// What a restarted shell owes: the effects of the state as it was persisted.
    #[must_use]
    pub fn resume(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        match self.round.as_ref().map(Round::stage) {
            Some(Stage::Publishing) => step.effects.extend(self.compute(now)),
            Some(Stage::Keying | Stage::Collecting | Stage::Unmasking) => self.advance(now, &mut step),
            Some(Stage::Done { .. } | Stage::Abandoned { .. }) | None => self.recruit(now, &mut step),
        }
        step
    }

    /// One input.
    pub fn step(&mut self, now: Now, input: Input) -> Step {
        let mut step = Step::default();
        if self.status().is_terminal() {
            if let Input::Update(peer, header, _) = input {
                step.reply = self.offer(&peer, &header);
            }
            return step;
        }
        match input {
            Input::Started => self.started(now, &mut step),
            Input::Joined(candidate) => self.joined(now, candidate, &mut step),
            Input::Left(peer) => {
                // A stream that closed late must not take away the node that has the name by now.
                if self.candidates.get(&peer.name).is_some_and(|c| c.peer == peer) {
                    self.candidates.remove(&peer.name);
                    self.at_work.remove(&peer.name);
                }
                if let Some(round) = &mut self.round {
                    round.left(now, &peer);
                }
            }
            Input::Initialised(architecture, model) => self.initialised(now, architecture, model, &mut step),
            Input::Answer(peer, key, declined) => self.answer(now, &peer, &key, declined, &mut step),
            Input::Failed(peer, key, reason) => {
                let member = self.current(&peer, &key).and_then(|round| round.failed(&peer, reason));
                self.member_changed(member, &mut step);
                self.advance(now, &mut step);
            }
            Input::Update(peer, header, payload) => self.update(now, &peer, &header, payload, &mut step),
            Input::Secure(peer, key, message) => self.said(now, &peer, &key, &message, &mut step),
            Input::Computed(key, result) => self.computed(now, &key, result, &mut step),
            Input::Published(result) => self.published(now, result, &mut step),
            Input::Cancel => self.end(now, Life::Cancelled, &mut step),
            Input::Tick => self.tick(now, &mut step),
            Input::Retry => {
                self.busy = false;
                step = self.resume(now);
            }
        }
        step
    }

    fn started(&mut self, now: Now, step: &mut Step) {
        if self.record.life == Life::Created {
            self.record.life = Life::Running;
            step.changes.push(self.job_change());
            step.effects.push(Effect::Event(EventKind::Status { status: JobStatus::Running, reason: None }));
        }
        self.recruit(now, step);
    }

    fn joined(&mut self, now: Now, candidate: Candidate, step: &mut Step) {
        let peer = candidate.peer.clone();
        // A node that comes back may have another policy: it is asked again.
        let excluded = self.record.excluded.remove(&peer.name).is_some() | self.record.withheld.remove(&peer.name);
        if self.record.declined.remove(&peer.name).is_some() | excluded {
            step.changes.push(self.job_change());
        }
        self.candidates.insert(peer.name.clone(), candidate);
        // Whatever it was at when its stream broke, it is given the newest model.
        self.at_work.remove(&peer.name);
        let Some(round) = &mut self.round else {
            self.recruit(now, step);
            return;
        };
        if round.is_helper(&peer) {
            self.ask_helper(step);
            return;
        }
        if round.joined(now, &peer) {
            match round.due(&peer.name) {
                Some(Due::Secure(_)) => self.tell(&peer, step),
                Some(Due::Invitation) | None => self.invite_anew(now, &peer, step),
            }
        } else {
            self.admit(now, &peer, step);
        }
    }

    fn initialised(&mut self, now: Now, architecture: Architecture, model: BlobRef, step: &mut Step) {
        self.busy = false;
        if self.record.model.is_none() {
            self.record.architecture = Some(architecture);
            self.record.model = Some(model);
            step.changes.push(self.job_change());
            step.effects.push(Effect::Model(Made { model, state: Vec::new(), totals: None }));
        }
        self.recruit(now, step);
    }

    fn answer(&mut self, now: Now, peer: &Peer, key: &RoundKey, declined: Option<Declined>, step: &mut Step) {
        let refusal = declined.clone();
        let member = self.current(peer, key).and_then(|round| round.answer(now, peer, declined));
        if let (Some(_), Some(refusal)) = (&member, refusal) {
            self.record.declined.insert(peer.name.clone(), refusal);
            step.changes.push(self.job_change());
        }
        self.member_changed(member, step);
        self.advance(now, step);
    }

    /// A word of secure aggregation. Who repeats itself has missed what came next.
    fn said(&mut self, now: Now, peer: &Peer, key: &RoundKey, message: &SecureUp, step: &mut Step) {
        let Some(round) = self.round.as_mut().filter(|round| round.key() == key) else {
            let gone = Down::RoundClosed { key: key.clone(), outcome: "over".into() };
            step.effects.push(Effect::Send(peer.clone(), gone));
            return;
        };
        if round.is_helper(peer) {
            return self.helper_said(now, message, step);
        }
        match round.say(now, peer, message) {
            Word::Old => self.tell(peer, step),
            Word::New => self.advance(now, step),
            Word::False(member, why) => {
                self.exclude(peer.name.clone(), why, step);
                self.member_changed(Some(member), step);
                self.advance(now, step);
            }
            Word::Silenced(member) => {
                self.member_changed(Some(member), step);
                self.advance(now, step);
            }
        }
    }

    /// Leaves a node out of the job's next attempts.
    fn exclude(&mut self, node: NodeName, why: String, step: &mut Step) {
        self.record.excluded.insert(node, why);
        step.changes.push(self.job_change());
    }

    /// Sends a member what it has to act on in secure aggregation, if there is something.
    fn tell(&self, peer: &Peer, step: &mut Step) {
        let Some(round) = self.round.as_ref().filter(|round| round.has(peer)) else { return };
        if let Some(Due::Secure(message)) = round.due(&peer.name) {
            let message = Down::Secure { key: round.key().clone(), message: Box::new(message) };
            step.effects.push(Effect::Send(peer.clone(), message));
        }
    }

    fn update(&mut self, now: Now, peer: &Peer, header: &UpdateHeader, payload: Payload, step: &mut Step) {
        let offer = self.offer(peer, header);
        let declared = Counted::new(header, false).contribution(header.key.round);
        let unfit = self.record.spec.strategy.rule().accepts(&declared).err();
        let Some(round) = self.current(peer, &header.key).filter(|_| offer.is_none()) else {
            step.reply = offer;
            return;
        };
        if round.is_helper(peer) {
            return self.helped(now, peer, header, payload, step);
        }
        let key = round.key().clone();
        let (reply, member) = match unfit {
            Some(detail) => round.refuse(peer, "unusable", detail),
            None => round.update(peer, header, &payload),
        };
        step.kept = member.as_ref().is_some_and(|m| m.counted().is_some());
        if let (Payload::Inline(bytes), true) = (payload, step.kept) {
            step.changes.push(Change::Payload(key, peer.name.clone(), bytes));
        }
        self.member_changed(member, step);
        step.reply = Some(reply);
        self.advance(now, step);
    }

    fn computed(&mut self, now: Now, key: &RoundKey, result: Result<Made, ComputeError>, step: &mut Step) {
        let Some(round) = self.round.as_mut().filter(|r| r.key() == key && *r.stage() == Stage::Publishing) else {
            return;
        };
        match result {
            Ok(Made { model: model_out, state, totals }) => {
                round.note_totals(totals);
                let record = round.end(now, Stage::Done { model_out, state_out: state.clone() });
                self.at_work = round.carried(now);
                self.record.model = Some(model_out);
                self.record.state = state.clone();
                self.note_receipts(&record);
                self.record.opening = None;
                self.record.rounds_done = key.round;
                self.record.attempts = 0;
                self.record.failures_in_row = 0;
                step.effects.push(Effect::Model(Made { model: model_out, state, totals }));
                self.close_attempt(record, step);
                self.recruit(now, step);
                step.changes.push(self.job_change());
            }
            Err(ComputeError::BadUpdate { node, reason, detail }) => {
                let unusable = round.member(&node).and_then(MemberRecord::counted).filter(|c| !c.inline);
                if let Some(stored) = unusable.map(|c| c.payload.digest) {
                    step.effects.push(Effect::DeleteBlobs(vec![stored]));
                }
                let masked = round.secure().is_some();
                let reject = detail.clone();
                let member = round.reject(&node, reason, detail);
                let counted = round.counted().count();
                self.member_changed(member, step);
                // The survivors have answered for this set, and answer for no other.
                let fixed = masked.then(|| format!("the update of {node} is in the sum and cannot be used: {reject}"));
                match fixed.or_else(|| self.too_few(counted)) {
                    None => step.effects.extend(self.compute(now)),
                    // What was damaged in our store is nobody's fault but ours.
                    Some(reason) => self.abandon(now, reason, !masked, step),
                }
            }
            Err(ComputeError::BadShares { node, detail }) => {
                self.exclude(node.clone(), detail.clone(), step);
                let reason = format!("the sum cannot be opened: the shares that {node} dealt are wrong: {detail}");
                self.abandon(now, reason, true, step);
            }
            Err(ComputeError::Unusable(reason)) => self.abandon(now, reason, true, step),
            Err(ComputeError::Store(_)) => step.effects.extend(self.compute(now)),
        }
    }

    fn published(&mut self, now: Now, result: Result<String, String>, step: &mut Step) {
        if self.record.rounds_done < self.record.spec.total_rounds {
            return;
        }
        match result {
            Ok(model_id) => self.end(now, Life::Completed { model_id }, step),
            Err(reason) => {
                let reason = format!("the model cannot enter the catalogue: {reason}");
                self.end(now, Life::Failed { reason }, step);
            }
        }
    }

    fn tick(&mut self, now: Now, step: &mut Step) {
        let Some(round) = &mut self.round else {
            self.recruit(now, step);
            return;
        };
        let silent = round.to_remind(now, REMIND_MS);
        let helper = round.ask_again(now);
        step.changes.extend(round.note_time(now).map(|record| Change::Noted(Box::new(record))));
        for peer in silent {
            self.invite_anew(now, &peer, step);
        }
        if helper.is_some() {
            self.ask_helper(step);
        }
        self.advance(now, step);
    }

    fn current(&mut self, peer: &Peer, key: &RoundKey) -> Option<&mut Round> {
        self.round.as_mut().filter(|r| r.hears(peer, key))
    }

    fn member_changed(&mut self, member: Option<MemberRecord>, step: &mut Step) {
        if let (Some(member), Some(round)) = (member, &self.round) {
            let event =
                EventKind::Member { round: round.key().round, member: Box::new(member.view(round.key().round)) };
            step.changes.push(Change::Member(round.key().clone(), Box::new(member)));
            step.effects.push(Effect::Event(event));
        }
    }

    fn job_change(&self) -> Change {
        Change::Job(Box::new(self.record.clone()))
    }
}

#[cfg(test)]
mod tests;
