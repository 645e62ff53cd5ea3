//! `aivillage up`: a whole gateway on this machine, from start to drain.
//!
//! Order of the start: configuration, folder and lock, store, rooms, node link, HTTP, endpoint file, built-in node. The
//! stop is its reverse: the HTTP gateway drains, the link says goodbye, jobs stay where they are persisted.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::NodeName;
use aivillage_base::ports::Records;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_fog::Inventory;
use aivillage_gateway::{ApiKeys, Gateway, GatewayConfig, GatewayDeps, Part};
use aivillage_inference::Inference;
use aivillage_link::server::LinkDeps;
use aivillage_link::{Authority, LinkConfig, LinkServer, NewToken, Registry, Seal, Streams};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Environment, Loaded, gateway_room};
use crate::crash::{CrashPlan, CrashPoint, CrashingRecords};
use crate::exit::{CliError, ExitCode};
use crate::figures::StoreFigures;
use crate::folder::{DataFolder, Endpoint};
use crate::node::{self, NodeFolder, NodeOptions};
use crate::wiring::{self, Ground, LinkEnrolment, ProcessFacts, VillageInbox};

/// Longest wait at the stop for open requests. Together with [`BEHIND`] the 25 s that an operator is promised.
const DRAIN: Duration = Duration::from_secs(20);
/// Longest wait at the stop for what is behind the API: goodbyes to nodes, outcomes that are being stored.
const BEHIND: Duration = Duration::from_secs(5);

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct UpOptions {
    /// Configuration file; None = search.
    pub config: Option<PathBuf>,
    /// Data folder.
    pub data: PathBuf,
    /// Instead of `gateway.http_listen`.
    pub http: Option<SocketAddr>,
    /// Instead of `gateway.link_listen`.
    pub link: Option<SocketAddr>,
    /// One JSON document with the addresses on stdout instead of text.
    pub json: bool,
    /// No built-in node.
    pub without_node: bool,
    /// Life of node certificates; None = the link's default, a day.
    pub certificate_life: Option<Duration>,
    /// Stop when standard input ends.
    pub exit_with_parent: bool,
    /// Where to die, for fault tests.
    pub crash: Option<CrashPlan>,
}

/// Runs until SIGTERM, SIGINT, or (if asked) the end of standard input.
///
/// # Errors
/// What keeps it from starting, with what to do.
pub async fn run(options: UpOptions, environment: Environment) -> Result<(), CliError> {
    let loaded = configuration(&options, &environment)?;
    let folder = DataFolder::open(&options.data)?;
    tracing::info!(file = loaded.describe(), "configuration");
    let unkept = config::not_in_effect(&loaded.config);
    for (section, keys) in config::by_section(&unkept) {
        tracing::warn!(
            section,
            keys = keys.join(", "),
            "configured, but not built yet; `aivillage config check` says more"
        );
    }
    let cancel = CancellationToken::new();
    stop_on_signal(options.exit_with_parent, cancel.clone())?;
    let house = House::start(&options, &environment, loaded, &folder, &cancel).await?;
    house.announce(&folder, options.json)?;
    cancel.cancelled().await;
    tracing::info!("stopping: open requests get up to {} s", DRAIN.as_secs());
    folder.withdraw();
    house.stop().await;
    Ok(())
}

/// Fires `cancel` at SIGTERM or SIGINT, or when standard input ends if `with_parent`.
///
/// # Errors
/// The signals cannot be listened to.
pub fn stop_on_signal(with_parent: bool, cancel: CancellationToken) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |e: std::io::Error| CliError::new(ExitCode::Failed, format!("cannot listen to signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = parent_gone(), if with_parent => {}
        }
        cancel.cancel();
    });
    Ok(())
}

/// Returns when standard input ends: the parent holds its other end open as long as it lives.
async fn parent_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    // A thread of its own: tokio's stdin would keep the runtime from ending while it reads.
    std::thread::spawn(move || {
        let _copied = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _listener = gone.send(());
    });
    // The sender lives until the copy ends.
    let _told = told.await;
}

fn configuration(options: &UpOptions, environment: &Environment) -> Result<Loaded, CliError> {
    let broken = |e: config::ConfigError| CliError::new(ExitCode::Configuration, e.to_string());
    let mut loaded = config::load(options.config.as_deref(), environment).map_err(broken)?;
    let gateway = &mut loaded.config.gateway;
    gateway.http_listen = options.http.unwrap_or(gateway.http_listen);
    gateway.link_listen = options.link.unwrap_or(gateway.link_listen);
    loaded.config.inference.privacy.require_authentication |= environment.production;
    aivillage_gateway::check_listener(
        gateway.http_listen,
        gateway.tls.cert.is_some(),
        loaded.config.inference.privacy.require_authentication,
        gateway.allow_insecure,
    )
    .map_err(|e| CliError::new(ExitCode::Configuration, e.to_string()))?;
    Ok(loaded)
}

/// A running gateway with everything behind it.
struct House {
    http: Gateway,
    link: LinkServer,
    inference: Part<Inference>,
    node: Option<tokio::task::JoinHandle<()>>,
    /// Ends what takes new work: the API, and training, which goes on from its records.
    front: CancellationToken,
    /// Ends what open requests need until they are answered: inference and the link to the nodes.
    behind: CancellationToken,
}

impl House {
    async fn start(
        options: &UpOptions,
        environment: &Environment,
        loaded: Loaded,
        folder: &DataFolder,
        cancel: &CancellationToken,
    ) -> Result<Self, CliError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let config = loaded.config.clone();
        let seal = environment.seal();
        let (ground, authority, registry) = ground(options, &config, folder, seal.as_ref(), &clock).await?;
        let mut metrics = prometheus_client::registry::Registry::default();
        let (records, blobs) = (Arc::clone(&ground.records), Arc::clone(&ground.blobs));
        metrics.register_collector(Box::new(StoreFigures { records, blobs }));
        let federated = environment.enable_federated;
        let behind = CancellationToken::new();
        let inference = wiring::inference(&ground, &config, federated, &mut metrics, &behind).await;
        sweep(&ground, &inference).await?;
        let training = wiring::training(&ground, &config, federated, &inference, &mut metrics, cancel).await;
        let inbox = Arc::new(VillageInbox {
            streams: ground.streams.clone(),
            inventory: ground.inventory.clone(),
            registry: registry.clone(),
            training: training.clone(),
            inference: inference.clone(),
        });
        let deps = LinkDeps {
            authority,
            registry: registry.clone(),
            inbox,
            blobs: Arc::clone(&ground.blobs),
            clock: Arc::clone(&clock),
        };
        let listener = bind(config.gateway.link_listen, "gateway.link_listen", "--link").await?;
        let link = LinkServer::start(listener, ground.streams.clone(), deps, behind.clone())
            .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?;
        let keys = keys(&ground, environment, folder).await?;
        let http = aivillage_gateway::start(
            GatewayDeps {
                training,
                inference: inference.clone(),
                inventory: ground.inventory.clone(),
                keys,
                enrolment: Arc::new(LinkEnrolment {
                    registry: registry.clone(),
                    inventory: ground.inventory.clone(),
                    clock: Arc::clone(&clock),
                }),
                blobs: Arc::clone(&ground.blobs),
                records: Arc::clone(&ground.records),
                clock: Arc::clone(&clock),
                config: GatewayConfig { drain: DRAIN, ..gateway_room(&config, environment.production) },
                status: Arc::new(ProcessFacts { loaded, link: link.address().to_string() }),
                registry: metrics,
            },
            bind(config.gateway.http_listen, "gateway.http_listen", "--http").await?,
            cancel.clone(),
        )
        .await
        .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?;
        let node = match options.without_node || !federated {
            true => None,
            false => {
                let node = NodeFolder::open(&folder.path().join("node"))?.sealed(seal);
                Some(built_in_node(node, &registry, link.address(), clock, behind.clone()).await?)
            }
        };
        Ok(Self { http, link, inference, node, front: cancel.clone(), behind })
    }

    fn announce(&self, folder: &DataFolder, json: bool) -> Result<(), CliError> {
        let scheme = if self.http.tls { "https" } else { "http" };
        let endpoint = Endpoint {
            http: format!("{scheme}://{}", reachable(self.http.address)),
            link: reachable(self.link.address()).to_string(),
            pid: std::process::id(),
        };
        folder.announce(&endpoint)?;
        let text = if json {
            let mut value = serde_json::to_value(&endpoint).unwrap_or_default();
            value["data"] = folder.path().display().to_string().into();
            value.to_string()
        } else {
            format!(
                "aivillage is up\n  API and docs  {}/docs\n  node link     {}\n  data          {}\n  admin key     {}",
                endpoint.http,
                endpoint.link,
                folder.path().display(),
                folder.admin_key().display(),
            )
        };
        // Whoever closed the pipe does not want to know.
        let _written = writeln!(std::io::stdout(), "{text}");
        Ok(())
    }

    /// Open requests first, with the nodes that answer them; then everything else.
    async fn stop(self) {
        self.front.cancel();
        self.http.stopped().await;
        self.behind.cancel();
        let ended = async {
            self.link.stopped().await;
            if let Part::On(inference) = &self.inference {
                inference.stopped().await;
            }
            if let Some(node) = self.node
                && let Err(error) = node.await
            {
                tracing::error!(%error, "the built-in node has panicked");
            }
        };
        if tokio::time::timeout(BEHIND, ended).await.is_err() {
            tracing::warn!("nodes or outcomes of requests were not done in time; what is recorded stays");
        }
    }
}

/// An address that a client on this machine can dial.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// Lets go of what a crash left in the blob folder.
async fn sweep(ground: &Ground, inference: &Part<Inference>) -> Result<(), CliError> {
    let swept = wiring::sweep(ground, inference).await;
    let swept = swept.map_err(|e| CliError::new(ExitCode::Failed, format!("the blobs cannot be listed: {e}")))?;
    tracing::debug!(swept, "blobs that no record names are gone");
    Ok(())
}

async fn ground(
    options: &UpOptions,
    config: &config::Config,
    folder: &DataFolder,
    seal: Option<&Seal>,
    clock: &Arc<dyn Clock>,
) -> Result<(Ground, Authority, Registry), CliError> {
    let failed = |what: &str, e: &dyn std::fmt::Display| CliError::new(ExitCode::Failed, format!("{what}: {e}"));
    let quota = Some(config.gateway.storage_quota_gb * 1_000_000_000).filter(|bytes| *bytes > 0);
    let (records, blobs) = aivillage_storage::open_embedded(folder.path(), Arc::clone(clock), quota)
        .map_err(|e| failed("the store cannot be opened", &e))?;
    let mut records: Arc<dyn Records> = Arc::new(records);
    if let Some(plan) = options.crash.clone() {
        records = Arc::new(CrashingRecords::new(records, CrashPoint::new(plan)));
    }
    let authority = Authority::open(&folder.path().join("ca"), Arc::clone(clock), seal)
        .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?;
    let registry = Registry::open(Arc::clone(&records), authority.pin(), Arc::clone(clock))
        .await
        .map_err(|e| failed("the registry of nodes cannot be read", &e))?;
    let inventory = Inventory::open(Arc::clone(&records), Arc::clone(clock))
        .await
        .map_err(|e| failed("the inventory of nodes cannot be read", &e))?;
    let coordinator = config.training.coordinator_id.clone();
    let defaults = LinkConfig::default();
    let certificate_life = options.certificate_life.unwrap_or(defaults.certificate_life);
    let streams = Streams::new(LinkConfig { coordinator, certificate_life, ..defaults });
    let ground = Ground { records, blobs: Arc::new(blobs), streams, inventory, clock: Arc::clone(clock) };
    Ok((ground, authority, registry))
}

async fn keys(ground: &Ground, environment: &Environment, folder: &DataFolder) -> Result<ApiKeys, CliError> {
    let failed =
        |e: aivillage_gateway::KeyError| CliError::new(ExitCode::Failed, format!("API keys cannot be used: {e}"));
    let extra = environment.api_key.as_ref().map(config::Secret::expose);
    let keys = ApiKeys::open(Arc::clone(&ground.records), Arc::clone(&ground.clock), extra).await.map_err(failed)?;
    keys.ensure_admin(&folder.admin_key()).await.map_err(failed)?;
    Ok(keys)
}

async fn bind(address: SocketAddr, key: &str, flag: &str) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|e| {
        CliError::new(ExitCode::Unavailable, format!("cannot listen on {address} ({key}): {e}")).hint(format!(
            "stop what listens there, or choose another address with {flag} HOST:PORT (port 0 = any free)"
        ))
    })
}

/// The gateway's own node: it joins over the link like any other, with a token made here.
async fn built_in_node(
    folder: NodeFolder,
    registry: &Registry,
    link: SocketAddr,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, CliError> {
    let running = folder.lock()?;
    let address = reachable(link).to_string();
    let token = match folder.enrolment()? {
        Some(_) => None,
        None => {
            let owner = NodeName::new("built-in").map_err(|e| CliError::new(ExitCode::Bug, e.to_string()))?;
            let new = NewToken { owner, ttl: Duration::from_secs(60) };
            let issued = registry.create_token(new).await;
            let issued = issued.map_err(|e| CliError::new(ExitCode::Failed, format!("the built-in node: {e}")))?;
            Some(issued.token.reveal())
        }
    };
    let options = NodeOptions { folder, crash: None, bench_params: None, clock };
    // A fault in its settings must be seen at the start; what happens later is logged.
    options.folder.config()?;
    Ok(tokio::spawn(async move {
        // Its link listens already.
        let (address, token) = (Some(address.as_str()), token.as_deref());
        let enrolled = node::enrol(&options.folder, address, token, Duration::ZERO, &options.clock).await;
        let ended = match enrolled {
            Ok(enrolment) => node::run(options, enrolment, cancel).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the built-in node has stopped");
        }
        drop(running);
    }))
}
