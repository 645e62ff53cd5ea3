//! One attempt at a round, as a pure machine: who was invited, who counts, when it closes.
//!
//! `collecting -> publishing -> done | abandoned`. It sees digests and counts, never weights. Its persistent part is
//! [`RoundRecord`] and one [`MemberRecord`] a member; what it keeps beside them (who is connected, who answered) is
//! rebuilt from nodes' messages after a restart.

use std::collections::BTreeMap;

use aivillage_base::NodeName;
use aivillage_base::fixed::Grid;
use aivillage_base::ports::Payload;
use aivillage_base::time::Now;
use aivillage_base::wire::{BlobRef, Declined, Peer, RoundKey, UpdateHeader, UpdateReply};

use crate::record::{Counted, MemberRecord, MemberState, RoundRecord, Stage, StateSlot};

/// The time an attempt has taken is persisted this often within its timeout.
const NOTES: u64 = 20;
/// Shortest pause between two such writes, in milliseconds.
const NOTE_MS_MIN: u64 = 1_000;

/// What bounds an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fewest counted updates.
    pub min: usize,
    /// Longest time, in milliseconds.
    pub timeout_ms: u64,
    /// How long a member that is away or has not answered is waited for once `min` updates count, in milliseconds.
    pub silence_ms: u64,
    /// Number of values of an update.
    pub parameters: usize,
    /// Largest magnitude of an inline update's integers.
    pub bound: i32,
    /// Largest weight.
    pub max_examples: u32,
}

/// What the attempt wants next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on waiting.
    Wait,
    /// The accepted set is complete: make the model.
    Close,
    /// It cannot succeed.
    Abandon {
        /// Why.
        reason: String,
        /// True if members failed, rather than being missing.
        members_failed: bool,
    },
}

/// A member with what is known of it right now.
#[derive(Debug, Clone)]
struct Member {
    record: MemberRecord,
    connected: bool,
    answered: bool,
    /// Elapsed time when it was invited, answered or lost.
    since_ms: u64,
    invited_ms: u64,
}

/// What an attempt starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPoint {
    /// The model.
    pub model: BlobRef,
    /// The server state.
    pub state: Vec<StateSlot>,
    /// Grid of each tensor of the model, in layout order.
    pub grids: Vec<Grid>,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Round {
    record: RoundRecord,
    members: BTreeMap<NodeName, Member>,
    limits: Limits,
    /// Monotonic clock when `record.elapsed_ms` was true.
    base_ms: u64,
}

impl Round {
    /// Opens an attempt with this cohort.
    #[must_use]
    pub fn open(now: Now, key: RoundKey, start: StartPoint, cohort: &[Peer], limits: Limits) -> Self {
        let record = RoundRecord {
            key,
            stage: Stage::Collecting,
            model_in: start.model,
            state_in: start.state,
            grids: start.grids,
            opened_ms: now.wall_ms,
            closed_ms: None,
            elapsed_ms: 0,
            members: Vec::new(),
        };
        let members =
            cohort.iter().map(|peer| MemberRecord { peer: peer.clone(), state: MemberState::Invited }).collect();
        let mut round = Self::restore(now, record, members, limits);
        for member in round.members.values_mut() {
            member.connected = true;
        }
        round
    }

    /// An attempt as it was persisted; nobody is connected yet.
    #[must_use]
    pub fn restore(now: Now, record: RoundRecord, members: Vec<MemberRecord>, limits: Limits) -> Self {
        let since_ms = record.elapsed_ms;
        let members = members
            .into_iter()
            .map(|record| {
                let member = Member { connected: false, answered: false, since_ms, invited_ms: since_ms, record };
                (member.record.peer.name.clone(), member)
            })
            .collect();
        Self { record, members, limits, base_ms: now.monotonic_ms }
    }

    /// The record, with the time spent so far.
    #[must_use]
    pub fn record(&self, now: Now) -> RoundRecord {
        RoundRecord { elapsed_ms: self.elapsed(now), ..self.record.clone() }
    }

    /// The record to persist, if much of its time has passed since it was written last: a restart then goes on from
    /// there, and a coordinator that dies again and again still meets its deadlines.
    pub fn note_time(&mut self, now: Now) -> Option<RoundRecord> {
        let elapsed = self.elapsed(now);
        let due = self.record.elapsed_ms + (self.limits.timeout_ms / NOTES).max(NOTE_MS_MIN);
        (self.collecting() && elapsed >= due).then(|| {
            self.record.elapsed_ms = elapsed;
            self.base_ms = now.monotonic_ms;
            self.record.clone()
        })
    }

    /// Which attempt this is.
    #[must_use]
    pub fn key(&self) -> &RoundKey {
        &self.record.key
    }

    /// Where it is.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.record.stage
    }

    /// The server state it starts from.
    #[must_use]
    pub fn state_in(&self) -> &[StateSlot] {
        &self.record.state_in
    }

    /// Grid of each tensor of the model, in layout order.
    #[must_use]
    pub fn grids(&self) -> &[Grid] {
        &self.record.grids
    }

    /// The model it starts from.
    #[must_use]
    pub fn model_in(&self) -> BlobRef {
        self.record.model_in
    }

    /// Time spent, restarts included, in milliseconds.
    #[must_use]
    pub fn elapsed(&self, now: Now) -> u64 {
        self.record.elapsed_ms + now.monotonic_ms.saturating_sub(self.base_ms)
    }

    /// Time left, in milliseconds.
    #[must_use]
    pub fn remaining(&self, now: Now) -> u64 {
        self.limits.timeout_ms.saturating_sub(self.elapsed(now))
    }

    /// Members in name order.
    #[must_use]
    pub fn members(&self) -> Vec<MemberRecord> {
        self.members.values().map(|m| m.record.clone()).collect()
    }

    /// One member.
    #[must_use]
    pub fn member(&self, name: &NodeName) -> Option<&MemberRecord> {
        self.members.get(name).map(|m| &m.record)
    }

    /// True if this very node is a member.
    #[must_use]
    pub fn has(&self, peer: &Peer) -> bool {
        self.member(&peer.name).is_some_and(|m| m.peer == *peer)
    }

    /// Members whose updates count, in name order.
    pub fn counted(&self) -> impl Iterator<Item = (&NodeName, &Counted)> {
        self.members.iter().filter_map(|(name, m)| Some((name, m.record.counted()?)))
    }

    fn collecting(&self) -> bool {
        self.record.stage == Stage::Collecting
    }

    /// A member is here (again); true = invite it now.
    pub fn joined(&mut self, now: Now, peer: &Peer) -> bool {
        let elapsed = self.elapsed(now);
        let collecting = self.collecting();
        match self.members.get_mut(&peer.name) {
            Some(m) if m.record.peer == *peer && collecting && m.record.state == MemberState::Invited => {
                m.connected = true;
                m.answered = false;
                m.since_ms = elapsed;
                m.invited_ms = elapsed;
                true
            }
            _ => false,
        }
    }

    /// A member's stream has closed.
    pub fn left(&mut self, now: Now, peer: &Peer) {
        let elapsed = self.elapsed(now);
        if let Some(m) = self.members.get_mut(&peer.name)
            && m.record.peer == *peer
        {
            m.connected = false;
            m.answered = false;
            m.since_ms = elapsed;
        }
    }

    /// A member says yes (None) or no. Returns its record if that changed.
    pub fn answer(&mut self, now: Now, peer: &Peer, declined: Option<Declined>) -> Option<MemberRecord> {
        let elapsed = self.elapsed(now);
        let member = self.open_member(peer)?;
        member.answered = true;
        member.since_ms = elapsed;
        member.record.state = MemberState::Declined(declined?);
        Some(member.record.clone())
    }

    /// A member tried and failed. Returns its record if that changed.
    pub fn failed(&mut self, peer: &Peer, reason: String) -> Option<MemberRecord> {
        let member = self.open_member(peer)?;
        member.record.state = MemberState::Failed { reason };
        Some(member.record.clone())
    }

    /// The member, if the attempt collects and nothing final is known of it.
    fn open_member(&mut self, peer: &Peer) -> Option<&mut Member> {
        if !self.collecting() {
            return None;
        }
        let member = self.members.get_mut(&peer.name)?;
        (member.record.peer == *peer && member.record.state == MemberState::Invited).then_some(member)
    }

    /// What would be said to this update, judged by its header alone; None = its bytes are wanted.
    #[must_use]
    pub fn offer(&self, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        let refuse = |reason: &str, detail: String| Some(UpdateReply::Refused { reason: reason.to_owned(), detail });
        let Some(member) = self.members.get(&peer.name).filter(|m| m.record.peer == *peer) else {
            return refuse("not_invited", format!("{} was not invited to {}", peer.name, header.key));
        };
        match &member.record.state {
            MemberState::Counted(c) if c.is(header) => {
                return Some(UpdateReply::Accepted);
            }
            MemberState::Counted(_) => {
                return refuse("conflict", format!("another update of {} counts already", peer.name));
            }
            MemberState::Refused { reason, detail } => return refuse(reason, detail.clone()),
            MemberState::Declined(_) | MemberState::Failed { .. } | MemberState::Silent => {
                return refuse("late", format!("{} no longer waits for {}", header.key, peer.name));
            }
            MemberState::Invited => {}
        }
        if !self.collecting() {
            return refuse("late", format!("{} is closed", header.key));
        }
        None
    }

    /// Takes an update whose bytes match its header. The reply is to be sent once the member's record is durable.
    pub fn update(
        &mut self,
        peer: &Peer,
        header: &UpdateHeader,
        payload: &Payload,
    ) -> (UpdateReply, Option<MemberRecord>) {
        if let Some(reply) = self.offer(peer, header) {
            return (reply, None);
        }
        let state = match self.fault(header, payload) {
            Some((reason, detail)) => MemberState::Refused { reason: reason.to_owned(), detail },
            None => MemberState::Counted(Counted::new(header, matches!(payload, Payload::Inline(_)))),
        };
        let reply = match &state {
            MemberState::Refused { reason, detail } => {
                UpdateReply::Refused { reason: reason.clone(), detail: detail.clone() }
            }
            MemberState::Counted(_)
            | MemberState::Invited
            | MemberState::Declined(_)
            | MemberState::Failed { .. }
            | MemberState::Silent => UpdateReply::Accepted,
        };
        let record = self.open_member(peer).map(|member| {
            member.record.state = state;
            member.record.clone()
        });
        (reply, record)
    }

    fn fault(&self, header: &UpdateHeader, payload: &Payload) -> Option<(&'static str, String)> {
        let want = self.limits.parameters as u64 * 4;
        if header.payload.bytes != want {
            return Some(("wrong_size", format!("{} bytes were sent, {want} are needed", header.payload.bytes)));
        }
        if header.weight == 0 || header.weight > self.limits.max_examples {
            let max = self.limits.max_examples;
            return Some(("bad_weight", format!("weight {} is outside 1 to {max}", header.weight)));
        }
        if let Payload::Inline(bytes) = payload {
            let bound = self.limits.bound.unsigned_abs();
            let beyond = |q: &[u8; 4]| i32::from_le_bytes(*q).unsigned_abs() > bound;
            if let Some(i) = bytes.as_chunks::<4>().0.iter().position(beyond) {
                return Some(("out_of_range", format!("value {i} is outside the grid's ±{bound}")));
            }
        }
        None
    }

    /// A counted update proved unusable when it was summed.
    pub fn reject(&mut self, name: &NodeName, reason: &str, detail: String) -> Option<MemberRecord> {
        let member = self.members.get_mut(name)?;
        member.record.state = MemberState::Refused { reason: reason.to_owned(), detail };
        Some(member.record.clone())
    }

    /// Should it close, go on, or be given up?
    #[must_use]
    pub fn verdict(&self, now: Now) -> Verdict {
        let elapsed = self.elapsed(now);
        let counted = self.counted().count();
        let open: Vec<&Member> = self.members.values().filter(|m| m.record.state == MemberState::Invited).collect();
        let enough = counted >= self.limits.min;
        let silent = |m: &&Member| !(m.connected && m.answered) && elapsed >= m.since_ms + self.limits.silence_ms;
        if enough && open.iter().all(silent) {
            return Verdict::Close;
        }
        let late = elapsed >= self.limits.timeout_ms;
        if late && enough {
            return Verdict::Close;
        }
        if counted + open.len() < self.limits.min || late {
            return self.abandon(counted, late);
        }
        Verdict::Wait
    }

    fn abandon(&self, counted: usize, late: bool) -> Verdict {
        let mut failures = Vec::new();
        for (name, member) in &self.members {
            match &member.record.state {
                MemberState::Failed { reason } => failures.push(format!("{name} failed: {reason}")),
                MemberState::Refused { detail, .. } => failures.push(format!("{name} was refused: {detail}")),
                MemberState::Declined(d) => failures.push(format!("{name} declined by {}: {}", d.rule, d.reason)),
                MemberState::Invited | MemberState::Counted(_) | MemberState::Silent => {}
            }
        }
        let members_failed = self
            .members
            .values()
            .any(|m| matches!(m.record.state, MemberState::Failed { .. } | MemberState::Refused { .. }));
        let when = if late { "at the deadline " } else { "" };
        let mut reason = format!("{when}{counted} of the {} needed updates counted", self.limits.min);
        for failure in failures {
            reason.push_str("; ");
            reason.push_str(&failure);
        }
        Verdict::Abandon { reason, members_failed }
    }

    /// Connected members that have not answered for `pause_ms`: their invitation may be lost. Marks them as invited now.
    pub fn to_remind(&mut self, now: Now, pause_ms: u64) -> Vec<Peer> {
        let elapsed = self.elapsed(now);
        let collecting = self.collecting();
        self.members
            .values_mut()
            .filter(|m| collecting && m.connected && !m.answered && m.record.state == MemberState::Invited)
            .filter_map(|m| {
                (elapsed >= m.invited_ms + pause_ms).then(|| {
                    m.invited_ms = elapsed;
                    m.record.peer.clone()
                })
            })
            .collect()
    }

    /// Fixes the accepted set. Returns the members that are left out for silence.
    pub fn close(&mut self) -> Vec<MemberRecord> {
        self.record.stage = Stage::Publishing;
        let mut left_out = Vec::new();
        for member in self.members.values_mut().filter(|m| m.record.state == MemberState::Invited) {
            member.record.state = MemberState::Silent;
            left_out.push(member.record.clone());
        }
        left_out
    }

    /// Ends the attempt: folds members into the record.
    #[must_use]
    pub fn end(&self, now: Now, stage: Stage) -> RoundRecord {
        RoundRecord { stage, closed_ms: Some(now.wall_ms), members: self.members(), ..self.record(now) }
    }
}

#[cfg(test)]
mod tests;
