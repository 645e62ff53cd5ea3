//! `aivillage bench updates`: the coordinator's part of a round with many small updates.
//!
//! The real coordinator on real stores (SQLite and a folder of blobs on a disk) in this process. In place of the link stand
//! calls of its door: every node that is invited says yes, offers its update, and hands it over, all nodes at once, with
//! integers that were ready before. So nothing but the coordinator and its disk takes time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aivillage_base::ports::{Blobs, Payload, Records, Sent, SyncStats, Transport};
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::{
    BlobRef, DataRequirements, DataSummary, Down, LocalMetrics, NodeReport, NodeType, Peer, UpdateHeader, UpdateReply,
};
use aivillage_base::{Digest, ModelId, NodeId, NodeName, Task};
use aivillage_fog::Inventory;
use aivillage_storage::{FolderBlobs, SqliteRecords};
use aivillage_training::handle::{Catalogue, FinishedModel};
use aivillage_training::metrics::TrainingMetrics;
use aivillage_training::view::EventKind;
use aivillage_training::{CatalogueModel, Deps, JobRequest, ModelChoice, StrategyChoice, Training};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Scratch, median, rounded};
use crate::cli::out;
use crate::config::{Config, training_room};
use crate::exit::{CliError, ExitCode};

/// Rounds that fill caches and are not counted.
const WARM_UP: u32 = 2;

/// Which updates.
#[derive(Debug, Args)]
pub struct UpdatesArgs {
    /// Nodes; each sends one update a round
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    nodes: u32,
    /// Values of an update, 4 bytes each; at most 4096 (16 KiB), so that updates live in the record store
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=4_096))]
    params: u32,
    /// Measured rounds, after two that warm up
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Folder on the disk to use [default: the system's for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document on stdout
    ///
    /// wall_ms: from one round's end to the next one's: inviting, answers, offers, updates, sum, new model. median_ms: the
    /// same without fsync_ms, the waits for the disk, which follow each other. Medians of rounds.
    #[arg(long)]
    json: bool,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, format!("{what}: {error}"))
}

pub(super) async fn run(args: &UpdatesArgs) -> Result<(), CliError> {
    let scratch = Scratch::new(args.dir.as_deref(), "updates")?;
    let stop = CancellationToken::new();
    let result = measure(args, &scratch.0, &stop).await;
    stop.cancel();
    let document = result?;
    if args.json {
        out::document(&document);
        return Ok(());
    }
    let names = ["nodes", "params", "rounds", "median_ms", "wall_ms", "fsyncs", "fsync_ms", "updates_per_s"];
    out::line(&out::fields(&names.map(|name| (name, out::cell(&document[name])))));
    Ok(())
}

/// The nodes as the coordinator reaches them; what it says to them comes out of a queue.
#[derive(Debug)]
struct Nodes {
    peers: Vec<Peer>,
    said: mpsc::Sender<(NodeId, Arc<Down>)>,
}

#[async_trait]
impl Transport for Nodes {
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent {
        if self.said.try_send((*to, message)).is_ok() { Sent::Queued } else { Sent::Full }
    }

    fn connected(&self) -> Vec<Peer> {
        self.peers.clone()
    }
}

/// No catalogue: the model stays with its job.
#[derive(Debug)]
struct NoCatalogue;

#[async_trait]
impl Catalogue for NoCatalogue {
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

fn peers(count: u32) -> Result<Vec<Peer>, CliError> {
    let peer = |n: u32| {
        let name = format!("node-{n:05}");
        let id = NodeId(Digest::of(name.as_bytes()).0);
        Ok(Peer { id, name: NodeName::new(name).map_err(|e| failed("a name", &e))? })
    };
    (0..count).map(peer).collect()
}

fn report(params: u32) -> NodeReport {
    let input = vec![params as usize - 1];
    NodeReport {
        helper: None,
        policy: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_types: vec![NodeType::Edge],
        compute_gflops: 1.0,
        memory_gb: 1.0,
        cores: 1,
        serves: false,
        data: vec![DataSummary { name: "bench".into(), rows: 1, input, task: Task::Regression }],
    }
}

/// A coordinator with its disk.
struct Room {
    training: Training,
    records: Arc<dyn Records>,
    blobs: Arc<dyn Blobs>,
    clock: Arc<dyn Clock>,
}

async fn room(dir: &Path, nodes: Arc<Nodes>, params: u32, stop: &CancellationToken) -> Result<Room, CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let records = SqliteRecords::open(&dir.join("store.sqlite"), Arc::clone(&clock));
    let records: Arc<dyn Records> = Arc::new(records.map_err(|e| failed("the record store", &e))?);
    let blobs = FolderBlobs::open(&dir.join("blobs"), None).map_err(|e| failed("the blob folder", &e))?;
    let blobs: Arc<dyn Blobs> = Arc::new(blobs);
    let inventory = Inventory::open(Arc::clone(&records), Arc::clone(&clock)).await;
    let inventory = inventory.map_err(|e| failed("the inventory", &e))?;
    for peer in &nodes.peers {
        inventory.online(peer);
        inventory.report(peer, report(params)).await.map_err(|e| failed("the inventory", &e))?;
    }
    let deps = Deps {
        records: Arc::clone(&records),
        blobs: Arc::clone(&blobs),
        transport: nodes,
        inventory,
        clock: Arc::clone(&clock),
        initialiser: Arc::new(aivillage_engine::Engine),
        catalogue: Arc::new(NoCatalogue),
        config: training_room(&Config::default()),
        metrics: TrainingMetrics::register(&mut prometheus_client::registry::Registry::default(), 1.0),
    };
    let training = Training::start(deps, stop.clone()).await.map_err(|e| failed("the coordinator", &e))?;
    Ok(Room { training, records, blobs, clock })
}

impl Room {
    fn now(&self) -> Moment {
        let (records, blobs) = (self.records.sync_stats(), self.blobs.sync_stats());
        let sum = SyncStats { count: records.count + blobs.count, total_us: records.total_us + blobs.total_us };
        Moment { at_ms: self.clock.now().monotonic_ms, syncs: sum }
    }
}

#[derive(Debug, Clone, Copy)]
struct Moment {
    at_ms: u64,
    syncs: SyncStats,
}

async fn measure(args: &UpdatesArgs, dir: &Path, stop: &CancellationToken) -> Result<Value, CliError> {
    let peers = peers(args.nodes)?;
    let (said, heard) = mpsc::channel(args.nodes as usize * 4);
    let room = room(dir, Arc::new(Nodes { peers: peers.clone(), said }), args.params, stop).await?;
    let answering = tokio::spawn(answer(room.training.clone(), heard, peers, args.params as usize));
    let job = room.training.create(request(args)).await.map_err(|e| failed("the job", &e))?;
    let mut events = room.training.events(&job).await.map_err(|e| failed("the job", &e))?;
    let mut ends = Vec::new();
    loop {
        match events.recv().await.map(|event| event.kind) {
            Ok(EventKind::RoundEnded(round)) if round.model.is_some() => ends.push(room.now()),
            Ok(EventKind::RoundEnded(round)) => {
                return Err(failed("a round was abandoned", &round.reason.as_deref().unwrap_or_default()));
            }
            Ok(EventKind::Status { status, .. }) if status.is_terminal() => break,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => break,
        }
    }
    answering.abort();
    document(args, &ends)
}

fn request(args: &UpdatesArgs) -> JobRequest {
    JobRequest {
        job_id: None,
        job_name: "benchmark of updates".into(),
        publisher: "bench".into(),
        model_architecture: ModelChoice::Named("linear_regression".into()),
        total_rounds: Some(args.rounds + WARM_UP),
        min_participants: Some(args.nodes),
        max_participants: Some(args.nodes),
        privacy_techniques: Some(Vec::new()),
        mobile_friendly: true,
        job_type: None,
        dataset_requirements: DataRequirements { dataset: Some("bench".into()), ..DataRequirements::default() },
        strategy: Some(StrategyChoice { name: "fedavg".into(), config: Map::new() }),
        retain_updates: false,
        hyperparameters: Map::new(),
        privacy: Map::new(),
        seed: Some(1),
    }
}

/// Answers for all nodes until it is stopped.
async fn answer(training: Training, mut heard: mpsc::Receiver<(NodeId, Arc<Down>)>, peers: Vec<Peer>, params: usize) {
    // One step of the grid up and down: what is summed does not matter here, what is stored differs from node to node.
    let ready = peers.into_iter().enumerate().map(|(n, peer)| {
        let values = (0..params).map(|i| i32::try_from((n + i) % 3).unwrap_or(0) - 1);
        let bytes: Bytes = values.flat_map(i32::to_le_bytes).collect::<Vec<u8>>().into();
        let blob = BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        (peer.id, (peer, bytes, blob))
    });
    let ready: std::collections::HashMap<_, _> = ready.collect();
    while let Some((id, message)) = heard.recv().await {
        let (Down::Invite(invitation), Some((peer, bytes, blob))) = (&*message, ready.get(&id)) else { continue };
        let header = UpdateHeader::new(invitation.key.clone(), *blob, 1, LocalMetrics::default());
        let (training, peer, bytes) = (training.clone(), peer.clone(), bytes.clone());
        tokio::spawn(async move {
            training.answer(&peer, header.key.clone(), None).await;
            let said = match training.offer(&peer, &header).await {
                None => training.update(&peer, header, Payload::Inline(bytes)).await,
                Some(said) => said,
            };
            if said != UpdateReply::Accepted {
                tracing::warn!(node = %peer.name, ?said, "an update was not taken");
            }
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn document(args: &UpdatesArgs, ends: &[Moment]) -> Result<Value, CliError> {
    let rounds: Vec<_> = ends.windows(2).skip(WARM_UP as usize - 1).collect();
    if rounds.len() != args.rounds as usize {
        let detail = format!("{} rounds of {} were seen", rounds.len(), args.rounds);
        return Err(CliError::new(ExitCode::Failed, detail));
    }
    let of = |figure: &dyn Fn(&Moment, &Moment) -> f64| median(rounds.iter().map(|w| figure(&w[0], &w[1])).collect());
    let wall = |a: &Moment, b: &Moment| (b.at_ms - a.at_ms) as f64;
    let fsync = |a: &Moment, b: &Moment| (b.syncs.total_us - a.syncs.total_us) as f64 / 1e3;
    let wall_ms = of(&wall);
    Ok(json!({
        "benchmark": "updates",
        "nodes": args.nodes,
        "params": args.params,
        "rounds": args.rounds,
        "median_ms": rounded(of(&|a, b| (wall(a, b) - fsync(a, b)).max(0.0))),
        "wall_ms": rounded(wall_ms),
        "fsyncs": rounded(of(&|a, b| (b.syncs.count - a.syncs.count) as f64)),
        "fsync_ms": rounded(of(&fsync)),
        "updates_per_s": rounded(f64::from(args.nodes) / wall_ms.max(1e-3) * 1e3),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}
