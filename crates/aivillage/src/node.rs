//! A node: joins once, then keeps one stream to its gateway open and does what its owner allows.
//!
//! ```text
//! Down messages -> participant (training) -> updates
//!               -> worker (inference)     -> predictions      every thing sent: one line in sent.log
//! ```
//! The same code runs as a process of its own (`aivillage node join`) and inside a gateway (the built-in node).

mod bench;
mod commands;
mod folder;
mod helper;
mod hours;
mod keys;
mod measure;
mod pins;
mod registry;
mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::NodeName;
use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::time::Clock;
use aivillage_base::wire::{Down, NodeReport, Peer, PredictTask, Up};
use aivillage_engine::{Engine, NodeTrainer};
use aivillage_inference::worker::{Worker, WorkerConfig, WorkerDeps};
use aivillage_link::client::ClientConfig;
use aivillage_link::{Enrolment, LinkClient, LinkError};
use aivillage_training::Trainer;
use aivillage_training::participant::{Keys, Participant, ParticipantDeps, Registry};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::NodeConfig;
use crate::crash::{CrashPlan, CrashPoint};
use crate::exit::{CliError, ExitCode};
use registry::FolderRegistry;

pub use bench::{BenchTrainer, bench_input};
pub use commands::{JoinOptions, join, leave};
pub use folder::{FileLog, NodeFolder};
pub use measure::report;
pub use pins::PinFile;
pub use registry::known_head;
pub use state::FolderState;

/// Messages that wait for this node; more are dropped at the gateway, and sent again where they matter.
const MESSAGES: usize = 64;

/// How a node runs.
#[derive(Debug)]
pub struct NodeOptions {
    /// Its folder.
    pub folder: NodeFolder,
    /// Where to die, for fault tests.
    pub crash: Option<CrashPlan>,
    /// Instead of the data of node.yaml: updates of this many values without training, for `bench round`.
    pub bench_params: Option<usize>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Joins the gateway at `address` with a one-time token, or finds that it has joined already. A gateway that cannot be
/// reached yet is tried again for `patience`.
///
/// # Errors
/// What the token, the address or the gateway is at fault of; a folder that belongs to another gateway.
pub async fn enrol(
    folder: &NodeFolder,
    address: Option<&str>,
    token: Option<&str>,
    patience: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Enrolment, CliError> {
    let existing = folder.enrolment()?;
    let (address, token) = match (existing, address, token) {
        (Some(existing), address, None) => {
            // The gateway may have moved; its CA is what was pinned.
            let link = address.map_or(existing.link.clone(), link_address);
            let moved = Enrolment { link, ..existing };
            folder.keep(&moved).map_err(|e| kept(folder.path(), &e))?;
            return Ok(moved);
        }
        (_, Some(address), Some(token)) => (link_address(address), token),
        (None, ..) => {
            return Err(CliError::new(
                ExitCode::Usage,
                format!("{} has not joined any gateway yet", folder.path().display()),
            )
            .hint("aivillage node join URL --token T --dir DIR; the gateway's operator makes the token with `aivillage token create --role node --owner NAME`"));
        }
        (Some(_), None, Some(_)) => {
            return Err(CliError::new(ExitCode::Usage, "a token needs the address of its gateway")
                .hint("aivillage node join URL --token T --dir DIR"));
        }
    };
    let identity = folder.identity()?;
    let enrolment = aivillage_link::join_within(patience, &address, token, &identity, clock)
        .await
        .map_err(|e| not_joined(&address, patience, &e))?;
    folder.keep(&enrolment).map_err(|e| kept(folder.path(), &e))?;
    tracing::info!(name = %enrolment.name, link = enrolment.link, "joined");
    Ok(enrolment)
}

fn not_joined(address: &str, patience: Duration, error: &LinkError) -> CliError {
    let told = CliError::new(error.kind().into(), format!("cannot join {address}: {error}"));
    if !matches!(error, LinkError::Unreachable { .. }) {
        return told;
    }
    told.hint(format!(
        "tried for {} s (--wait SECONDS); start `aivillage up` there with --link on an address that this machine reaches, and join again: the token is not spent",
        patience.as_secs()
    ))
}

fn kept(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(ExitCode::Failed, format!("cannot write to {}: {error}", path.display()))
}

/// `host:port` of what a person may write: `https://host:8001/`, `host`, `host:8001`.
fn link_address(text: &str) -> String {
    let bare = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let has_port = bare.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { bare.to_owned() } else { format!("{bare}:8001") }
}

/// What a node trains with and what it allows.
#[derive(Debug)]
pub struct Abilities {
    /// Its settings.
    pub config: NodeConfig,
    /// Its training.
    pub trainer: Arc<dyn Trainer>,
}

/// Reads node.yaml and the data that it names. Blocking.
///
/// # Errors
/// Exit code 3 for settings, 1 for data that cannot be read.
pub fn abilities(options: &NodeOptions) -> Result<Abilities, CliError> {
    let config = options.folder.config()?;
    let trainer: Arc<dyn Trainer> = match options.bench_params {
        Some(parameters) => {
            let input = bench_input(parameters).ok_or_else(|| {
                CliError::new(ExitCode::Usage, format!("no input of a linear regression has {parameters} values"))
                    .hint("one more than a number up to 1048576, or than a product of two")
            })?;
            Arc::new(BenchTrainer::new(input))
        }
        None => {
            let mut sets = Vec::new();
            for source in &config.data {
                let loaded = aivillage_engine::data::load(source, options.folder.path()).map_err(|e| {
                    CliError::new(ExitCode::Failed, format!("data set `{}`: {e}", source.name))
                        .hint("`aivillage data inspect` shows what can be read")
                })?;
                sets.push(loaded.train);
            }
            Arc::new(NodeTrainer::new(sets, Arc::clone(&options.clock)))
        }
    };
    Ok(Abilities { config, trainer })
}

/// A link for an enrolment whose renewals are kept in the folder.
///
/// # Errors
/// An enrolment that does not fit the folder's key.
pub fn link(folder: &NodeFolder, enrolment: Enrolment, clock: &Arc<dyn Clock>) -> Result<LinkClient, CliError> {
    let identity = Arc::new(folder.identity()?);
    let keeper = folder.clone();
    let on_renewed = Box::new(move |renewed: &Enrolment| keeper.keep(renewed));
    LinkClient::new(enrolment, identity, Arc::clone(clock), on_renewed, ClientConfig::default())
        .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))
}

/// Runs until `cancel`, or until the gateway refuses this node for good.
///
/// # Errors
/// Revoked, or settings, data or folder at fault.
pub async fn run(options: NodeOptions, enrolment: Enrolment, cancel: CancellationToken) -> Result<(), CliError> {
    let clock = Arc::clone(&options.clock);
    let crash = options.crash.clone().map(CrashPoint::new);
    let log = options.folder.log(&enrolment.link, Arc::clone(&clock), crash.clone())?;
    let state = FolderState::open(options.folder.path(), &*clock, crash)
        .map_err(|e| CliError::new(ExitCode::Failed, e).hint("mend the permissions of the node's folder"))?;
    let name = enrolment.name.clone();
    let client = link(&options.folder, enrolment, &clock)?;
    let keys = secure_keys(&options.folder, &name, &client)?;
    let cache = options.folder.cache();
    let report_clock = Arc::clone(&clock);
    let prepared = tokio::task::spawn_blocking(move || {
        let abilities = abilities(&options)?;
        let config = &abilities.config;
        let data = abilities.trainer.data();
        let report = measure::report(&*report_clock, config, data);
        Ok::<_, CliError>((abilities, report))
    });
    let (abilities, report) =
        prepared.await.map_err(|e| CliError::new(ExitCode::Bug, format!("reading the data stopped: {e}")))??;
    let uplink: Arc<dyn Uplink> = Arc::new(client.clone());
    let registry = Arc::clone(&keys.registry);
    let participant = Participant::new(
        ParticipantDeps {
            uplink: Arc::clone(&uplink),
            trainer: Arc::clone(&abilities.trainer),
            name,
            policy: abilities.config.privacy.clone(),
            clock: Arc::clone(&clock),
            log: log.clone(),
            state: Arc::new(state),
            keys,
        },
        cancel.clone(),
    );
    let worker = worker(&abilities.config, cache, &uplink, &clock);
    let (sender, receiver) = mpsc::channel(MESSAGES);
    let stream = client.run(sender, cancel.clone());
    let hours = abilities.config.privacy.hours.clone();
    let reporting = hours::reporting(hours, clock, Arc::clone(&uplink), Arc::clone(&log), report.clone());
    let node = Node { uplink, participant, registry, worker, log, report, serves: abilities.config.serve };
    tokio::select! {
        never = reporting => match never {},
        ended = stream => ended.map_err(|e| CliError::new(ExitCode::Refused, e.to_string())
            .hint("if that is not meant: ask the gateway's operator for a new token and join with a new folder")),
        () = node.serve(receiver) => Ok(()),
    }
}

/// What it brings to secure aggregation, as its settings say.
fn secure_keys(folder: &NodeFolder, name: &NodeName, client: &LinkClient) -> Result<Keys, CliError> {
    let roster = folder.roster(&folder.config()?)?;
    let identity = folder.identity()?;
    if let Some(roster) = &roster {
        let own = roster.check(&Peer { id: identity.id(), name: name.clone() });
        if let Err(detail) = own {
            tracing::warn!(detail, "this node is not on its own roster: it takes part in no secure round");
        }
    }
    FolderRegistry::open(folder.path(), &client.enrolment().ca_pem, Arc::new(client.clone()))
        .and_then(|registry| keys::keys(folder.path(), identity, roster, Arc::new(registry)))
        .map_err(|e| CliError::new(ExitCode::Failed, e).hint("mend the permissions of the node's folder"))
}

fn worker(config: &NodeConfig, cache: PathBuf, uplink: &Arc<dyn Uplink>, clock: &Arc<dyn Clock>) -> Worker {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to some thousand GB was checked")]
    let disk_bytes = (config.model_cache_gb * 1e9) as u64;
    Worker::new(WorkerDeps {
        uplink: Arc::clone(uplink),
        predictor: Arc::new(Engine),
        cache_dir: Some(cache),
        clock: Arc::clone(clock),
        config: WorkerConfig { disk_bytes, ..WorkerConfig::default() },
    })
}

/// A running node.
struct Node {
    uplink: Arc<dyn Uplink>,
    participant: Participant,
    registry: Arc<dyn Registry>,
    worker: Worker,
    log: Arc<FileLog>,
    report: NodeReport,
    serves: bool,
}

impl Node {
    /// Takes messages until the stream ends for good.
    async fn serve(self, mut messages: mpsc::Receiver<Down>) {
        while let Some(message) = messages.recv().await {
            match message {
                Down::Welcome { coordinator, .. } => {
                    tracing::info!(coordinator, "connected");
                    self.registry.expire();
                    tokio::spawn(introduce(Arc::clone(&self.uplink), Arc::clone(&self.log), self.report.clone()));
                }
                Down::Predict(task) if self.serves => {
                    tokio::spawn(predict(self.worker.clone(), Arc::clone(&self.uplink), Arc::clone(&self.log), *task));
                }
                Down::ModelReady { model_id, model } if self.serves => {
                    let worker = self.worker.clone();
                    tokio::spawn(async move {
                        let fetched = worker.prefetch(model).await;
                        tracing::info!(%model_id, digest = %model.digest.short(), fetched, "model of the catalogue");
                    });
                }
                Down::Invite(_) | Down::Secure { .. } | Down::RoundClosed { .. } | Down::JobEnded { .. } => {
                    self.participant.handle(&message);
                }
                Down::Goodbye { retry_after_ms } => tracing::info!(retry_after_ms, "the gateway goes away for a while"),
                Down::Predict(_) | Down::ModelReady { .. } | Down::Help(_) | Down::Heartbeat => {}
            }
        }
    }
}

/// Says who and what this node is, until the gateway has heard it.
async fn introduce(uplink: Arc<dyn Uplink>, log: Arc<FileLog>, report: NodeReport) {
    let data: Vec<_> = report.data.iter().map(|d| json!({ "name": d.name, "rows": d.rows })).collect();
    if !logged(&log, "report", json!({ "data": data })) {
        return;
    }
    let message = Up::Report(Box::new(report));
    for pause_ms in [50, 200, 1_000, 5_000] {
        match uplink.send(&message).await {
            Ok(()) => return,
            Err(UplinkError::Refused(reason)) => {
                tracing::error!(reason, "the gateway refuses this node's report");
                return;
            }
            Err(UplinkError::Unreachable(_) | UplinkError::Busy { .. }) => {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
        }
    }
    // The stream is gone by now; the next one begins with a new report.
}

/// Writes what is about to be sent; false = it cannot be written, so it must not be sent.
fn logged(log: &FileLog, kind: &str, line: serde_json::Value) -> bool {
    let written = log.append(kind, line);
    if let Err(error) = &written {
        tracing::error!(kind, error, "the log of what is sent cannot be written: nothing is sent");
    }
    written.is_ok()
}

async fn predict(worker: Worker, uplink: Arc<dyn Uplink>, log: Arc<FileLog>, task: PredictTask) {
    let (request, rows) = (task.request, task.rows.len());
    let answer = worker.handle(task).await;
    if !logged(&log, "prediction", json!({ "request": request, "rows": rows })) {
        return;
    }
    if let Err(error) = uplink.send(&answer).await {
        // The coordinator asks another node when this one stays silent.
        tracing::warn!(%request, %error, "prediction not delivered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_may_write_the_address_as_they_like() {
        for text in ["https://host:8001/", "host:8001", "host", "http://host"] {
            assert_eq!(link_address(text), "host:8001", "{text}");
        }
        assert_eq!(link_address("127.0.0.1:4242"), "127.0.0.1:4242");
    }
}
