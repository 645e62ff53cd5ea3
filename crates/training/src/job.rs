//! One job, as a pure machine: it recruits, runs rounds one after the other, and ends.
//!
//! `step(now, input)` changes the machine and says, in a [`Step`], what to persist ([`Change`]) and what to do once that
//! is durable ([`Effect`]). Effects can be lost: [`Job::resume`] gives again those that a restarted shell owes.

use std::collections::BTreeMap;

use aivillage_base::ports::Payload;
use aivillage_base::time::Now;
use aivillage_base::wire::{BlobRef, Declined, Down, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, NodeName};

use crate::config::Selection;
use crate::record::{JobRecord, Life, MemberRecord, MemberState, RoundRecord, Saved, Stage};
use crate::recruit::{self, Candidate};
use crate::round::{Round, Verdict};
use crate::spec::Start;
use crate::step::{Change, ComputeError, Effect, Input, Made, Step};
use crate::view::{EventKind, JobStatus};

/// Attempts in a row that may fail because of members before the job is given up.
const FAILURES_MAX: u32 = 3;
/// Pause before an unanswered invitation is sent again, in milliseconds.
const REMIND_MS: u64 = 5_000;

mod orders;

/// What the operator decides, as far as a job needs it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Who is chosen when there are more than places.
    pub selection: Selection,
    /// How long a silent member is waited for, in milliseconds.
    pub silence_ms: u64,
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

    /// True if this blob is what members of the attempt under way start from.
    #[must_use]
    pub fn offers_model(&self, peer: &Peer, digest: &Digest) -> bool {
        self.round.as_ref().is_some_and(|r| r.model_in().digest == *digest && r.has(peer))
    }

    /// What would be said to this update by its header alone; None = its bytes are wanted.
    #[must_use]
    pub fn offer(&self, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        if let Some(round) = self.round.as_ref().filter(|r| *r.key() == header.key) {
            return round.offer(peer, header);
        }
        let published = |r: &&RoundRecord| r.key == header.key && matches!(r.stage, Stage::Done { .. });
        if let Some(last) = self.last.as_ref().filter(published) {
            let member = last.members.iter().find(|m| m.peer == *peer);
            if member.and_then(MemberRecord::counted).is_some_and(|c| c.is(header)) {
                return Some(UpdateReply::Accepted);
            }
        }
        let next = self.record.rounds_done + 1;
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

    /// What a restarted shell owes: the effects of the state as it was persisted.
    #[must_use]
    pub fn resume(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        match self.round.as_ref().map(Round::stage) {
            Some(Stage::Publishing) => step.effects.extend(self.compute(now)),
            Some(Stage::Collecting) => self.advance(now, &mut step),
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
                }
                if let Some(round) = &mut self.round {
                    round.left(now, &peer);
                }
            }
            Input::Initialised(architecture, model) => self.initialised(now, architecture, model, &mut step),
            Input::Answer(peer, key, declined) => self.answer(now, &peer, &key, declined, &mut step),
            Input::Failed(peer, key, reason) => {
                let member = self.current(&key).and_then(|round| round.failed(&peer, reason));
                self.member_changed(member, &mut step);
                self.advance(now, &mut step);
            }
            Input::Update(peer, header, payload) => self.update(now, &peer, &header, payload, &mut step),
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
        if self.record.declined.remove(&peer.name).is_some() {
            step.changes.push(self.job_change());
        }
        self.candidates.insert(peer.name.clone(), candidate);
        if let Some(round) = &mut self.round {
            if round.joined(now, &peer) {
                step.effects.extend(self.invite(now, &peer));
            }
        } else {
            self.recruit(now, step);
        }
    }

    fn initialised(&mut self, now: Now, architecture: Architecture, model: BlobRef, step: &mut Step) {
        self.busy = false;
        if self.record.model.is_none() {
            self.record.architecture = Some(architecture);
            self.record.model = Some(model);
            step.changes.push(self.job_change());
            step.effects.push(Effect::Model(model));
        }
        self.recruit(now, step);
    }

    fn answer(&mut self, now: Now, peer: &Peer, key: &RoundKey, declined: Option<Declined>, step: &mut Step) {
        let refusal = declined.clone();
        let member = self.current(key).and_then(|round| round.answer(now, peer, declined));
        if let (Some(_), Some(refusal)) = (&member, refusal) {
            self.record.declined.insert(peer.name.clone(), refusal);
            step.changes.push(self.job_change());
        }
        self.member_changed(member, step);
        self.advance(now, step);
    }

    fn update(&mut self, now: Now, peer: &Peer, header: &UpdateHeader, payload: Payload, step: &mut Step) {
        let offer = self.offer(peer, header);
        let Some(round) = self.current(&header.key).filter(|_| offer.is_none()) else {
            step.reply = offer;
            return;
        };
        let (reply, member) = round.update(peer, header, &payload);
        step.kept = member.as_ref().is_some_and(|m| m.counted().is_some());
        if let (Payload::Inline(bytes), true) = (payload, step.kept) {
            step.changes.push(Change::Payload(header.key.clone(), peer.name.clone(), bytes));
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
            Ok(Made { model: model_out, state }) => {
                let record = round.end(now, Stage::Done { model_out, state_out: state.clone() });
                self.record.model = Some(model_out);
                self.record.state = state;
                self.record.rounds_done = key.round;
                self.record.attempts = 0;
                self.record.failures_in_row = 0;
                step.effects.push(Effect::Model(model_out));
                self.close_attempt(record, step);
                self.recruit(now, step);
                step.changes.push(self.job_change());
            }
            Err(ComputeError::BadUpdate { node, reason, detail }) => {
                let unusable = round.member(&node).and_then(MemberRecord::counted).filter(|c| !c.inline);
                if let Some(stored) = unusable.map(|c| c.payload.digest) {
                    step.effects.push(Effect::DeleteBlobs(vec![stored]));
                }
                let member = round.reject(&node, reason, detail);
                let counted = round.counted().count();
                self.member_changed(member, step);
                if counted >= self.record.spec.min_participants as usize {
                    step.effects.extend(self.compute(now));
                } else {
                    let reason = format!("{counted} usable updates, {} needed", self.record.spec.min_participants);
                    self.abandon(now, reason, true, step);
                }
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
        step.changes.extend(round.note_time(now).map(|record| Change::Round(Box::new(record))));
        for peer in silent {
            step.effects.extend(self.invite(now, &peer));
        }
        self.advance(now, step);
    }

    fn current(&mut self, key: &RoundKey) -> Option<&mut Round> {
        self.round.as_mut().filter(|r| r.key() == key)
    }

    fn member_changed(&mut self, member: Option<MemberRecord>, step: &mut Step) {
        if let (Some(member), Some(round)) = (member, &self.round) {
            let event = EventKind::Member { round: round.key().round, member: member.view() };
            step.changes.push(Change::Member(round.key().clone(), member));
            step.effects.push(Effect::Event(event));
        }
    }

    /// Closes or abandons the attempt if its time has come.
    fn advance(&mut self, now: Now, step: &mut Step) {
        let Some(round) = self.round.as_mut().filter(|r| *r.stage() == Stage::Collecting) else {
            return;
        };
        match round.verdict(now) {
            Verdict::Wait => {}
            Verdict::Close => {
                let left_out = round.close();
                let key = round.key().clone();
                step.changes.push(Change::Round(Box::new(round.record(now))));
                for member in left_out {
                    let gone = Down::RoundClosed { key: key.clone(), outcome: "published".into() };
                    step.effects.push(Effect::Send(member.peer.clone(), gone));
                    self.member_changed(Some(member), step);
                }
                step.effects.extend(self.compute(now));
            }
            Verdict::Abandon { reason, members_failed } => self.abandon(now, reason, members_failed, step),
        }
    }

    fn abandon(&mut self, now: Now, reason: String, members_failed: bool, step: &mut Step) {
        let Some(round) = &self.round else { return };
        let record = round.end(now, Stage::Abandoned { reason: reason.clone() });
        if members_failed {
            self.record.failures_in_row += 1;
        }
        self.close_attempt(record, step);
        if self.record.failures_in_row >= FAILURES_MAX {
            let reason = format!("{FAILURES_MAX} attempts in a row failed; the last: {reason}");
            self.end(now, Life::Failed { reason }, step);
        } else {
            self.recruit(now, step);
            step.changes.push(self.job_change());
        }
    }

    /// Ends the attempt under way: its record takes its members in, everything else of it goes.
    fn close_attempt(&mut self, record: RoundRecord, step: &mut Step) {
        self.round = None;
        let abandoned = matches!(record.stage, Stage::Abandoned { .. });
        let mut stored = Vec::new();
        for member in &record.members {
            if let Some(counted) = member.counted().filter(|c| !c.inline) {
                stored.push(counted.payload.digest);
            }
            if abandoned && member.state == MemberState::Invited {
                let gone = Down::RoundClosed { key: record.key.clone(), outcome: "abandoned".into() };
                step.effects.push(Effect::Send(member.peer.clone(), gone));
            }
        }
        let names = record.members.iter().map(|m| m.peer.name.clone()).collect();
        step.changes.push(Change::Forget(record.key.clone(), names));
        step.changes.push(Change::Round(Box::new(record.clone())));
        if !stored.is_empty() {
            step.effects.push(Effect::DeleteBlobs(stored));
        }
        let view = record.view(&record.members, record.elapsed_ms);
        step.effects.push(Effect::Event(EventKind::RoundEnded(Box::new(view))));
        self.last = Some(record);
    }

    /// Ends the job.
    fn end(&mut self, now: Now, life: Life, step: &mut Step) {
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
    fn recruit(&mut self, now: Now, step: &mut Step) {
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
        let found = recruit::cohort(&self.record, &self.candidates, self.rules.selection);
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
        let (Some(limits), Some(start)) = (self.limits(), self.start_point(model)) else { return };
        self.record.attempts += 1;
        let key = RoundKey {
            job: self.record.spec.job_id.clone(),
            round: self.record.rounds_done + 1,
            attempt: self.record.attempts,
        };
        let round = Round::open(now, key.clone(), start, cohort, limits);
        step.changes.push(self.job_change());
        step.changes.push(Change::Round(Box::new(round.record(now))));
        for member in round.members() {
            step.changes.push(Change::Member(key.clone(), member));
        }
        self.round = Some(round);
        let invited = cohort.iter().map(|p| p.name.clone()).collect();
        step.effects.push(Effect::Event(EventKind::RoundOpened { round: key.round, attempt: key.attempt, invited }));
        for peer in cohort {
            step.effects.extend(self.invite(now, peer));
        }
    }

    fn job_change(&self) -> Change {
        Change::Job(Box::new(self.record.clone()))
    }
}

#[cfg(test)]
mod tests;
