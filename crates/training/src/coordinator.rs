//! The async shell of the room: one task for each unfinished job, and what they share.
//!
//! Requests find their job here; ended jobs are read from the store. Nothing is decided here: see [`crate::job`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use aivillage_base::ports::{BlobReader, Payload, StoreError};
use aivillage_base::rng::os_bytes;
use aivillage_base::wire::secure::SecureUp;
use aivillage_base::wire::{BlobRef, Declined, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, JobId, ModelId};

use crate::actor::{Actor, Exit, Message, Snapshot};
use crate::error::{Fault, TrainingError};
use crate::handle::Deps;
use crate::job::{Job, Rules};
use crate::kept::Kept;
use crate::record::{Counted, JobRecord, MemberRecord, RoundRecord, Saved, Stage};
use crate::recruit::{self, Candidate};
use crate::refusals::{self, Warning};
use crate::secure::FULL_GRAPH_MAX;
use crate::shared::{Board, Shared, lock};
use crate::spec::{CatalogueModel, JobRequest, JobSpec, ModelChoice, resolve};
use crate::status::job_view;
use crate::step::Input;
use crate::store;
use crate::view::{JobEvent, JobStatus, JobSummary, JobView, TrainingStats};

/// Messages waiting for one job: the updates of a large cohort may arrive together.
const INBOX: usize = 4_096;
/// Events a slow listener may lag behind.
const EVENTS: usize = 1_024;
/// Unfinished jobs at most: each is a task and its queue.
const UNFINISHED_MAX: usize = 1_000;
/// How long a lease lasts without renewal.
const LEASE: Duration = Duration::from_secs(30);

/// The coordinator.
#[derive(Debug)]
pub(crate) struct Coordinator {
    deps: Deps,
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    cancel: CancellationToken,
    trainers: Mutex<BTreeSet<Peer>>,
}

impl Coordinator {
    pub(crate) async fn start(deps: Deps, cancel: CancellationToken) -> Result<Arc<Self>, TrainingError> {
        let slots = Arc::new(Semaphore::new(deps.config.max_concurrent_jobs));
        let this = Arc::new(Self { deps, shared: Arc::default(), slots, cancel, trainers: Mutex::default() });
        let mut ended = Vec::new();
        let mut unfinished = Vec::new();
        for record in store::jobs(&*this.deps.records).await? {
            let Some(saved) = store::saved(&*this.deps.records, &record.spec.job_id).await? else { continue };
            this.note(&saved).await;
            ended.extend(saved.attempts.iter().rev().find(|r| !r.is_open()).cloned());
            if !saved.record.life.status().is_terminal() {
                unfinished.push(saved);
            }
        }
        // An attempt's updates go once its end is durable; a process that died in between has left them.
        for counted in ended.iter().flat_map(leftovers) {
            this.shared.sweep_payload(&*this.deps.blobs, counted.payload.digest).await;
        }
        for saved in unfinished {
            this.spawn(saved);
        }
        Ok(this)
    }

    /// Counts what a stored job refers to.
    async fn note(&self, saved: &Saved) {
        for digest in Kept::of(saved).digests() {
            self.shared.keep_model(&saved.record.spec.job_id, digest);
        }
        let mut payloads = self.shared.payloads.lock().await;
        for counted in stored(saved) {
            *payloads.entry(counted.payload.digest).or_default() += 1;
        }
    }

    /// Counts the updates that another coordinator has taken in meanwhile.
    async fn recount(&self, saved: &Saved) {
        let mut payloads = self.shared.payloads.lock().await;
        for counted in stored(saved) {
            payloads.entry(counted.payload.digest).or_insert(1);
        }
    }

    fn rules(&self) -> Rules {
        let config = &self.deps.config;
        Rules {
            selection: config.selection,
            silence_ms: u64::try_from(config.selection_timeout.as_millis()).unwrap_or(u64::MAX),
            full_graph_max: FULL_GRAPH_MAX,
        }
    }

    /// Starts the job's task and runs it until the job ends or the coordinator stops.
    fn spawn(self: &Arc<Self>, saved: Saved) {
        let id = saved.record.spec.job_id.clone();
        let (outbox, mut inbox) = mpsc::channel(INBOX);
        let (events, _) = broadcast::channel(EVENTS);
        let board = Board { outbox: outbox.clone(), events, sequence: 0, offered: BTreeMap::new() };
        lock(&self.shared.boards).insert(id.clone(), board);
        self.shared.offer(&id, Job::restore(self.deps.clock.now(), saved, self.rules()).offered());
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while let Some((actor, waiting)) = this.prepare(&id, &outbox, inbox).await {
                let (exit, left) = actor.run().await;
                inbox = left;
                // The turn goes to the next job; one that never had it leaves the queue.
                waiting.abort();
                match exit {
                    Exit::Ended | Exit::Stopped => break,
                    Exit::Lost => tracing::warn!(job = %id, "the job's lease is lost: waiting for it"),
                }
            }
            this.shared.close(&id);
            if let Err(error) = this.deps.records.release(&store::lease(&id), &this.deps.config.coordinator_id).await {
                tracing::debug!(job = %id, %error, "lease not released, it will expire");
            }
        });
    }

    /// Takes the job's lease, and only then reads the job: whoever had the lease before may have moved it on.
    async fn prepare(
        self: &Arc<Self>,
        id: &JobId,
        outbox: &mpsc::Sender<Message>,
        inbox: mpsc::Receiver<Message>,
    ) -> Option<(Actor, JoinHandle<Option<OwnedSemaphorePermit>>)> {
        let (epoch, saved) = self.lease(id).await?;
        self.recount(&saved).await;
        let (slots, turn) = (Arc::clone(&self.slots), outbox.clone());
        let waiting = tokio::spawn(async move {
            let permit = slots.acquire_owned().await.ok();
            let _gone = turn.send(Message::Input(Input::Started)).await;
            permit
        });
        let present = self.deps.transport.connected();
        let actor = Actor {
            id: id.clone(),
            kept: Kept::of(&saved),
            shown: None,
            job: Job::restore(self.deps.clock.now(), saved, self.rules()),
            deps: self.deps.clone(),
            shared: Arc::clone(&self.shared),
            inbox,
            outbox: outbox.downgrade(),
            cancel: self.cancel.clone(),
            epoch,
            present: present.iter().filter_map(|peer| self.candidate(peer)).collect(),
        };
        Some((actor, waiting))
    }

    /// The job's lease and the job as it is then; None if the coordinator stops.
    async fn lease(&self, job: &JobId) -> Option<(u64, Saved)> {
        loop {
            let lease = self.deps.records.acquire(&store::lease(job), &self.deps.config.coordinator_id, LEASE).await;
            match lease {
                Ok(Some(epoch)) => match store::saved(&*self.deps.records, job).await {
                    Ok(Some(saved)) => return Some((epoch, saved)),
                    Ok(None) => return None,
                    Err(error) => tracing::warn!(%job, %error, "job not read, trying again"),
                },
                Ok(None) => {}
                Err(error) => tracing::warn!(%job, %error, "lease not acquired, trying again"),
            }
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn candidate(&self, peer: &Peer) -> Option<Candidate> {
        let report = self.deps.inventory.get(&peer.id)?.report?;
        Some(Candidate {
            peer: peer.clone(),
            data: report.data,
            node_types: report.node_types,
            compute_gflops: report.compute_gflops,
            helper: report.helper.map(Box::new),
        })
    }

    /// The catalogue model that a request names, if it names one.
    async fn find_model(&self, request: &JobRequest) -> Option<CatalogueModel> {
        match &request.model_architecture {
            ModelChoice::Named(name) => match ModelId::new(name.clone()) {
                Ok(id) => self.deps.catalogue.find(&id).await,
                Err(_) => None,
            },
            ModelChoice::Layers(_) => None,
        }
    }

    /// All faults of a request, without creating anything.
    pub(crate) async fn check(&self, request: &JobRequest) -> Vec<Fault> {
        let model = self.find_model(request).await;
        let job_id = request.job_id.clone().unwrap_or_else(JobId::random);
        resolve(request, &self.deps.config, |_| model, job_id, 0).err().unwrap_or_default()
    }

    pub(crate) async fn create(self: &Arc<Self>, request: JobRequest) -> Result<JobId, TrainingError> {
        if self.cancel.is_cancelled() {
            return Err(TrainingError::Stopped);
        }
        let unfinished = lock(&self.shared.boards).len();
        if unfinished >= UNFINISHED_MAX {
            return Err(TrainingError::Full(unfinished));
        }
        let model = self.find_model(&request).await;
        let job_id = request.job_id.clone().unwrap_or_else(JobId::random);
        let seed = request.seed.unwrap_or_else(random_seed);
        let spec = resolve(&request, &self.deps.config, |_| model, job_id, seed).map_err(TrainingError::Refused)?;
        self.check_space(&spec).await?;
        let record = JobRecord::new(spec, self.deps.clock.now().wall_ms);
        let id = record.spec.job_id.clone();
        self.deps.records.commit(store::creation(&record)).await.map_err(|e| match e {
            StoreError::Conflict { .. } => TrainingError::Taken(id.to_string()),
            other @ (StoreError::Fenced { .. }
            | StoreError::Full { .. }
            | StoreError::Damaged(_)
            | StoreError::Unavailable(_)) => TrainingError::Store(other),
        })?;
        tracing::info!(job = %id, "job created");
        self.spawn(Saved::new(record));
        Ok(id)
    }

    /// What is foretold of the job by the nodes that are known now.
    pub(crate) async fn warnings(&self, id: &JobId) -> Result<Vec<Warning>, TrainingError> {
        let record = store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
        let nodes = self.deps.inventory.list();
        Ok(refusals::foretold(&record.spec, nodes.iter().filter_map(|node| node.report.as_ref())))
    }

    /// A job that cannot store its updates is refused before it starts, as far as its size can be known by then: from its
    /// catalogue model, its data requirements, or the data that nodes have reported.
    async fn check_space(&self, spec: &JobSpec) -> Result<(), TrainingError> {
        let reports = self.deps.inventory.list().into_iter().filter_map(|node| node.report);
        let data: Vec<_> = reports.flat_map(|report| report.data).collect();
        let Some(parameters) = recruit::parameters_max(spec, &data) else { return Ok(()) };
        match spec.space_fault(parameters, self.deps.blobs.available().await?) {
            Some(fault) => Err(TrainingError::Refused(vec![fault])),
            None => Ok(()),
        }
    }

    pub(crate) async fn status(&self, id: &JobId) -> Result<JobView, TrainingError> {
        let live = self.ask(id, Message::View).await;
        let snapshot = match live {
            Some(snapshot) => snapshot,
            None => {
                let record = store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
                Snapshot { record, current: None, waiting_for: None }
            }
        };
        let rounds = store::rounds(&*self.deps.records, id).await?;
        Ok(job_view(snapshot, &rounds))
    }

    /// Asks the job's task, if it has one.
    async fn ask<T>(&self, id: &JobId, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let outbox = self.shared.outbox(id)?;
        let (reply, answer) = oneshot::channel();
        outbox.send(message(reply)).await.ok()?;
        answer.await.ok()
    }

    pub(crate) async fn list(&self) -> Result<Vec<JobSummary>, TrainingError> {
        let summary = |r: JobRecord| JobSummary {
            status: r.life.status(),
            rounds_done: r.rounds_done,
            total_rounds: r.spec.total_rounds,
            created_ms: r.created_ms,
            job_id: r.spec.job_id,
            job_name: r.spec.job_name,
        };
        Ok(store::jobs(&*self.deps.records).await?.into_iter().map(summary).collect())
    }

    pub(crate) async fn cancel(&self, id: &JobId) -> Result<(), TrainingError> {
        // A task that is just ending does not answer: then the store knows how it ended.
        if self.ask(id, Message::Cancel).await.is_some() {
            return Ok(());
        }
        let record = store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
        match record.life.status() {
            JobStatus::Cancelled => Ok(()),
            status @ (JobStatus::Completed | JobStatus::Failed) => {
                Err(TrainingError::Ended { job: id.to_string(), status: status.as_str(), wanted: "cancelled" })
            }
            JobStatus::Created | JobStatus::Running => Err(TrainingError::Stopped),
        }
    }

    pub(crate) async fn events(&self, id: &JobId) -> Result<broadcast::Receiver<JobEvent>, TrainingError> {
        if let Some(board) = lock(&self.shared.boards).get(id) {
            return Ok(board.events.subscribe());
        }
        store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
        // An ended job has no more events: a receiver whose sender is gone says so.
        Ok(broadcast::channel(1).1)
    }

    pub(crate) async fn model(
        &self,
        id: &JobId,
        round: Option<u32>,
    ) -> Result<(BlobRef, Arc<dyn BlobReader>), TrainingError> {
        let record = store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
        let found = match round {
            None => record.model,
            Some(n) => store::rounds(&*self.deps.records, id).await?.iter().find_map(|r| match &r.stage {
                Stage::Done { model_out, .. } if r.key.round == n => Some(*model_out),
                Stage::Done { .. }
                | Stage::Keying
                | Stage::Collecting
                | Stage::Unmasking
                | Stage::Publishing
                | Stage::Abandoned { .. } => None,
            }),
        };
        let missing = || {
            let what = round.map_or_else(|| "any model".to_owned(), |n| format!("a model of round {n}"));
            TrainingError::NoModel(format!(
                "job `{id}` has not published {what} or keeps it no longer: {} of {} rounds are published",
                record.rounds_done, record.spec.total_rounds
            ))
        };
        let blob = found.ok_or_else(missing)?;
        let blobs = Arc::clone(&self.deps.blobs);
        let opened = tokio::task::spawn_blocking(move || blobs.open(&blob.digest)).await;
        let opened = opened.map_err(|e| StoreError::Unavailable(e.to_string()))??;
        Ok((blob, opened.ok_or_else(missing)?))
    }

    pub(crate) fn stats(&self) -> TrainingStats {
        let metrics = &self.deps.metrics;
        let boards = lock(&self.shared.boards);
        let active: BTreeSet<&Peer> = boards.values().flat_map(|b| b.offered.values()).flatten().collect();
        TrainingStats {
            unfinished: boards.len() as u64,
            rounds_published: metrics.rounds_published.get(),
            updates_counted: metrics.updates_counted.get(),
            updates_refused: metrics.updates_refused.get(),
            participants_active: active.len() as u64,
        }
    }

    pub(crate) async fn presence(&self, peer: &Peer, online: bool) {
        let candidate = if online { self.candidate(peer) } else { None };
        let count = {
            let mut trainers = lock(&self.trainers);
            if candidate.as_ref().is_some_and(|c| !c.data.is_empty()) {
                trainers.insert(peer.clone());
            } else {
                trainers.remove(peer);
            }
            trainers.len()
        };
        self.deps.metrics.participants.set(i64::try_from(count).unwrap_or(i64::MAX));
        let input = match (online, candidate) {
            (true, Some(candidate)) => Input::Joined(candidate),
            (true, None) => return,
            (false, _) => Input::Left(peer.clone()),
        };
        for outbox in self.shared.outboxes() {
            let _gone = outbox.send(Message::Input(input.clone())).await;
        }
    }

    /// A refusal counts if the node signed it: nobody else can take it out of a job.
    pub(crate) async fn answer(&self, from: &Peer, key: RoundKey, declined: Option<Declined>) {
        if let Some(fault) = declined.as_ref().and_then(|declined| refusals::fault_of(from, &key, declined)) {
            tracing::warn!(node = %from.name, %key, fault, "refusal ignored");
            return;
        }
        if let Some(outbox) = self.shared.outbox(&key.job) {
            let _gone = outbox.send(Message::Input(Input::Answer(from.clone(), key, declined))).await;
        }
    }

    pub(crate) async fn failed(&self, from: &Peer, key: RoundKey, reason: String) {
        if let Some(outbox) = self.shared.outbox(&key.job) {
            // A sentence, not an essay: it is stored and shown.
            let reason: String = reason.chars().take(500).collect();
            let _gone = outbox.send(Message::Input(Input::Failed(from.clone(), key, reason))).await;
        }
    }

    pub(crate) async fn secure(&self, from: &Peer, key: RoundKey, mut message: Box<SecureUp>) {
        if let Some(outbox) = self.shared.outbox(&key.job) {
            if let SecureUp::Alarm { check, detail } = &mut *message {
                *check = check.chars().take(40).collect();
                *detail = detail.chars().take(500).collect();
            }
            let _gone = outbox.send(Message::Input(Input::Secure(from.clone(), key, message))).await;
        }
    }

    pub(crate) async fn offer(&self, from: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        let asked = self.ask(&header.key.job, |reply| Message::Offer(from.clone(), header.clone(), reply)).await;
        asked.unwrap_or_else(|| Some(self.unknown(header)))
    }

    fn unknown(&self, header: &UpdateHeader) -> UpdateReply {
        if self.cancel.is_cancelled() {
            return UpdateReply::Retry { after_ms: 1_000 };
        }
        let detail = format!("job `{}` is not running here", header.key.job);
        UpdateReply::Refused { reason: "late".into(), detail }
    }

    pub(crate) async fn update(&self, from: &Peer, header: UpdateHeader, payload: Payload) -> UpdateReply {
        if let Payload::Stored(blob) = &payload {
            match self.shared.keep_payload(&*self.deps.blobs, blob.digest).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return UpdateReply::Retry { after_ms: 500 },
            }
        }
        let stored = match &payload {
            Payload::Stored(blob) => Some(blob.digest),
            Payload::Inline(_) => None,
        };
        let input = Input::Update(from.clone(), header.clone(), payload);
        let (reply, kept) = self.hand_over(&header, input).await;
        if let (Some(digest), false) = (stored, kept) {
            self.shared.drop_payload(&*self.deps.blobs, digest).await;
        }
        reply
    }

    /// Hands an update to its job's task; also says whether its bytes must stay.
    async fn hand_over(&self, header: &UpdateHeader, input: Input) -> (UpdateReply, bool) {
        let (reply, answer) = oneshot::channel();
        let taken = match self.shared.outbox(&header.key.job) {
            Some(outbox) => outbox.send(Message::Update(input, reply)).await.is_ok(),
            None => false,
        };
        if !taken {
            return (self.unknown(header), false);
        }
        // No answer: the task stopped, with the update stored or not. Bytes too many do less harm than bytes too few.
        answer.await.unwrap_or((UpdateReply::Retry { after_ms: 500 }, true))
    }

    pub(crate) fn may_fetch(&self, node: &Peer, digest: &Digest) -> bool {
        let boards = lock(&self.shared.boards);
        boards.values().filter_map(|b| b.offered.get(digest)).any(|members| members.contains(node))
    }
}

/// Updates in the blob store that a stored job refers to: of the attempt under way, and those kept for auditors.
fn stored(saved: &Saved) -> impl Iterator<Item = &Counted> {
    let open = saved.members.iter().filter_map(MemberRecord::counted);
    let retained = saved.attempts.iter().flat_map(RoundRecord::retained).map(|(_, counted)| counted);
    let helped = saved.attempts.iter().filter(|attempt| attempt.is_open()).filter_map(RoundRecord::helped);
    open.chain(retained).chain(helped).filter(|c| !c.inline)
}

/// Updates in the blob store that an ended attempt no longer needs.
fn leftovers(ended: &RoundRecord) -> impl Iterator<Item = &Counted> {
    let retained: BTreeSet<Digest> = ended.retained().map(|(_, c)| c.payload.digest).collect();
    let counted = ended.members.iter().filter_map(MemberRecord::counted);
    counted.chain(ended.helped()).filter(move |c| !c.inline && !retained.contains(&c.payload.digest))
}

fn random_seed() -> u64 {
    let mut bytes = [0u8; 8];
    os_bytes(&mut bytes);
    // 53 bits: JSON numbers beyond that lose digits in many languages.
    u64::from_le_bytes(bytes) >> 11
}
