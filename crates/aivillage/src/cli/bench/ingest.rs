//! `aivillage bench ingest`: updates over the real node link into hashed, fsynced blobs.
//!
//! ```text
//!  nodes: random bytes ── TLS 1.3, mutual ──> link server ──> folder of blobs (hash, fsync, rename)
//!  threads of this process                    threads named `gateway`: their CPU time is the figure
//! ```
//! The link, its certificates and the blob folder are those of `up`; behind it stands an inbox that takes everything, so
//! no coordinator is measured. What the disk costs by itself is measured in the same run: the same bytes written and
//! fsynced by a plain loop.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Blobs, Inbox, InboxError, Payload, Records, Uplink};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::{BlobRef, LocalMetrics, Peer, RoundKey, Up, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, JobId, NodeName};
use aivillage_link::client::ClientConfig;
use aivillage_link::{
    Authority, Identity, LinkClient, LinkConfig, LinkDeps, LinkServer, NewToken, Registry, Streams, join,
};
use aivillage_storage::{FolderBlobs, MemoryRecords};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Scratch, cpu_s, median, rounded};
use crate::cli::out;
use crate::exit::{CliError, ExitCode};

/// Name of the threads that work for the gateway.
const GATEWAY: &str = "gateway";
/// Pieces in which the disk alone is written.
const PIECE: usize = 256 * 1024;

/// Which updates.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// Nodes that send at once, each over one connection
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Size of an update in MB; every node sends one a measured turn
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    megabytes: u32,
    /// Measured turns, after one that warms up; medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    turns: u16,
    /// Folder on the disk to measure [default: the system's for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON document on stdout
    ///
    /// gb_per_s: bytes / wall time. cpu_s_total: CPU time of the gateway's threads, user and system. disk_cpu_s: CPU time
    /// of writing the same bytes to the same folder and fsyncing them, without network and hash. gb_per_s_per_core: bytes /
    /// (cpu_s_total - disk_cpu_s). fsync_ms: waits for the disk, summed over updates; they overlap. All a turn.
    #[arg(long)]
    json: bool,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, format!("{what}: {error}"))
}

pub(super) async fn run(args: &IngestArgs) -> Result<(), CliError> {
    let scratch = Scratch::new(args.dir.as_deref(), "ingest")?;
    let document = measure(args, &scratch.0).await?;
    if args.json {
        out::document(&document);
        return Ok(());
    }
    let names = [
        "nodes",
        "bytes",
        "wall_ms",
        "gb_per_s",
        "cpu_s_total",
        "disk_cpu_s",
        "gb_per_s_per_core",
        "fsyncs",
        "fsync_ms",
        "disk_ms",
    ];
    out::line(&out::fields(&names.map(|name| (name, out::cell(&document[name])))));
    Ok(())
}

/// Takes every update, as far as its blob is stored.
#[derive(Debug)]
struct TakesAll;

#[async_trait]
impl Inbox for TakesAll {
    async fn connected(&self, _: &Peer) {}
    async fn disconnected(&self, _: &Peer) {}
    async fn message(&self, _: &Peer, _: Up) -> Result<(), InboxError> {
        Ok(())
    }
    async fn offer(&self, _: &Peer, _: &UpdateHeader) -> Option<UpdateReply> {
        None
    }
    async fn update(&self, _: &Peer, _: UpdateHeader, _: Payload) -> UpdateReply {
        UpdateReply::Accepted
    }
    async fn may_fetch(&self, _: &Peer, _: &Digest) -> bool {
        false
    }
}

/// A link server on threads of its own, until it is dropped.
struct Gateway {
    address: String,
    registry: Registry,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.take();
        // It has been told to stop; a panic in there has been printed.
        let _joined = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn start(dir: &Path, blobs: Arc<dyn Blobs>, clock: Arc<dyn Clock>) -> Result<Gateway, CliError> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel();
    let dir = dir.join("ca");
    let serve = move || -> Result<(), CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name(GATEWAY)
            .build()
            .map_err(|e| failed("no runtime", &e))?;
        runtime.block_on(async move {
            let authority = Authority::open(&dir, clock.clone(), None).map_err(|e| failed("the authority", &e))?;
            let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(clock.clone()));
            let registry = Registry::open(records, authority.pin(), clock.clone()).await;
            let registry = registry.map_err(|e| failed("the registry", &e))?;
            let deps = LinkDeps { authority, registry: registry.clone(), inbox: Arc::new(TakesAll), blobs, clock };
            let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| failed("no port", &e))?;
            let cancel = CancellationToken::new();
            let server = LinkServer::start(listener, Streams::new(LinkConfig::default()), deps, cancel.clone());
            let server = server.map_err(|e| failed("the link", &e))?;
            // Whoever waits for the address has gone: then this ends at once.
            let _gone = tell.send((server.address().to_string(), registry));
            let _stopped = stopped.await;
            cancel.cancel();
            server.stopped().await;
            Ok(())
        })
    };
    let thread = std::thread::Builder::new().name(GATEWAY.to_owned()).spawn(move || {
        if let Err(error) = serve() {
            tracing::error!(%error, "the measured gateway");
        }
    });
    let thread = thread.map_err(|e| failed("no thread", &e))?;
    let (address, registry) = told.await.map_err(|e| failed("the measured gateway did not start", &e))?;
    Ok(Gateway { address, registry, stop: Some(stop), thread: Some(thread) })
}

/// A node that has joined, with the bytes that it sends.
struct Sender {
    link: LinkClient,
    payload: Bytes,
    digest: Digest,
}

async fn sender(gateway: &Gateway, index: u16, bytes: usize, clock: &Arc<dyn Clock>) -> Result<Sender, CliError> {
    let owner = NodeName::new(format!("node-{index}")).map_err(|e| failed("a name", &e))?;
    let new = NewToken { owner, ttl: Duration::from_secs(600) };
    let issued = gateway.registry.create_token(new).await.map_err(|e| failed("no token", &e))?;
    let identity = Arc::new(Identity::generate().map_err(|e| failed("no key", &e))?);
    let enrolment = join(&gateway.address, &issued.token.reveal(), &identity, clock).await;
    let enrolment = enrolment.map_err(|e| failed("cannot join", &e))?;
    let kept = Box::new(|_: &aivillage_link::Enrolment| Ok(()));
    let link = LinkClient::new(enrolment, identity, clock.clone(), kept, ClientConfig::default());
    let link = link.map_err(|e| failed("no link", &e))?;
    let mut rng = SeededRng::new("bench ingest", u64::from(index), &[]);
    let payload: Bytes = (0..bytes / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect::<Vec<u8>>().into();
    let digest = Digest::of(&payload);
    Ok(Sender { link, payload, digest })
}

impl Sender {
    async fn send(&self, turn: u32) -> Result<(), CliError> {
        let job: JobId = "job_ingest".parse().map_err(|e| failed("a name", &e))?;
        let key = RoundKey { job, round: turn, attempt: 1 };
        let blob = BlobRef { digest: self.digest, bytes: self.payload.len() as u64 };
        let header = UpdateHeader::new(key, blob, 1, LocalMetrics::default());
        match self.link.upload(&header, self.payload.clone()).await {
            Ok(UpdateReply::Accepted) => Ok(()),
            other => Err(CliError::new(ExitCode::Failed, format!("an update was not taken: {other:?}"))),
        }
    }
}

/// Figures of one turn.
struct Turn {
    wall_s: f64,
    cpu_s: f64,
    disk_s: f64,
    disk_cpu_s: f64,
    fsyncs: f64,
    fsync_ms: f64,
}

async fn measure(args: &IngestArgs, dir: &Path) -> Result<Value, CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = FolderBlobs::open(&dir.join("blobs"), None).map_err(|e| failed("the blob folder", &e))?;
    let blobs: Arc<dyn Blobs> = Arc::new(store);
    let gateway = start(dir, Arc::clone(&blobs), clock.clone()).await?;
    let bytes = args.megabytes as usize * 1_000_000;
    let joining = (0..args.nodes).map(|index| sender(&gateway, index, bytes, &clock));
    let senders = try_join_all(joining).await?;
    let mut turns = Vec::new();
    for number in 0..=u32::from(args.turns) {
        let turn = turn(&senders, number + 1, &*blobs, dir, &*clock).await?;
        if number > 0 {
            turns.push(turn);
        }
    }
    let of = |figure: fn(&Turn) -> f64| median(turns.iter().map(figure).collect());
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let total = (bytes * senders.len()) as f64;
    let net = of(|t| t.cpu_s - t.disk_cpu_s).max(f64::MIN_POSITIVE);
    Ok(json!({
        "benchmark": "ingest",
        "nodes": args.nodes,
        "bytes": bytes * senders.len(),
        "turns": args.turns,
        "wall_ms": rounded(1e3 * of(|t| t.wall_s)),
        "gb_per_s": rounded(total / 1e9 / of(|t| t.wall_s)),
        "cpu_s_total": rounded(of(|t| t.cpu_s)),
        "disk_cpu_s": rounded(of(|t| t.disk_cpu_s)),
        "gb_per_s_per_core": rounded(total / 1e9 / net),
        "fsyncs": rounded(of(|t| t.fsyncs)),
        "fsync_ms": rounded(of(|t| t.fsync_ms)),
        "disk_ms": rounded(1e3 * of(|t| t.disk_s)),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

async fn turn(
    senders: &[Sender],
    number: u32,
    blobs: &dyn Blobs,
    dir: &Path,
    clock: &dyn Clock,
) -> Result<Turn, CliError> {
    let (from, cpu, syncs) = (seconds(clock), gateway_cpu_s()?, blobs.sync_stats());
    try_join_all(senders.iter().map(|sender| sender.send(number))).await?;
    let (wall_s, cpu_s) = (seconds(clock) - from, gateway_cpu_s()? - cpu);
    let now = blobs.sync_stats();
    for sender in senders {
        let stored = blobs.len(&sender.digest).await.map_err(|e| failed("the blob folder", &e))?;
        if stored != Some(sender.payload.len() as u64) {
            return Err(CliError::new(ExitCode::Bug, "an update that was accepted is not stored"));
        }
        blobs.delete(&sender.digest).await.map_err(|e| failed("the blob folder", &e))?;
    }
    let payloads: Vec<Bytes> = senders.iter().map(|sender| sender.payload.clone()).collect();
    let file = dir.join("disk");
    let (disk_s, disk_cpu_s) = {
        let from = seconds(clock);
        let alone = move || disk(&payloads, &file);
        let cpu = tokio::task::spawn_blocking(alone).await.map_err(|e| failed("the disk alone", &e))?;
        (seconds(clock) - from, cpu.map_err(|e| failed("the disk alone", &e))?)
    };
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let (fsyncs, fsync_ms) = ((now.count - syncs.count) as f64, (now.total_us - syncs.total_us) as f64 / 1e3);
    Ok(Turn { wall_s, cpu_s, disk_s, disk_cpu_s, fsyncs, fsync_ms })
}

/// Writes the same bytes and makes them durable; returns the CPU seconds of this thread.
fn disk(payloads: &[Bytes], path: &Path) -> std::io::Result<f64> {
    let cpu = || own_cpu_s().unwrap_or(0.0);
    let from = cpu();
    for payload in payloads {
        let mut file = File::create(path)?;
        for piece in payload.chunks(PIECE) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        drop(file);
        fs::remove_file(path)?;
    }
    Ok(cpu() - from)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn seconds(clock: &dyn Clock) -> f64 {
    clock.now().monotonic_ms as f64 / 1e3
}

/// CPU seconds of the threads that work for the gateway.
fn gateway_cpu_s() -> Result<f64, CliError> {
    let unknown = |e: std::io::Error| failed("CPU times of threads are read from /proc/self/task (Linux)", &e);
    let mut total = 0.0;
    for task in fs::read_dir("/proc/self/task").map_err(unknown)? {
        let task = task.map_err(unknown)?.path();
        // A thread that has ended meanwhile has no name any more.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        if name.trim() == GATEWAY {
            total += cpu_s(&task.join("stat")).map_err(unknown)?;
        }
    }
    Ok(total)
}

fn own_cpu_s() -> std::io::Result<f64> {
    cpu_s(Path::new("/proc/thread-self/stat"))
}
