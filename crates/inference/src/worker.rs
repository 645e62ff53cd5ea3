//! The node's half: takes a [`PredictTask`], fetches and keeps models, predicts on blocking threads.
//!
//! ```text
//! task ──> room? ──> model in memory? ──> on disk? ──> fetch (once for all who wait) ──> load ──> predict ──> answer
//!           └── no: Failed, another node may do better            every arrow ends at the task's deadline
//! ```
//!
//! Promises: at most `concurrency` predictions at one time and `queue` tasks waiting; a model is fetched once however many
//! tasks want it; what comes from the cache folder is verified by its digest; memory and folder keep to their bounds;
//! inputs and outputs are never logged. Must not know who decides or how tasks arrive.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aivillage_base::ports::Uplink;
use aivillage_base::time::Clock;
use aivillage_base::wire::{BlobRef, PredictOutcome, PredictTask, Up};
use tokio::sync::Semaphore;

use crate::predictor::{LoadedModel, PredictError, Predictor};

mod disk;
mod models;
#[cfg(test)]
mod tests;

use models::Models;

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Predictions at one time, >= 1: a model's arithmetic fills a processor, so more than there are only adds waiting.
    pub concurrency: usize,
    /// Tasks that may wait for a turn; beyond, the coordinator asks another node.
    pub queue: usize,
    /// Most bytes of bundles kept loaded in memory. A larger model is loaded, used and forgotten.
    pub memory_bytes: u64,
    /// Most bytes kept in the cache folder. A larger model is not kept there.
    pub disk_bytes: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { concurrency: 2, queue: 64, memory_bytes: 256 << 20, disk_bytes: 1 << 30 }
    }
}

/// What a worker needs from the node.
#[derive(Debug, Clone)]
pub struct WorkerDeps {
    /// The way to the coordinator.
    pub uplink: Arc<dyn Uplink>,
    /// The engine.
    pub predictor: Arc<dyn Predictor>,
    /// Folder for bundles, made if absent; None = memory only.
    pub cache_dir: Option<PathBuf>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub config: WorkerConfig,
}

/// Handle of a worker; clones share it.
#[derive(Debug, Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    models: Arc<Models>,
    turns: Arc<Semaphore>,
    /// Tasks inside `handle`.
    inside: AtomicUsize,
    clock: Arc<dyn Clock>,
    config: WorkerConfig,
}

impl Worker {
    /// A worker with an empty memory; what is in the cache folder is used.
    #[must_use]
    pub fn new(deps: WorkerDeps) -> Self {
        let turns = Arc::new(Semaphore::new(deps.config.concurrency.clamp(1, Semaphore::MAX_PERMITS)));
        let models = Arc::new(Models::new(deps.uplink, deps.predictor, deps.cache_dir, &deps.config));
        let inner = Inner { models, turns, inside: AtomicUsize::new(0), clock: deps.clock, config: deps.config };
        Self { inner: Arc::new(inner) }
    }

    /// Answers a task, always with [`Up::Prediction`] and at its deadline at the latest. The caller sends the answer and
    /// may run many of these at one time.
    pub async fn handle(&self, task: PredictTask) -> Up {
        let (request, attempt) = (task.request, task.attempt);
        let started = self.inner.clock.now().monotonic_ms;
        let outcome = match self.outcome(task).await {
            Ok(done) => done,
            Err(PredictError::Unfit(reason)) => PredictOutcome::Failed { reason, permanent: true },
            Err(PredictError::Failed(reason)) => PredictOutcome::Failed { reason, permanent: false },
        };
        let ms = self.inner.clock.now().monotonic_ms.saturating_sub(started);
        match &outcome {
            PredictOutcome::Done { compute_us, .. } => tracing::debug!(%request, attempt, ms, compute_us, "predicted"),
            PredictOutcome::Failed { reason, .. } => tracing::warn!(%request, attempt, ms, reason, "not predicted"),
        }
        Up::Prediction { request, attempt, outcome }
    }

    /// Fetches and loads a model before anybody asks for it, if it fits the bounds; says whether it is loaded.
    pub async fn prefetch(&self, model: BlobRef) -> bool {
        model.bytes <= self.inner.config.memory_bytes && self.inner.models.get(model).await.is_ok()
    }

    async fn outcome(&self, task: PredictTask) -> Result<PredictOutcome, PredictError> {
        let room = self.inner.config.concurrency.max(1).saturating_add(self.inner.config.queue);
        let Some(_inside) = Inside::enter(&self.inner.inside, room) else {
            return Err(PredictError::Failed(format!("{room} requests are here already")));
        };
        let deadline = Duration::from_millis(task.deadline_ms);
        match tokio::time::timeout(deadline, self.predict(task)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(PredictError::Failed(format!("not done within {} ms", deadline.as_millis()))),
        }
    }

    async fn predict(&self, task: PredictTask) -> Result<PredictOutcome, PredictError> {
        let model = self.inner.models.get(task.model).await?;
        let turn = Arc::clone(&self.inner.turns).acquire_owned().await;
        let turn = turn.map_err(|_| PredictError::Failed("the worker has stopped".into()))?;
        let clock = Arc::clone(&self.inner.clock);
        let computed = tokio::task::spawn_blocking(move || {
            // The turn ends with the computation, even if its deadline has passed and nobody waits for it any more.
            let _turn = turn;
            timed(&*model, &task.rows, &*clock)
        });
        match computed.await {
            Ok(outcome) => outcome,
            Err(e) if e.is_panic() => Err(PredictError::Failed("the engine panicked on this input".into())),
            Err(_) => Err(PredictError::Failed("the node is stopping".into())),
        }
    }
}

fn timed(model: &dyn LoadedModel, rows: &[Vec<f32>], clock: &dyn Clock) -> Result<PredictOutcome, PredictError> {
    let started = clock.now().monotonic_ms;
    let outputs = model.predict(rows)?;
    if outputs.len() != rows.len() {
        return Err(PredictError::Failed(format!("the engine gave {} rows for {}", outputs.len(), rows.len())));
    }
    // The house's clock has milliseconds; a shorter computation reads as zero.
    let compute_us = clock.now().monotonic_ms.saturating_sub(started).saturating_mul(1_000);
    Ok(PredictOutcome::Done { outputs, compute_us })
}

/// One of a bounded number of tasks; leaves when dropped.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn enter(count: &'a AtomicUsize, room: usize) -> Option<Self> {
        let more = |n: usize| (n < room).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(count))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
