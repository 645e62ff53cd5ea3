//! What a person does with a node: join and run it, leave, see what a job would send.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::Uplink as _;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::Up;
use aivillage_link::Seal;
use tokio_util::sync::CancellationToken;

use super::{NodeFolder, NodeOptions, enrol, helper, link, run};
use crate::crash::CrashPlan;
use crate::exit::{CliError, ExitCode};
use crate::up::stop_on_signal;

/// What `node join` is told.
#[derive(Debug, Clone, Default)]
pub struct JoinOptions {
    /// Address of the gateway's link; None = the one the folder has joined.
    pub address: Option<String>,
    /// One-time token; None = the folder has joined already.
    pub token: Option<String>,
    /// The node's folder.
    pub dir: PathBuf,
    /// How long a gateway that cannot be reached yet is tried again at the first join.
    pub patience: Duration,
    /// Run as a helper, which takes masks away, instead of a node that trains.
    pub helper: bool,
    /// Join and stop, without running.
    pub enrol_only: bool,
    /// Stop when standard input ends.
    pub exit_with_parent: bool,
    /// Where to die, for fault tests.
    pub crash: Option<CrashPlan>,
    /// Updates of this many values without training, for `bench round`.
    pub bench_params: Option<usize>,
    /// Seals the node's key at rest (`SECRET_KEY`).
    pub seal: Option<Seal>,
}

/// Joins (once) and runs until a signal.
///
/// # Errors
/// What keeps the node from joining or running, with what to do.
pub async fn join(options: JoinOptions) -> Result<(), CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let folder = NodeFolder::open(&options.dir)?.sealed(options.seal);
    let _running = folder.lock()?;
    // Settings at fault are told before a one-time token is spent.
    folder.roster(&folder.config()?)?;
    let cancel = CancellationToken::new();
    stop_on_signal(options.exit_with_parent, cancel.clone())?;
    let (address, token) = (options.address.as_deref(), options.token.as_deref());
    let enrolment = tokio::select! {
        enrolment = enrol(&folder, address, token, options.patience, &clock) => enrolment?,
        () = cancel.cancelled() => {
            let told = CliError::new(ExitCode::Failed, "stopped before this node has joined");
            return Err(told.hint("the same command with the same folder goes on where this one was"));
        }
    };
    if options.enrol_only {
        return Ok(());
    }
    if options.helper {
        return helper::run(folder, options.crash, clock, enrolment, cancel).await;
    }
    let node = NodeOptions { folder, crash: options.crash, bench_params: options.bench_params, clock };
    run(node, enrolment, cancel).await
}

/// Leaves for good: the gateway forgets the node and takes its certificate no longer.
///
/// # Errors
/// Nothing joined; the gateway cannot be reached.
pub async fn leave(dir: PathBuf, seal: Option<Seal>) -> Result<(), CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let folder = NodeFolder::open(&dir)?.sealed(seal);
    let enrolment = folder.enrolment()?.ok_or_else(|| {
        CliError::new(ExitCode::NotFound, format!("{} has not joined any gateway", folder.path().display()))
    })?;
    let log = folder.log(&enrolment.link, Arc::clone(&clock), None)?;
    log.append("leave", serde_json::json!({}))
        .map_err(|e| CliError::new(ExitCode::Failed, format!("sent.log cannot be written, so nothing is sent: {e}")))?;
    let client = link(&folder, enrolment, &clock)?;
    client.send(&Up::Leave).await.map_err(|e| {
        CliError::new(ExitCode::Unavailable, format!("the gateway has not heard that the node leaves: {e}"))
            .hint("try again when it is up; or its operator revokes the node: aivillage node revoke NAME")
    })?;
    folder.forget().map_err(|e| CliError::new(ExitCode::Failed, format!("{}: {e}", folder.path().display())))
}
