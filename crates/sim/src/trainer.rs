//! Small real training for the village: linear regression by gradient descent on rows that each node has for itself.
//!
//! The village takes any [`Trainer`]; this one is quick and needs no tensor library. Same invitation, name and values:
//! same bits.

use aivillage_base::arch::Recipe;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{DataSummary, Invitation, LocalMetrics};
use aivillage_base::{Architecture, Task};
use aivillage_training::{Initialiser, LocalOutcome, TrainError, Trainer};

/// Features of a row.
pub const FEATURES: usize = 3;

/// The shape it trains: three features, one target; bias first, then three weights.
#[must_use]
pub fn architecture() -> Architecture {
    Recipe::LinearRegression.build(&[FEATURES], Task::Regression).expect("invariant: the recipe fits its own data")
}

/// What the model says of a row.
#[must_use]
pub fn predict(values: &[f32], row: &[f32]) -> f32 {
    values[1..].iter().zip(row).fold(values[0], |sum, (w, x)| sum + w * x)
}

/// Linear regression on one node's rows.
#[derive(Debug)]
pub struct Linear {
    rows: Vec<([f32; FEATURES], f32)>,
}

impl Linear {
    /// The rows of the node that is number `node` of its village.
    #[must_use]
    pub fn of_node(node: u64) -> Self {
        let mut rng = SeededRng::new("rows", node, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "rows are f32")]
        let mut number = || rng.unit() as f32 - 0.5;
        let rows = (0..8 + node)
            .map(|_| {
                let x = [number(), number(), number()];
                // Nodes differ in what they saw: the target leans another way on each.
                (x, 0.3 + x[0] - 2.0 * x[1] + 0.5 * x[2] + 0.1 * number())
            })
            .collect();
        Self { rows }
    }
}

impl Trainer for Linear {
    fn data(&self) -> Vec<DataSummary> {
        let rows = self.rows.len() as u64;
        vec![DataSummary { name: "rows".into(), rows, input: vec![FEATURES], task: Task::Regression }]
    }

    fn train(&self, invitation: &Invitation, node: &str, values: &[f32]) -> Result<LocalOutcome, TrainError> {
        if values.len() != FEATURES + 1 {
            return Err(TrainError::Model(format!("{} values, {} are needed", values.len(), FEATURES + 1)));
        }
        let mut rng =
            SeededRng::new("batch order", invitation.seed, &[&invitation.key.round.to_le_bytes(), node.as_bytes()]);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let rate = invitation.training.learning_rate as f32;
        let mut values = values.to_vec();
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        let mut loss = 0.0;
        for _ in 0..invitation.training.epochs {
            rng.shuffle(&mut order);
            loss = 0.0;
            for row in &order {
                let (x, y) = &self.rows[*row];
                let error = predict(&values, x) - y;
                loss += f64::from(error * error) / 2.0;
                values[0] -= rate * error;
                for (w, x) in values[1..].iter_mut().zip(x) {
                    *w -= rate * error * x;
                }
            }
        }
        let examples = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let metrics = LocalMetrics { loss: loss / f64::from(examples), accuracy: None, train_ms: 0 };
        Ok(LocalOutcome { values, examples, metrics })
    }
}

/// Seeded first weights.
#[derive(Debug)]
pub struct Seeded;

impl Initialiser for Seeded {
    fn initial_values(&self, architecture: &Architecture, seed: u64) -> Vec<f32> {
        let mut rng = SeededRng::new("initial weights", seed, &[]);
        let parameters = architecture.parameters().unwrap_or(0);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let values = (0..parameters).map(|_| rng.unit() as f32 - 0.5).collect();
        values
    }
}
