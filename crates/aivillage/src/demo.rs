//! `aivillage demo`: the whole idea on real data with real processes, in less than a minute.
//!
//! ```text
//! deal the data ─> village (gateway + node processes) ─> job over HTTP ─> live rounds, model of each round measured
//!        \─> compare.rs: each node alone, all data in one place (same recipe, in this process, meanwhile)
//! ─> catalogue ─> serve.rs: test rows classified over HTTP ─> story.rs, report.rs: what it means, in words and curves
//! `--chaos`: chaos.rs: the same job again while processes are killed with SIGKILL; the models must be equal, bit by bit
//! ```
//!
//! Promise: no figure is typed in: each is computed in this run. Nothing is tuned for one of the compared. Whatever
//! happens, no process stays behind and no report is half written. Must not know: how rooms work; it uses the HTTP API.

mod chaos;
mod compare;
mod draw;
mod federated;
mod recipe;
mod report;
mod serve;
mod story;

use std::path::{Path, PathBuf};

use aivillage_base::Architecture;
use aivillage_base::time::{Clock, SystemClock, rfc3339};
use aivillage_engine::data::{Bundled, Split, split};
use aivillage_privacy::secagg::roster::COHORT_MIN;
use aivillage_training::secure::TECHNIQUE;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::out;
use crate::exit::{CliError, ExitCode};
use crate::processes::{Plan, Village};

use chaos::Kill;
use compare::Comparison;
use federated::Run;
use recipe::Recipe;
use serve::Served;
use story::Story;

/// How unequally labels are dealt to the nodes.
pub(crate) const ALPHA: f64 = 0.3;

/// See the whole idea work: a gateway and node processes on this machine train one model on real data
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// digits: handwritten digits; breast_cancer: measurements of cells, the hospitals' story
    #[arg(long, value_enum, default_value = "digits")]
    pub dataset: DatasetName,
    /// Node processes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=50))]
    pub nodes: u32,
    /// Rounds of training together
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Seed of the deal and of all training randomness
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    pub seed: u64,
    /// Then train again while gateway and nodes are killed with SIGKILL: the model must be the same, bit by bit
    #[arg(long)]
    pub chaos: bool,
    /// Train without secure aggregation: the gateway sees each node's update; the model is the same, bit by bit
    #[arg(long)]
    pub plain: bool,
    /// Go on serving until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// One JSON document on stdout; everything else on stderr
    #[arg(long)]
    pub json: bool,
}

impl DemoArgs {
    /// The privacy techniques of the job.
    fn techniques(&self) -> &'static [&'static str] {
        if self.plain { &[] } else { &[TECHNIQUE] }
    }
}

/// A bundled data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum DatasetName {
    /// Handwritten digits.
    Digits,
    /// Breast cancer Wisconsin (diagnostic).
    BreastCancer,
}

impl DatasetName {
    /// The data set itself.
    #[must_use]
    pub fn bundled(self) -> Bundled {
        match self {
            Self::Digits => Bundled::Digits,
            Self::BreastCancer => Bundled::BreastCancer,
        }
    }
}

/// Everything a run is about, fixed before it starts.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) args: DemoArgs,
    pub(crate) recipe: Recipe,
    pub(crate) architecture: Architecture,
    pub(crate) split: Split,
    pub(crate) dir: PathBuf,
}

/// Everything that came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) run: Run,
    pub(crate) comparison: Comparison,
    pub(crate) served: Served,
    pub(crate) chaos: Option<(Run, Vec<Kill>)>,
    pub(crate) seconds: f64,
}

/// Runs the demonstration until its end, or until Ctrl-C with `--keep`.
///
/// # Errors
/// What went wrong and what to do; interrupted (exit code 1).
pub async fn run(args: DemoArgs) -> Result<(), CliError> {
    let setting = prepare(args)?;
    let dir = setting.dir.clone();
    // Dropping the demonstration kills its processes.
    let interrupted = tokio::select! {
        result = perform(setting) => {
            return match result? {
                Some(village) => keep(village).await,
                None => Ok(()),
            };
        }
        signal = interrupt() => signal?,
    };
    let message = format!("stopped by {interrupted}: every process of the demonstration is stopped");
    Err(CliError::new(ExitCode::Failed, message).hint(format!("what it had written so far is in {}", dir.display())))
}

/// Goes on serving until somebody stops it.
async fn keep(mut village: Village) -> Result<(), CliError> {
    let interrupted = tokio::select! {
        gone = village.gone() => return Err(village.fault(&gone)),
        signal = interrupt() => signal?,
    };
    village.stop().await;
    out::note(&format!("stopped by {interrupted}; everything is in the folder named above"));
    Ok(())
}

async fn interrupt() -> Result<&'static str, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |e: std::io::Error| CliError::new(ExitCode::Failed, format!("cannot listen to signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
    })
}

fn prepare(args: DemoArgs) -> Result<Setting, CliError> {
    if args.chaos {
        chaos::check(args.rounds)?;
    }
    if args.nodes < COHORT_MIN && !args.plain {
        let message = format!(
            "secure aggregation needs at least {COHORT_MIN} nodes: of two, each learns the other's update from the sum"
        );
        let hint = format!("--nodes {COHORT_MIN}, or --plain: the gateway then sees each node's update");
        return Err(CliError::new(ExitCode::Usage, message).hint(hint));
    }
    let recipe = Recipe::of(args.dataset);
    let wrong = |e: &dyn std::fmt::Display| CliError::new(ExitCode::Usage, e.to_string()).hint("take fewer --nodes");
    let split = split(recipe.data, args.nodes as usize, ALPHA, args.seed).map_err(|e| wrong(&e))?;
    let architecture = recipe.architecture(&split.test)?;
    let dir = run_folder(Path::new("aivillage-demo"), args.seed, SystemClock::new().now().wall_ms)?;
    Ok(Setting { args, recipe, architecture, split, dir })
}

/// A new folder `<time>-<seed>` below `base`.
fn run_folder(base: &Path, seed: u64, wall_ms: u64) -> Result<PathBuf, CliError> {
    let time: String = rfc3339(wall_ms).chars().take(19).filter(|c| *c != '-' && *c != ':').collect();
    let fail = |dir: &Path, e: std::io::Error| {
        CliError::new(ExitCode::Failed, format!("cannot create {}: {e}", dir.display()))
            .hint("run the demo in a folder that you may write to")
    };
    std::fs::create_dir_all(base).map_err(|e| fail(base, e))?;
    let mut dir = base.join(format!("{time}-{seed}"));
    for again in 2.. {
        match std::fs::create_dir(&dir) {
            Ok(()) => break,
            // Two demonstrations in one second.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                dir = base.join(format!("{time}-{seed}-{again}"))
            }
            Err(e) => return Err(fail(&dir, e)),
        }
    }
    Ok(dir)
}

/// The whole demonstration; the village that goes on serving, if it shall be kept.
async fn perform(setting: Setting) -> Result<Option<Village>, CliError> {
    let clock = SystemClock::new();
    let story = Story::new(setting.args.json);
    story.begin(&setting);
    let meanwhile = tokio::task::spawn_blocking({
        let setting = setting.clone();
        move || compare::run(&setting)
    });
    let mut village = Village::start(plan(&setting, "village")).await?;
    story.village(&setting, &village);
    let run = federated::train(&setting, &mut village, &story, None).await?;
    let comparison =
        meanwhile.await.map_err(|e| CliError::new(ExitCode::Bug, format!("the comparison stopped: {e}")))??;
    story.accuracies(&setting, &run, &comparison);
    let served = serve::run(&setting, &village, &run).await?;
    story.served(&setting, &served);
    let chaos = if setting.args.chaos { Some(chaos::run(&setting, &story, &run).await?) } else { None };
    let seconds = seconds(clock.now().monotonic_ms);
    let outcome = Outcome { run, comparison, served, chaos, seconds };
    let report = setting.dir.join("report.html");
    keep_files(&setting, &outcome, &report)?;
    story.end(&setting, &outcome, &village, &report);
    if setting.args.json {
        out::document(&document(&setting, &outcome, &report));
    }
    if setting.args.keep {
        return Ok(Some(village));
    }
    village.stop().await;
    Ok(None)
}

/// The village whose nodes hold the shards of the deal.
fn plan(setting: &Setting, folder: &str) -> Plan {
    let args = &setting.args;
    let node = |index: u32| {
        format!(
            "data:\n  - kind: shard\n    dataset: {}\n    index: {index}\n    of: {}\n    alpha: {ALPHA}\n    seed: {}\n",
            setting.recipe.data.name(),
            args.nodes,
            args.seed
        )
    };
    Plan { dir: setting.dir.join(folder), nodes: (0..args.nodes).map(node).collect(), bench_params: None }
}

fn seconds(elapsed_ms: u64) -> f64 {
    u32::try_from(elapsed_ms).map_or(f64::INFINITY, f64::from) / 1000.0
}

fn keep_files(setting: &Setting, outcome: &Outcome, report: &Path) -> Result<(), CliError> {
    let html = report::html(setting, outcome);
    let model = setting.dir.join("model.safetensors");
    for (path, bytes) in [(report, html.as_bytes()), (model.as_path(), &outcome.run.model[..])] {
        crate::folder::write_whole(path, bytes).map_err(|e| {
            CliError::new(ExitCode::Failed, format!("cannot write {}: {e}", path.display())).hint("is the disk full?")
        })?;
    }
    Ok(())
}

fn document(setting: &Setting, outcome: &Outcome, report: &Path) -> Value {
    let args = &setting.args;
    let comparison = &outcome.comparison;
    let mut document = json!({
        "dataset": setting.recipe.data.name(),
        "seconds": outcome.seconds,
        "rounds": args.rounds,
        "nodes": args.nodes,
        "seed": args.seed,
        "privacy_techniques": args.techniques(),
        "local_accuracy": comparison.alone_last(),
        "best_local_accuracy": comparison.best_alone().1,
        "federated_accuracy": outcome.run.accuracy,
        "central_accuracy": comparison.central_last(),
        "served_accuracy": outcome.served.accuracy,
        "bytes": outcome.run.bytes,
        "model_blake3": outcome.run.blake3,
        "model_id": outcome.run.model_id,
        "predictions": outcome.served.examples,
        "report": report,
    });
    if let Some((disturbed, kills)) = &outcome.chaos {
        document["undisturbed_model_blake3"] = outcome.run.blake3.clone().into();
        document["model_blake3"] = disturbed.blake3.clone().into();
        document["kills"] = json!(kills);
    }
    document
}

#[cfg(test)]
mod tests;
