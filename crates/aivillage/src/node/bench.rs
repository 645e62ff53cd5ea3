//! Updates without training: what `bench round` sends, so that it measures the round and nothing else.

use aivillage_base::Task;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{DataSummary, Invitation, LocalMetrics};
use aivillage_training::trainer::{LocalOutcome, LocalTerms, TrainError, Trainer};

/// A trainer whose change of the model is a small number drawn from seed, round and name.
#[derive(Debug)]
pub struct BenchTrainer {
    parameters: usize,
}

impl BenchTrainer {
    /// Claims data for a linear regression of `parameters` values (at least 2).
    #[must_use]
    pub fn new(parameters: usize) -> Self {
        Self { parameters: parameters.max(2) }
    }
}

impl Trainer for BenchTrainer {
    fn data(&self) -> Vec<DataSummary> {
        // One weight a feature and one bias.
        let input = vec![self.parameters - 1];
        vec![DataSummary { name: "bench".into(), rows: 1, input, task: Task::Regression }]
    }

    fn train(
        &self,
        invitation: &Invitation,
        node: &str,
        mut values: Vec<f32>,
        _: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        let round = invitation.key.round.to_le_bytes();
        let mut rng = SeededRng::new("bench update", invitation.seed, &[&round, node.as_bytes()]);
        #[expect(clippy::cast_possible_truncation, reason = "a value in [0, 1)")]
        let change = rng.unit() as f32;
        values.iter_mut().for_each(|v| *v += change);
        Ok(LocalOutcome::plain(values, 1, 1, LocalMetrics::default()))
    }
}
