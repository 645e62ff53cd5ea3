//! `aivillage data inspect`: what a node would train on, before it joins. Nothing leaves the machine.

use std::path::{Path, PathBuf};

use aivillage_base::Task;
use aivillage_engine::data::{Dataset, Loaded, load};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::config::broken;
use super::out;
use crate::config::node;
use crate::exit::{CliError, ExitCode};

/// Look at the data of a node before it joins
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Load every data set of a node.yaml and say what a job would see of it
    Inspect(InspectArgs),
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

pub(super) fn run(command: &DataCommand) -> Result<(), CliError> {
    match command {
        DataCommand::Inspect(args) => inspect(args),
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
