//! Updates without training: what `bench round` sends, so that it measures the round and nothing else.

use aivillage_base::Task;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{DataSummary, Invitation, LocalMetrics};
use aivillage_training::trainer::{LocalOutcome, LocalTerms, TrainError, Trainer};

/// Largest dimension of an input shape.
const DIMENSION_MAX: usize = 1 << 20;

/// The input of a linear regression of `parameters` values: one weight a feature and one bias. None if their features
/// make neither a vector nor a matrix of dimensions that are accepted.
#[must_use]
pub fn bench_input(parameters: usize) -> Option<Vec<usize>> {
    let features = parameters.checked_sub(1).filter(|n| *n > 0)?;
    if features <= DIMENSION_MAX {
        return Some(vec![features]);
    }
    let rows = (features.div_ceil(DIMENSION_MAX)..=DIMENSION_MAX).find(|rows| features.is_multiple_of(*rows))?;
    Some(vec![rows, features / rows])
}

/// A trainer whose change of the model is a small number drawn from seed, round and name.
#[derive(Debug)]
pub struct BenchTrainer {
    input: Vec<usize>,
}

impl BenchTrainer {
    /// Claims data for a linear regression with this input ([`bench_input`]).
    #[must_use]
    pub fn new(input: Vec<usize>) -> Self {
        Self { input }
    }
}

impl Trainer for BenchTrainer {
    fn data(&self) -> Vec<DataSummary> {
        vec![DataSummary { name: "bench".into(), rows: 1, input: self.input.clone(), task: Task::Regression }]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_models_have_a_matrix_as_input() {
        assert_eq!(bench_input(1_000), Some(vec![999]));
        assert_eq!(bench_input(1 + DIMENSION_MAX), Some(vec![DIMENSION_MAX]));
        let large = bench_input(100_000_000).unwrap();
        assert_eq!((large.len(), large.iter().product::<usize>()), (2, 99_999_999));
        assert!(large.iter().all(|d| *d <= DIMENSION_MAX));
        assert_eq!([bench_input(0), bench_input(1), bench_input(15_485_864)], [None, None, None], "15485863 is prime");
    }
}
