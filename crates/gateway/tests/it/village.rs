//! A gateway with real rooms on memory stores, and neighbours in memory where the real ones need sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aivillage_base::ports::{Blobs, Payload, Records, Sent, Transport};
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::policy::NodePolicy;
use aivillage_base::wire::{
    BlobRef, DataSummary, Down, LocalMetrics, NodeReport, NodeType, Peer, UpdateHeader, UpdateReply,
};
use aivillage_base::{Architecture, Digest, ErrorKind, ModelId, NodeId, NodeName, Task};
use aivillage_fog::Inventory;
use aivillage_gateway::{
    ApiKeys, EnrolledNode, Enrolment, EnrolmentError, Gateway, GatewayConfig, GatewayDeps, GatewayError, IssuedToken,
    NotInEffect, Part, Scope, StatusSource, TokenInfo,
};
use aivillage_inference::{Inference, InferenceConfig};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use aivillage_training::handle::{Catalogue, FinishedModel};
use aivillage_training::metrics::TrainingMetrics;
use aivillage_training::{CatalogueModel, Initialiser, Training, TrainingConfig};
use async_trait::async_trait;
use http::Method;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Ask;

pub(crate) struct Village {
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    pub(crate) client: String,
    pub(crate) cancel: CancellationToken,
    pub(crate) gateway: Gateway,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) node: Node,
}

/// What a test wants to be different.
pub(crate) struct Plan {
    pub(crate) config: GatewayConfig,
    pub(crate) training: TrainingConfig,
    pub(crate) parts: bool,
    pub(crate) records: Option<Arc<dyn Records>>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            config: GatewayConfig::default(),
            training: TrainingConfig { min_participants: 1, ..TrainingConfig::default() },
            parts: true,
            records: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl Village {
    pub(crate) async fn start() -> Self {
        Self::planned(Plan::default()).await
    }

    pub(crate) async fn configured(config: GatewayConfig) -> Self {
        Self::planned(Plan { config, ..Plan::default() }).await
    }

    pub(crate) async fn planned(plan: Plan) -> Self {
        Self::listening(plan, "127.0.0.1:0").await.unwrap()
    }

    async fn listening(plan: Plan, address: &str) -> Result<Self, GatewayError> {
        let clock = plan.clock;
        let records = plan.records.unwrap_or_else(|| Arc::new(MemoryRecords::new(Arc::clone(&clock))));
        let blobs: Arc<dyn Blobs> = Arc::new(MemoryBlobs::new());
        let inventory = Inventory::open(Arc::clone(&records), Arc::clone(&clock)).await.unwrap();
        let keys = ApiKeys::open(Arc::clone(&records), Arc::clone(&clock), Some("env-secret")).await.unwrap();
        let admin = keys.create("operator", Scope::Admin).await.unwrap().secret;
        let client = keys.create("alice", Scope::Client).await.unwrap().secret;
        let cancel = CancellationToken::new();
        let (sender, messages) = mpsc::channel(64);
        let there = Arc::new(AtomicBool::new(false));
        let peer = Peer { id: NodeId([9; 32]), name: NodeName::new("site-a").unwrap() };
        let sends: Arc<dyn Transport> = Arc::new(Sends { sender, node: peer.clone(), there: Arc::clone(&there) });
        let mut registry = Registry::default();
        let (training, inference) = if plan.parts {
            let training = aivillage_training::Deps {
                records: Arc::clone(&records),
                blobs: Arc::clone(&blobs),
                transport: Arc::clone(&sends),
                inventory: inventory.clone(),
                clock: Arc::clone(&clock),
                initialiser: Arc::new(Zeros),
                catalogue: Arc::new(Nothing),
                config: plan.training,
                metrics: TrainingMetrics::register(&mut registry, 10.0),
            };
            let inference = aivillage_inference::Deps {
                records: Arc::clone(&records),
                blobs: Arc::clone(&blobs),
                transport: Arc::clone(&sends),
                inventory: inventory.clone(),
                clock: Arc::clone(&clock),
                config: InferenceConfig::default(),
            };
            let inference = Inference::start(inference, cancel.clone()).await.unwrap();
            inference.metrics().register(&mut registry);
            (Part::On(Training::start(training, cancel.clone()).await.unwrap()), Part::On(inference))
        } else {
            let off = |key: &str| format!("{key} is false");
            (Part::Off { reason: off("training.enabled") }, Part::Off { reason: off("inference.enabled") })
        };
        let handle = match &training {
            Part::On(training) => Some(training.clone()),
            Part::Off { .. } => None,
        };
        let node = Node {
            peer,
            inventory: inventory.clone(),
            training: handle,
            there,
            messages: tokio::sync::Mutex::new(messages),
        };
        let deps = GatewayDeps {
            training,
            inference,
            inventory,
            keys,
            enrolment: Arc::new(Desk::default()),
            blobs,
            records: Arc::clone(&records),
            clock,
            config: plan.config,
            status: Arc::new(Facts),
            registry,
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let gateway = aivillage_gateway::start(deps, listener, cancel.clone()).await?;
        Ok(Self { address: gateway.address, admin, client, cancel, gateway, records, node })
    }

    pub(crate) fn get(&self, path: &str) -> Ask {
        Ask::new(self.address, Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> Ask {
        Ask::new(self.address, Method::POST, path)
    }

    pub(crate) fn put(&self, path: &str) -> Ask {
        Ask::new(self.address, Method::PUT, path)
    }

    pub(crate) fn delete(&self, path: &str) -> Ask {
        Ask::new(self.address, Method::DELETE, path)
    }
}

/// Starts a gateway at `address` and lets it go again.
pub(crate) async fn try_start(config: GatewayConfig, address: &str) -> Result<(), GatewayError> {
    let village = Village::listening(Plan { config, ..Plan::default() }, address).await?;
    village.cancel.cancel();
    village.gateway.stopped().await;
    Ok(())
}

/// What the coordinators send to nodes, for a test to answer as a node would.
#[derive(Debug)]
struct Sends {
    sender: mpsc::Sender<Arc<Down>>,
    node: Peer,
    there: Arc<AtomicBool>,
}

#[async_trait]
impl Transport for Sends {
    fn send(&self, _: &NodeId, message: Arc<Down>) -> Sent {
        if !self.there.load(Ordering::SeqCst) {
            return Sent::NotConnected;
        }
        self.sender.try_send(message).map_or(Sent::Full, |()| Sent::Queued)
    }

    fn connected(&self) -> Vec<Peer> {
        if self.there.load(Ordering::SeqCst) { vec![self.node.clone()] } else { Vec::new() }
    }
}

/// The one node a village may have.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) peer: Peer,
    pub(crate) inventory: Inventory,
    pub(crate) training: Option<Training>,
    there: Arc<AtomicBool>,
    messages: tokio::sync::Mutex<mpsc::Receiver<Arc<Down>>>,
}

impl Node {
    /// Connects with ten rows of two features and two classes.
    pub(crate) async fn arrive(&self) {
        self.arrive_with(None).await;
    }

    /// Connects as a node whose owner allows no more than this.
    pub(crate) async fn arrive_with(&self, policy: Option<NodePolicy>) {
        let report = NodeReport {
            helper: None,
            policy,
            version: "0".into(),
            node_types: vec![NodeType::Edge],
            compute_gflops: 1.0,
            memory_gb: 1.0,
            cores: 1,
            serves: false,
            data: vec![DataSummary {
                name: "rows".into(),
                rows: 10,
                input: vec![2],
                task: Task::Classification { classes: 2 },
            }],
        };
        self.there.store(true, Ordering::SeqCst);
        self.inventory.report(&self.peer, report).await.unwrap();
        self.inventory.online(&self.peer);
        if let Some(training) = &self.training {
            training.connected(&self.peer).await;
        }
    }

    /// Answers invitations with an update of zeros until the job ends.
    pub(crate) async fn work(&self) {
        let training = self.training.as_ref().unwrap();
        let mut messages = self.messages.lock().await;
        while let Some(message) = messages.recv().await {
            match &*message {
                Down::Invite(invitation) => {
                    let values = invitation.architecture.parameters().unwrap();
                    let payload = bytes::Bytes::from(vec![0; values * 4]);
                    let digest = BlobRef { digest: Digest::of(&payload), bytes: payload.len() as u64 };
                    let metrics = LocalMetrics { loss: 0.7, accuracy: Some(0.5), train_ms: 3 };
                    let header = UpdateHeader {
                        retain: invitation.retain_updates,
                        ..UpdateHeader::new(invitation.key.clone(), digest, 10, metrics)
                    };
                    training.answer(&self.peer, invitation.key.clone(), None).await;
                    let reply = training.update(&self.peer, header, Payload::Inline(payload)).await;
                    assert_eq!(reply, UpdateReply::Accepted);
                }
                Down::JobEnded { .. } => return,
                Down::Welcome { .. }
                | Down::Heartbeat
                | Down::Secure { .. }
                | Down::RoundClosed { .. }
                | Down::ModelReady { .. }
                | Down::Help(_)
                | Down::Predict(_)
                | Down::Goodbye { .. } => {}
            }
        }
    }
}

/// Starts every model at zero.
#[derive(Debug)]
struct Zeros;

impl Initialiser for Zeros {
    fn initial_values(&self, architecture: &Architecture, _: u64) -> Vec<f32> {
        vec![0.0; architecture.parameters().unwrap()]
    }
}

/// A catalogue that training finds empty.
#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Catalogue for Nothing {
    async fn find(&self, _: &ModelId) -> Option<CatalogueModel> {
        None
    }

    async fn publish(&self, model: FinishedModel) -> Result<String, String> {
        Ok(model.job_id.to_string())
    }

    async fn uses(&self, _: &Digest) -> bool {
        false
    }
}

/// Enrolment in memory.
#[derive(Debug, Default)]
struct Desk {
    tokens: Mutex<Vec<TokenInfo>>,
    nodes: Mutex<Vec<EnrolledNode>>,
}

#[async_trait]
impl Enrolment for Desk {
    async fn create_token(&self, owner: &NodeName, ttl: Duration) -> Result<IssuedToken, EnrolmentError> {
        if ttl > Duration::from_secs(20 * 86_400) {
            return Err(EnrolmentError { kind: ErrorKind::Conflict, detail: "the desk is closed".into() });
        }
        let mut tokens = self.tokens.lock().unwrap();
        let id = format!("tok_{}", tokens.len());
        let expires_ms = 1_900_000_000_000;
        tokens.push(TokenInfo {
            id: id.clone(),
            owner: owner.to_string(),
            created_ms: 1_700_000_000_000,
            expires_ms,
            used_by: None,
        });
        self.nodes.lock().unwrap().push(EnrolledNode {
            id: NodeId([7; 32]),
            name: owner.clone(),
            owner: owner.to_string(),
            enrolled_ms: 1_700_000_000_000,
            revoked: false,
        });
        Ok(IssuedToken { id, token: "avt1.secret.ca".into(), expires_ms })
    }

    async fn tokens(&self) -> Result<Vec<TokenInfo>, EnrolmentError> {
        Ok(self.tokens.lock().unwrap().clone())
    }

    async fn revoke_token(&self, id: &str) -> Result<bool, EnrolmentError> {
        let mut tokens = self.tokens.lock().unwrap();
        let before = tokens.len();
        tokens.retain(|t| t.id != id);
        Ok(tokens.len() < before)
    }

    async fn nodes(&self) -> Result<Vec<EnrolledNode>, EnrolmentError> {
        Ok(self.nodes.lock().unwrap().clone())
    }

    async fn revoke_node(&self, name: &NodeName) -> Result<bool, EnrolmentError> {
        let mut nodes = self.nodes.lock().unwrap();
        let found = nodes.iter_mut().find(|n| n.name == *name);
        Ok(found.map(|n| n.revoked = true).is_some())
    }
}

#[derive(Debug)]
struct Facts;

impl StatusSource for Facts {
    fn version(&self) -> String {
        "0.0.0-test".into()
    }

    fn config_source(&self) -> String {
        "defaults (no file found)".into()
    }

    fn not_in_effect(&self) -> Vec<NotInEffect> {
        vec![NotInEffect {
            key: "network.betanet.enabled".into(),
            value: "true".into(),
            why: "there is no mix network yet".into(),
            way_out: "set it to false".into(),
        }]
    }

    fn inference_coordinator_id(&self) -> String {
        "test_inference".into()
    }

    fn training_coordinator_id(&self) -> String {
        "test_training".into()
    }

    fn link_address(&self) -> Option<String> {
        Some("127.0.0.1:8001".into())
    }
}
