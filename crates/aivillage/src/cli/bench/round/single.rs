//! One round of a large model: from the invitation that is persisted to the new model's digest on every node.
//!
//! Nothing warms up: nodes fetch the model, change it without training, send their updates; the gateway sums, stores and
//! publishes; every node fetches the new model for the next round and verifies it. Nodes say so in their logs, which this
//! process watches; the next round goes no further.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aivillage_base::time::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::super::{cpu_s, memory_kb, rounded};
use super::{RoundArgs, between, syncs};
use crate::cli::watch::{News, Watch};
use crate::exit::{CliError, ExitCode};
use crate::processes::Village;

/// Pause between two looks into the nodes' logs: the precision of the figure.
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for the nodes to fetch the new model.
const FETCH_MAX: Duration = Duration::from_secs(600);

pub(super) async fn measure(args: &RoundArgs, village: &Village) -> Result<Value, CliError> {
    let client = village.client();
    let clock = SystemClock::new();
    let before = syncs(client).await?;
    let created: Value = client.post("training/create", &super::job(args, 2)).await?;
    let id = created["job_id"].as_str().unwrap_or_default();
    let mut watch = Watch::new(client.clone(), id, Duration::from_secs(10));
    let (mut opened_ms, mut published) = (None, None);
    while let Some(news) = watch.next().await? {
        match news {
            News::Opened { round: 1, .. } => opened_ms = Some(clock.now().monotonic_ms),
            News::Round(round) if round.phase == "done" => {
                published = round.model.clone().map(|model| (model, round.elapsed_ms, clock.now().monotonic_ms));
                break;
            }
            News::Status { status, reason } if status == "failed" => {
                return Err(CliError::new(ExitCode::Failed, format!("the job failed: {}", reason.unwrap_or_default())));
            }
            News::Status { .. }
            | News::Waiting { .. }
            | News::Opened { .. }
            | News::Member { .. }
            | News::Round(_)
            | News::Lost { .. } => {}
        }
    }
    let (Some(opened_ms), Some((model, elapsed_ms, published_ms))) = (opened_ms, published) else {
        return Err(CliError::new(ExitCode::Failed, "the round was not seen from its opening to its model"));
    };
    let logs = (1..=args.nodes).map(|n| village.dir().join(format!("node-{n}.log")));
    wait_for(logs.collect(), &model.blake3).await?;
    let ended_ms = clock.now().monotonic_ms;
    let after = syncs(client).await?;
    let _: Value = client.post(&format!("training/{id}/cancel"), &json!({})).await?;
    let (gateway, nodes) = village.pids();
    Ok(json!({
        "benchmark": "round",
        "nodes": args.nodes,
        "params": args.params,
        "rounds": 1,
        "seconds": rounded(between(opened_ms, ended_ms) / 1e3),
        "open_to_close_ms": rounded(between(0, elapsed_ms)),
        "publish_to_nodes_ms": rounded(between(published_ms.min(ended_ms), ended_ms)),
        "fsyncs": rounded(after.records.count + after.blobs.count - before.records.count - before.blobs.count),
        "fsync_ms": rounded(
            1e3 * (after.records.seconds + after.blobs.seconds - before.records.seconds - before.blobs.seconds)
        ),
        "model_bytes": model.bytes,
        "digest": model.blake3,
        "cpu_s_total": {
            "gateway": cpu(gateway),
            "nodes": nodes.iter().filter_map(|pid| cpu(*pid)).sum::<f64>(),
        },
        "peak_rss_kb": {
            "gateway": memory_kb(gateway, "VmHWM"),
            "node_max": nodes.iter().filter_map(|pid| memory_kb(*pid, "VmHWM")).max(),
        },
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// CPU seconds of a process since its start, the making of the first model included.
fn cpu(pid: u32) -> Option<f64> {
    cpu_s(&Path::new("/proc").join(pid.to_string()).join("stat")).ok().map(rounded)
}

/// Waits until every log says that the node has this model, verified.
async fn wait_for(mut logs: Vec<PathBuf>, digest: &str) -> Result<(), CliError> {
    let mut waited = Duration::ZERO;
    loop {
        // A log that cannot be read says nothing yet.
        let has = |log: &PathBuf| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            text.lines().any(|line| line.contains("model received") && line.contains(digest))
        };
        logs.retain(|log| !has(log));
        if logs.is_empty() {
            return Ok(());
        }
        if waited > FETCH_MAX {
            let detail = format!("{} nodes have not fetched the new model", logs.len());
            return Err(CliError::new(ExitCode::Failed, detail));
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}
