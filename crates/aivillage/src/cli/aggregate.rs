//! `aivillage aggregate`: a round recomputed from files, without a gateway.
//!
//! Promise: what is printed is in the files named; nothing else is touched. With `--plan` the result is held against the
//! record, and a difference is a failure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aivillage_base::wire::LocalTraining;
use aivillage_training::{spec, strategy};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{out, read_text};
use crate::exit::{CliError, ExitCode};
use crate::offline::plan::{Declared, PlanFile, read_weights};
use crate::offline::tensors::TensorFile;
use crate::offline::updates::Content;
use crate::offline::{Files, Round, recompute, strategy_fault};

/// What to recompute.
#[derive(Debug, Args)]
pub struct AggregateArgs {
    /// Strategy, as jobs name it
    #[arg(long, value_name = "NAME", required_unless_present = "plan", conflicts_with = "plan")]
    strategy: Option<String>,
    /// A setting of the strategy; may be repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "plan")]
    set: Vec<String>,
    /// The model that the round started from: any safetensors file of f32 tensors
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Folder of one safetensors file a participant: its whole model, unless --deltas
    #[arg(long, value_name = "DIR")]
    updates: PathBuf,
    /// JSON {"file": examples}; instead of a number {"examples": N, "steps": N, "initial_loss": X, "staleness": N} for
    /// strategies that need more
    #[arg(long, value_name = "FILE", required_unless_present = "plan", conflicts_with = "plan")]
    weights: Option<PathBuf>,
    /// The files hold differences from the model, not models
    #[arg(long)]
    deltas: bool,
    /// Plan of a recorded round (from `train export`): the result must be the coordinator's to the bit
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Folder of the strategy's server state before the round [else zero, as in a first round]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Folder for the server state after the round
    #[arg(long, value_name = "DIR")]
    state_out: Option<PathBuf>,
    /// The new model: same tensors, same order
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &AggregateArgs) -> Result<(), CliError> {
    let round = match &args.plan {
        Some(path) => {
            let plan = PlanFile::read(&read_text(path)?);
            plan.map_err(|why| CliError::new(ExitCode::Failed, format!("{} {why}", path.display())))?.into()
        }
        None => described(args)?,
    };
    let files = Files {
        model: args.model.clone(),
        updates: args.updates.clone(),
        content: if args.deltas { Content::Differences } else { Content::Models },
        state: args.state.clone(),
        state_out: args.state_out.clone(),
        output: args.output.clone(),
    };
    let made = recompute(&round, &files)?;
    let recorded = round.recorded.as_ref().map(|_| "same");
    let document = json!({
        "strategy": round.strategy.name(), "round": made.round, "participants": round.participants.len(),
        "file": args.output, "bytes": made.model.bytes, "blake3": made.model.digest,
        "state": made.state, "grids": made.grids, "recorded": recorded,
    });
    if args.json {
        out::document(&document);
    } else {
        let end = if recorded.is_some() { ", as recorded" } else { "" };
        out::line(&format!(
            "{}: {} over {} updates, BLAKE3 {}{end}",
            args.output.display(),
            round.strategy.name(),
            round.participants.len(),
            made.model.digest,
        ));
    }
    Ok(())
}

/// A round as the command line describes it.
fn described(args: &AggregateArgs) -> Result<Round, CliError> {
    let name = args.strategy.as_deref().unwrap_or_default();
    let chosen = strategy::named(name, &settings(&args.set)?).map_err(|fault| strategy_fault(&fault))?;
    let path = args.weights.clone().unwrap_or_default();
    let participants = read_weights(&read_text(&path)?)
        .map_err(|why| CliError::new(ExitCode::Failed, format!("{}: {why}", path.display())))?;
    all_named(args, &participants)?;
    let model = TensorFile::open(&args.model)?;
    let stays = |tensor: &str| chosen.personal_tensors.iter().any(|p| spec::matches(p, tensor));
    Ok(Round {
        training: training(&chosen.strategy),
        strategy: chosen.strategy,
        round: None,
        invited: u32::try_from(participants.len()).unwrap_or(u32::MAX),
        examples_max: None,
        participants,
        personal: model.tensors.into_iter().map(|t| t.name).filter(|name| stays(name)).collect(),
        grids: None,
        recorded: None,
    })
}

/// Every file of the folder must have its weight: a forgotten one would silently not count.
fn all_named(args: &AggregateArgs, named: &BTreeMap<String, Declared>) -> Result<(), CliError> {
    let fail = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::NotFound { ExitCode::NotFound } else { ExitCode::Failed };
        CliError::new(code, format!("cannot read {}: {e}", args.updates.display()))
    };
    for entry in std::fs::read_dir(&args.updates).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".safetensors").filter(|stem| !named.contains_key(*stem)) {
            let message = format!("{name} is in the folder of updates, but has no weight");
            return Err(
                CliError::new(ExitCode::Failed, message).hint(format!("name `{stem}` in --weights, or move it"))
            );
        }
    }
    Ok(())
}

/// How nodes train unless their job says otherwise; a plan says how they did.
fn training(strategy: &strategy::Strategy) -> LocalTraining {
    LocalTraining {
        epochs: 1,
        batch_size: 32,
        learning_rate: 0.1,
        momentum: 0.0,
        weight_decay: 0.0,
        proximal_mu: strategy.rule().local().proximal_mu,
    }
}

/// `KEY=VALUE` pairs as a map: a value is JSON if it can be, else text.
pub(super) fn settings(pairs: &[String]) -> Result<Map<String, Value>, CliError> {
    let mut map = Map::new();
    for pair in pairs {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(CliError::new(ExitCode::Usage, format!("--set {pair}: KEY=VALUE is expected, like beta=0.1")));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if map.insert(key.to_owned(), value).is_some() {
            return Err(CliError::new(ExitCode::Usage, format!("--set {key} is given twice")));
        }
    }
    Ok(map)
}
