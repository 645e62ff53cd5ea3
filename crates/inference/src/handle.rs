//! The room's door: [`Inference`], a cheap clone with typed methods. How it works inside is not shown.

use std::sync::Arc;

use aivillage_base::ports::{Blobs, Records, Transport};
use aivillage_base::time::Clock;
use aivillage_base::wire::{BlobRef, Peer, PredictOutcome};
use aivillage_base::{Digest, ModelId, NodeId, RequestId};
use aivillage_fog::Inventory;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalogue::Passing;
use crate::config::InferenceConfig;
use crate::coordinator::Coordinator;
use crate::error::InferenceError;
use crate::metrics::Metrics;
use crate::model::{ModelInfo, ModelRecord, ModelState};
use crate::request::{InferenceStats, RequestView, Submit, Submitted};

/// What inference needs from the house.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Catalogue and durable requests.
    pub records: Arc<dyn Records>,
    /// Bundles.
    pub blobs: Arc<dyn Blobs>,
    /// The way to the nodes.
    pub transport: Arc<dyn Transport>,
    /// What the nodes can do.
    pub inventory: Inventory,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub config: InferenceConfig,
}

/// Handle of inference; clones share it.
#[derive(Debug, Clone)]
pub struct Inference {
    coordinator: Arc<Coordinator>,
    tasks: TaskTracker,
}

/// While it lives, its model is shown as `uploading` (unless it is servable already).
#[derive(Debug)]
pub struct Uploading<'a>(#[expect(dead_code, reason = "kept for its drop")] Passing<'a>);

impl Inference {
    /// Opens the catalogue, takes over unfinished requests and starts the timers, which stop with `cancel`.
    ///
    /// # Errors
    /// A setting that is not possible or not built, or the store's own.
    pub async fn start(deps: Deps, cancel: CancellationToken) -> Result<Self, InferenceError> {
        let changes = deps.inventory.changes();
        let coordinator = Coordinator::open(deps, cancel).await?;
        let tasks = TaskTracker::new();
        tasks.spawn(Arc::clone(&coordinator).timers(changes));
        tasks.spawn(Arc::clone(&coordinator).keeper());
        tasks.close();
        Ok(Self { coordinator, tasks })
    }

    /// Waits until the tasks have ended after `cancel`: every outcome that was there is stored then.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }

    /// Takes a request; see [`Submit`] and [`Submitted`]. A future that is dropped before it has given an id away
    /// withdraws its request.
    ///
    /// # Errors
    /// Every variant of [`InferenceError`] but `RequestNotFound`.
    pub async fn submit(&self, submit: Submit) -> Result<Submitted, InferenceError> {
        self.coordinator.submit(submit).await
    }

    /// What became of a request.
    ///
    /// # Errors
    /// [`InferenceError::RequestNotFound`], or the store's own.
    pub async fn request(&self, id: &RequestId) -> Result<RequestView, InferenceError> {
        self.coordinator.request(id).await
    }

    /// Registers a model by its metadata; the same again is fine.
    ///
    /// # Errors
    /// Impossible values, or the id is taken by a model with other metadata.
    pub async fn register(&self, info: ModelInfo) -> Result<ModelRecord, InferenceError> {
        self.coordinator.catalogue.register(info).await
    }

    /// Shows the model as `uploading` while the guard lives.
    #[must_use]
    pub fn uploading(&self, id: &ModelId) -> Uploading<'_> {
        Uploading(self.coordinator.catalogue.pass(id, ModelState::Uploading))
    }

    /// Reads the bundle whole, checks it and makes the model servable; the same bytes under the same version again are
    /// fine. Another `model_version` of a known id becomes the one that is served. Bad bytes make a model that was only
    /// declared `refused`; the bytes themselves stay in the blob store, which may hold them for others.
    ///
    /// # Errors
    /// Bytes that are no bundle or have another shape than promised, a version that other bytes have, a retired model.
    pub async fn publish(&self, info: ModelInfo, bundle: BlobRef) -> Result<ModelRecord, InferenceError> {
        let record = self.coordinator.catalogue.publish(info, bundle).await?;
        self.coordinator.announce();
        Ok(record)
    }

    /// The catalogue in id order.
    #[must_use]
    pub fn models(&self) -> Vec<ModelRecord> {
        self.coordinator.catalogue.list()
    }

    /// One model.
    ///
    /// # Errors
    /// [`InferenceError::ModelNotFound`].
    pub fn model(&self, id: &ModelId) -> Result<ModelRecord, InferenceError> {
        self.coordinator.catalogue.get(id).ok_or_else(|| InferenceError::ModelNotFound(id.clone()))
    }

    /// Serves it no longer; requests in work are finished.
    ///
    /// # Errors
    /// [`InferenceError::ModelNotFound`], or the store's own.
    pub async fn retire(&self, id: &ModelId) -> Result<ModelRecord, InferenceError> {
        self.coordinator.catalogue.retire(id).await
    }

    /// A node's answer to a `PredictTask`; late and repeated ones are ignored.
    pub fn prediction(&self, from: &Peer, request: RequestId, attempt: u32, outcome: PredictOutcome) {
        self.coordinator.prediction(from, request, attempt, outcome);
    }

    /// A node's stream has opened. It is planned with once the inventory holds its report.
    pub fn connected(&self, _node: &Peer) {
        self.coordinator.connected();
    }

    /// A node's stream has closed: what it worked on is planned again.
    pub fn disconnected(&self, node: &Peer) {
        self.coordinator.disconnected(&node.id);
    }

    /// May this node fetch this blob for inference? Every enrolled node may fetch every model of the catalogue.
    #[must_use]
    pub fn may_fetch(&self, _node: &NodeId, digest: &Digest) -> bool {
        self.coordinator.catalogue.holds(digest)
    }

    /// Counts and figures.
    #[must_use]
    pub fn stats(&self) -> InferenceStats {
        self.coordinator.stats()
    }

    /// Name of this coordinator, for status.
    #[must_use]
    pub fn coordinator_id(&self) -> &str {
        &self.coordinator.deps.config.coordinator_id
    }

    /// The metric families, to be registered once.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.coordinator.metrics
    }
}
