//! The task that owns one unfinished job: takes inputs in turn, persists, then acts.
//!
//! Whatever is waiting in the queue is stepped together and committed in one transaction, so ten updates that arrive
//! at once cost one wait for the disk. No reply and no effect leaves before that commit has returned. A commit that fails
//! for a reason that may pass is tried again; one that is fenced ends the task: another coordinator owns the job.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use aivillage_base::bundle;
use aivillage_base::ports::{Fence, StoreError};
use aivillage_base::wire::{BlobRef, Peer, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, JobId};

use crate::aggregate;
use crate::handle::Deps;
use crate::job::{Job, Offers};
use crate::kept::Kept;
use crate::record::JobRecord;
use crate::recruit::Candidate;
use crate::shared::Shared;
use crate::step::{Change, ComputeError, Effect, Input, Made, Step};
use crate::store;
use crate::view::{EventKind, JobStatus, RoundView};

/// Inputs stepped together at most: bounds the size of one transaction.
const DRAIN_MAX: usize = 256;
/// How often time is looked at: the precision of deadlines.
const TICK: Duration = Duration::from_millis(500);
/// How long a lease lasts without renewal.
const LEASE: Duration = Duration::from_secs(30);

/// What is sent to the task.
#[derive(Debug)]
pub(crate) enum Message {
    /// Something happened.
    Input(Input),
    /// An update has arrived; answer when it is durable.
    /// The answer says also whether its bytes must stay.
    Update(Input, oneshot::Sender<(UpdateReply, bool)>),
    /// Would this update be taken?
    Offer(Peer, UpdateHeader, oneshot::Sender<Option<UpdateReply>>),
    /// Where is it?
    View(oneshot::Sender<Snapshot>),
    /// The owner ends it; answered when that is durable.
    Cancel(oneshot::Sender<()>),
}

/// What a status needs beside the stored rounds.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) record: JobRecord,
    pub(crate) current: Option<RoundView>,
    pub(crate) waiting_for: Option<String>,
}

enum Pending {
    Update(oneshot::Sender<(UpdateReply, bool)>, Option<(UpdateReply, bool)>),
    Offer(oneshot::Sender<Option<UpdateReply>>, Option<UpdateReply>),
    View(oneshot::Sender<Snapshot>),
    Cancel(oneshot::Sender<()>),
}

/// The task's state.
pub(crate) struct Actor {
    pub(crate) id: JobId,
    pub(crate) job: Job,
    pub(crate) deps: Deps,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: mpsc::Receiver<Message>,
    /// To itself, for the results of computations.
    pub(crate) outbox: mpsc::WeakSender<Message>,
    pub(crate) cancel: CancellationToken,
    pub(crate) epoch: u64,
    pub(crate) kept: Kept,
    /// Which offers the board shows.
    pub(crate) shown: Option<Offers>,
    /// Nodes that are connected already.
    pub(crate) present: Vec<Candidate>,
}

/// Why the task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The job is over.
    Ended,
    /// The coordinator stops.
    Stopped,
    /// Another tenure of the lease has begun: what this task knows of the job may be old.
    Lost,
}

impl Actor {
    /// Runs until the job ends, the coordinator stops, or the lease is lost; gives the inbox back.
    pub(crate) async fn run(mut self) -> (Exit, mpsc::Receiver<Message>) {
        let exit = self.serve().await;
        if exit == Exit::Ended {
            self.answer_the_rest().await;
        }
        (exit, self.inbox)
    }

    async fn serve(&mut self) -> Exit {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let now = self.deps.clock.now();
        let mut renewed = now.monotonic_ms;
        self.show();
        let mut first = self.job.resume(now);
        for candidate in std::mem::take(&mut self.present) {
            merge(&mut first, self.job.step(now, Input::Joined(candidate)));
        }
        if let Err(exit) = self.settle(first, Vec::new()).await {
            return exit;
        }
        while !self.job.status().is_terminal() {
            let first = tokio::select! {
                () = self.cancel.cancelled() => return Exit::Stopped,
                message = self.inbox.recv() => match message {
                    Some(message) => message,
                    None => return Exit::Stopped,
                },
                _ = tick.tick() => Message::Input(Input::Tick),
            };
            let now = self.deps.clock.now().monotonic_ms;
            if now.saturating_sub(renewed) > millis(LEASE) / 3 {
                renewed = now;
                if !self.renew().await {
                    return Exit::Lost;
                }
            }
            let (step, pending) = self.take(first);
            if let Err(exit) = self.settle(step, pending).await {
                return exit;
            }
        }
        Exit::Ended
    }

    /// What still waits when the job has ended gets its answer: an update whose fate is unknown could not be deleted.
    async fn answer_the_rest(&mut self) {
        self.shared.close(&self.id);
        self.inbox.close();
        while let Some(message) = self.inbox.recv().await {
            let (step, pending) = self.take(message);
            // An ended job changes nothing, so there is nothing that could fail to be persisted.
            let _done = self.settle(step, pending).await;
        }
    }

    /// Extends the lease. False if it ran out: whoever took it meanwhile may have moved the job on.
    async fn renew(&self) -> bool {
        let config = &self.deps.config;
        let lease = self.deps.records.acquire(&store::lease(&self.id), &config.coordinator_id, LEASE).await;
        match lease {
            Ok(epoch) => epoch == Some(self.epoch),
            // The fence in every commit decides; a renewal that could not be made is tried again.
            Err(_) => true,
        }
    }

    /// Steps everything that waits in the queue.
    fn take(&mut self, first: Message) -> (Step, Vec<Pending>) {
        let mut all = Step::default();
        let mut pending = Vec::new();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(message) = next {
            let now = self.deps.clock.now();
            match message {
                Message::Input(input) => merge(&mut all, self.job.step(now, input)),
                Message::Update(input, reply) => {
                    let mut step = self.job.step(now, input);
                    let kept = step.kept;
                    pending.push(Pending::Update(reply, step.reply.take().map(|said| (said, kept))));
                    merge(&mut all, step);
                }
                Message::Offer(peer, header, reply) => {
                    pending.push(Pending::Offer(reply, self.job.offer(&peer, &header)));
                }
                Message::View(reply) => pending.push(Pending::View(reply)),
                Message::Cancel(reply) => {
                    merge(&mut all, self.job.step(now, Input::Cancel));
                    // One that ended otherwise is not cancelled: without an answer the asker looks into the store.
                    if self.job.status() == JobStatus::Cancelled {
                        pending.push(Pending::Cancel(reply));
                    }
                }
            }
            taken += 1;
            next = if taken < DRAIN_MAX { self.inbox.try_recv().ok() } else { None };
        }
        (all, pending)
    }

    /// Persists, answers, acts.
    async fn settle(&mut self, step: Step, pending: Vec<Pending>) -> Result<(), Exit> {
        if !step.changes.is_empty() {
            self.persist(step.changes).await?;
            self.show();
        }
        for waiting in pending {
            // A receiver that went away asked for nothing that must be done.
            match waiting {
                Pending::Update(reply, said) => {
                    let _gone = said.map(|said| reply.send(said));
                }
                Pending::Offer(reply, said) => drop(reply.send(said)),
                Pending::View(reply) => drop(reply.send(self.snapshot())),
                Pending::Cancel(reply) => drop(reply.send(())),
            }
        }
        for effect in step.effects {
            self.carry_out(effect).await;
        }
        Ok(())
    }

    async fn persist(&self, changes: Vec<Change>) -> Result<(), Exit> {
        let fence = Fence { lease: store::lease(&self.id), epoch: self.epoch };
        let batch = store::batch(changes, Some(fence));
        let mut pause = Duration::from_millis(50);
        loop {
            match self.deps.records.commit(batch.clone()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Fenced { .. }) => {
                    tracing::warn!(job = %self.id, "fenced: another coordinator runs this job");
                    return Err(Exit::Lost);
                }
                Err(error) => {
                    tracing::error!(job = %self.id, step = batch.name, %error, "cannot persist, trying again");
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return Err(Exit::Stopped),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = self.deps.clock.now();
        let current = self.job.round().map(|r| r.record(now).view(&r.members(), r.elapsed(now)));
        Snapshot { record: self.job.record().clone(), current, waiting_for: self.job.waiting_for().map(str::to_owned) }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send(peer, message) => {
                let sent = self.deps.transport.send(&peer.id, Arc::new(message));
                tracing::trace!(job = %self.id, node = %peer.name, ?sent, "message handed over");
            }
            Effect::Initialise(architecture) => self.spawn(|deps, job| async move {
                let (seed, shape) = (job.record().spec.seed, architecture.clone());
                let runtime = Handle::current();
                let work = move || first_model(&deps, &shape, seed, &runtime);
                let blob = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())??;
                Ok(Input::Initialised(architecture, blob))
            }),
            Effect::Compute(plan) => {
                let trusted = self.shared.verified(plan.blobs());
                let options = aggregate::Options { trusted, ..aggregate::Options::default() };
                self.spawn(|deps, _| async move {
                    let key = plan.key.clone();
                    let runtime = Handle::current();
                    let make = async move { aggregate::run_with(&plan, &*deps.records, &*deps.blobs, &options).await };
                    let work = move || runtime.block_on(make);
                    match tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())? {
                        Err(ComputeError::Store(e)) => Err(e),
                        result => Ok(Input::Computed(key, result)),
                    }
                });
            }
            Effect::Publish(model) => {
                self.spawn(|deps, _| async move { Ok(Input::Published(deps.catalogue.publish(*model).await)) })
            }
            Effect::DeleteBlobs(digests) => {
                for digest in digests {
                    self.shared.drop_payload(&*self.deps.blobs, digest).await;
                }
            }
            Effect::Model(made) => self.model_made(made).await,
            Effect::Event(kind) => self.event(kind),
        }
    }

    /// Runs a computation beside the task; a failure that may pass is logged and tried again.
    fn spawn<F, W>(&self, work: F)
    where
        F: FnOnce(Deps, Job) -> W,
        W: Future<Output = Result<Input, String>> + Send + 'static,
    {
        let future = work(self.deps.clone(), self.job.clone());
        let (outbox, id, cancel) = (self.outbox.clone(), self.id.clone(), self.cancel.clone());
        tokio::spawn(async move {
            let result = tokio::select! {
                () = cancel.cancelled() => return,
                result = future => result,
            };
            let Some(outbox) = outbox.upgrade() else { return };
            let input = match result {
                Ok(input) => input,
                Err(error) => {
                    tracing::error!(job = %id, %error, "a step of the round failed, trying again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Input::Retry
                }
            };
            // The task ends only when nobody needs the input any more.
            let _gone = outbox.send(Message::Input(input)).await;
        });
    }

    /// Keeps the newest models and states of the job and lets the oldest go.
    async fn model_made(&mut self, made: Made) {
        let new: Vec<Digest> = made.state.iter().map(|s| s.blob.digest).chain([made.model.digest]).collect();
        for digest in new {
            self.shared.keep_model(&self.id, digest);
            self.shared.note_verified(digest);
        }
        for old in self.kept.add(made, &self.job.needed()) {
            self.shared.drop_model(&self.deps, &self.id, old).await;
        }
    }

    /// What members may fetch is on the board before they are told of it.
    fn show(&mut self) {
        let now = Some(self.job.offers());
        if now != self.shown {
            self.shared.offer(&self.id, self.job.offered());
            self.shown = now;
        }
    }

    fn event(&self, kind: EventKind) {
        let metrics = &self.deps.metrics;
        match &kind {
            EventKind::RoundEnded(round) if round.model.is_some() => {
                metrics.rounds_published.inc();
                metrics.updates_counted.inc_by(round.members.iter().filter(|m| m.status == "counted").count() as u64);
                metrics.round_seconds.observe(std::time::Duration::from_millis(round.elapsed_ms).as_secs_f64());
                tracing::info!(job = %self.id, round = round.round, attempt = round.attempt, "round published");
            }
            EventKind::RoundEnded(round) => {
                metrics.rounds_abandoned.inc();
                let reason = round.reason.as_deref().unwrap_or("");
                tracing::warn!(job = %self.id, round = round.round, attempt = round.attempt, reason, "round abandoned");
            }
            EventKind::Member { member, .. } if member.status == "refused" => {
                metrics.updates_refused.inc();
            }
            EventKind::Status { status, reason } => {
                tracing::info!(job = %self.id, status = status.as_str(), reason, "job");
            }
            EventKind::Member { .. } | EventKind::RoundOpened { .. } | EventKind::Recruiting { .. } => {}
        }
        self.shared.publish_event(&self.id, kind);
    }
}

/// Makes and stores the model that a job starts from, piece by piece: it may be larger than this process may become.
fn first_model(deps: &Deps, shape: &Architecture, seed: u64, runtime: &Handle) -> Result<BlobRef, String> {
    let header = bundle::header_bytes(shape).map_err(|e| e.to_string())?;
    let parameters = shape.parameters().map_err(|e| e.to_string())?;
    let mut left = parameters;
    let mut writer = runtime.block_on(deps.blobs.writer((header.len() + 4 * parameters) as u64)).map_err(words)?;
    runtime.block_on(writer.write(header.into())).map_err(words)?;
    deps.initialiser.initial_pieces(shape, seed, &mut |piece| {
        left = left.checked_sub(piece.len()).ok_or("more first weights were made than the model has")?;
        let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
        runtime.block_on(writer.write(bytes.into())).map_err(words)
    })?;
    if left > 0 {
        return Err(format!("{left} of {parameters} first weights are missing"));
    }
    runtime.block_on(writer.finish()).map_err(words)
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn words(error: StoreError) -> String {
    error.to_string()
}

fn merge(all: &mut Step, step: Step) {
    all.changes.extend(step.changes);
    all.effects.extend(step.effects);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
