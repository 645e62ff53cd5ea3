//! Sees everything and believes nothing: the promises I1 to I8, checked after every persisted step and at the end.
//!
//! - I1 an accepted job or request never vanishes;
//! - I2 round numbers are gap-free and each round starts from the model of the one before;
//! - I3 an update counts exactly once, and one with a receipt counts;
//! - I4 only the newest epoch of a lease acts;
//! - I5 replaying a job's record gives its models;
//! - I6 no row refers to a missing blob;
//! - I7 progress resumes after faults stop (the village's part);
//! - I8 requests = ok + failed + shed + expired (+ those in work).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aivillage_base::ports::{Blobs, put_blob};
use aivillage_base::wire::secure::Opening;
use aivillage_base::wire::{BlobRef, Peer, Receipt, RoundKey, UpdateHeader};
use aivillage_base::{Digest, JobId, NodeName, RequestId};
use aivillage_inference::core::Books;
use aivillage_inference::request::RequestView;
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use aivillage_training::participant::Prepared;
use aivillage_training::record::{Counted, JobRecord, MemberRecord, RoundRecord, Saved, Stage, StateSlot};
use aivillage_training::step::ComputePlan;
use aivillage_training::store;
use bytes::Bytes;

use crate::conduct::Conduct;
use crate::time::ready;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which, as in architecture.md: `I1` to `I8`.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
    /// Simulated time, in milliseconds.
    pub at_ms: u64,
    /// Seed of the run.
    pub seed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, detail, at_ms, seed } = self;
        writeln!(f, "{invariant} is broken at {at_ms} ms: {detail}")?;
        write!(f, "replay: SIM_SEED={seed} cargo nextest run -p aivillage-sim replay")
    }
}

impl std::error::Error for Violation {}

/// A violation, seen from inside.
#[derive(Debug)]
pub(crate) struct Breach {
    pub(crate) invariant: &'static str,
    pub(crate) detail: String,
}

/// Nothing, or a breach.
pub(crate) type Seen = Result<(), Breach>;

fn hold(invariant: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Seen {
    if holds { Ok(()) } else { Err(Breach { invariant, detail: detail() }) }
}

#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// Jobs whose creation was acknowledged.
    accepted: BTreeSet<JobId>,
    /// Every update that was ever sent.
    payloads: BTreeMap<Digest, Bytes>,
    /// What lies under the masks of an update that was sent masked.
    unmasked: BTreeMap<Digest, (UpdateHeader, Bytes)>,
    /// How often a node was silenced by what it was shown.
    pub(crate) alarms: u64,
    /// Who has opened a share of what: by attempt and participant, of the seed of its mask and of its masking key.
    opened: BTreeMap<(RoundKey, NodeName), [BTreeSet<NodeName>; 2]>,
    /// Newest epoch of each lease.
    epochs: BTreeMap<String, u64>,
    /// Jobs that have ended, as they ended.
    ended: BTreeMap<JobId, JobRecord>,
    /// Requests whose ids were given away.
    promised: BTreeSet<RequestId>,
    outcomes: BTreeMap<RequestId, RequestView>,
}

impl Witness {
    pub(crate) fn accepted(&mut self, job: JobId) {
        self.accepted.insert(job);
    }

    pub(crate) fn payload(&mut self, bytes: &Bytes) {
        self.payloads.insert(Digest::of(bytes), bytes.clone());
    }

    /// An update was sent masked; `plain` is what lies under its masks.
    pub(crate) fn masked(&mut self, masked: &Bytes, plain: &Prepared) {
        self.payload(masked);
        self.payload(&plain.payload);
        self.unmasked.insert(Digest::of(masked), (plain.header.clone(), plain.payload.clone()));
    }

    /// A node opens shares for these survivors: never may both secrets of one participant be within reach.
    pub(crate) fn opening(&mut self, key: &RoundKey, from: &Peer, survivors: &[NodeName], opening: &Opening) -> Seen {
        for share in &opening.shares {
            let left = usize::from(survivors.binary_search(&share.of).is_err());
            let opened = self.opened.entry((key.clone(), share.of.clone())).or_default();
            opened[left].insert(from.name.clone());
            // No threshold is below half of the cohort.
            let both = opened.iter().all(|holders| holders.len() * 2 > survivors.len());
            hold("one answer", !both, || format!("both secrets of {} are open in {key}", share.of))?;
        }
        Ok(())
    }

    pub(crate) fn acquired(&mut self, lease: String, epoch: u64) -> Seen {
        let newest = self.epochs.entry(lease).or_default();
        hold("I4", epoch >= *newest, || format!("epoch {epoch} was given out after {newest}"))?;
        *newest = epoch;
        Ok(())
    }

    pub(crate) fn promised(&mut self, request: RequestId) {
        self.promised.insert(request);
    }

    /// A node was invited: the attempt is stored.
    pub(crate) fn invited(&self, records: &MemoryRecords, key: &RoundKey) -> Seen {
        let rounds = ready(store::rounds(records, &key.job)).unwrap_or_default();
        hold("I1", rounds.iter().any(|r| r.key == *key), || format!("an invitation to {key}, which is not stored"))
    }

    /// A node has a receipt: its update is stored and counts.
    pub(crate) fn receipt(&self, records: &MemoryRecords, header: &UpdateHeader, peer: &Peer) -> Seen {
        let key = &header.key;
        let saved = ready(store::saved(records, &key.job)).ok().flatten();
        let member = saved.as_ref().and_then(|saved| {
            let made_for = |attempt: &RoundRecord| {
                let members = if attempt.is_open() { &saved.members } else { &attempt.members };
                let mut own = members.iter().filter(|m| m.peer == *peer && m.works_on(&attempt.key) == key);
                own.find(|m| m.counted().is_some()).cloned()
            };
            saved.attempts.iter().find_map(made_for)
        });
        hold("I3", member.as_ref().and_then(MemberRecord::counted).is_some_and(|c| c.is(header)), || {
            format!("{} has a receipt for {key}, but what is stored of it is {member:?}", peer.name)
        })
    }

    /// A step of a job was persisted by a process whose tenure has this epoch.
    pub(crate) fn committed(&mut self, records: &MemoryRecords, blobs: &MemoryBlobs, job: &JobId, epoch: u64) -> Seen {
        let newest = self.epochs.get(&store::lease(job)).copied().unwrap_or(0);
        hold("I4", epoch == newest, || format!("epoch {epoch} of {job} acted while {newest} is the newest"))?;
        let saved = ready(store::saved(records, job)).map_err(|e| Breach { invariant: "I1", detail: e.to_string() })?;
        let Some(saved) = saved else {
            return hold("I1", false, || format!("{job} has vanished"));
        };
        if let Some(ended) = self.ended.get(job) {
            hold("I1", *ended == saved.record, || format!("{job} had ended, and was changed"))?;
        } else if saved.record.life.status().is_terminal() {
            self.ended.insert(job.clone(), saved.record.clone());
        }
        chain(&saved)?;
        counted_once(&saved)?;
        receipts(&saved)?;
        self.nothing_missing(records, blobs, &saved)
    }

    /// I6: every blob and every small update that a row refers to is there.
    fn nothing_missing(&self, records: &MemoryRecords, blobs: &MemoryBlobs, saved: &Saved) -> Seen {
        let there = |what: &str, blob: &BlobRef| {
            let found = ready(blobs.len(&blob.digest)).ok().flatten() == Some(blob.bytes);
            hold("I6", found, || format!("{what} of {} is missing", saved.record.spec.job_id))
        };
        if let Some(model) = &saved.record.model {
            there("the model", model)?;
        }
        for slot in &saved.record.state {
            there(&slot.name, &slot.blob)?;
        }
        for attempt in &saved.attempts {
            for (node, counted) in attempt.retained() {
                self.update_there(records, blobs, &attempt.key, node, counted)?;
            }
        }
        for attempt in &saved.attempts {
            there("a model", &attempt.model_in)?;
            if let Stage::Done { model_out, .. } = &attempt.stage {
                there("a model", model_out)?;
            }
        }
        let Some(open) = saved.attempts.iter().find(|r| r.is_open()) else { return Ok(()) };
        for slot in &open.state_in {
            there(&slot.name, &slot.blob)?;
        }
        for base in saved.members.iter().filter_map(|m| m.base.as_ref()) {
            there("the model of a member at work", &base.model)?;
        }
        for (node, counted) in counted(&saved.members) {
            self.update_there(records, blobs, &open.key, node, counted)?;
        }
        Ok(())
    }

    fn update_there(
        &self,
        records: &MemoryRecords,
        blobs: &MemoryBlobs,
        key: &RoundKey,
        node: &NodeName,
        counted: &Counted,
    ) -> Seen {
        let there = if counted.inline {
            let bytes = ready(store::payload(records, key, node)).ok().flatten();
            bytes.is_some_and(|b| Digest::of(&b) == counted.payload.digest)
        } else {
            ready(blobs.len(&counted.payload.digest)).ok().flatten() == Some(counted.payload.bytes)
        };
        hold("I6", there, || format!("the update of {node} for {key} is missing"))
    }

    /// I8, after each step of the machine that serves.
    pub(crate) fn books(&self, books: Books, active: usize) -> Seen {
        let Books { total, ok, failed, shed, expired, .. } = books;
        hold("I8", total == ok + failed + shed + expired + active as u64, || {
            format!("{total} requests, but {ok} ok, {failed} failed, {shed} shed, {expired} expired, {active} in work")
        })
    }

    /// A request has an outcome in the store: its first, for ever, and the right one.
    pub(crate) fn outcome(&mut self, view: &RequestView, right: bool) -> Seen {
        let first = self.outcomes.entry(view.request_id).or_insert_with(|| view.clone());
        hold("I8", first.status == view.status && first.result == view.result, || {
            format!("{} was {:?} and became {:?}", view.request_id, first.status, view.status)
        })?;
        hold("I8", right, || format!("{} was answered with a foreign result: {:?}", view.request_id, view.result))
    }

    /// I1 at the end: what was acknowledged is there, with an outcome.
    pub(crate) fn all_there(&self, jobs: &BTreeSet<JobId>) -> Seen {
        for job in &self.accepted {
            hold("I1", jobs.contains(job), || format!("{job} was accepted and is gone"))?;
        }
        for request in &self.promised {
            hold("I1", self.outcomes.contains_key(request), || format!("{request} was promised and has no outcome"))?;
        }
        Ok(())
    }

    /// I5: the record, and the updates it names, give the models again.
    pub(crate) fn replay(
        &self,
        conduct: &dyn Conduct,
        blobs: &MemoryBlobs,
        saved: &Saved,
    ) -> Result<Vec<Digest>, Breach> {
        let mut models = Vec::new();
        let mut model: Option<BlobRef> = None;
        let mut state: Vec<StateSlot> = Vec::new();
        let again = MemoryBlobs::new();
        let records = MemoryRecords::new(std::sync::Arc::new(crate::time::SimClock::default()));
        let broken = |detail: String| Breach { invariant: "I5", detail };
        for attempt in &saved.attempts {
            let Stage::Done { model_out, state_out } = &attempt.stage else { continue };
            let model_in = match model {
                Some(model) => model,
                None => {
                    let first = ready(blobs.read(&attempt.model_in.digest)).ok().flatten();
                    let first = first.ok_or_else(|| broken("the first model is missing".into()))?;
                    ready(put_blob(&again, first)).map_err(|e| broken(e.to_string()))?
                }
            };
            let plan = ComputePlan { state_in: state, ..self.plan(saved, attempt, model_in, &again)? };
            let made = conduct.make(&plan, &[], &records, &again).map_err(|e| broken(format!("{e:?}")))?;
            hold("I5", made.model == *model_out, || format!("the record of {} gives another model", attempt.key))?;
            hold("I5", made.state == *state_out, || format!("the record of {} gives other state", attempt.key))?;
            models.push(made.model.digest);
            (model, state) = (Some(made.model), made.state);
        }
        Ok(models)
    }

    fn plan(
        &self,
        saved: &Saved,
        attempt: &RoundRecord,
        model_in: BlobRef,
        blobs: &MemoryBlobs,
    ) -> Result<ComputePlan, Breach> {
        let broken = |detail: String| Breach { invariant: "I5", detail };
        let mut accepted = Vec::new();
        for (node, counted) in counted(&attempt.members) {
            // A secure round has to give what the plain round of its survivors gives: to the bit.
            let plain = self.unmasked.get(&counted.payload.digest);
            let counted = &plain.map_or_else(|| counted.clone(), |(header, _)| Counted::new(header, false));
            let bytes = self.payloads.get(&counted.payload.digest);
            let bytes = bytes.ok_or_else(|| broken(format!("{node} never sent what counts for {}", attempt.key)))?;
            ready(put_blob(blobs, bytes.clone())).map_err(|e| broken(e.to_string()))?;
            accepted.push((node.clone(), Counted { inline: false, ..counted.clone() }));
        }
        let plan = ComputePlan::of(&saved.record, attempt, attempt.members.len(), accepted);
        let plan = plan.ok_or_else(|| broken("no architecture".into()))?;
        Ok(ComputePlan { model_in, ..plan })
    }
}

fn counted(members: &[MemberRecord]) -> impl Iterator<Item = (&NodeName, &Counted)> {
    members.iter().filter_map(|m| Some((&m.peer.name, m.counted()?)))
}

/// I2.
fn chain(saved: &Saved) -> Seen {
    let (mut rounds, mut attempts) = (0, 0);
    let mut model = None;
    for attempt in &saved.attempts {
        let key = &attempt.key;
        hold("I2", (key.round, key.attempt) == (rounds + 1, attempts + 1), || {
            format!("{key} follows round {rounds} and attempt {attempts}")
        })?;
        hold("I2", model.is_none_or(|m| m == attempt.model_in), || {
            format!("{key} does not start from the model of the round before")
        })?;
        model = Some(attempt.model_in);
        attempts += 1;
        if let Stage::Done { model_out, .. } = &attempt.stage {
            model = Some(*model_out);
            (rounds, attempts) = (rounds + 1, 0);
        }
    }
    let record = &saved.record;
    hold("I2", (record.rounds_done, record.attempts) == (rounds, attempts), || {
        format!("the job says {} rounds, its attempts say {rounds}", record.rounds_done)
    })?;
    let last = saved.attempts.iter().rposition(RoundRecord::is_open);
    hold("I2", last.is_none_or(|i| i + 1 == saved.attempts.len()), || "an attempt is open before the last".into())
}

/// I3.
fn counted_once(saved: &Saved) -> Seen {
    let mut made_for = BTreeSet::new();
    for attempt in &saved.attempts {
        let members = if attempt.is_open() { &saved.members } else { &attempt.members };
        let names: BTreeSet<&NodeName> = members.iter().map(|m| &m.peer.name).collect();
        hold("I3", names.len() == members.len(), || format!("a node is a member of {} twice", attempt.key))?;
        if let Stage::Done { .. } = attempt.stage {
            let count = counted(members).count();
            let min = saved.record.spec.min_participants as usize;
            hold("I3", count >= min, || format!("{} was published with {count} updates of {min}", attempt.key))?;
            for member in members.iter().filter(|m| m.counted().is_some()) {
                let (name, key) = (&member.peer.name, member.works_on(&attempt.key));
                hold("I3", made_for.insert((name, key)), || format!("{name}'s update for {key} counted twice"))?;
            }
        }
    }
    Ok(())
}

/// I3, for what nodes keep: each is told of its own newest update that counted in a published round.
fn receipts(saved: &Saved) -> Seen {
    if !saved.record.spec.nodes_keep_state() {
        return Ok(());
    }
    let mut newest = BTreeMap::new();
    for attempt in saved.attempts.iter().filter(|r| matches!(r.stage, Stage::Done { .. })) {
        for member in &attempt.members {
            if let Some(counted) = member.counted() {
                let receipt = Receipt { key: member.works_on(&attempt.key).clone(), digest: counted.payload.digest };
                newest.insert(member.peer.name.clone(), receipt);
            }
        }
    }
    hold("I3", newest == saved.record.receipts, || {
        format!("receipts are {:?}, but what counted is {newest:?}", saved.record.receipts)
    })
}
