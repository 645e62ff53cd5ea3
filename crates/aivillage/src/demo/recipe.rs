//! What each data set is trained with: one recipe for the village, the lonely nodes and all data in one place.

use aivillage_base::Architecture;
use aivillage_base::arch;
use aivillage_base::wire::LocalTraining;
use aivillage_engine::data::{Bundled, Dataset};
use serde_json::{Value, json};

use super::{DatasetName, DemoArgs};
use crate::exit::{CliError, ExitCode};

/// A recipe.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) data: Bundled,
    name: &'static str,
    hidden: &'static [usize],
    pub(crate) training: LocalTraining,
}

impl Recipe {
    pub(crate) fn of(dataset: DatasetName) -> Self {
        // Local epochs and step size of the digits are those of the published NumPy runs; nobody's is tuned.
        let training = |learning_rate| LocalTraining {
            epochs: 3,
            batch_size: 32,
            learning_rate,
            momentum: 0.0,
            weight_decay: 0.0,
            proximal_mu: 0.0,
        };
        match dataset {
            DatasetName::Digits => Self { data: Bundled::Digits, name: "mlp", hidden: &[32], training: training(0.3) },
            DatasetName::BreastCancer => {
                Self { data: Bundled::BreastCancer, name: "logistic_regression", hidden: &[], training: training(0.1) }
            }
        }
    }

    pub(crate) fn architecture(&self, data: &Dataset) -> Result<Architecture, CliError> {
        arch::Recipe::named(self.name, self.hidden)
            .and_then(|recipe| recipe.build(data.input(), data.task()))
            .map_err(|e| CliError::new(ExitCode::Bug, e.to_string()))
    }

    /// In words: `mlp 64-32-10`.
    pub(crate) fn describe(&self, data: &Dataset) -> String {
        let widths = [data.width()].into_iter().chain(self.hidden.iter().copied()).chain([data.task().outputs()]);
        let widths: Vec<_> = widths.map(|w| w.to_string()).collect();
        format!("{} {}", self.name, widths.join("-"))
    }

    /// The job, as anybody would send it.
    pub(crate) fn job(&self, args: &DemoArgs, job_id: &str) -> Value {
        let mut hyperparameters = json!({
            "local_epochs": self.training.epochs,
            "batch_size": self.training.batch_size,
            "learning_rate": self.training.learning_rate,
        });
        if !self.hidden.is_empty() {
            hyperparameters["hidden"] = json!(self.hidden);
        }
        json!({
            "job_id": job_id,
            "job_name": format!("Demonstration: {}", self.data.name()),
            "model_architecture": self.name,
            "total_rounds": args.rounds,
            "min_participants": args.nodes,
            "max_participants": args.nodes,
            "dataset_requirements": { "dataset": self.data.name() },
            "strategy": { "name": "fedavg" },
            "privacy_techniques": args.techniques(),
            "hyperparameters": hyperparameters,
            "seed": args.seed,
        })
    }
}
