//! What a round is recomputed from, as files: a plan that `train export` writes, or weights that somebody else writes.
//!
//! Promise: a plan holds everything but vectors, so with the files it names the model is the coordinator's to the bit;
//! unknown fields are refused. Must not know: how files are read or models made.

use std::collections::BTreeMap;

use aivillage_base::fixed::Grid;
use aivillage_base::wire::{BlobRef, LocalTraining, RoundKey};
use aivillage_base::{Architecture, Digest};
use aivillage_training::record::{Counted, JobRecord, RoundRecord, Stage, StateSlot};
use aivillage_training::strategy::{Contribution, Strategy};
use serde::{Deserialize, Serialize};

/// Version of the plan's fields.
pub const SCHEMA: u32 = 1;

/// A published round, without vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The attempt that was published.
    pub key: RoundKey,
    /// The rule with its settings.
    pub strategy: Strategy,
    /// How the nodes trained.
    pub training: LocalTraining,
    /// Number of nodes invited.
    pub invited: u32,
    /// Most examples that an update was expected to have, where the rule's weights depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_max: Option<u32>,
    /// Names of tensors that stayed on the nodes.
    pub personal: Vec<String>,
    /// Grid of each tensor of the model.
    pub grids: BTreeMap<String, Grid>,
    /// What each participant declared, by name; its file is `NAME.safetensors`.
    pub participants: BTreeMap<String, Declared>,
    /// The model and server state that the round started from and those that came out.
    pub recorded: Recorded,
}

/// What the coordinator recorded: what a recomputation is held against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// BLAKE3 of the model before.
    pub model_in: Digest,
    /// Server state before; empty = zero.
    pub state_in: Vec<StateSlot>,
    /// BLAKE3 of the model after.
    pub model_out: Digest,
    /// Server state after.
    pub state_out: Vec<StateSlot>,
}

/// What a participant declared of its update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Number of examples, at least 1.
    #[serde(alias = "examples")]
    pub weight: u32,
    /// Optimiser steps, at least 1.
    #[serde(default = "one")]
    pub steps: u32,
    /// Loss of the received model on the participant's rows.
    #[serde(default)]
    pub initial_loss: Option<f64>,
    /// Rounds published since the model that the update starts from.
    #[serde(default)]
    pub staleness: u32,
    /// Its integers: BLAKE3 and length in bytes.
    #[serde(default)]
    pub payload: Option<BlobRef>,
}

fn one() -> u32 {
    1
}

impl Declared {
    /// What was counted in `round`.
    #[must_use]
    pub fn of(counted: &Counted, round: u32) -> Self {
        let Contribution { weight, steps, initial_loss, staleness } = counted.contribution(round);
        Self { weight, steps, initial_loss, staleness, payload: Some(counted.payload) }
    }

    /// What a strategy sees of it.
    #[must_use]
    pub fn contribution(&self) -> Contribution {
        Contribution {
            weight: self.weight,
            steps: self.steps,
            initial_loss: self.initial_loss,
            staleness: self.staleness,
        }
    }
}

impl PlanFile {
    /// The plan of an attempt; None if it was not published.
    #[must_use]
    pub fn of(job: &JobRecord, architecture: &Architecture, attempt: &RoundRecord) -> Option<Self> {
        let Stage::Done { model_out, state_out } = &attempt.stage else { return None };
        let layout = architecture.layout().ok()?;
        let round = attempt.key.round;
        let counted = attempt.members.iter().filter_map(|m| Some((m.peer.name.to_string(), m.counted()?)));
        Some(Self {
            schema: SCHEMA,
            key: attempt.key.clone(),
            strategy: job.spec.strategy.clone(),
            training: job.spec.training.clone(),
            invited: u32::try_from(attempt.members.len()).unwrap_or(u32::MAX),
            examples_max: attempt.examples_max,
            personal: job.spec.personal(architecture),
            grids: layout.into_iter().map(|t| t.name).zip(attempt.grids.iter().copied()).collect(),
            participants: counted.map(|(name, c)| (name, Declared::of(c, round))).collect(),
            recorded: Recorded {
                model_in: attempt.model_in.digest,
                state_in: attempt.state_in.clone(),
                model_out: model_out.digest,
                state_out: state_out.clone(),
            },
        })
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// One sentence: unknown or missing fields, or another version.
    pub fn read(text: &str) -> Result<Self, String> {
        let plan: Self = serde_json::from_str(text).map_err(|e| format!("is no plan of `train export`: {e}"))?;
        if plan.schema != SCHEMA {
            return Err(format!("has schema {}, and this version reads {SCHEMA}", plan.schema));
        }
        Ok(plan)
    }
}

/// Weights as `--weights` has them: a number of examples a file, or an object that says more.
///
/// # Errors
/// One sentence that names the file whose entry is wrong.
pub fn read_weights(text: &str) -> Result<BTreeMap<String, Declared>, String> {
    let map: BTreeMap<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| format!("is no JSON object of file names and numbers of examples: {e}"))?;
    let mut declared = BTreeMap::new();
    for (file, value) in map {
        let value = if value.is_number() { serde_json::json!({ "examples": value }) } else { value };
        let entry: Declared = serde_json::from_value(value).map_err(|e| {
            format!("`{file}`: a whole number of examples, or an object with `examples`, is expected: {e}")
        })?;
        if entry.weight == 0 || entry.steps == 0 {
            return Err(format!("`{file}`: examples and steps count from 1"));
        }
        if entry.initial_loss.is_some_and(|loss| !loss.is_finite()) {
            return Err(format!("`{file}`: initial_loss must be finite"));
        }
        let name = file.strip_suffix(".safetensors").unwrap_or(&file).to_owned();
        if declared.insert(name, entry).is_some() {
            return Err(format!("`{file}` is named twice, with and without .safetensors"));
        }
    }
    if declared.is_empty() {
        return Err("names no file".to_owned());
    }
    Ok(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_numbers_or_say_more() {
        let read = read_weights(
            r#"{"a.safetensors": 3, "b": {"examples": 4, "steps": 7, "initial_loss": 0.5, "staleness": 2}}"#,
        )
        .unwrap();
        assert_eq!((read["a"].weight, read["a"].steps), (3, 1));
        let b = read["b"].contribution();
        assert_eq!((b.weight, b.steps, b.initial_loss, b.staleness), (4, 7, Some(0.5), 2));
    }

    #[test]
    fn weights_that_make_no_sense_are_refused_with_the_file() {
        for (text, why) in [
            ("[1]", "no JSON object"),
            ("{}", "no file"),
            (r#"{"a": 0}"#, "`a`: examples and steps count from 1"),
            (r#"{"a": -1}"#, "`a`: a whole number"),
            (r#"{"a": 1.5}"#, "`a`: a whole number"),
            (r#"{"a": {"examples": 1, "step": 2}}"#, "`a`: a whole number"),
            (r#"{"a": 1, "a.safetensors": 2}"#, "named twice"),
        ] {
            let found = read_weights(text).unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }
}
