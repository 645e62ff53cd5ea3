//! `aivillage bench round`: rounds of real processes that send updates without training.
//!
//! Many rounds tell what a round costs when everything is warm; `--rounds 1` is the other case, [`single`].

mod single;

use std::time::Duration;

use aivillage_base::ports::INLINE_MAX;
use aivillage_base::time::{Clock as _, SystemClock};
use aivillage_privacy::secagg::roster::COHORT_MIN;
use aivillage_training::secure::TECHNIQUE;
use clap::Args;
use serde_json::{Value, json};

use super::{median, memory_kb, rounded};
use crate::cli::out;
use crate::cli::watch::{News, Watch};
use crate::client::Client;
use crate::exit::{CliError, ExitCode};
use crate::node::bench_input;
use crate::processes::{Plan, Village};

/// Which rounds.
#[derive(Debug, Args)]
pub struct RoundArgs {
    /// Node processes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=200))]
    nodes: u32,
    /// Values of the model: one more than a number up to 1048576, or than a product of two
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000_000))]
    params: u32,
    /// Rounds that are measured, after two that warm up; 1: a single one without, until every node has the new model
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Sum updates under masks (secure aggregation): 3 nodes at least
    #[arg(long)]
    secure: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// Rounds that fill caches and open connections, and are not counted.
const WARM_UP: u32 = 2;

pub(super) async fn run(args: &RoundArgs) -> Result<(), CliError> {
    if bench_input(args.params as usize).is_none() {
        return Err(CliError::new(ExitCode::Usage, format!("--params {}: no such linear regression", args.params))
            .hint("one more than a number up to 1048576, or than a product of two, as 100000000 is"));
    }
    if args.secure && args.nodes < COHORT_MIN {
        return Err(CliError::new(ExitCode::Usage, format!("secure aggregation needs {COHORT_MIN} nodes"))
            .hint(format!("--nodes {COHORT_MIN}")));
    }
    let dir = std::env::temp_dir().join(format!("aivillage-bench-{}", std::process::id()));
    let plan = Plan {
        dir: dir.clone(),
        nodes: vec!["serve: false\n".to_owned(); args.nodes as usize],
        bench_params: Some(args.params as usize),
    };
    let result = match Village::start(plan).await {
        Ok(village) => {
            let result = match args.rounds {
                1 => single::measure(args, &village).await,
                _ => measure(args, &village).await,
            };
            village.stop().await;
            result
        }
        Err(error) => Err(error),
    };
    // Left-overs in the folder for temporary files are the system's to remove.
    let _removed = std::fs::remove_dir_all(&dir);
    let document = result?;
    if args.json {
        out::document(&document);
    } else if args.rounds == 1 {
        let names = ["nodes", "params", "seconds", "open_to_close_ms", "fsyncs", "fsync_ms", "digest"];
        let mut pairs: Vec<_> = names.iter().map(|n| (*n, out::cell(&document[*n]))).collect();
        pairs.push(("peak memory of gateway", format!("{} kB", out::cell(&document["peak_rss_kb"]["gateway"]))));
        pairs.push(("of largest node", format!("{} kB", out::cell(&document["peak_rss_kb"]["node_max"]))));
        out::line(&out::fields(&pairs));
    } else {
        let names = ["nodes", "params", "rounds", "median_ms", "wall_ms", "fsyncs", "fsync_ms", "fsync_critical_ms"];
        let mut pairs: Vec<_> = names.iter().map(|n| (*n, out::cell(&document[*n]))).collect();
        pairs.push((
            "memory of gateway",
            format!(
                "{} kB idle, {} kB after",
                out::cell(&document["rss_kb"]["gateway_idle"]),
                out::cell(&document["rss_kb"]["gateway"])
            ),
        ));
        pairs.push((
            "memory of largest node",
            format!(
                "{} kB idle, {} kB after",
                out::cell(&document["rss_kb"]["node_idle_max"]),
                out::cell(&document["rss_kb"]["node_max"])
            ),
        ));
        out::line(&out::fields(&pairs));
    }
    Ok(())
}

/// A job of `total` rounds in which every node takes part.
fn job(args: &RoundArgs, total: u32) -> Value {
    let techniques: &[&str] = if args.secure { &[TECHNIQUE] } else { &[] };
    json!({
        "job_name": "benchmark of rounds",
        "model_architecture": "linear_regression",
        "total_rounds": total,
        "min_participants": args.nodes,
        "max_participants": args.nodes,
        "strategy": { "name": "fedavg" },
        "privacy_techniques": techniques,
        "dataset_requirements": { "dataset": "bench" },
        "seed": 1,
    })
}

/// One ended round, as this process saw it.
struct Seen {
    at_ms: u64,
    elapsed_ms: u64,
}

async fn measure(args: &RoundArgs, village: &Village) -> Result<Value, CliError> {
    let client = village.client();
    let total = args.rounds + WARM_UP;
    let (gateway, nodes) = village.pids();
    let idle = memory(gateway, &nodes);
    let clock = SystemClock::new();
    let created: Value = client.post("training/create", &job(args, total)).await?;
    let id = created["job_id"].as_str().unwrap_or_default();
    let mut watch = Watch::new(client.clone(), id, Duration::from_secs(10));
    let mut seen: Vec<Seen> = Vec::new();
    let mut syncs_before = None;
    while let Some(news) = watch.next().await? {
        match news {
            News::Round(round) if round.phase == "done" => {
                seen.push(Seen { at_ms: clock.now().monotonic_ms, elapsed_ms: round.elapsed_ms });
                if round.round == WARM_UP {
                    syncs_before = Some(syncs(client).await?);
                }
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
    let waits = Waits::between(syncs_before.unwrap_or_default(), syncs(client).await?, args);
    let whole: Vec<f64> = seen.windows(2).skip(WARM_UP as usize - 1).map(|w| between(w[0].at_ms, w[1].at_ms)).collect();
    let wall_ms = median(whole);
    let elapsed = median(seen.iter().skip(WARM_UP as usize).map(|s| between(0, s.elapsed_ms)).collect());
    let used = memory(gateway, &nodes);
    Ok(json!({
        "benchmark": "round",
        "nodes": args.nodes,
        "params": args.params,
        "rounds": args.rounds,
        "secure": args.secure,
        "median_ms": rounded((wall_ms - waits.critical_ms).max(0.0)),
        "wall_ms": rounded(wall_ms),
        "open_to_close_ms": rounded(elapsed),
        "fsyncs": rounded(waits.count),
        "fsync_ms": rounded(waits.all_ms),
        "fsync_critical_ms": rounded(waits.critical_ms),
        "rss_kb": { "gateway_idle": idle.0, "gateway": used.0, "node_idle_max": idle.1, "node_max": used.1 },
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

fn between(from_ms: u64, to_ms: u64) -> f64 {
    u32::try_from(to_ms.saturating_sub(from_ms)).map_or(f64::INFINITY, f64::from)
}

/// Waits for the disk of a gateway so far, by store.
#[derive(Debug, Clone, Copy, Default)]
struct Syncs {
    records: Sync,
    blobs: Sync,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sync {
    count: f64,
    seconds: f64,
}

/// Waits for the disk, per measured round.
struct Waits {
    count: f64,
    all_ms: f64,
    /// Of these, what a round can be said to wait for.
    critical_ms: f64,
}

impl Waits {
    /// Commits of records follow each other, and so do the writes of the round's model: a round waits for all of them.
    /// Updates too large for the record store are written side by side: their waits overlap, so none of the blobs' is
    /// taken off then, and the figure is too high rather than too low.
    fn between(before: Syncs, after: Syncs, args: &RoundArgs) -> Self {
        let rounds = f64::from(args.rounds);
        let records_ms = 1e3 * (after.records.seconds - before.records.seconds) / rounds;
        let blobs_ms = 1e3 * (after.blobs.seconds - before.blobs.seconds) / rounds;
        let inline = 4 * args.params as usize <= INLINE_MAX;
        let count = |s: Syncs| s.records.count + s.blobs.count;
        Self {
            count: (count(after) - count(before)) / rounds,
            all_ms: records_ms + blobs_ms,
            critical_ms: if inline { records_ms + blobs_ms } else { records_ms },
        }
    }
}

async fn syncs(client: &Client) -> Result<Syncs, CliError> {
    let text = client.text("/metrics").await?;
    let figure = |name: &str, store: &str| -> f64 {
        let start = format!("{name}{{store=\"{store}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&start)?.trim().parse().ok()).unwrap_or(0.0)
    };
    let store = |store| Sync {
        count: figure("aivillage_store_syncs_total", store),
        seconds: figure("aivillage_store_sync_seconds_total", store),
    };
    Ok(Syncs { records: store("records"), blobs: store("blobs") })
}

/// Resident memory in kB: of the gateway, and of the largest node.
fn memory(gateway: u32, nodes: &[u32]) -> (Option<u64>, Option<u64>) {
    let resident = |pid: &u32| memory_kb(*pid, "VmRSS");
    (resident(&gateway), nodes.iter().filter_map(resident).max())
}
