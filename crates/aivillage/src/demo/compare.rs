//! What federated training is compared with: each node alone, and all data in one place.
//!
//! Both train as a node does, from the same first weights, for as many epochs (rounds x local epochs); the last epoch
//! counts, for everybody. Measured on the common test set, which nobody trains on.

use aivillage_base::Architecture;
use aivillage_base::time::SystemClock;
use aivillage_engine::data::Dataset;
use aivillage_engine::{LocalJob, evaluate, initial_values, local};

use super::Setting;
use crate::exit::{CliError, ExitCode};

/// Test accuracies, 0 to 1, one after each round's worth of epochs.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// Of each node.
    pub(crate) alone: Vec<Vec<f64>>,
    /// Of all data in one place.
    pub(crate) central: Vec<f64>,
}

fn last(curve: &[f64]) -> f64 {
    curve.last().copied().unwrap_or(f64::NAN)
}

impl Comparison {
    /// Of each node, in the end.
    pub(crate) fn alone_last(&self) -> Vec<f64> {
        self.alone.iter().map(|c| last(c)).collect()
    }

    /// Index and accuracy of the best node in the end.
    pub(crate) fn best_alone(&self) -> (usize, f64) {
        let ends = self.alone_last();
        let best = ends.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or((0, f64::NAN), |(i, a)| (i, *a))
    }

    /// Of all data in one place, in the end.
    pub(crate) fn central_last(&self) -> f64 {
        last(&self.central)
    }
}

/// Trains everybody. Blocking: takes about a second.
pub(crate) fn run(setting: &Setting) -> Result<Comparison, CliError> {
    let mut alone = Vec::new();
    for (i, shard) in setting.split.shards.iter().enumerate() {
        alone.push(curve(setting, &format!("node-{}", i + 1), shard)?);
    }
    let all = Dataset::concat(&setting.split.shards).map_err(|e| failed(&e))?;
    let central = curve(setting, "central", &all)?;
    Ok(Comparison { alone, central })
}

/// Share of the common test set that the model classifies right.
pub(crate) fn accuracy(architecture: &Architecture, values: &[f32], test: &Dataset) -> Result<f64, CliError> {
    let evaluation = evaluate(architecture, values, test).map_err(|e| failed(&e))?;
    evaluation.accuracy.ok_or_else(|| CliError::new(ExitCode::Bug, "the test set has no labels"))
}

fn curve(setting: &Setting, name: &str, data: &Dataset) -> Result<Vec<f64>, CliError> {
    let (architecture, clock) = (&setting.architecture, SystemClock::new());
    let mut values = initial_values(architecture, setting.args.seed).map_err(|e| failed(&e))?;
    let mut points = Vec::new();
    for round in 1..=setting.args.rounds {
        let job =
            LocalJob { architecture, training: &setting.recipe.training, seed: setting.args.seed, round, node: name };
        values = local(job, &values, data, &clock).map_err(|e| failed(&e))?.values;
        points.push(accuracy(architecture, &values, &setting.split.test)?);
    }
    Ok(points)
}

fn failed(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ExitCode::Failed, format!("the comparison cannot be made: {error}"))
}
