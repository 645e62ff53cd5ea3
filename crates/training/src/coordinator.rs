//! The async shell of the room: one task for each unfinished job, and what they share.
//!
//! Requests find their job here; ended jobs are read from the store. Nothing is decided here: see [`crate::job`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use aivillage_base::ports::{Blobs, Payload, StoreError};
use aivillage_base::rng::os_bytes;
use aivillage_base::wire::{BlobRef, Declined, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, ErrorKind, JobId, ModelId};

use crate::actor::{Actor, Message, Snapshot};
use crate::error::{Fault, TrainingError};
use crate::handle::Deps;
use crate::job::{Input, Job, Rules};
use crate::record::{JobRecord, Life, RoundRecord, SCHEMA, Stage};
use crate::recruit::Candidate;
use crate::round::Round;
use crate::spec::{CatalogueModel, JobRequest, ModelChoice, resolve};
use crate::store;
use crate::view::{EventKind, JobEvent, JobStatus, JobSummary, JobView, Phase, RoundView, TrainingStats};

/// Messages waiting for one job: the updates of a large cohort may arrive together.
const INBOX: usize = 4_096;
/// Events a slow listener may lag behind.
const EVENTS: usize = 1_024;
/// Unfinished jobs at most: each is a task and its queue.
const UNFINISHED_MAX: usize = 1_000;
/// How long a lease lasts without renewal.
const LEASE: Duration = Duration::from_secs(30);

/// What a job's task publishes for others to see without asking it.
#[derive(Debug)]
struct Board {
    outbox: mpsc::Sender<Message>,
    events: broadcast::Sender<JobEvent>,
    sequence: u64,
    /// Model and members of the attempt under way.
    offered: Option<(Digest, BTreeSet<Peer>)>,
}

/// What jobs' tasks and the coordinator share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    boards: Mutex<HashMap<JobId, Board>>,
    /// Which jobs keep which model blobs, and how many counted updates refer to which payload blobs.
    models: Mutex<HashMap<Digest, BTreeSet<JobId>>>,
    payloads: tokio::sync::Mutex<HashMap<Digest, u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere must not stop the coordinator; these maps are valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn outbox(&self, job: &JobId) -> Option<mpsc::Sender<Message>> {
        lock(&self.boards).get(job).map(|b| b.outbox.clone())
    }

    fn outboxes(&self) -> Vec<mpsc::Sender<Message>> {
        lock(&self.boards).values().map(|b| b.outbox.clone()).collect()
    }

    pub(crate) fn publish_event(&self, job: &JobId, kind: EventKind, round: Option<&Round>) {
        if let Some(board) = lock(&self.boards).get_mut(job) {
            board.sequence += 1;
            board.offered = round.map(|r| {
                (r.model_in().digest, r.members().into_iter().map(|m| m.peer).collect())
            });
            // Nobody listening is fine.
            let _listeners = board.events.send(JobEvent { sequence: board.sequence, kind });
        }
    }

    pub(crate) fn keep_model(&self, job: &JobId, digest: Digest) {
        lock(&self.models).entry(digest).or_default().insert(job.clone());
    }

    /// Deletes a model's blob unless another job or the catalogue has the same bytes.
    pub(crate) async fn drop_model(&self, deps: &Deps, job: &JobId, digest: Digest) {
        let unused = {
            let mut models = lock(&self.models);
            let keepers = models.entry(digest).or_default();
            keepers.remove(job);
            let unused = keepers.is_empty();
            if unused {
                models.remove(&digest);
            }
            unused
        };
        if unused
            && !deps.catalogue.uses(&digest).await
            && let Err(error) = deps.blobs.delete(&digest).await
        {
            tracing::warn!(%digest, %error, "an old round's model could not be deleted");
        }
    }

    /// One more counted update refers to this blob. False if the blob is gone: it must be sent again.
    async fn keep_payload(&self, blobs: &dyn Blobs, digest: Digest) -> Result<bool, StoreError> {
        let mut payloads = self.payloads.lock().await;
        if blobs.len(&digest).await?.is_none() {
            return Ok(false);
        }
        *payloads.entry(digest).or_default() += 1;
        Ok(true)
    }

    /// One update fewer refers to this blob; the last one takes it along.
    pub(crate) async fn drop_payload(&self, blobs: &dyn Blobs, digest: Digest) {
        let mut payloads = self.payloads.lock().await;
        let left = payloads.get(&digest).copied().unwrap_or(1).saturating_sub(1);
        if left > 0 {
            payloads.insert(digest, left);
            return;
        }
        payloads.remove(&digest);
        if let Err(error) = blobs.delete(&digest).await {
            tracing::warn!(%digest, %error, "an update could not be deleted");
        }
    }
}

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
        for record in store::jobs(&*this.deps.records).await? {
            let rounds = store::rounds(&*this.deps.records, &record.spec.job_id).await?;
            let models = this.note_models(&record, &rounds);
            if !record.life.status().is_terminal() {
                this.resume(record, rounds, models).await?;
            }
        }
        Ok(this)
    }

    /// Remembers which models a stored job keeps.
    fn note_models(&self, record: &JobRecord, rounds: &[RoundRecord]) -> VecDeque<BlobRef> {
        let job = &record.spec.job_id;
        let mut models = VecDeque::new();
        for round in rounds {
            if let Stage::Done { model_out } = &round.stage {
                models.push_back(*model_out);
            }
        }
        if let Some(model) = record.model.filter(|m| !models.contains(m)) {
            models.push_back(model);
        }
        for model in &models {
            self.shared.keep_model(job, model.digest);
        }
        models
    }

    async fn resume(
        self: &Arc<Self>,
        record: JobRecord,
        rounds: Vec<RoundRecord>,
        models: VecDeque<BlobRef>,
    ) -> Result<(), TrainingError> {
        let current = rounds.into_iter().find(|r| matches!(r.stage, Stage::Collecting | Stage::Publishing));
        let current = match current {
            Some(round) => {
                let members = store::members(&*self.deps.records, &round.key).await?;
                let mut payloads = self.shared.payloads.lock().await;
                for counted in members.iter().filter_map(|m| m.counted()).filter(|c| !c.inline) {
                    *payloads.entry(counted.payload.digest).or_default() += 1;
                }
                Some((round, members))
            }
            None => None,
        };
        let job = Job::restore(self.deps.clock.now(), record, current, self.rules());
        self.spawn(job, models);
        Ok(())
    }

    fn rules(&self) -> Rules {
        let config = &self.deps.config;
        Rules {
            selection: config.selection,
            silence_ms: u64::try_from(config.selection_timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Starts the job's task: it takes its lease, tells the job who is there, and waits for its turn.
    fn spawn(self: &Arc<Self>, job: Job, models: VecDeque<BlobRef>) {
        let id = job.record().spec.job_id.clone();
        let (outbox, inbox) = mpsc::channel(INBOX);
        let (events, _) = broadcast::channel(EVENTS);
        let offered = job
            .round()
            .map(|r| (r.model_in().digest, r.members().into_iter().map(|m| m.peer).collect()));
        let board = Board { outbox: outbox.clone(), events, sequence: 0, offered };
        lock(&self.shared.boards).insert(id.clone(), board);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let Some(epoch) = this.lease(&id).await else { return };
            let actor = Actor {
                id: id.clone(),
                job,
                deps: this.deps.clone(),
                shared: Arc::clone(&this.shared),
                inbox,
                outbox: outbox.downgrade(),
                cancel: this.cancel.clone(),
                epoch,
                models,
            };
            let (slots, turn) = (Arc::clone(&this.slots), outbox.clone());
            let waiting = tokio::spawn(async move {
                let permit = slots.acquire_owned().await.ok();
                let _gone = turn.send(Message::Input(Input::Started)).await;
                permit
            });
            for peer in this.deps.transport.connected() {
                if let Some(candidate) = this.candidate(&peer) {
                    let _gone = outbox.send(Message::Input(Input::Joined(candidate))).await;
                }
            }
            drop(outbox);
            actor.run().await;
            lock(&this.shared.boards).remove(&id);
            // The turn goes to the next job; one that never had it leaves the queue.
            waiting.abort();
            if let Err(error) = this.deps.records.release(&store::lease(&id), &this.deps.config.coordinator_id).await {
                tracing::debug!(job = %id, %error, "lease not released, it will expire");
            }
        });
    }

    async fn lease(&self, job: &JobId) -> Option<u64> {
        loop {
            let lease = self.deps.records.acquire(&store::lease(job), &self.deps.config.coordinator_id, LEASE).await;
            match lease {
                Ok(Some(epoch)) => return Some(epoch),
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
        let spec =
            resolve(&request, &self.deps.config, |_| model, job_id, seed).map_err(TrainingError::Refused)?;
        self.check_space(&spec).await?;
        let record = JobRecord {
            schema: SCHEMA,
            life: Life::Created,
            architecture: None,
            model: None,
            rounds_done: 0,
            attempts: 0,
            failures_in_row: 0,
            declined: std::collections::BTreeMap::new(),
            created_ms: self.deps.clock.now().wall_ms,
            ended_ms: None,
            spec,
        };
        let id = record.spec.job_id.clone();
        self.deps.records.commit(store::creation(&record)).await.map_err(|e| match e {
            StoreError::Conflict { .. } => TrainingError::Taken(id.to_string()),
            other @ (StoreError::Fenced { .. }
            | StoreError::Full { .. }
            | StoreError::Damaged(_)
            | StoreError::Unavailable(_)) => TrainingError::Store(other),
        })?;
        tracing::info!(job = %id, "job created");
        self.spawn(Job::restore(self.deps.clock.now(), record, None, self.rules()), VecDeque::new());
        Ok(id)
    }

    /// A job that cannot store its updates is refused before it starts.
    async fn check_space(&self, spec: &crate::spec::JobSpec) -> Result<(), TrainingError> {
        let crate::spec::Start::Model(model) = &spec.start else { return Ok(()) };
        let bytes = model.architecture.parameters().unwrap_or(0) as u64 * 4;
        let needed = bytes.saturating_mul(u64::from(spec.max_participants) + 3);
        let available = self.deps.blobs.available().await?;
        if needed > available {
            return Err(TrainingError::Refused(vec![Fault {
                pointer: "/max_participants".into(),
                detail: format!(
                    "a round of {} updates of {bytes} bytes needs {needed} bytes of disk, {available} are available",
                    spec.max_participants
                ),
                kind: ErrorKind::Invalid,
            }]));
        }
        Ok(())
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

    pub(crate) async fn model(&self, id: &JobId, round: Option<u32>) -> Result<(BlobRef, Bytes), TrainingError> {
        let record = store::job(&*self.deps.records, id).await?.ok_or(TrainingError::NotFound)?;
        let found = match round {
            None => record.model,
            Some(n) => store::rounds(&*self.deps.records, id).await?.iter().find_map(|r| match &r.stage {
                Stage::Done { model_out } if r.key.round == n => Some(*model_out),
                Stage::Done { .. } | Stage::Collecting | Stage::Publishing | Stage::Abandoned { .. } => None,
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
        let bytes = self.deps.blobs.read(&blob.digest).await?.ok_or_else(missing)?;
        Ok((blob, bytes))
    }

    pub(crate) fn stats(&self) -> TrainingStats {
        let metrics = &self.deps.metrics;
        let boards = lock(&self.shared.boards);
        let active: BTreeSet<&Peer> =
            boards.values().filter_map(|b| b.offered.as_ref()).flat_map(|(_, members)| members).collect();
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

    pub(crate) async fn answer(&self, from: &Peer, key: RoundKey, declined: Option<Declined>) {
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
        let reply = self.ask(&header.key.job, |reply| Message::Update(input, reply)).await;
        let reply = reply.unwrap_or_else(|| self.unknown(&header));
        if let (Some(digest), UpdateReply::Refused { .. } | UpdateReply::Retry { .. }) = (stored, &reply) {
            self.shared.drop_payload(&*self.deps.blobs, digest).await;
        }
        reply
    }

    pub(crate) fn may_fetch(&self, node: &Peer, digest: &Digest) -> bool {
        let boards = lock(&self.shared.boards);
        boards
            .values()
            .filter_map(|b| b.offered.as_ref())
            .any(|(model, members)| model == digest && members.contains(node))
    }
}

fn random_seed() -> u64 {
    let mut bytes = [0u8; 8];
    os_bytes(&mut bytes);
    // 53 bits: JSON numbers beyond that lose digits in many languages.
    u64::from_le_bytes(bytes) >> 11
}

fn job_view(snapshot: Snapshot, rounds: &[RoundRecord]) -> JobView {
    let Snapshot { record, mut current, waiting_for } = snapshot;
    let ended: Vec<RoundView> =
        rounds.iter().filter(|r| r.closed_ms.is_some()).map(|r| r.view(&r.members, r.elapsed_ms)).collect();
    let reason = match &record.life {
        Life::Failed { reason } => Some(reason.clone()),
        Life::Created => Some(waiting_for.clone().unwrap_or_else(|| "waiting for its turn".to_owned())),
        Life::Running | Life::Completed { .. } | Life::Cancelled => waiting_for.clone(),
    };
    if current.is_none() && record.life == Life::Running && record.rounds_done < record.spec.total_rounds {
        current = Some(RoundView {
            round: record.rounds_done + 1,
            attempt: record.attempts + 1,
            phase: Phase::Recruiting,
            reason: waiting_for,
            members: Vec::new(),
            loss: None,
            accuracy: None,
            bytes: 0,
            model: None,
            opened_ms: None,
            closed_ms: None,
            elapsed_ms: 0,
        });
    }
    let model_id = match &record.life {
        Life::Completed { model_id } => Some(model_id.clone()),
        Life::Created | Life::Running | Life::Failed { .. } | Life::Cancelled => None,
    };
    JobView {
        status: record.life.status(),
        reason,
        rounds_done: record.rounds_done,
        best_round: best_round(&ended),
        current,
        rounds: ended,
        model: record.model,
        model_id,
        created_ms: record.created_ms,
        ended_ms: record.ended_ms,
        spec: record.spec,
    }
}

/// The round whose model did best when the next round's members received it.
fn best_round(rounds: &[RoundView]) -> Option<u32> {
    rounds
        .iter()
        .filter(|r| r.phase == Phase::Done && r.round > 1)
        .filter_map(|r| Some((r.round - 1, r.accuracy?)))
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        .map(|(round, _)| round)
}
