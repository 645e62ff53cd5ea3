//! `aivillage train export`: everything that an auditor needs to recompute a job's models on another machine.
//!
//! ```text
//! DIR/record.json                   the job and its attempts, as the coordinator keeps them
//! DIR/start.safetensors             the model of round 0
//! DIR/round-0001/plan.json          grids, weights, steps, digests: all but vectors
//! DIR/round-0001/updates/NAME.safetensors   what NAME sent: differences, exact in f32
//! DIR/replay.sh                     one `aivillage aggregate` a round, each held against the record
//! ```
//! Promise: every file was checked against its BLAKE3 in the record; what is not kept is named, never left out in silence.

use std::path::{Path, PathBuf};

use aivillage_base::wire::BlobRef;
use aivillage_base::{Architecture, Digest, bundle};
use aivillage_training::record::{Counted, JobRecord, RoundRecord, Stage};
use aivillage_training::spec::Start;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::args::ClientArgs;
use crate::cli::{out, segment};
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::folder::write_whole;
use crate::offline::begin_tensors;
use crate::offline::plan::PlanFile;
use crate::offline::updates::SECOND;

/// Which job, and where to.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The job's id
    job: String,
    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

/// The answer of `training/{job}/record`.
#[derive(Debug, Deserialize)]
struct Record {
    job: JobRecord,
    rounds: Vec<RoundRecord>,
}

/// What was exported of a published round.
struct Exported {
    round: u32,
    /// Nodes whose updates are not kept.
    missing: Vec<String>,
    state_in: bool,
    state_out: bool,
}

pub(super) async fn run(args: &ExportArgs, environment: &Environment) -> Result<(), CliError> {
    let client = find(&args.client.connection, environment)?;
    let job = segment("job's id", &args.job)?;
    let document: Value = client.get(&format!("training/{job}/record")).await?;
    let record: Record = serde_json::from_value(document.clone()).map_err(|e| {
        CliError::new(ExitCode::Failed, format!("the record of {job} cannot be read: {e}"))
            .hint("compare `aivillage --version` here and at the gateway")
    })?;
    let published: Vec<&RoundRecord> = record.rounds.iter().filter(|r| matches!(r.stage, Stage::Done { .. })).collect();
    let (Some(architecture), Some(first)) = (&record.job.architecture, published.first()) else {
        return Err(CliError::new(ExitCode::Conflict, format!("job {job} has not published a round yet"))
            .hint(format!("follow it with `aivillage train watch {job}`")));
    };
    make(&args.out)?;
    write(&args.out.join("record.json"), &serde_json::to_vec_pretty(&document).unwrap_or_default())?;
    let start = start(&client, &record.job, architecture, &first.model_in).await?;
    write(&args.out.join("start.safetensors"), &start)?;
    let mut exported = Vec::new();
    for round in published {
        exported.push(export(&client, &args.out, &record.job, architecture, round).await?);
    }
    write(&args.out.join("replay.sh"), replay(job, &exported).as_bytes())?;
    tell(args, job, &exported);
    Ok(())
}

/// The model that the first round started from: of a recipe it follows from the seed, so the gateway need not keep it.
async fn start(
    client: &Client,
    job: &JobRecord,
    architecture: &Architecture,
    wanted: &BlobRef,
) -> Result<Vec<u8>, CliError> {
    let bytes = match &job.spec.start {
        Start::Model(model) if model.bundle.is_some() => {
            client.download(&format!("models/{}/content", model.id)).await?.bytes.to_vec()
        }
        Start::Recipe(_) | Start::Model(_) => {
            let bug = |e: String| CliError::new(ExitCode::Bug, e);
            let values =
                aivillage_engine::initial_values(architecture, job.spec.seed).map_err(|e| bug(e.to_string()))?;
            bundle::write(architecture, &values).map_err(|e| bug(e.to_string()))?
        }
    };
    verified("the model that round 1 started from", &bytes, &wanted.digest)?;
    Ok(bytes)
}

fn verified(what: &str, bytes: &[u8], wanted: &Digest) -> Result<(), CliError> {
    let found = Digest::of(bytes);
    if found == *wanted {
        return Ok(());
    }
    Err(CliError::new(ExitCode::Failed, format!("{what} has BLAKE3 {found}, recorded is {wanted}"))
        .hint("try again; if it stays, compare `aivillage --version` here and at the gateway"))
}

/// Writes the plan and the kept updates of a round.
async fn export(
    client: &Client,
    out: &Path,
    job: &JobRecord,
    architecture: &Architecture,
    round: &RoundRecord,
) -> Result<Exported, CliError> {
    let folder = out.join(folder(round.key.round));
    make(&folder.join("updates"))?;
    let plan = PlanFile::of(job, architecture, round)
        .ok_or_else(|| CliError::new(ExitCode::Bug, "a published round has no plan"))?;
    write(&folder.join("plan.json"), &serde_json::to_vec_pretty(&plan).unwrap_or_default())?;
    let kept: Vec<String> = round.retained().map(|(name, _)| name.to_string()).collect();
    let missing: Vec<String> = plan.participants.keys().filter(|name| !kept.contains(name)).cloned().collect();
    let shape = Shape::new(architecture, &plan);
    for (name, Counted { payload, .. }) in round.retained() {
        let path = format!("training/{}/updates/{}", job.spec.job_id, payload.digest);
        let bytes = client.download(&path).await?.bytes;
        verified(&format!("the update of {name} in round {}", round.key.round), &bytes, &payload.digest)?;
        shape.write(&folder.join("updates").join(format!("{name}.safetensors")), &bytes)?;
    }
    let recorded = &plan.recorded;
    Ok(Exported {
        round: round.key.round,
        missing,
        state_in: !recorded.state_in.is_empty(),
        state_out: !recorded.state_out.is_empty(),
    })
}

/// The tensors of an update, each with its step.
struct Shape {
    tensors: Vec<(String, Vec<usize>)>,
    steps: Vec<f64>,
}

impl Shape {
    fn new(architecture: &Architecture, plan: &PlanFile) -> Self {
        let layout = architecture.layout().unwrap_or_default();
        let (mut tensors, mut steps) = (Vec::new(), Vec::new());
        for front in ["", SECOND].iter().take(plan.strategy.rule().planes()) {
            for tensor in layout.iter().filter(|t| !plan.personal.contains(&t.name)) {
                steps.push(plan.grids.get(&tensor.name).copied().unwrap_or_default().step());
                tensors.push((format!("{front}{}", tensor.name), tensor.shape.clone()));
            }
        }
        Self { tensors, steps }
    }

    /// Writes integers as f32: exact, for they have at most 24 bits and steps are powers of two.
    fn write(&self, path: &Path, integers: &[u8]) -> Result<(), CliError> {
        let mut file = begin_tensors(path, &self.tensors)?;
        let mut rest = integers.as_chunks::<4>().0;
        for ((name, shape), step) in self.tensors.iter().zip(&self.steps) {
            let len: usize = shape.iter().product();
            let Some((values, behind)) = rest.split_at_checked(len) else {
                return Err(CliError::new(ExitCode::Failed, format!("{}: `{name}` is cut", path.display())));
            };
            let floats: Vec<u8> =
                values.iter().flat_map(|q| float(i32::from_le_bytes(*q), *step).to_le_bytes()).collect();
            file.write(&floats)?;
            rest = behind;
        }
        file.finish()?;
        Ok(())
    }
}

fn float(q: i32, step: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "24 bits times a power of two fit an f32")]
    let value = (f64::from(q) * step) as f32;
    value
}

fn folder(round: u32) -> String {
    format!("round-{round:04}")
}

/// A script that recomputes every round whose updates were kept, each from the model of the one before.
fn replay(job: &str, rounds: &[Exported]) -> String {
    let mut script = format!(
        "#!/bin/sh\n# Recomputes the rounds of job {job} with `aivillage aggregate`; stops at the first that is not as recorded.\n\
         set -e\ncd \"$(dirname \"$0\")\"\n"
    );
    let mut model = "start.safetensors".to_owned();
    let mut state = None;
    for round in rounds {
        let here = folder(round.round);
        if !round.missing.is_empty() {
            script.push_str(&format!(
                "# Round {} cannot be recomputed, nor what follows: no updates of {} are kept.\n",
                round.round,
                round.missing.join(", ")
            ));
            break;
        }
        let before = state.filter(|_| round.state_in).map(|s: String| format!(" --state {s}")).unwrap_or_default();
        let after = if round.state_out { format!(" --state-out {here}/state") } else { String::new() };
        script.push_str(&format!(
            "${{AIVILLAGE:-aivillage}} aggregate --plan {here}/plan.json --model {model} --updates {here}/updates \
             --deltas{before}{after} -o {here}/model.safetensors\n"
        ));
        model = format!("{here}/model.safetensors");
        state = round.state_out.then(|| format!("{here}/state"));
    }
    script
}

fn tell(args: &ExportArgs, job: &str, exported: &[Exported]) {
    let whole = exported.iter().take_while(|r| r.missing.is_empty()).count();
    let missing: Vec<Value> = exported
        .iter()
        .filter(|r| !r.missing.is_empty())
        .map(|r| json!({ "round": r.round, "participants": r.missing }))
        .collect();
    let script = args.out.join("replay.sh");
    if args.client.json {
        out::document(&json!({
            "job_id": job, "folder": args.out, "rounds": exported.len(), "recomputable": whole,
            "not_kept": missing, "replay": script,
        }));
        return;
    }
    out::line(&format!("{}: {} rounds of {job}, {whole} can be recomputed", args.out.display(), exported.len()));
    if let Some(first) = exported.iter().find(|r| !r.missing.is_empty()) {
        out::note(&format!(
            "round {}: no updates of {} are kept: jobs keep them with `retain_updates: true`, and nodes allow it with \
             `privacy.retain_updates: if_asked` in node.yaml",
            first.round,
            first.missing.join(", ")
        ));
    }
    if whole > 0 {
        out::note(&format!("recompute with `sh {}`", script.display()));
    }
}

fn make(folder: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(folder)
        .map_err(|e| CliError::new(ExitCode::Failed, format!("cannot make {}: {e}", folder.display())))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    write_whole(path, bytes).map_err(|e| {
        CliError::new(ExitCode::Failed, format!("cannot write {}: {e}", path.display()))
            .hint("choose another --out DIR")
    })
}
