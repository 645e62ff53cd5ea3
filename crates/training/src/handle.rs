//! The door of the room: cheap to clone, typed, hides the channels.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use aivillage_base::ports::{BlobReader, Blobs, Payload, Records, Transport};
use aivillage_base::time::Clock;
use aivillage_base::wire::secure::SecureUp;
use aivillage_base::wire::{BlobRef, Declined, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, JobId, ModelId};
use aivillage_fog::Inventory;
use tokio_util::sync::CancellationToken;

use crate::audit::KeptUpdate;
use crate::config::TrainingConfig;
use crate::coordinator::Coordinator;
use crate::error::TrainingError;
use crate::metrics::TrainingMetrics;
use crate::record::Saved;
use crate::refusals::Warning;
use crate::spec::{CatalogueModel, JobRequest};
use crate::store;
use crate::trainer::Initialiser;
use crate::view::{JobEvent, JobSummary, JobView, TrainingStats};

/// A finished job's model, on its way to a catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedModel {
    /// The job; its id becomes the model's id.
    pub job_id: JobId,
    /// Name for people.
    pub job_name: String,
    /// Recipe or start model.
    pub recipe: String,
    /// Shape.
    pub architecture: Architecture,
    /// The bundle.
    pub model: BlobRef,
}

/// Where models come from and go to: the catalogue, as the binary wires it.
///
/// # Behavior
/// - `publish` may be called again for the same job and bytes, and then changes nothing.
#[async_trait]
pub trait Catalogue: Send + Sync + std::fmt::Debug {
    /// A model that a job may start from.
    async fn find(&self, id: &ModelId) -> Option<CatalogueModel>;
    /// Makes a finished job's model known; returns its catalogue id.
    async fn publish(&self, model: FinishedModel) -> Result<String, String>;
    /// True if an entry of the catalogue has these bytes: they must stay.
    async fn uses(&self, digest: &Digest) -> bool;
}

/// What the coordinator runs on.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Jobs, rounds, small updates.
    pub records: Arc<dyn Records>,
    /// Models and large updates.
    pub blobs: Arc<dyn Blobs>,
    /// Messages to nodes.
    pub transport: Arc<dyn Transport>,
    /// Who is there and what they can do.
    pub inventory: Inventory,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// First weights.
    pub initialiser: Arc<dyn Initialiser>,
    /// Where models come from and go to.
    pub catalogue: Arc<dyn Catalogue>,
    /// What the operator decided.
    pub config: TrainingConfig,
    /// Counters and gauges.
    pub metrics: TrainingMetrics,
}

/// The training coordinator.
#[derive(Debug, Clone)]
pub struct Training {
    coordinator: Arc<Coordinator>,
    records: Arc<dyn Records>,
    blobs: Arc<dyn Blobs>,
}

impl Training {
    /// Loads unfinished jobs and goes on with them; ends when `cancel` fires.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start(deps: Deps, cancel: CancellationToken) -> Result<Self, TrainingError> {
        let (records, blobs) = (Arc::clone(&deps.records), Arc::clone(&deps.blobs));
        Ok(Self { coordinator: Coordinator::start(deps, cancel).await?, records, blobs })
    }

    /// Accepts a job: it is durable when this returns.
    ///
    /// # Errors
    /// All faults of the request; id taken; too many jobs; store.
    pub async fn create(&self, request: JobRequest) -> Result<JobId, TrainingError> {
        self.coordinator.create(request).await
    }

    /// By which rules too many of the nodes that are known now would refuse the job; empty if enough would accept.
    ///
    /// # Errors
    /// Not found; store.
    pub async fn warnings(&self, job: &JobId) -> Result<Vec<Warning>, TrainingError> {
        self.coordinator.warnings(job).await
    }

    /// Every fault that [`Self::create`] would find in the request itself; nothing is created.
    pub async fn check(&self, request: &JobRequest) -> Vec<crate::error::Fault> {
        self.coordinator.check(request).await
    }

    /// A job with all its rounds.
    ///
    /// # Errors
    /// Not found; store.
    pub async fn status(&self, job: &JobId) -> Result<JobView, TrainingError> {
        self.coordinator.status(job).await
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// Store.
    pub async fn list(&self) -> Result<Vec<JobSummary>, TrainingError> {
        self.coordinator.list().await
    }

    /// Ends a job; a job cancelled already is fine.
    ///
    /// # Errors
    /// Not found; completed or failed already.
    pub async fn cancel(&self, job: &JobId) -> Result<(), TrainingError> {
        self.coordinator.cancel(job).await
    }

    /// What happens to a job from now on. A receiver that lags loses the oldest events and learns how many.
    ///
    /// # Errors
    /// Not found.
    pub async fn events(&self, job: &JobId) -> Result<broadcast::Receiver<JobEvent>, TrainingError> {
        self.coordinator.events(job).await
    }

    /// The bundle a job has published for `round`, or its newest, opened: it is not verified, and may be large.
    ///
    /// # Errors
    /// No such job or round; the round's model is no longer kept.
    pub async fn model(
        &self,
        job: &JobId,
        round: Option<u32>,
    ) -> Result<(BlobRef, Arc<dyn BlobReader>), TrainingError> {
        self.coordinator.model(job, round).await
    }

    /// The job's record as it is persisted: what an auditor replays.
    ///
    /// # Errors
    /// Not found; store.
    pub async fn record(&self, job: &JobId) -> Result<Saved, TrainingError> {
        store::saved(&*self.records, job).await?.ok_or(TrainingError::NotFound)
    }

    /// The integers of an update that was kept after its round.
    ///
    /// # Errors
    /// No such job, or no kept update of this digest; store.
    pub async fn kept_update(&self, job: &JobId, digest: &Digest) -> Result<KeptUpdate, TrainingError> {
        KeptUpdate::find(self.record(job).await?, digest, &*self.records, &self.blobs).await
    }

    /// Figures over all jobs.
    #[must_use]
    pub fn stats(&self) -> TrainingStats {
        self.coordinator.stats()
    }

    /// A node's stream has opened and its report is in the inventory: it may be invited.
    pub async fn connected(&self, node: &Peer) {
        self.coordinator.presence(node, true).await;
    }

    /// A node's stream has closed.
    pub async fn disconnected(&self, node: &Peer) {
        self.coordinator.presence(node, false).await;
    }

    /// A node says whether it takes part.
    pub async fn answer(&self, from: &Peer, key: RoundKey, declined: Option<Declined>) {
        self.coordinator.answer(from, key, declined).await;
    }

    /// A node tried and failed.
    pub async fn failed(&self, from: &Peer, key: RoundKey, reason: String) {
        self.coordinator.failed(from, key, reason).await;
    }

    /// A node says something of secure aggregation.
    pub async fn secure(&self, from: &Peer, key: RoundKey, message: Box<SecureUp>) {
        self.coordinator.secure(from, key, message).await;
    }

    /// Would this update be taken? None = yes, send it.
    pub async fn offer(&self, from: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        self.coordinator.offer(from, header).await
    }

    /// An update whose bytes match its header. The reply is sent after the update is durable.
    pub async fn update(&self, from: &Peer, header: UpdateHeader, payload: Payload) -> UpdateReply {
        let (coordinator, from) = (Arc::clone(&self.coordinator), from.clone());
        // On a task of its own: a caller that goes away half-way would leave a blob that nobody counts.
        let work = tokio::spawn(async move { coordinator.update(&from, header, payload).await });
        work.await.unwrap_or(UpdateReply::Retry { after_ms: 500 })
    }

    /// May this node fetch this blob? True for the model of an attempt it was invited to.
    #[must_use]
    pub fn may_fetch(&self, node: &Peer, digest: &Digest) -> bool {
        self.coordinator.may_fetch(node, digest)
    }
}
