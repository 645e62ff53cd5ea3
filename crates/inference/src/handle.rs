//! The room's door: [`Inference`], a cheap clone with typed methods. How it works inside is not shown.

use std::sync::Arc;

use aivillage_base::ports::{Blobs, Records, Transport};
use aivillage_base::time::Clock;
use aivillage_base::wire::{BlobRef, Peer, PredictOutcome};
use aivillage_base::{Digest, ModelId, NodeId, RequestId};
use aivillage_fog::Inventory;
use tokio_util::sync::CancellationToken;

use crate::config::InferenceConfig;
use crate::error::InferenceError;
use crate::metrics::Metrics;
use crate::model::{ModelInfo, ModelRecord};
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
    metrics: Metrics,
}

fn starting<T>() -> Result<T, InferenceError> {
    Err(InferenceError::Unavailable {
        detail: "inference is starting".into(),
    })
}

#[expect(clippy::unused_async, reason = "signatures first")]
impl Inference {
    /// Opens the catalogue, takes over unfinished requests and starts the timers, which stop with `cancel`.
    ///
    /// # Errors
    /// A setting that is not possible or not built, or the store's own.
    pub async fn start(deps: Deps, _cancel: CancellationToken) -> Result<Self, InferenceError> {
        deps.config.check()?;
        Ok(Self {
            metrics: Metrics::new(deps.clock),
        })
    }

    /// Takes a request; see [`Submit`] and [`Submitted`].
    ///
    /// # Errors
    /// Every variant of [`InferenceError`] but `RequestNotFound`.
    pub async fn submit(&self, _submit: Submit) -> Result<Submitted, InferenceError> {
        starting()
    }

    /// What became of a request.
    ///
    /// # Errors
    /// [`InferenceError::RequestNotFound`], or the store's own.
    pub async fn request(&self, id: &RequestId) -> Result<RequestView, InferenceError> {
        Err(InferenceError::RequestNotFound(*id))
    }

    /// Registers a model by its metadata; the same again is fine.
    ///
    /// # Errors
    /// Impossible values, or the id is taken by a model with bytes or other metadata.
    pub async fn register(&self, _info: ModelInfo) -> Result<ModelRecord, InferenceError> {
        starting()
    }

    /// Checks the bundle and makes the model servable; the same bytes again are fine.
    ///
    /// # Errors
    /// Bytes that are no bundle, do not match `info.architecture`, or a version that other bytes have.
    pub async fn publish(
        &self,
        _info: ModelInfo,
        _bundle: BlobRef,
    ) -> Result<ModelRecord, InferenceError> {
        starting()
    }

    /// The catalogue in id order.
    #[must_use]
    pub fn models(&self) -> Vec<ModelRecord> {
        Vec::new()
    }

    /// One model.
    ///
    /// # Errors
    /// [`InferenceError::ModelNotFound`].
    pub fn model(&self, id: &ModelId) -> Result<ModelRecord, InferenceError> {
        Err(InferenceError::ModelNotFound(id.clone()))
    }

    /// Serves it no longer; requests in work are finished.
    ///
    /// # Errors
    /// [`InferenceError::ModelNotFound`], or the store's own.
    pub async fn retire(&self, id: &ModelId) -> Result<ModelRecord, InferenceError> {
        Err(InferenceError::ModelNotFound(id.clone()))
    }

    /// A node's answer to a `PredictTask`; late and repeated ones are ignored.
    pub async fn prediction(
        &self,
        _from: &Peer,
        _request: RequestId,
        _attempt: u32,
        _outcome: PredictOutcome,
    ) {
    }

    /// A node's stream has opened.
    pub async fn connected(&self, _node: &Peer) {}

    /// A node's stream has closed.
    pub async fn disconnected(&self, _node: &Peer) {}

    /// May this node fetch this blob for inference?
    #[must_use]
    pub fn may_fetch(&self, _node: &NodeId, _digest: &Digest) -> bool {
        false
    }

    /// Counts and figures.
    #[must_use]
    pub fn stats(&self) -> InferenceStats {
        InferenceStats::default()
    }

    /// The metric families, to be registered once.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
