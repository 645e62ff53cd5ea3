//! A simulated coordinator: the real job machines, the real store batches, the real sums, and a life that ends any time.
//!
//! Follows `training::coordinator` and its actor: what waits is stepped together and committed in one batch, nothing is
//! said or done before that; the lease comes before the job is read; a fenced or lost tenure is dropped and read again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aivillage_base::ports::{Batch, Blobs, Fence, INLINE_MAX, Payload, Records, StoreError, put_blob};
use aivillage_base::time::Now;
use aivillage_base::wire::{BlobRef, Down, Peer, Up, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, JobId, NodeName, bundle};
use aivillage_training::config::Selection;
use aivillage_training::job::{Job, Rules};
use aivillage_training::kept::Kept;
use aivillage_training::record::{JobRecord, MemberRecord, RoundRecord, Saved};
use aivillage_training::recruit::Candidate;
use aivillage_training::refusals::fault_of;
use aivillage_training::secure::FULL_GRAPH_MAX;
use aivillage_training::step::{Change, ComputeError, Effect, Input, Step};
use aivillage_training::store;
use bytes::Bytes;

use crate::conduct::Order;
use crate::events::{AtProcess, Question, Reply};
use crate::faults::FaultKind;
use crate::serving::Serving;
use crate::time::ready;
use crate::witness::Seen;
use crate::world::{Asker, Halt, World};

mod steps;

/// How long a lease lasts without renewal.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// How long a silent member is waited for, in milliseconds.
const SILENCE_MS: u64 = 4_000;
/// Pause between two looks at the time, in milliseconds.
const TICK_MS: u64 = 500;

/// A job this process has the lease of.
#[derive(Debug)]
struct Owned {
    job: Job,
    epoch: u64,
    renewed_ms: u64,
    /// The wall clock of this process when its lease was extended last.
    renewed_wall_ms: u64,
    kept: Kept,
    /// Who has sent what counts in the attempt under way, in order.
    arrived: Vec<NodeName>,
}

/// What waits for the next look.
#[derive(Debug)]
enum Work {
    Job(JobId, Input),
    Everyone(Input),
    Update(Asker, Peer, UpdateHeader, Payload),
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) index: usize,
    /// Whose names nodes have.
    peers: Vec<Peer>,
    candidates: Vec<Candidate>,
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) frozen_until: u64,
    started_ms: u64,
    /// Open streams by node.
    pub(crate) streams: BTreeMap<usize, u64>,
    owned: BTreeMap<JobId, Owned>,
    /// Jobs as they were when the process started: what a careless one goes on with.
    remembered: BTreeMap<JobId, Saved>,
    inbox: VecDeque<Work>,
    /// How many counted updates refer to a blob.
    payloads: BTreeMap<Digest, u32>,
    pub(crate) serving: Option<Serving>,
}

impl Process {
    pub(crate) fn new(index: usize, candidates: Vec<Candidate>) -> Self {
        Self {
            index,
            peers: candidates.iter().map(|c| c.peer.clone()).collect(),
            candidates,
            up: false,
            life: 0,
            frozen_until: 0,
            started_ms: 0,
            streams: BTreeMap::new(),
            owned: BTreeMap::new(),
            remembered: BTreeMap::new(),
            inbox: VecDeque::new(),
            payloads: BTreeMap::new(),
            serving: None,
        }
    }

    fn name(&self) -> String {
        format!("coordinator-{}", self.index)
    }

    pub(crate) fn now(&self, world: &World) -> Now {
        world.clock.since(self.started_ms, world.skews[self.index])
    }

    pub(crate) fn start(&mut self, world: &mut World) -> Result<(), Halt> {
        self.up = true;
        self.life += 1;
        self.started_ms = world.now();
        let jobs = ready(store::jobs(&world.records)).unwrap_or_default();
        let mut ended = Vec::new();
        for record in jobs {
            let Some(saved) = ready(store::saved(&world.records, &record.spec.job_id)).ok().flatten() else { continue };
            self.note(&saved);
            ended.extend(saved.attempts.iter().rev().find(|r| !r.is_open()).cloned());
            self.remembered.insert(record.spec.job_id.clone(), saved);
        }
        for counted in ended.iter().flat_map(|r| &r.members).filter_map(MemberRecord::counted).filter(|c| !c.inline) {
            // What is kept for auditors was counted above.
            if !self.payloads.contains_key(&counted.payload.digest) {
                self.drop_payload(world, counted.payload.digest);
            }
        }
        if self.index == 0 {
            // One process serves: inference has no leases in this version.
            self.serving = Some(Serving::start(world, self.now(world), self.life)?);
        }
        world.soon(1, 10, AtProcess::Tick { process: self.index, life: self.life });
        Ok(())
    }

    /// Counts what a stored job refers to.
    fn note(&mut self, saved: &Saved) {
        let open = saved.members.iter().filter_map(MemberRecord::counted);
        let retained = saved.attempts.iter().flat_map(RoundRecord::retained).map(|(_, counted)| counted);
        for counted in open.chain(retained).filter(|c| !c.inline) {
            self.payloads.entry(counted.payload.digest).or_insert(1);
        }
    }

    pub(crate) fn die(&mut self) {
        let (index, candidates, life) = (self.index, std::mem::take(&mut self.candidates), self.life);
        *self = Self { life, ..Self::new(index, candidates) };
    }

    /// Something waits: it is looked at in a moment, with whatever comes until then.
    fn push(&mut self, world: &mut World, work: Work) {
        if self.inbox.is_empty() {
            world.soon(0, 15, AtProcess::Wake { process: self.index, life: self.life });
        }
        self.inbox.push_back(work);
    }

    /// A node has opened a stream.
    pub(crate) fn joined(&mut self, world: &mut World, node: usize, stream: u64) -> Result<(), Halt> {
        if self.streams.insert(node, stream).is_some() {
            self.push(world, Work::Everyone(Input::Left(self.peers[node].clone())));
            self.serve(world, |serving, world, now| serving.lost(world, now, node))?;
        }
        self.push(world, Work::Everyone(Input::Joined(self.candidates[node].clone())));
        let streams = self.streams.clone();
        self.serve(world, |serving, world, now| serving.nodes(world, now, &streams))
    }

    /// A node's stream has closed.
    pub(crate) fn left(&mut self, world: &mut World, node: usize, stream: u64) -> Result<(), Halt> {
        if self.streams.get(&node) != Some(&stream) {
            return Ok(());
        }
        self.streams.remove(&node);
        self.push(world, Work::Everyone(Input::Left(self.peers[node].clone())));
        let streams = self.streams.clone();
        self.serve(world, |serving, world, now| serving.lost(world, now, node))?;
        self.serve(world, |serving, world, now| serving.nodes(world, now, &streams))
    }

    pub(crate) fn serve(
        &mut self,
        world: &mut World,
        work: impl FnOnce(&mut Serving, &mut World, Now) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let now = self.now(world);
        match &mut self.serving {
            Some(serving) => work(serving, world, now),
            None => Ok(()),
        }
    }

    pub(crate) fn cancel(&mut self, world: &mut World, job: &JobId) {
        if self.owned.contains_key(job) {
            self.push(world, Work::Job(job.clone(), Input::Cancel));
        }
    }

    pub(crate) fn made(&mut self, world: &mut World, job: JobId, input: Input) {
        self.push(world, Work::Job(job, input));
    }

    /// A client's job: accepted once it is stored, also if it was before.
    pub(crate) fn create(&mut self, world: &mut World, record: &JobRecord) -> Result<(), Halt> {
        let id = record.spec.job_id.clone();
        match commit(world, store::creation(record))? {
            Ok(()) | Err(StoreError::Conflict { .. }) => world.witness.accepted(id),
            Err(error) => panic!("invariant: a memory store has no other faults than {error}"),
        }
        Ok(())
    }

    pub(crate) fn question(&mut self, world: &mut World, from: Asker, question: Question) -> Result<(), Halt> {
        let peer = self.peers[from.node].clone();
        match question {
            Question::Say(Up::Answer { key, declined }) => {
                let fault = declined.as_ref().and_then(|declined| fault_of(&peer, &key, declined));
                assert_eq!(fault, None, "a simulated node signs its refusals");
                self.push(world, Work::Job(key.job.clone(), Input::Answer(peer, key, declined)));
            }
            Question::Say(Up::TrainingFailed { key, reason }) => {
                self.push(world, Work::Job(key.job.clone(), Input::Failed(peer, key, reason)));
            }
            Question::Say(Up::Secure { key, message }) => {
                self.push(world, Work::Job(key.job.clone(), Input::Secure(peer, key, message)));
            }
            Question::Say(Up::Prediction { request, attempt, outcome }) => {
                self.serve(world, |serving, world, now| {
                    serving.answered(world, now, &peer, request, attempt, outcome)
                })?;
            }
            Question::Say(Up::Report(_) | Up::Leave) => {}
            Question::Fetch(blob) => {
                let reply = self.fetch(world, &peer, &blob);
                world.reply(self.index, from, reply);
            }
            Question::Upload(header, bytes) => self.upload(world, from, peer, *header, bytes)?,
        }
        Ok(())
    }

    fn fetch(&self, world: &World, peer: &Peer, blob: &BlobRef) -> Reply {
        if !self.owned.values().any(|o| o.job.offers_to(peer, &blob.digest)) {
            // A job whose lease is not taken yet may offer it in a moment.
            let waiting = ready(store::jobs(&world.records)).unwrap_or_default();
            let waiting =
                waiting.iter().any(|j| !j.life.status().is_terminal() && !self.owned.contains_key(&j.spec.job_id));
            return if waiting { Reply::Busy } else { Reply::Refused("not a model of your round".into()) };
        }
        match ready(world.blobs.read(&blob.digest)) {
            Ok(Some(bytes)) => Reply::Blob(bytes),
            Ok(None) | Err(_) => Reply::Refused("the model is missing".into()),
        }
    }

    fn upload(
        &mut self,
        world: &mut World,
        from: Asker,
        peer: Peer,
        header: UpdateHeader,
        bytes: Bytes,
    ) -> Result<(), Halt> {
        let Some(owned) = self.owned.get(&header.key.job) else {
            world.reply(self.index, from, Reply::Update(UpdateReply::Retry { after_ms: 500 }));
            return Ok(());
        };
        if let Some(said) = owned.job.offer(&peer, &header) {
            world.reply(self.index, from, Reply::Update(said));
            return Ok(());
        }
        let inline = !world.plan.store_updates && bytes.len() <= INLINE_MAX;
        let payload = if inline {
            Payload::Inline(bytes)
        } else {
            let blob = ready(put_blob(&world.blobs, bytes)).expect("invariant: memory is not full");
            *self.payloads.entry(blob.digest).or_default() += 1;
            Payload::Stored(blob)
        };
        self.push(world, Work::Update(from, peer, header, payload));
        Ok(())
    }

    fn drop_payload(&mut self, world: &World, digest: Digest) {
        let left = self.payloads.get(&digest).copied().unwrap_or(1).saturating_sub(1);
        if left > 0 {
            self.payloads.insert(digest, left);
        } else {
            self.payloads.remove(&digest);
            ready(world.blobs.delete(&digest)).expect("invariant: memory blobs can be deleted");
        }
    }

    pub(crate) fn tick(&mut self, world: &mut World) -> Result<(), Halt> {
        let at = world.now() + TICK_MS;
        world.queue.plan(at, AtProcess::Tick { process: self.index, life: self.life });
        self.renew(world)?;
        self.take_jobs(world)?;
        self.push(world, Work::Everyone(Input::Tick));
        self.serve(world, Serving::tick)
    }

    /// Extends the leases it has; a tenure that ran out is over, even if nobody else had one meanwhile.
    fn renew(&mut self, world: &mut World) -> Seen {
        let (now, wall) = (world.now(), self.now(world).wall_ms);
        let due: Vec<JobId> = self
            .owned
            .iter()
            .filter(|(_, o)| now - o.renewed_ms > millis(LEASE) / 3)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let epoch = self.acquire(world, &id)?;
            match self.owned.get_mut(&id).filter(|o| epoch == Some(o.epoch)) {
                Some(owned) => (owned.renewed_ms, owned.renewed_wall_ms) = (now, wall),
                None => drop(self.owned.remove(&id)),
            }
        }
        Ok(())
    }

    fn acquire(&self, world: &mut World, id: &JobId) -> Result<Option<u64>, crate::witness::Breach> {
        let lease = store::lease(id);
        let epoch = match world.conduct.leases_by_clock() {
            true => self.acquire_by_clock(world, &lease),
            false => ready(world.records.acquire(&lease, &self.name(), LEASE)).ok().flatten(),
        };
        if let Some(epoch) = epoch {
            world.witness.acquired(lease, epoch)?;
        }
        Ok(epoch)
    }

    /// What a careless process does instead: it judges by its own wall clock whether another one's lease is over.
    fn acquire_by_clock(&self, world: &World, lease: &str) -> Option<u64> {
        let row = ready(world.records.get("sim_leases", lease)).ok().flatten();
        let held = row.and_then(|row| serde_json::from_slice::<(String, u64, u64)>(&row.value).ok());
        let now = self.now(world).wall_ms;
        let epoch = match held {
            Some((holder, epoch, _)) if holder == self.name() => epoch,
            Some((_, _, until)) if until > now => return None,
            Some((_, epoch, _)) => epoch + 1,
            None => 1,
        };
        let mut batch = Batch::new("lease_written");
        batch.put("sim_leases", lease, &(self.name(), epoch, now + millis(LEASE)));
        ready(world.records.commit(batch)).ok().map(|()| epoch)
    }

    /// Takes the leases it can get, and only then reads the jobs.
    fn take_jobs(&mut self, world: &mut World) -> Result<(), Halt> {
        for record in ready(store::jobs(&world.records)).unwrap_or_default() {
            let id = record.spec.job_id.clone();
            if record.life.status().is_terminal() || self.owned.contains_key(&id) {
                continue;
            }
            let Some(epoch) = self.acquire(world, &id)? else { continue };
            let fresh = ready(store::saved(&world.records, &id)).ok().flatten();
            let careless = if world.conduct.reads_after_lease() { None } else { self.remembered.get(&id).cloned() };
            let Some(saved) = careless.or(fresh) else { continue };
            self.note(&saved);
            let (now, kept) = (self.now(world), Kept::of(&saved));
            let mut job = Job::restore(now, saved, rules(world.plan.drawn));
            let mut all = if world.conduct.resumes() { job.resume(now) } else { Step::default() };
            for node in self.streams.keys() {
                merge(&mut all, job.step(now, Input::Joined(self.candidates[*node].clone())));
            }
            merge(&mut all, job.step(now, Input::Started));
            let (renewed_ms, renewed_wall_ms) = (world.now(), now.wall_ms);
            let owned = Owned { job, epoch, renewed_ms, renewed_wall_ms, kept, arrived: Vec::new() };
            self.owned.insert(id.clone(), owned);
            self.settle(world, &id, all, Vec::new())?;
        }
        Ok(())
    }
}

fn rules(drawn: bool) -> Rules {
    let full_graph_max = if drawn { 0 } else { FULL_GRAPH_MAX };
    Rules { selection: Selection::Random, silence_ms: SILENCE_MS, full_graph_max }
}

fn merge(all: &mut Step, step: Step) {
    all.changes.extend(step.changes);
    all.effects.extend(step.effects);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Persists a batch, or dies just before or after.
pub(crate) fn commit(world: &mut World, batch: Batch) -> Result<Result<(), StoreError>, Halt> {
    let step = batch.name;
    world.perhaps_die(FaultKind::CrashBeforePersist, step)?;
    let result = ready(world.records.commit(batch));
    if result.is_ok() {
        world.perhaps_die(FaultKind::CrashAfterPersist, step)?;
    }
    Ok(result)
}
