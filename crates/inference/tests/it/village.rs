//! A small village on memory stores: the real coordinator, real workers, a real (linear) engine, and a transport loop
//! between them whose nodes can be told to misbehave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use aivillage_base::ports::{
    Batch, Blobs, Records, Row, Scan, Sent, StoreError, SyncStats, Transport, Uplink, UplinkError, put_blob,
};
use aivillage_base::time::{Clock, Now, SystemClock};
use aivillage_base::wire::{BlobRef, Down, NodeReport, NodeType, Peer, PredictOutcome, Up, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, ModelId, NodeId, NodeName, Recipe, RequestId, Task, bundle};
use aivillage_fog::Inventory;
use aivillage_inference::request::RequestView;
use aivillage_inference::{
    Deps, Inference, InferenceConfig, LoadedModel, ModelInfo, PredictError, Predictor, PrivacyLevel, Submit, Worker,
    WorkerConfig, WorkerDeps,
};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The operating system's clock, which tests may put forward.
#[derive(Debug, Default)]
pub(crate) struct Shifted {
    real: SystemClock,
    ahead_ms: AtomicU64,
}

impl Shifted {
    pub(crate) fn forward(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for Shifted {
    fn now(&self) -> Now {
        let ahead = self.ahead_ms.load(Ordering::SeqCst);
        let now = self.real.now();
        Now { monotonic_ms: now.monotonic_ms + ahead, wall_ms: now.wall_ms + ahead }
    }
}

/// A linear classifier, softmax(x W + b), computed plainly.
#[derive(Debug)]
pub(crate) struct Linear;

#[derive(Debug)]
struct LinearModel {
    classes: usize,
    bias: Vec<f32>,
    weight: Vec<f32>,
}

impl Predictor for Linear {
    fn load(&self, bytes: &[u8]) -> Result<Box<dyn LoadedModel>, PredictError> {
        let (architecture, values) = bundle::read(bytes).map_err(|e| PredictError::Unfit(e.to_string()))?;
        let classes = architecture.task.outputs();
        let (bias, weight) = values.split_at(classes);
        Ok(Box::new(LinearModel { classes, bias: bias.to_vec(), weight: weight.to_vec() }))
    }
}

impl LoadedModel for LinearModel {
    fn predict(&self, rows: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, PredictError> {
        let score = |row: &[f32], class: usize| {
            row.iter().enumerate().map(|(i, x)| x * self.weight[i * self.classes + class]).sum::<f32>()
                + self.bias[class]
        };
        Ok(rows
            .iter()
            .map(|row| {
                let scores: Vec<f32> = (0..self.classes).map(|c| score(row, c)).collect();
                let top = scores.iter().copied().fold(f32::MIN, f32::max);
                let powers: Vec<f32> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f32 = powers.iter().sum();
                powers.iter().map(|p| p / sum).collect()
            })
            .collect())
    }
}

/// How a node treats its tasks.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    Honest,
    /// Says nothing.
    Silent,
    /// Says that it failed.
    Failing,
    /// Says that no node can do better.
    Unfit,
    /// Answers with the wrong number of rows.
    Lying,
    /// Answers twice.
    Twice,
    /// Takes a permit before it answers.
    Held(Arc<Semaphore>),
}

#[derive(Debug)]
struct HubNode {
    peer: Peer,
    worker: Worker,
    manner: Manner,
}

/// The transport: delivers to workers on tasks of their own.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    nodes: Mutex<BTreeMap<NodeId, HubNode>>,
    inference: Mutex<Option<Inference>>,
    me: OnceLock<Weak<Hub>>,
    pub(crate) sent: AtomicUsize,
    pub(crate) hints: AtomicUsize,
}

impl Transport for Hub {
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent {
        let nodes = self.nodes.lock().unwrap();
        let Some(node) = nodes.get(to) else { return Sent::NotConnected };
        let Down::Predict(task) = &*message else {
            self.hints.fetch_add(1, Ordering::SeqCst);
            return Sent::Queued;
        };
        self.sent.fetch_add(1, Ordering::SeqCst);
        let hub = self.me.get().and_then(Weak::upgrade).expect("the hub lives");
        let (peer, worker, manner, task) =
            (node.peer.clone(), node.worker.clone(), node.manner.clone(), (**task).clone());
        tokio::spawn(async move {
            let (request, attempt) = (task.request, task.attempt);
            let say = |outcome| {
                let inference = hub.inference.lock().unwrap().clone().expect("inference runs");
                inference.prediction(&peer, request, attempt, outcome);
            };
            let failed = |reason: &str, permanent| PredictOutcome::Failed { reason: reason.into(), permanent };
            match &manner {
                Manner::Silent => return,
                Manner::Failing => return say(failed("out of memory", false)),
                Manner::Unfit => return say(failed("does not fit", true)),
                Manner::Lying => return say(PredictOutcome::Done { outputs: Vec::new(), compute_us: 1 }),
                Manner::Held(gate) => gate.acquire().await.unwrap().forget(),
                Manner::Honest | Manner::Twice => {}
            }
            let Up::Prediction { outcome, .. } = worker.handle(task).await else { unreachable!("only predictions") };
            if matches!(manner, Manner::Twice) {
                say(outcome.clone());
            }
            say(outcome);
        });
        Sent::Queued
    }

    fn connected(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.nodes.lock().unwrap().values().map(|n| n.peer.clone()).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }
}

/// A node's uplink: fetches what the coordinator lets it fetch.
#[derive(Debug)]
struct HubUplink {
    hub: Weak<Hub>,
    blobs: Arc<dyn Blobs>,
    me: NodeId,
}

#[async_trait]
impl Uplink for HubUplink {
    async fn send(&self, _message: &Up) -> Result<(), UplinkError> {
        Ok(())
    }
    async fn upload(&self, _header: &UpdateHeader, _payload: Bytes) -> Result<UpdateReply, UplinkError> {
        Err(UplinkError::Refused("no uploads here".into()))
    }
    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError> {
        let inference = self.hub.upgrade().and_then(|h| h.inference.lock().unwrap().clone());
        if !inference.is_some_and(|i| i.may_fetch(&self.me, &blob.digest)) {
            return Err(UplinkError::Refused("not allowed".into()));
        }
        let bytes = self.blobs.read(&blob.digest).await.map_err(|e| UplinkError::Unreachable(e.to_string()))?;
        bytes.ok_or_else(|| UplinkError::Refused("no such blob".into()))
    }
}

/// Records that can be told to refuse the next commits of a name.
#[derive(Debug)]
pub(crate) struct Moody {
    inner: MemoryRecords,
    refuse: Mutex<BTreeMap<&'static str, usize>>,
    pub(crate) refused: AtomicUsize,
}

impl Moody {
    pub(crate) fn refuse_next(&self, name: &'static str, times: usize) {
        self.refuse.lock().unwrap().insert(name, times);
    }
}

#[async_trait]
impl Records for Moody {
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError> {
        self.inner.get(table, key).await
    }
    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(table, scan).await
    }
    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let refuse = {
            let mut moods = self.refuse.lock().unwrap();
            let left = moods.get_mut(batch.name).filter(|n| **n > 0);
            left.map(|n| *n -= 1).is_some()
        };
        if refuse {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Unavailable("moody".into()));
        }
        self.inner.commit(batch).await
    }
    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        self.inner.acquire(lease, holder, ttl).await
    }
    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError> {
        self.inner.release(lease, holder).await
    }
    fn sync_stats(&self) -> SyncStats {
        self.inner.sync_stats()
    }
}

/// Everything that survives a restart, and the coordinator that runs.
pub(crate) struct Village {
    pub(crate) clock: Arc<Shifted>,
    pub(crate) records: Arc<Moody>,
    pub(crate) blobs: Arc<MemoryBlobs>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) inventory: Inventory,
    pub(crate) inference: Inference,
    config: InferenceConfig,
    cancel: CancellationToken,
}

impl Village {
    pub(crate) async fn new(config: InferenceConfig) -> Self {
        let clock = Arc::new(Shifted::default());
        let inner = MemoryRecords::new(Arc::<Shifted>::clone(&clock));
        let records = Arc::new(Moody { inner, refuse: Mutex::default(), refused: AtomicUsize::new(0) });
        let hub = Arc::new(Hub::default());
        hub.me.set(Arc::downgrade(&hub)).unwrap();
        let blobs = Arc::new(MemoryBlobs::new());
        let (inventory, inference, cancel) = Self::start(&clock, &records, &blobs, &hub, &config).await;
        Self { clock, records, blobs, hub, inventory, inference, config, cancel }
    }

    async fn start(
        clock: &Arc<Shifted>,
        records: &Arc<Moody>,
        blobs: &Arc<MemoryBlobs>,
        hub: &Arc<Hub>,
        config: &InferenceConfig,
    ) -> (Inventory, Inference, CancellationToken) {
        let inventory = Inventory::open(Arc::<Moody>::clone(records), Arc::<Shifted>::clone(clock)).await.unwrap();
        let cancel = CancellationToken::new();
        let deps = Deps {
            records: Arc::<Moody>::clone(records),
            blobs: Arc::<MemoryBlobs>::clone(blobs),
            transport: Arc::<Hub>::clone(hub),
            inventory: inventory.clone(),
            clock: Arc::<Shifted>::clone(clock),
            config: config.clone(),
        };
        let inference = Inference::start(deps, cancel.clone()).await.unwrap();
        *hub.inference.lock().unwrap() = Some(inference.clone());
        (inventory, inference, cancel)
    }

    /// Stops the coordinator; every node loses its stream.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        self.inference.stopped().await;
        self.hub.nodes.lock().unwrap().clear();
    }

    /// Starts it again over the same stores.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let (inventory, inference, cancel) =
            Self::start(&self.clock, &self.records, &self.blobs, &self.hub, &self.config).await;
        (self.inventory, self.inference, self.cancel) = (inventory, inference, cancel);
    }

    pub(crate) async fn node(&self, name: &str, manner: Manner) -> Peer {
        let mut id = [0; 32];
        id[..name.len()].copy_from_slice(name.as_bytes());
        let peer = Peer { id: NodeId(id), name: NodeName::new(name).unwrap() };
        let uplink =
            HubUplink { hub: Arc::downgrade(&self.hub), blobs: Arc::<MemoryBlobs>::clone(&self.blobs), me: peer.id };
        let worker = Worker::new(WorkerDeps {
            uplink: Arc::new(uplink),
            predictor: Arc::new(Linear),
            cache_dir: None,
            clock: Arc::<Shifted>::clone(&self.clock),
            config: WorkerConfig::default(),
        });
        self.hub.nodes.lock().unwrap().insert(peer.id, HubNode { peer: peer.clone(), worker, manner });
        self.inventory.online(&peer);
        self.inference.connected(&peer);
        let report = NodeReport {
            helper: None,
            policy: None,
            version: "0.1.0".into(),
            node_types: vec![NodeType::Edge],
            compute_gflops: 10.0,
            memory_gb: 4.0,
            cores: 2,
            serves: true,
            data: Vec::new(),
        };
        self.inventory.report(&peer, report).await.unwrap();
        peer
    }

    pub(crate) fn lose(&self, peer: &Peer) {
        self.hub.nodes.lock().unwrap().remove(&peer.id);
        self.inventory.offline(&peer.id);
        self.inference.disconnected(peer);
    }

    /// Publishes the classifier of [`model_values`].
    pub(crate) async fn publish(&self, id: &str) -> BlobRef {
        let bytes = bundle::write(&architecture(), &model_values()).unwrap();
        let blob = put_blob(&*self.blobs, bytes.into()).await.unwrap();
        self.inference.publish(info(id), blob).await.unwrap();
        blob
    }

    /// The outcome of a durable request, waited for at most 10 s.
    pub(crate) async fn outcome(&self, id: RequestId) -> RequestView {
        let wait = async {
            loop {
                let view = self.inference.request(&id).await.unwrap();
                if view.status.is_final() {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("an outcome in 10 s")
    }

    pub(crate) async fn rows(&self, table: &'static str) -> Vec<Value> {
        let rows = self.records.scan(table, Scan { limit: 1_000, ..Scan::default() }).await.unwrap();
        rows.iter().map(|r| serde_json::from_slice(&r.value).unwrap()).collect()
    }

    /// What must hold whenever the village is asked.
    pub(crate) fn books_balance(&self) {
        let s = self.inference.stats();
        assert_eq!(s.total_requests, s.ok + s.failed + s.shed + s.expired + s.active, "{s:?}");
    }
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect(what);
}

/// Two features, three classes.
pub(crate) fn architecture() -> Architecture {
    Recipe::LogisticRegression.build(&[2], Task::Classification { classes: 3 }).unwrap()
}

/// Class 0 wants a large first feature, class 1 a large second one, class 2 neither.
pub(crate) fn model_values() -> Vec<f32> {
    vec![0.0, 0.0, 1.0, 4.0, 0.0, 0.0, 0.0, 4.0, 0.0]
}

pub(crate) fn info(id: &str) -> ModelInfo {
    ModelInfo {
        model_id: ModelId::new(id).unwrap(),
        model_name: "Corners".into(),
        model_version: "1.0".into(),
        model_type: "classification".into(),
        framework: "aivillage".into(),
        model_size_mb: 0.0,
        memory_requirements_gb: 1.0,
        compute_requirements_gflops: 0.0,
        supported_node_types: vec![NodeType::Mobile, NodeType::Edge],
        privacy_requirements: PrivacyLevel::Low,
        architecture: None,
    }
}

pub(crate) fn ask(model: &str, inputs: Value, wait_ms: Option<u64>) -> Submit {
    let Value::Object(input_data) = json!({ "inputs": inputs }) else { unreachable!("an object") };
    Submit {
        model_id: ModelId::new(model).unwrap(),
        input_data,
        privacy_level: None,
        max_latency_ms: Some(10_000),
        preferred_node_types: Vec::new(),
        client: "test".into(),
        wait: wait_ms.map(Duration::from_millis),
    }
}
