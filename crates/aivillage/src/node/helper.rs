//! A helper: the second aggregator of rounds with `variant: two_helper`, run by another owner than the gateway's.
//!
//! It enrols and connects as a node does, opens no port, and has no data: it takes masks away and nothing else. What it has
//! opened is in its folder, beside its key; without it, the same masks could be taken away twice.

use std::sync::Arc;

use aivillage_base::ports::Uplink;
use aivillage_base::time::Clock;
use aivillage_base::wire::{Down, NodeReport};
use aivillage_link::Enrolment;
use aivillage_training::helper::{Helper, HelperDeps};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{MESSAGES, NodeFolder, introduce, link, measure, secure_keys};
use crate::crash::{CrashPlan, CrashPoint};
use crate::exit::{CliError, ExitCode};

/// Runs until `cancel`, or until the gateway refuses this helper for good.
///
/// # Errors
/// Revoked, or settings or folder at fault.
pub(super) async fn run(
    folder: NodeFolder,
    crash: Option<CrashPlan>,
    clock: Arc<dyn Clock>,
    enrolment: Enrolment,
    cancel: CancellationToken,
) -> Result<(), CliError> {
    let log = folder.log(&enrolment.link, Arc::clone(&clock), crash.map(CrashPoint::new))?;
    let name = enrolment.name.clone();
    let client = link(&folder, enrolment, &clock)?;
    let keys = secure_keys(&folder, &name, &client)?;
    let config = folder.config()?;
    if !config.data.is_empty() {
        tracing::warn!("node.yaml names data, and a helper uses none: a machine that trains is a node of its own");
    }
    let uplink: Arc<dyn Uplink> = Arc::new(client.clone());
    let deps = HelperDeps { uplink: Arc::clone(&uplink), log: log.clone(), keys };
    let helper = Helper::new(deps, cancel.clone());
    let measured = measure::report(&*clock, &config, Vec::new());
    let report = NodeReport { serves: false, policy: None, helper: Some(helper.word()), ..measured };
    let (sender, mut messages) = mpsc::channel(MESSAGES);
    let stream = client.run(sender, cancel);
    let serving = async {
        while let Some(message) = messages.recv().await {
            match message {
                Down::Welcome { coordinator, .. } => {
                    tracing::info!(coordinator, "connected");
                    tokio::spawn(introduce(Arc::clone(&uplink), Arc::clone(&log), report.clone()));
                }
                Down::Goodbye { retry_after_ms } => tracing::info!(retry_after_ms, "the gateway goes away for a while"),
                Down::Help(_) => helper.handle(&message),
                Down::Heartbeat
                | Down::Invite(_)
                | Down::Secure { .. }
                | Down::RoundClosed { .. }
                | Down::JobEnded { .. }
                | Down::ModelReady { .. }
                | Down::Predict(_) => {}
            }
        }
    };
    tokio::select! {
        ended = stream => ended.map_err(|e| CliError::new(ExitCode::Refused, e.to_string())
            .hint("if that is not meant: ask the gateway's operator for a new token and join with a new folder")),
        () = serving => Ok(()),
    }
}
