//! `aivillage data inspect`: what a node would train on, before it joins. Nothing leaves the machine.

use std::path::{Path, PathBuf};

use aivillage_base::Task;
use aivillage_engine::data::{Dataset, Loaded, load, split};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::config::broken;
use super::out;
use crate::config::node;
use crate::demo::DatasetName;
use crate::exit::{CliError, ExitCode};

/// Look at the data of a node before it joins
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Load every data set of a node.yaml and say what a job would see of it
    Inspect(InspectArgs),
    /// Print rows of a bundled data set as JSON, as `aivillage infer` takes them
    Sample(SampleArgs),
}

/// Which data.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The node's folder, or its node.yaml
    #[arg(value_name = "PATH", default_value = "node.yaml")]
    path: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// Which rows.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// The bundled data set
    #[arg(value_enum)]
    dataset: DatasetName,
    /// How many rows
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rows: u16,
    /// Seed of the choice; the rows are of the common test set of the deal of this seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(command: &DataCommand) -> Result<(), CliError> {
    match command {
        DataCommand::Inspect(args) => inspect(args),
        DataCommand::Sample(args) => sample(args),
    }
}

fn inspect(args: &InspectArgs) -> Result<(), CliError> {
    let file = if args.path.is_dir() { args.path.join("node.yaml") } else { args.path.clone() };
    let config = node::load(&file).map_err(|e| broken(&e))?.ok_or_else(|| {
        CliError::new(ExitCode::NotFound, format!("{} is not there", file.display()))
            .hint("name a node's folder or its node.yaml; config/node.yaml of the source tree is an annotated example")
    })?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut sets = Vec::new();
    for source in &config.data {
        sets.push(load(source, folder).map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?);
    }
    let document = json!({ "file": file, "data": sets.iter().map(describe).collect::<Vec<_>>() });
    let rows = sets.iter().map(|s| row(&s.train)).collect();
    let header = ["NAME", "ROWS", "SHAPE", "TASK", "ROWS BY LABEL"];
    out::listing(
        args.json,
        &document,
        &header,
        rows,
        "this node.yaml declares no data: the node serves, and never trains",
    );
    Ok(())
}

/// Rows that no shard of the deal holds, so that a model is asked for what it has not seen; their labels go to stderr.
fn sample(args: &SampleArgs) -> Result<(), CliError> {
    // The test set does not depend on the number of nodes or on alpha.
    let split =
        split(args.dataset.bundled(), 1, 1.0, args.seed).map_err(|e| CliError::new(ExitCode::Bug, e.to_string()))?;
    let test = split.test;
    let count = usize::from(args.rows).min(test.rows());
    let rows: Vec<&[f32]> = test.x(0..count).chunks(test.width()).collect();
    out::line(&json!({ "inputs": rows }).to_string());
    let labels: Vec<_> = test.labels().unwrap_or_default()[..count].iter().map(ToString::to_string).collect();
    out::note(&format!("true labels: {}", labels.join(" ")));
    Ok(())
}

fn describe(loaded: &Loaded) -> Value {
    let set = &loaded.train;
    json!({
        "name": set.name(),
        "rows": set.rows(),
        "input": set.input(),
        "task": set.task(),
        "rows_by_label": counts(set),
    })
}

fn row(set: &Dataset) -> Vec<String> {
    let task = match set.task() {
        Task::Classification { classes } => format!("{classes} classes"),
        Task::Regression => "regression".to_owned(),
    };
    let counts =
        counts(set).map_or_else(|| "-".to_owned(), |c| c.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    vec![set.name().to_owned(), set.rows().to_string(), format!("{:?}", set.input()), task, counts]
}

/// How many rows each label has.
fn counts(set: &Dataset) -> Option<Vec<usize>> {
    let labels = set.labels()?;
    let mut counts = vec![0; set.task().outputs()];
    for label in labels {
        counts[*label as usize] += 1;
    }
    Some(counts)
}
