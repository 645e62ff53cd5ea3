//! A coordinator and real participants over an in-memory link, with memory stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use aivillage_base::ports::{Blobs, INLINE_MAX, Payload, Records, Sent, Transport, Uplink, UplinkError, put_blob};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::{Clock, Now, SystemClock};
use aivillage_base::wire::secure::SecureUp;
use aivillage_base::wire::{
    BlobRef, DataRequirements, DataSummary, Down, Invitation, LocalMetrics, NodeReport, NodeType, Peer, Up,
    UpdateHeader, UpdateReply,
};
use aivillage_base::{Architecture, Digest, JobId, ModelId, NodeId, NodeName, Task};
use aivillage_fog::Inventory;
use aivillage_privacy::secagg::helper::SealPair;
use aivillage_privacy::secagg::signed::{KeyInMemory, Signer as _};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use aivillage_training::handle::{Catalogue, FinishedModel};
use aivillage_training::helper::{Helper, HelperDeps};
use aivillage_training::metrics::TrainingMetrics;
use aivillage_training::participant::{
    Draws, Keys, MemoryContexts, MemoryPins, MemoryState, NoRegistry, NodePolicy, Participant, ParticipantDeps,
    SentEntry, SentLog,
};
use aivillage_training::view::{JobStatus, JobView};
use aivillage_training::{
    CatalogueModel, Deps, Initialiser, JobRequest, LocalOutcome, LocalTerms, ModelChoice, TrainError, Trainer,
    Training, TrainingConfig,
};

/// Longest time a test waits for something, far beyond what it takes.
const PATIENCE: Duration = Duration::from_secs(240);

/// The system's clock, which can be moved on.
#[derive(Debug, Default)]
pub(crate) struct Jumping {
    clock: SystemClock,
    ahead_ms: AtomicU64,
}

impl Jumping {
    pub(crate) fn jump(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Jumping {
    fn now(&self) -> Now {
        let (now, ahead) = (self.clock.now(), self.ahead_ms.load(Ordering::Relaxed));
        Now { monotonic_ms: now.monotonic_ms + ahead, wall_ms: now.wall_ms + ahead }
    }
}

/// Linear regression on rows of its own, with as many features as the data has.
#[derive(Debug)]
struct Linear {
    features: usize,
    rows: u32,
}

impl Trainer for Linear {
    fn data(&self) -> Vec<DataSummary> {
        let rows = u64::from(self.rows);
        vec![DataSummary { name: "rows".into(), rows, input: vec![self.features], task: Task::Regression }]
    }

    fn train(
        &self,
        invitation: &Invitation,
        node: &str,
        mut values: Vec<f32>,
        _: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        let mut rng = SeededRng::new("rows", 0, &[node.as_bytes()]);
        #[expect(clippy::cast_possible_truncation, reason = "rows and rates are f32")]
        let (mut number, rate) = (|| rng.unit() as f32 - 0.5, invitation.training.learning_rate as f32);
        let mut loss = 0.0;
        for _ in 0..self.rows {
            let x: Vec<f32> = (0..self.features).map(|_| number()).collect();
            let predicted = values[1..].iter().zip(&x).fold(values[0], |sum, (w, x)| sum + w * x);
            let error = predicted - x[0];
            loss += f64::from(error * error) / 2.0;
            #[expect(clippy::cast_precision_loss, reason = "a few thousand features")]
            let step = rate * error / self.features as f32;
            values[0] -= step;
            for (w, x) in values[1..].iter_mut().zip(&x) {
                *w -= step * x;
            }
        }
        let metrics = LocalMetrics { loss: loss / f64::from(self.rows), accuracy: None, train_ms: 1 };
        Ok(LocalOutcome::plain(values, self.rows, self.rows, metrics))
    }
}

impl Initialiser for Linear {
    fn initial_values(&self, architecture: &Architecture, seed: u64) -> Vec<f32> {
        let mut rng = SeededRng::new("initial weights", seed, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let values = (0..architecture.parameters().unwrap()).map(|_| rng.unit() as f32 - 0.5).collect();
        values
    }
}

#[derive(Debug, Default)]
pub(crate) struct Log(pub(crate) Mutex<Vec<SentEntry>>);

impl SentLog for Log {
    fn record(&self, entry: &SentEntry) -> Result<(), String> {
        self.0.lock().unwrap().push(entry.clone());
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Shelf(Mutex<BTreeMap<JobId, Digest>>);

#[async_trait]
impl Catalogue for Shelf {
    async fn find(&self, _: &ModelId) -> Option<CatalogueModel> {
        None
    }

    async fn publish(&self, model: FinishedModel) -> Result<String, String> {
        self.0.lock().unwrap().insert(model.job_id.clone(), model.model.digest);
        Ok(model.job_id.to_string())
    }

    async fn uses(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap().values().any(|d| d == digest)
    }
}

/// The link: streams down, calls up.
#[derive(Debug, Default)]
struct Link {
    /// Every share that was opened, as text.
    opened: Mutex<Vec<String>>,
    training: Mutex<Option<Training>>,
    /// Those without a participant say nothing of themselves.
    nodes: Mutex<BTreeMap<NodeId, (Peer, Option<Participant>)>>,
    helpers: Mutex<BTreeMap<NodeId, (Peer, Helper)>>,
    blobs: MemoryBlobs,
}

impl Transport for Link {
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent {
        if let Some((_, helper)) = self.helpers.lock().unwrap().get(to) {
            helper.handle(&message);
            return Sent::Queued;
        }
        match self.nodes.lock().unwrap().get(to) {
            Some((_, participant)) => {
                if let Some(participant) = participant {
                    participant.handle(&message);
                }
                Sent::Queued
            }
            None => Sent::NotConnected,
        }
    }

    fn connected(&self) -> Vec<Peer> {
        let helpers: Vec<Peer> = self.helpers.lock().unwrap().values().map(|(peer, _)| peer.clone()).collect();
        self.nodes.lock().unwrap().values().map(|(peer, _)| peer.clone()).chain(helpers).collect()
    }
}

impl Link {
    fn training(&self) -> Result<Training, UplinkError> {
        let training = self.training.lock().unwrap().clone();
        training.ok_or_else(|| UplinkError::Unreachable("it is down".into()))
    }

    /// As a link stores it.
    async fn payload(&self, bytes: Bytes) -> Payload {
        if bytes.len() <= INLINE_MAX {
            return Payload::Inline(bytes);
        }
        Payload::Stored(put_blob(&self.blobs, bytes).await.unwrap())
    }
}

#[derive(Debug)]
struct Wire {
    peer: Peer,
    link: Arc<Link>,
}

#[async_trait]
impl Uplink for Wire {
    async fn send(&self, message: &Up) -> Result<(), UplinkError> {
        let training = self.link.training()?;
        match message.clone() {
            Up::Answer { key, declined } => training.answer(&self.peer, key, declined).await,
            Up::TrainingFailed { key, reason } => training.failed(&self.peer, key, reason).await,
            Up::Secure { key, message } => {
                if let SecureUp::Opening(opening) = &*message {
                    let shares = opening.shares.iter().map(|share| share.share.0.to_string());
                    self.link.opened.lock().unwrap().extend(shares);
                }
                training.secure(&self.peer, key, message).await;
            }
            Up::Report(_) | Up::Prediction { .. } | Up::Leave => {}
        }
        Ok(())
    }

    /// Every update is sent twice: the second has to change nothing. A server goes on when its client hangs up.
    async fn upload(&self, header: &UpdateHeader, payload: Bytes) -> Result<UpdateReply, UplinkError> {
        let (link, peer, header) = (self.link.clone(), self.peer.clone(), header.clone());
        let served = tokio::spawn(async move {
            let training = link.training()?;
            if let Some(said) = training.offer(&peer, &header).await {
                return Ok(said);
            }
            let (one, two) = (link.payload(payload.clone()).await, link.payload(payload).await);
            let said = training.update(&peer, header.clone(), one).await;
            training.update(&peer, header, two).await;
            Ok(said)
        });
        served.await.map_err(|e| UplinkError::Unreachable(e.to_string()))?
    }

    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError> {
        if !self.link.training()?.may_fetch(&self.peer, &blob.digest) {
            return Err(UplinkError::Refused("not a model of your round".into()));
        }
        let bytes = self.link.blobs.read(&blob.digest).await.map_err(|e| UplinkError::Unreachable(e.to_string()))?;
        bytes.ok_or_else(|| UplinkError::Refused("no such blob".into()))
    }
}

/// Who a node of this name is.
/// The enrolled key of a node of the tests.
pub(crate) fn signer(node: &str) -> KeyInMemory {
    KeyInMemory::new(&Digest::of(node.as_bytes()).0)
}

pub(crate) fn peer(node: &str) -> Peer {
    Peer { id: signer(node).id(), name: NodeName::new(node).unwrap() }
}

fn report(data: Vec<DataSummary>) -> NodeReport {
    NodeReport {
        helper: None,
        policy: None,
        version: "test".into(),
        node_types: vec![NodeType::Edge],
        compute_gflops: 1.0,
        memory_gb: 1.0,
        cores: 1,
        serves: false,
        data,
    }
}

/// One village; its stores outlive its coordinator.
#[derive(Debug)]
pub(crate) struct Village {
    link: Arc<Link>,
    records: Arc<MemoryRecords>,
    inventory: Inventory,
    pub(crate) clock: Arc<Jumping>,
    shelf: Arc<Shelf>,
    features: usize,
    silence: Duration,
    stop: CancellationToken,
    pub(crate) logs: BTreeMap<NodeName, Arc<Log>>,
}

impl Village {
    pub(crate) async fn new(features: usize, nodes: &[&str]) -> Self {
        let clock = Arc::new(Jumping::default());
        let records = Arc::new(MemoryRecords::new(clock.clone()));
        let inventory = Inventory::open(records.clone(), clock.clone()).await.unwrap();
        let (link, shelf) = (Arc::<Link>::default(), Arc::<Shelf>::default());
        let stop = CancellationToken::new();
        // Many nodes on one thread keep each other waiting.
        let silence = if nodes.len() > 100 { PATIENCE } else { Duration::from_millis(500) };
        let logs = BTreeMap::new();
        let mut village = Self { link, records, inventory, clock, shelf, features, silence, stop, logs };
        for (node, rows) in nodes.iter().zip(10..) {
            village.join(node, rows, NodePolicy::default()).await;
        }
        village.start().await;
        village
    }

    pub(crate) async fn join(&mut self, node: &str, rows: u32, policy: NodePolicy) {
        let (peer, trainer) = (peer(node), Arc::new(Linear { features: self.features, rows }));
        let log = Arc::<Log>::default();
        self.logs.insert(peer.name.clone(), log.clone());
        let uplink = Arc::new(Wire { peer: peer.clone(), link: self.link.clone() });
        let (name, state) = (peer.name.clone(), Arc::<MemoryState>::default());
        let keys = Keys {
            signer: Arc::new(signer(node)),
            pins: Arc::<MemoryPins>::default(),
            contexts: Arc::<MemoryContexts>::default(),
            registry: Arc::new(NoRegistry),
            draws: Arc::new(Draws::new(self.clock.clone())),
        };
        let clock = self.clock.clone();
        let deps = ParticipantDeps { uplink, trainer: trainer.clone(), name, policy, log, clock, state, keys };
        let participant = Participant::new(deps, CancellationToken::new());
        self.connect(peer, &trainer, Some(participant)).await;
    }

    /// A node that is invited and says nothing: the test speaks for it.
    pub(crate) async fn join_mute(&mut self, node: &str) {
        self.connect(peer(node), &Linear { features: self.features, rows: 10 }, None).await;
    }

    /// A helper that remembers in `contexts` what it has opened, and knows nodes by `pins`.
    pub(crate) async fn join_helper(&self, name: &str, contexts: Arc<MemoryContexts>, pins: Arc<MemoryPins>) {
        let keys = Keys {
            signer: Arc::new(signer(name)),
            pins,
            contexts,
            registry: Arc::new(NoRegistry),
            draws: Arc::new(Draws::new(self.clock.clone())),
        };
        let (peer, log) = (peer(name), Arc::<Log>::default());
        let uplink = Arc::new(Wire { peer: peer.clone(), link: self.link.clone() });
        let helper = Helper::new(HelperDeps { uplink, log, keys }, CancellationToken::new());
        let report = NodeReport { helper: Some(helper.word()), ..report(Vec::new()) };
        self.inventory.report(&peer, report).await.unwrap();
        self.link.helpers.lock().unwrap().insert(peer.id, (peer.clone(), helper));
        if let Ok(training) = self.link.training() {
            training.connected(&peer).await;
        }
    }

    /// A helper that says that it is here, and hears nothing.
    pub(crate) async fn announce_helper(&self, name: &str) {
        let word = SealPair::of(&signer(name)).word();
        let (peer, report) = (peer(name), NodeReport { helper: Some(word), ..report(Vec::new()) });
        self.inventory.report(&peer, report).await.unwrap();
        self.training().connected(&peer).await;
    }

    /// The helper goes, and its process with it.
    pub(crate) async fn lose_helper(&self, name: &str) {
        let gone = peer(name);
        self.link.helpers.lock().unwrap().remove(&gone.id);
        self.training().disconnected(&gone).await;
    }

    async fn connect(&mut self, peer: Peer, trainer: &Linear, participant: Option<Participant>) {
        self.inventory.report(&peer, report(trainer.data())).await.unwrap();
        self.link.nodes.lock().unwrap().insert(peer.id, (peer.clone(), participant));
        let training = self.link.training();
        if let Ok(training) = training {
            training.connected(&peer).await;
        }
    }

    async fn start(&mut self) {
        self.stop = CancellationToken::new();
        let deps = Deps {
            records: self.records.clone(),
            blobs: Arc::new(self.link.blobs.clone()),
            transport: self.link.clone(),
            inventory: self.inventory.clone(),
            clock: self.clock.clone(),
            initialiser: Arc::new(Linear { features: self.features, rows: 0 }),
            catalogue: self.shelf.clone(),
            config: TrainingConfig { selection_timeout: self.silence, ..TrainingConfig::default() },
            metrics: TrainingMetrics::register(&mut prometheus_client::registry::Registry::default(), 1.0),
        };
        let training = Training::start(deps, self.stop.clone()).await.unwrap();
        *self.link.training.lock().unwrap() = Some(training);
    }

    /// Stops the coordinator and starts another one on the same stores.
    pub(crate) async fn restart(&mut self) {
        self.stop.cancel();
        *self.link.training.lock().unwrap() = None;
        self.start().await;
    }

    pub(crate) fn training(&self) -> Training {
        self.link.training().unwrap()
    }

    pub(crate) fn published(&self, job: &JobId) -> Option<Digest> {
        self.shelf.0.lock().unwrap().get(job).copied()
    }

    pub(crate) async fn blobs(&self) -> BTreeSet<Digest> {
        self.link.blobs.list().await.unwrap().into_iter().collect()
    }

    /// Waits, bounded, until there are as many blobs: the second copies of the last updates go a moment after the job.
    pub(crate) async fn until_blobs(&self, count: usize) {
        let look = async {
            while self.link.blobs.list().await.unwrap().len() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE / 4, look).await.is_err() {
            panic!("{count} blobs are to be left, not {:?}", self.link.blobs.list().await);
        }
    }

    /// A large update as a link stores it.
    pub(crate) async fn store(&self, bytes: Bytes) -> Payload {
        Payload::Stored(put_blob(&self.link.blobs, bytes).await.unwrap())
    }

    /// Every share of a secret that went over the link, as text.
    pub(crate) fn opened(&self) -> Vec<String> {
        self.link.opened.lock().unwrap().clone()
    }

    pub(crate) fn records(&self) -> &dyn Records {
        &*self.records
    }

    /// Waits, bounded, until the job's view is as wanted.
    pub(crate) async fn until(&self, job: &JobId, wanted: impl Fn(&JobView) -> bool) -> JobView {
        let look = async {
            loop {
                let view = self.training().status(job).await.unwrap();
                if wanted(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let Ok(view) = tokio::time::timeout(PATIENCE, look).await else {
            panic!("not within {PATIENCE:?}: {:#?}", self.training().status(job).await)
        };
        view
    }

    pub(crate) async fn ended(&self, job: &JobId) -> JobView {
        self.until(job, |view| view.status.is_terminal()).await
    }

    /// A job to its end, undisturbed: the digest of its model.
    pub(crate) async fn completed(&self, job: &JobId) -> Digest {
        let view = self.ended(job).await;
        assert_eq!(view.status, JobStatus::Completed, "{:?}", view.reason);
        self.published(job).unwrap()
    }
}

/// A job over everybody's data, with seed 1.
pub(crate) fn request(rounds: u32, min: u32) -> JobRequest {
    let hyperparameters = json!({"learning_rate": 0.5, "round_timeout_s": 30});
    JobRequest {
        job_id: Some(JobId::new("job").unwrap()),
        job_name: "a job".into(),
        publisher: "ada".into(),
        model_architecture: ModelChoice::Named("linear_regression".into()),
        total_rounds: Some(rounds),
        min_participants: Some(min),
        max_participants: None,
        privacy_techniques: Some(Vec::new()),
        mobile_friendly: true,
        job_type: None,
        dataset_requirements: DataRequirements::default(),
        strategy: None,
        retain_updates: false,
        hyperparameters: hyperparameters.as_object().unwrap().clone(),
        privacy: serde_json::Map::new(),
        seed: Some(1),
    }
}
