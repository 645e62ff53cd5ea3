//! Where the rooms meet: read top to bottom to see how the house is put together.
//!
//! No room knows another one's neighbours: a published model becomes a catalogue entry here, a node's message finds its
//! room here, and what a part cannot do becomes the reason that its routes give. A part that fails to start is off; the
//! rest serves.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Blobs, Inbox, InboxError, Payload, Records, StoreError, Transport};
use aivillage_base::time::Clock;
use aivillage_base::wire::{Peer, Up, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, ErrorKind, ModelId, NodeName, Task};
use aivillage_fog::Inventory;
use aivillage_gateway::{EnrolledNode, Enrolment, EnrolmentError, IssuedToken, Part, StatusSource, TokenInfo};
use aivillage_inference::Inference;
use aivillage_inference::model::ModelInfo;
use aivillage_inference::request::PrivacyLevel;
use aivillage_link::{NewToken, Registry, RegistryError, Streams};
use aivillage_training::handle::{Catalogue, FinishedModel};
use aivillage_training::metrics::TrainingMetrics;
use aivillage_training::{CatalogueModel, Training};
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Loaded, inference_room, not_in_effect, training_room};

/// What both coordinators stand on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Records.
    pub records: Arc<dyn Records>,
    /// Blobs.
    pub blobs: Arc<dyn Blobs>,
    /// The streams to the nodes.
    pub streams: Streams,
    /// Who is there.
    pub inventory: Inventory,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Starts the inference coordinator, or says why it is off.
pub async fn inference(
    ground: &Ground,
    config: &Config,
    federated: bool,
    metrics: &mut prometheus_client::registry::Registry,
    cancel: &CancellationToken,
) -> Part<Inference> {
    if let Some(reason) = off("inference", config.inference.enabled, federated) {
        return Part::Off { reason };
    }
    let deps = aivillage_inference::Deps {
        records: Arc::clone(&ground.records),
        blobs: Arc::clone(&ground.blobs),
        transport: Arc::new(ground.streams.clone()),
        inventory: ground.inventory.clone(),
        clock: Arc::clone(&ground.clock),
        config: inference_room(config),
    };
    match Inference::start(deps, cancel.clone()).await {
        Ok(inference) => {
            inference.metrics().register(metrics);
            Part::On(inference)
        }
        Err(error) => {
            tracing::error!(%error, "the inference coordinator does not start; the rest goes on");
            Part::Off { reason: error.to_string() }
        }
    }
}

/// Starts the training coordinator, or says why it is off.
pub async fn training(
    ground: &Ground,
    config: &Config,
    federated: bool,
    inference: &Part<Inference>,
    metrics: &mut prometheus_client::registry::Registry,
    cancel: &CancellationToken,
) -> Part<Training> {
    if let Some(reason) = off("training", config.training.enabled, federated) {
        return Part::Off { reason };
    }
    let catalogue = match inference {
        Part::On(inference) => Some(inference.clone()),
        Part::Off { .. } => None,
    };
    let deps = aivillage_training::Deps {
        records: Arc::clone(&ground.records),
        blobs: Arc::clone(&ground.blobs),
        transport: Arc::new(ground.streams.clone()),
        inventory: ground.inventory.clone(),
        clock: Arc::clone(&ground.clock),
        initialiser: Arc::new(aivillage_engine::Engine),
        catalogue: Arc::new(InferenceCatalogue { inference: catalogue }),
        config: training_room(config),
        metrics: TrainingMetrics::register(metrics, config.training.privacy.max_privacy_budget),
    };
    match Training::start(deps, cancel.clone()).await {
        Ok(training) => Part::On(training),
        Err(error) => {
            tracing::error!(%error, "the training coordinator does not start; the rest goes on");
            Part::Off { reason: error.to_string() }
        }
    }
}

/// Deletes blobs that no record names: what a crash left between a blob's end and its row. To be called before nodes can
/// send new ones. Without a catalogue to ask, nothing is deleted.
///
/// # Errors
/// The stores'.
pub async fn sweep(ground: &Ground, inference: &Part<Inference>) -> Result<usize, StoreError> {
    let Part::On(inference) = inference else { return Ok(0) };
    let mut named = aivillage_training::store::referenced(&*ground.records).await?;
    for model in inference.models() {
        named.extend(model.bundle.map(|bundle| bundle.digest));
        named.extend(model.versions.iter().map(|version| version.bundle.digest));
    }
    let mut swept = 0;
    for digest in ground.blobs.list().await?.into_iter().filter(|digest| !named.contains(digest)) {
        ground.blobs.delete(&digest).await?;
        swept += 1;
    }
    Ok(swept)
}

fn off(part: &str, enabled: bool, federated: bool) -> Option<String> {
    if !federated {
        return Some("ENABLE_FEDERATED is false".into());
    }
    (!enabled).then(|| format!("{part}.enabled is false"))
}

/// The catalogue as training sees it.
#[derive(Debug)]
struct InferenceCatalogue {
    inference: Option<Inference>,
}

#[async_trait]
impl Catalogue for InferenceCatalogue {
    async fn find(&self, id: &ModelId) -> Option<CatalogueModel> {
        let record = self.inference.as_ref()?.model(id).ok()?;
        Some(CatalogueModel { id: id.clone(), architecture: record.info.architecture?, bundle: record.bundle })
    }

    async fn publish(&self, model: FinishedModel) -> Result<String, String> {
        let id = ModelId::new(model.job_id.as_str()).map_err(|e| e.to_string())?;
        let Some(inference) = &self.inference else {
            // Without a catalogue the model is still the job's newest: `train pull` fetches it.
            return Ok(id.to_string());
        };
        let record = inference.publish(finished(&model, id.clone()), model.model).await;
        record.map(|_| id.to_string()).map_err(|e| e.to_string())
    }

    async fn uses(&self, digest: &Digest) -> bool {
        self.inference.as_ref().is_some_and(|inference| {
            inference.models().iter().any(|m| m.versions.iter().any(|v| v.bundle.digest == *digest))
        })
    }
}

/// What the catalogue says of a finished job's model.
fn finished(model: &FinishedModel, id: ModelId) -> ModelInfo {
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let megabytes = model.model.bytes as f64 / 1e6;
    ModelInfo {
        model_id: id,
        model_name: model.job_name.clone(),
        model_version: "1".into(),
        model_type: kind_of(&model.architecture).into(),
        framework: "aivillage".into(),
        model_size_mb: megabytes,
        memory_requirements_gb: 0.0,
        compute_requirements_gflops: 0.0,
        supported_node_types: Vec::new(),
        privacy_requirements: PrivacyLevel::Low,
        architecture: Some(model.architecture.clone()),
    }
}

fn kind_of(architecture: &Architecture) -> &'static str {
    match architecture.task {
        Task::Classification { .. } => "classification",
        Task::Regression => "regression",
    }
}

/// Takes what nodes send to the room that it concerns.
#[derive(Debug)]
pub struct VillageInbox {
    /// Streams, to tell a closed stream from a replaced one.
    pub streams: Streams,
    /// Who is there.
    pub inventory: Inventory,
    /// Who may be there.
    pub registry: Registry,
    /// Rounds.
    pub training: Part<Training>,
    /// Requests.
    pub inference: Part<Inference>,
}

impl VillageInbox {
    async fn gone(&self, node: &Peer) {
        if let Part::On(training) = &self.training {
            training.disconnected(node).await;
        }
        if let Part::On(inference) = &self.inference {
            inference.disconnected(node);
        }
    }
}

#[async_trait]
impl Inbox for VillageInbox {
    async fn connected(&self, node: &Peer) {
        tracing::info!(node = %node.name, id = %node.id.short(), "connected");
        // Rooms learn of it with the node's report, which tells what it can do.
        self.inventory.online(node);
    }

    async fn disconnected(&self, node: &Peer) {
        if self.streams.connected().contains(node) {
            return;
        }
        tracing::info!(node = %node.name, id = %node.id.short(), "disconnected");
        self.inventory.offline(&node.id);
        self.gone(node).await;
    }

    async fn message(&self, from: &Peer, message: Up) -> Result<(), InboxError> {
        match message {
            Up::Report(report) => {
                let refuse = |e: aivillage_fog::FogError| InboxError { kind: e.kind(), detail: e.to_string() };
                self.inventory.report(from, *report).await.map_err(refuse)?;
                if let Part::On(training) = &self.training {
                    training.connected(from).await;
                }
                if let Part::On(inference) = &self.inference {
                    inference.connected(from);
                }
            }
            Up::Answer { key, declined } => {
                if let Part::On(training) = &self.training {
                    training.answer(from, key, declined).await;
                }
            }
            Up::TrainingFailed { key, reason } => {
                if let Part::On(training) = &self.training {
                    training.failed(from, key, reason).await;
                }
            }
            Up::Secure { key, message } => {
                if let Part::On(training) = &self.training {
                    training.secure(from, key, message).await;
                }
            }
            Up::Prediction { request, attempt, outcome } => {
                if let Part::On(inference) = &self.inference {
                    inference.prediction(from, request, attempt, outcome);
                }
            }
            Up::Leave => {
                tracing::info!(node = %from.name, "leaves for good");
                self.gone(from).await;
                let failed = |detail: String| InboxError { kind: ErrorKind::Unavailable, detail };
                self.inventory.forget(&from.id).await.map_err(|e| failed(e.to_string()))?;
                self.registry.revoke(&from.id).await.map_err(|e| failed(e.to_string()))?;
            }
        }
        Ok(())
    }

    async fn offer(&self, from: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        match &self.training {
            Part::On(training) => training.offer(from, header).await,
            Part::Off { reason } => {
                Some(UpdateReply::Refused { reason: "training_off".into(), detail: reason.clone() })
            }
        }
    }

    async fn update(&self, from: &Peer, header: UpdateHeader, payload: Payload) -> UpdateReply {
        match &self.training {
            Part::On(training) => training.update(from, header, payload).await,
            Part::Off { reason } => UpdateReply::Refused { reason: "training_off".into(), detail: reason.clone() },
        }
    }

    async fn may_fetch(&self, from: &Peer, digest: &Digest) -> bool {
        let trains = matches!(&self.training, Part::On(training) if training.may_fetch(from, digest));
        trains || matches!(&self.inference, Part::On(inference) if inference.may_fetch(&from.id, digest))
    }
}

/// The link's registry, as the gateway's admin routes use it.
#[derive(Debug)]
pub struct LinkEnrolment {
    /// Tokens and nodes.
    pub registry: Registry,
    /// What is known of nodes that go.
    pub inventory: Inventory,
    /// Tells which tokens have expired.
    pub clock: Arc<dyn Clock>,
}

fn enrolment_error(error: &RegistryError) -> EnrolmentError {
    EnrolmentError { kind: error.kind(), detail: error.to_string() }
}

#[async_trait]
impl Enrolment for LinkEnrolment {
    async fn create_token(&self, owner: &NodeName, ttl: Duration) -> Result<IssuedToken, EnrolmentError> {
        let issued = self.registry.create_token(NewToken { owner: owner.clone(), ttl }).await;
        let issued = issued.map_err(|e| enrolment_error(&e))?;
        Ok(IssuedToken { id: issued.record.id, token: issued.token.reveal(), expires_ms: issued.record.expires_ms })
    }

    async fn tokens(&self) -> Result<Vec<TokenInfo>, EnrolmentError> {
        let names = self.registry.nodes();
        let used_by = |id| names.iter().find(|n| n.id == id).map(|n| n.name.to_string());
        let now = self.clock.now().wall_ms;
        let tokens = self.registry.tokens().await.map_err(|e| enrolment_error(&e))?;
        Ok(tokens
            .into_iter()
            .filter(|t| t.expires_ms > now && t.revoked_ms.is_none())
            .map(|t| TokenInfo {
                used_by: t.used_by.and_then(used_by),
                id: t.id,
                owner: t.owner.to_string(),
                created_ms: t.created_ms,
                expires_ms: t.expires_ms,
            })
            .collect())
    }

    async fn revoke_token(&self, id: &str) -> Result<bool, EnrolmentError> {
        match self.registry.revoke_token(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(enrolment_error(&error)),
        }
    }

    async fn nodes(&self) -> Result<Vec<EnrolledNode>, EnrolmentError> {
        let view = |n: aivillage_link::EnrolledNode| EnrolledNode {
            id: n.id,
            name: n.name,
            owner: n.owner.to_string(),
            enrolled_ms: n.enrolled_ms,
            revoked: n.revoked_ms.is_some(),
        };
        Ok(self.registry.nodes().into_iter().map(view).collect())
    }

    async fn revoke_node(&self, name: &NodeName) -> Result<bool, EnrolmentError> {
        let Some(node) = self.registry.named(name) else { return Ok(false) };
        self.registry.revoke(&node.id).await.map_err(|e| enrolment_error(&e))?;
        self.inventory.offline(&node.id);
        Ok(true)
    }
}

/// Facts about this process for `GET status`.
#[derive(Debug)]
pub struct ProcessFacts {
    /// The configuration and where it came from.
    pub loaded: Loaded,
    /// Where nodes connect to.
    pub link: String,
}

impl StatusSource for ProcessFacts {
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn config_source(&self) -> String {
        self.loaded.describe()
    }

    fn not_in_effect(&self) -> Vec<aivillage_gateway::NotInEffect> {
        let entry = |n: crate::config::NotInEffect| aivillage_gateway::NotInEffect {
            key: n.key.to_owned(),
            value: n.value.to_string(),
            why: n.why,
            way_out: n.way_out,
        };
        not_in_effect(&self.loaded.config).into_iter().map(entry).collect()
    }

    fn inference_coordinator_id(&self) -> String {
        self.loaded.config.inference.coordinator_id.clone()
    }

    fn training_coordinator_id(&self) -> String {
        self.loaded.config.training.coordinator_id.clone()
    }

    fn link_address(&self) -> Option<String> {
        Some(self.link.clone())
    }
}
