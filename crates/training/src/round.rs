//! One attempt at a round, as a pure machine: who was invited, who counts, when it closes.
//!
//! `(keying ->) collecting -> (unmasking ->) publishing -> done | abandoned`. It sees digests and counts, never weights. Its
//! persistent part is
//! [`RoundRecord`] and one [`MemberRecord`] a member; what it keeps beside them (who is connected, who answered) is
//! rebuilt from nodes' messages after a restart.
//!
//! With a [`Buffer`] (asynchronous jobs) it closes as soon as the buffer is full. Members at work are then carried into the
//! next round, where they still work on what they were invited for ([`MemberRecord::base`]); nodes that come meanwhile are
//! admitted at once. An attempt is given up when less than one update a timeout has come in.
//!
//! `judge` says what becomes of an update, `verdict` what becomes of the attempt, `secure` has the steps of secure
//! aggregation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aivillage_base::fixed::Grid;
use aivillage_base::ports::Payload;
use aivillage_base::time::Now;
use aivillage_base::wire::secure::SecureTerms;
use aivillage_base::wire::{BlobRef, Declined, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, NodeName};
use aivillage_privacy::secagg::roster::{Listed, Roster};

use crate::record::{Base, Counted, MemberRecord, MemberState, RoundRecord, SecureRecord, Stage, StateSlot};
use crate::strategy::Buffer;

mod helper;
mod judge;
mod secure;
mod verdict;

pub(crate) use judge::CARRIED_RETRY_MS;
pub use secure::{Due, RESTARTED, Word};

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
    /// Are updates kept after the round, where their node allows it?
    pub retain: bool,
    /// How updates are taken in, if not round by round; its size is `min`.
    pub buffer: Option<Buffer>,
}

impl Limits {
    /// Bytes of an update: masked under these terms, or plain.
    fn payload_bytes(&self, terms: Option<&SecureTerms>) -> u64 {
        let masked = terms.and_then(|terms| crate::secure::payload_bytes(self.parameters, terms));
        masked.unwrap_or(self.parameters as u64 * 4)
    }
}

/// What the attempt wants next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on waiting.
    Wait,
    /// A step of keying or unmasking is complete: fix what it brought.
    Next,
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
    /// Elapsed time at which its own time is up, where that is not the attempt's.
    until_ms: u64,
}

/// What an attempt starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct StartPoint {
    /// The model.
    pub model: BlobRef,
    /// The server state.
    pub state: Vec<StateSlot>,
    /// Grid of each tensor of the model, in layout order.
    pub grids: Vec<Grid>,
    /// Most examples that an update is expected to have, where the rule's weights depend on it.
    pub examples_max: Option<u32>,
    /// Terms and context of secure aggregation, where the job asks for it.
    pub secure: Option<SecureRecord>,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Round {
    record: RoundRecord,
    members: BTreeMap<NodeName, Member>,
    limits: Limits,
    /// Monotonic clock when `record.elapsed_ms` was true.
    base_ms: u64,
    /// Counts changes of what members may fetch.
    offers: u64,
    /// Elapsed time when the open step of keying or unmasking began.
    step_ms: u64,
    /// The keys that were fixed, under secure aggregation.
    listed: Option<Arc<Listed>>,
    /// Who masks with whom, once that is known.
    roster: Option<Arc<Roster>>,
    /// Elapsed time when the helper was asked last.
    asked_ms: u64,
}

impl Round {
    /// Opens an attempt with this cohort.
    #[must_use]
    pub fn open(now: Now, key: RoundKey, start: StartPoint, cohort: &[Peer], limits: Limits) -> Self {
        let record = RoundRecord {
            key,
            stage: match &start.secure {
                Some(secure) if secure.helper.is_none() => Stage::Keying,
                Some(_) | None => Stage::Collecting,
            },
            model_in: start.model,
            state_in: start.state,
            grids: start.grids,
            examples_max: start.examples_max,
            opened_ms: now.wall_ms,
            closed_ms: None,
            elapsed_ms: 0,
            secure: start.secure,
            members: Vec::new(),
        };
        let members = cohort.iter().map(|peer| MemberRecord::invited(peer.clone())).collect();
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
        let members: BTreeMap<NodeName, Member> = members
            .into_iter()
            .map(|record| {
                let member = Member::new(record, since_ms, limits.timeout_ms);
                (member.record.peer.name.clone(), member)
            })
            .collect();
        let listed = Self::fixed_adverts(&record, &members);
        let roster = listed.as_deref().and_then(|listed| Self::fixed_roster(listed, &record, &members));
        Self {
            record,
            members,
            limits,
            base_ms: now.monotonic_ms,
            offers: 0,
            step_ms: since_ms,
            listed,
            roster,
            asked_ms: since_ms,
        }
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
        (self.waits() && elapsed >= due).then(|| {
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

    /// Time that a node has which is invited now, in milliseconds.
    #[must_use]
    pub fn remaining(&self, now: Now) -> u64 {
        match self.limits.buffer {
            Some(_) => self.limits.timeout_ms,
            None => self.limits.timeout_ms.saturating_sub(self.elapsed(now)),
        }
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

    /// True if a message of this node about `key` concerns this attempt: a carried member still speaks of an older one.
    #[must_use]
    pub fn hears(&self, peer: &Peer, key: &RoundKey) -> bool {
        match self.member(&peer.name).and_then(|m| m.base.as_ref()) {
            Some(base) => base.key == *key,
            None => self.record.key == *key,
        }
    }

    /// True if this node was at work for the older attempt `key` and is invited to this one instead.
    #[must_use]
    pub fn replaced(&self, peer: &Peer, key: &RoundKey) -> bool {
        let open = |m: &Member| m.record.peer == *peer && m.record.state == MemberState::Invited;
        self.limits.buffer.is_some() && *key < self.record.key && self.members.get(&peer.name).is_some_and(open)
    }

    /// What members may fetch: the model and the server state, or the older model that a carried one works on.
    #[must_use]
    pub fn offered(&self) -> BTreeMap<Digest, BTreeSet<Peer>> {
        let mut offered: BTreeMap<Digest, BTreeSet<Peer>> = BTreeMap::new();
        for member in self.members.values() {
            for digest in self.offered_to(&member.record) {
                offered.entry(digest).or_default().insert(member.record.peer.clone());
            }
        }
        offered
    }

    /// Grows whenever [`Self::offered`] changes.
    #[must_use]
    pub fn offers(&self) -> u64 {
        self.offers
    }

    /// May this node fetch this blob?
    #[must_use]
    pub fn offers_to(&self, peer: &Peer, digest: &Digest) -> bool {
        let member = self.member(&peer.name).filter(|m| m.peer == *peer);
        member.is_some_and(|m| self.offered_to(m).any(|d| d == *digest))
    }

    fn offered_to(&self, member: &MemberRecord) -> impl Iterator<Item = Digest> {
        let model = member.base.as_ref().map_or(self.record.model_in, |base| base.model);
        std::iter::once(model.digest).chain(self.record.state_in.iter().map(|slot| slot.blob.digest))
    }

    fn collecting(&self) -> bool {
        self.record.stage == Stage::Collecting
    }

    /// Does it wait for members?
    #[must_use]
    pub fn waits(&self) -> bool {
        match self.record.stage {
            Stage::Keying | Stage::Collecting | Stage::Unmasking => true,
            Stage::Publishing | Stage::Done { .. } | Stage::Abandoned { .. } => false,
        }
    }

    /// A member is here (again); true = tell it now what is [`due`](Self::due).
    pub fn joined(&mut self, now: Now, peer: &Peer) -> bool {
        let elapsed = self.elapsed(now);
        let (waits, secure) = (self.due(&peer.name).is_some(), self.secure().is_some());
        match self.members.get_mut(&peer.name) {
            Some(m) if m.record.peer == *peer && waits => {
                m.connected = true;
                m.answered = false;
                m.since_ms = elapsed;
                m.invited_ms = elapsed;
                m.until_ms = elapsed + self.limits.timeout_ms;
                true
            }
            Some(m) if m.record.peer == *peer => {
                m.connected |= secure;
                // What a carried member worked on may be gone: the next round invites it anew.
                m.answered = false;
                false
            }
            Some(_) | None => false,
        }
    }

    /// Takes a newcomer in, where updates are buffered. Returns its record: it is to be invited.
    pub fn admit(&mut self, now: Now, peer: &Peer) -> Option<MemberRecord> {
        if self.limits.buffer.is_none() || !self.collecting() || self.members.contains_key(&peer.name) {
            return None;
        }
        let record = MemberRecord::invited(peer.clone());
        let mut member = Member::new(record.clone(), self.elapsed(now), self.limits.timeout_ms);
        member.connected = true;
        self.members.insert(peer.name.clone(), member);
        self.offers += 1;
        Some(record)
    }

    /// A member still works on what it was invited for earlier, and has this much time left, in milliseconds.
    pub fn carry(&mut self, name: &NodeName, base: Base, left_ms: u64) {
        if let Some(member) = self.members.get_mut(name) {
            member.record.base = Some(base);
            member.answered = true;
            member.until_ms = left_ms;
            self.offers += 1;
        }
    }

    /// A member is invited anew: from now on it works on this attempt. Returns its record if that is a change.
    pub fn renew(&mut self, name: &NodeName) -> Option<MemberRecord> {
        let member = self.members.get_mut(name)?;
        member.record.base.take()?;
        self.offers += 1;
        Some(member.record.clone())
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

    /// The member, if the attempt waits for its answer and nothing final is known of it.
    fn open_member(&mut self, peer: &Peer) -> Option<&mut Member> {
        if !matches!(self.record.stage, Stage::Keying | Stage::Collecting) {
            return None;
        }
        let member = self.members.get_mut(&peer.name)?;
        (member.record.peer == *peer && member.record.state == MemberState::Invited).then_some(member)
    }
}

impl Member {
    fn new(record: MemberRecord, since_ms: u64, timeout_ms: u64) -> Self {
        let until_ms = since_ms + timeout_ms;
        Self { connected: false, answered: false, since_ms, invited_ms: since_ms, until_ms, record }
    }

    /// Is it here, and did it say that it works?
    fn at_work(&self) -> bool {
        self.connected && self.answered
    }
}

#[cfg(test)]
mod tests;
