//! A round recomputed from files, on the very code that a coordinator closes its rounds with.
//!
//! ```text
//! model, updates, weights or plan ── tensors, plan, updates ──> rows of integers ── training::aggregate ──> model, state
//! ```
//! Promise: the same files give the same bytes on every machine, and with the plan of a recorded round they are the
//! coordinator's. Files are streamed: no model is in memory as a whole. Must not know: HTTP, stores, what is printed.

mod output;
pub mod plan;
pub mod tensors;
pub mod updates;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aivillage_base::Digest;
use aivillage_base::arch::holds_variances;
use aivillage_base::fixed::Grid;
use aivillage_base::wire::{BlobRef, LocalTraining};
use aivillage_training::aggregate::{Floats, RowError, Rows, Tensor, Work, WorkError};
use aivillage_training::record::StateSlot;
use aivillage_training::strategy::{Contribution, Strategy, StrategyFault};
use serde::{Deserialize, Serialize};

use crate::exit::{CliError, ExitCode};
use output::Output;
use plan::{Declared, PlanFile, Recorded};
use tensors::{FileError, TensorFile, ValueReader};
use updates::{Content, Shape, Updates};

pub use output::{begin_tensors, file_digest};

/// File in a folder of server state that says which round it came out of.
const STATE: &str = "state.json";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Files {
    /// The model that the round started from.
    pub model: PathBuf,
    /// Folder of `NAME.safetensors`, one a participant.
    pub updates: PathBuf,
    /// What these hold.
    pub content: Content,
    /// Folder of the server state before; None = zero.
    pub state: Option<PathBuf>,
    /// Folder for the server state after.
    pub state_out: Option<PathBuf>,
    /// The new model.
    pub output: PathBuf,
}

/// What is to be computed.
#[derive(Debug, Clone)]
pub struct Round {
    /// The rule with its settings.
    pub strategy: Strategy,
    /// How the nodes trained.
    pub training: LocalTraining,
    /// Round, from 1; None = one more than that of the state before.
    pub round: Option<u32>,
    /// Number of nodes invited.
    pub invited: u32,
    /// Most examples that an update was expected to have; None = the most that one has.
    pub examples_max: Option<u32>,
    /// What each participant declared, by name.
    pub participants: BTreeMap<String, Declared>,
    /// Names of tensors that stayed on the nodes.
    pub personal: Vec<String>,
    /// Grid of each tensor; None = from the data.
    pub grids: Option<BTreeMap<String, Grid>>,
    /// What the coordinator recorded, if this is a recorded round.
    pub recorded: Option<Recorded>,
}

impl From<PlanFile> for Round {
    fn from(plan: PlanFile) -> Self {
        Self {
            strategy: plan.strategy,
            training: plan.training,
            round: Some(plan.key.round),
            invited: plan.invited,
            examples_max: plan.examples_max,
            participants: plan.participants,
            personal: plan.personal,
            grids: Some(plan.grids),
            recorded: Some(plan.recorded),
        }
    }
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Round, from 1.
    pub round: u32,
    /// The new model.
    pub model: BlobRef,
    /// The new server state.
    pub state: Vec<StateSlot>,
    /// Grid of each tensor that took part.
    pub grids: BTreeMap<String, Grid>,
}

/// The mark of a folder of server state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    strategy: String,
    round: u32,
}

/// Makes the model and the server state of a round, and holds them against the record if there is one.
///
/// # Errors
/// With exit code and what to do: files that cannot be used, a rule that refuses, a result that is not the recorded one
/// (which is then not left in place).
pub fn recompute(round: &Round, files: &Files) -> Result<Made, CliError> {
    let rule = round.strategy.rule();
    let model = TensorFile::open(&files.model)?;
    if let Some(recorded) = &round.recorded {
        expect(&files.model, file_digest(&files.model)?, recorded.model_in, "the model that the round started from")?;
    }
    let (state, before) = state_in(round, files, &model)?;
    let number = round.round.unwrap_or(before + 1);
    let contributions: Vec<Contribution> = round.participants.values().map(Declared::contribution).collect();
    for (name, contribution) in round.participants.keys().zip(&contributions) {
        rule.accepts(contribution)
            .map_err(|why| CliError::new(ExitCode::Failed, format!("{name} cannot take part: {why}")))?;
    }
    let (least, why) = rule.cohort_min();
    if contributions.len() < least as usize {
        let (name, given) = (round.strategy.name(), contributions.len());
        return Err(CliError::new(ExitCode::Failed, format!("{name} needs {why}: {given} updates are given")));
    }
    let shape = Shape { content: files.content, personal: &round.personal, planes: rule.planes() };
    let names = round.participants.keys().map(String::as_str);
    let mut updates = Updates::open(&files.updates, names, &model, shape)?;
    let grids = updates.fix_grids(round.grids.as_ref())?;
    verify(round, &updates)?;
    let tensors: Vec<Tensor> = model
        .tensors
        .iter()
        .map(|t| Tensor {
            len: t.len,
            grid: grids.get(&t.name).copied().unwrap_or_default(),
            personal: round.personal.contains(&t.name),
            variances: holds_variances(&t.name),
        })
        .collect();
    let values = Values(model.reader()?);
    let work = Work {
        strategy: &round.strategy,
        round: number,
        training: &round.training,
        population: round.invited,
        examples_max: round.examples_max,
        contributions: &contributions,
        sums: None,
        tensors: &tensors,
        model: &values,
        state: state.iter().map(|s| s.as_ref().map(|s| s as &dyn Floats)).collect(),
        threads: 0,
    };
    // Without a record nobody compares contributors: the name tells them apart.
    let digest = |(name, d): (&String, &Declared)| d.payload.map_or_else(|| Digest::of(name.as_bytes()), |p| p.digest);
    let rows = FileRows { updates: &updates, digests: round.participants.iter().map(digest).collect() };
    let blame = |e: WorkError| blame(&round.participants, e);
    let mut aggregation = work.begin().map_err(blame)?;
    let mut outputs = outputs(round, files, &model)?;
    while aggregation.wanted().is_some() {
        let Some(wave) = aggregation.advance(&rows).map_err(blame)? else { continue };
        for (output, bytes) in outputs.iter_mut().zip(std::iter::once(wave.model).chain(wave.state)) {
            output.write(&bytes)?;
        }
    }
    finish(round, files, outputs, number, grids)
}

/// Closes what was written, holds it against the record, and puts it in place.
fn finish(
    round: &Round,
    files: &Files,
    outputs: Vec<Output>,
    number: u32,
    grids: BTreeMap<String, Grid>,
) -> Result<Made, CliError> {
    let slots = round.strategy.rule().slots();
    let made: Vec<BlobRef> = outputs.iter().map(Output::blob).collect();
    let state: Vec<StateSlot> =
        slots.iter().zip(&made[1..]).map(|(name, blob)| StateSlot { name: (*name).to_owned(), blob: *blob }).collect();
    if let Some(recorded) = &round.recorded {
        expect(&files.output, made[0].digest, recorded.model_out, "the model that the round published")?;
        if state != recorded.state_out {
            let message = format!("the server state is {state:?}, recorded is {:?}", recorded.state_out);
            return Err(CliError::new(ExitCode::Failed, message));
        }
    }
    let kept = if files.state_out.is_some() { outputs.len() } else { 1 };
    for output in outputs.into_iter().take(kept) {
        output.finish()?;
    }
    if let Some(folder) = &files.state_out {
        let mark = Mark { strategy: round.strategy.name().to_owned(), round: number };
        let text = serde_json::to_vec_pretty(&mark).unwrap_or_default();
        let path = folder.join(STATE);
        std::fs::write(&path, text).map_err(|e| FileError::new(&path, format!("cannot be written: {e}")))?;
    }
    Ok(Made { round: number, model: made[0], state, grids })
}

fn expect(path: &Path, found: Digest, wanted: Digest, what: &str) -> Result<(), CliError> {
    if found == wanted {
        return Ok(());
    }
    let message = format!("{}: BLAKE3 {found}, but {what} is {wanted}", path.display());
    Err(CliError::new(ExitCode::Failed, message).hint(
        "these files are not those of the record: export the job again, and compare the versions of both programs",
    ))
}

/// The vectors of server state before, in the order of the rule's slots, and the round they came out of.
fn state_in(round: &Round, files: &Files, model: &TensorFile) -> Result<(Vec<Option<Values>>, u32), CliError> {
    let slots = round.strategy.rule().slots();
    let recorded = round.recorded.as_ref().map_or(&[][..], |r| &r.state_in);
    let Some(folder) = &files.state else {
        if !recorded.is_empty() {
            return Err(CliError::new(
                ExitCode::Usage,
                "the round started from server state: name its folder with --state",
            ));
        }
        return Ok((slots.iter().map(|_| None).collect(), 0));
    };
    let path = folder.join(STATE);
    let text = std::fs::read(&path).map_err(|e| FileError::new(&path, format!("cannot be read: {e}")))?;
    let mark: Mark =
        serde_json::from_slice(&text).map_err(|e| FileError::new(&path, format!("is no mark of server state: {e}")))?;
    if mark.strategy != round.strategy.name() {
        let message = format!("{}: state of {}, not of {}", path.display(), mark.strategy, round.strategy.name());
        return Err(CliError::new(ExitCode::Failed, message));
    }
    let mut state = Vec::new();
    for slot in slots {
        let path = folder.join(format!("{slot}.safetensors"));
        let file = TensorFile::open(&path)?;
        if file.tensors != model.tensors {
            return Err(FileError::new(&path, "does not have the tensors of the model").into());
        }
        if let Some(wanted) = recorded.iter().find(|s| s.name == *slot) {
            expect(&path, file_digest(&path)?, wanted.blob.digest, "the server state that the round started from")?;
        }
        state.push(Some(Values(file.reader()?)));
    }
    Ok((state, mark.round))
}

/// The new model and, if the rule has state, its vectors: each as the model's file is, with other values.
fn outputs(round: &Round, files: &Files, model: &TensorFile) -> Result<Vec<Output>, FileError> {
    let mut outputs = vec![Output::begin(&files.output, &model.front)?];
    // Without a folder for it the state is still made, to be held against the record, beside the model.
    let folder = files.state_out.clone().unwrap_or_else(|| files.output.parent().unwrap_or(Path::new("")).to_owned());
    if files.state_out.is_some() {
        std::fs::create_dir_all(&folder).map_err(|e| FileError::new(&folder, format!("cannot be made: {e}")))?;
    }
    for slot in round.strategy.rule().slots() {
        outputs.push(Output::begin(&folder.join(format!("{slot}.safetensors")), &model.front)?);
    }
    Ok(outputs)
}

/// Holds the updates against the record.
fn verify(round: &Round, updates: &Updates) -> Result<(), CliError> {
    if round.participants.values().all(|p| p.payload.is_none()) {
        return Ok(());
    }
    for ((name, declared), found) in round.participants.iter().zip(updates.digests()?) {
        if let Some(wanted) = declared.payload.filter(|p| p.digest != found) {
            let message =
                format!("the update of {name} is not the one that counted: BLAKE3 {found}, recorded {}", wanted.digest);
            return Err(CliError::new(ExitCode::Failed, message).hint("export the job again"));
        }
    }
    Ok(())
}

fn blame(participants: &BTreeMap<String, Declared>, error: WorkError) -> CliError {
    let message = match error {
        WorkError::Update { row, reason, detail } => {
            let name = participants.keys().nth(row).map_or("?", String::as_str);
            format!("the update of {name} is {}: {detail}", reason.replace('_', " "))
        }
        WorkError::Unusable(why) | WorkError::Read(why) => why,
    };
    CliError::new(ExitCode::Failed, message)
}

/// Values of a file as aggregation reads them.
#[derive(Debug)]
struct Values(ValueReader);

impl Floats for Values {
    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), String> {
        self.0.read(start, out, &mut Vec::new()).map_err(|e| e.to_string())
    }
}

/// Participants' files as aggregation reads them.
#[derive(Debug)]
struct FileRows<'a> {
    updates: &'a Updates,
    digests: Vec<Digest>,
}

impl Rows for FileRows<'_> {
    fn read(&self, row: usize, start: usize, out: &mut [i32]) -> Result<(), RowError> {
        self.updates.read(row, start, out).map_err(|e| RowError::Damaged(e.to_string()))
    }

    fn digest(&self, row: usize) -> Digest {
        self.digests[row]
    }
}

/// A strategy that cannot be, as an error of the command line.
#[must_use]
pub fn strategy_fault(fault: &StrategyFault) -> CliError {
    match fault {
        StrategyFault::Name(text) => CliError::new(ExitCode::Usage, text.clone()),
        StrategyFault::Settings(faults) => {
            let lines: Vec<String> = faults.iter().map(|f| format!("`{}` {}", f.key, f.detail)).collect();
            CliError::new(ExitCode::Usage, lines.join("\n"))
        }
    }
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        let code = if error.why.contains("No such file") { ExitCode::NotFound } else { ExitCode::Failed };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests;
