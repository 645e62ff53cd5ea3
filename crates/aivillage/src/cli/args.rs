//! Arguments of the long-running commands and of the way to a gateway: what `up`, `node` and the clients are told.
//!
//! Promise: what clap accepts here is well formed; whether it makes sense is judged where it is used.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::crash::CrashPlan;
use crate::node::JoinOptions;
use crate::up::UpOptions;

/// Folder of a gateway unless told otherwise.
pub const DATA_DEFAULT: &str = "./aivillage-data";

/// How a client command finds its gateway.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which gateway")]
pub struct Connection {
    /// Address of the gateway, like http://127.0.0.1:8000 [else AIVILLAGE_URL, else the one of --data]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Folder of a gateway on this machine: its address and admin key are read there
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// API key [else API_KEY, else the folder's admin key]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// PEM file of the authority that signed the certificate of an https:// gateway [else the system's]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// `aivillage up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Configuration file [else config/federated.yaml, ../config/, /etc/aivillage/, else built-in values]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of this gateway; made on first start
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    pub data: PathBuf,
    /// Listening address of the HTTP API; port 0 = a free one [else the configured one]
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,
    /// Listening address of the node link; port 0 = a free one [else the configured one]
    #[arg(long, value_name = "ADDRESS")]
    pub link: Option<SocketAddr>,
    /// Print the addresses as one JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Only the gateway: no built-in node
    #[arg(long)]
    pub no_node: bool,
    /// Life of node certificates instead of a day, for tests of renewal
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub certificate_life: Option<u64>,
    /// What tests need
    #[command(flatten)]
    pub harness: Harness,
}

/// Hidden flags of the long-running commands, for the demo and for tests.
#[derive(Debug, Clone, Default, Args)]
pub struct Harness {
    /// Stop when stdin ends: nothing survives a parent that was killed
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
    /// Kill this process with SIGKILL at a persisted step: before:N or after:N
    #[arg(long, hide = true, value_name = "WHEN:STEP")]
    pub crash_at: Option<CrashPlan>,
}

/// `aivillage node join`.
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// Address of the gateway's node link, like 127.0.0.1:8001; not needed once this folder has joined
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// One-time token from `aivillage token create --role node`; not needed once this folder has joined
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Folder of this node: node.yaml, its key, its log of what it sent
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Try for this long to reach a gateway that is not up yet, at the first join; 0 = once
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub wait: u64,
    /// Join and stop, without running
    #[arg(long)]
    pub enrol_only: bool,
    /// Updates of this many values without training, for `bench round`
    #[arg(long, hide = true, value_name = "N")]
    pub bench_params: Option<usize>,
    /// What tests need
    #[command(flatten)]
    pub harness: Harness,
}

/// `aivillage node leave`.
#[derive(Debug, Clone, Args)]
pub struct LeaveArgs {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// `aivillage node preview`.
#[derive(Debug, Clone, Args)]
pub struct PreviewArgs {
    /// The job
    #[arg(value_name = "JOB")]
    pub job: String,
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Write the update itself to a file: the very bytes that would be sent
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Where to ask about the job
    #[command(flatten)]
    pub connection: Connection,
}

/// What every client command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientArgs {
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Where to
    #[command(flatten)]
    pub connection: Connection,
}

impl From<UpArgs> for UpOptions {
    fn from(args: UpArgs) -> Self {
        Self {
            config: args.config,
            data: args.data,
            http: args.http,
            link: args.link,
            json: args.json,
            without_node: args.no_node,
            certificate_life: args.certificate_life.map(Duration::from_secs),
            exit_with_parent: args.harness.exit_with_parent,
            crash: args.harness.crash_at,
        }
    }
}

impl From<JoinArgs> for JoinOptions {
    fn from(args: JoinArgs) -> Self {
        Self {
            address: args.url,
            token: args.token,
            dir: args.dir,
            patience: Duration::from_secs(args.wait),
            enrol_only: args.enrol_only,
            exit_with_parent: args.harness.exit_with_parent,
            crash: args.harness.crash_at,
            bench_params: args.bench_params,
            helper: false,
            seal: None,
        }
    }
}
