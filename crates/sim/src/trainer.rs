//! Small real training for the village: linear regression by gradient descent on rows that each node has for itself.
//!
//! The village takes any [`Trainer`]; this one is quick and needs no tensor library. Same invitation, name and values:
//! same bits.

use aivillage_base::arch::Recipe;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{DataSummary, Invitation, LocalMetrics, LocalRule};
use aivillage_base::{Architecture, Task};
use aivillage_training::{Initialiser, LocalOutcome, LocalTerms, PersonalModel, TrainError, Trainer};

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

    fn train(
        &self,
        invitation: &Invitation,
        node: &str,
        values: Vec<f32>,
        terms: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        if values.len() != FEATURES + 1 {
            return Err(TrainError::Model(format!("{} values, {} are needed", values.len(), FEATURES + 1)));
        }
        let training = &invitation.training;
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let (rate, mu) = (training.learning_rate as f32, training.proximal_mu as f32);
        let round = invitation.key.round.to_le_bytes();
        let rng = |purpose| SeededRng::new(purpose, invitation.seed, &[&round, node.as_bytes()]);
        let examples = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let run = |start: &[f32], rng: SeededRng, pull: f32, correction: &[f32]| {
            let mut run = Descent { values: start.to_vec(), anchor: &values, pull, correction, rate };
            let loss = run.epochs(&self.rows, training.epochs, rng);
            (run.values, LocalMetrics { loss: loss / f64::from(examples), accuracy: None, train_ms: 0 })
        };
        let personal = match invitation.local {
            LocalRule::Plain | LocalRule::Scaffold { .. } => None,
            LocalRule::Unknown => return Err(TrainError::Model("an unknown rule".to_owned())),
            #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
            LocalRule::Ditto { lambda } => {
                let start = if terms.personal.is_empty() { &values } else { terms.personal };
                let (values, metrics) = run(start, rng("personal batch order"), lambda as f32, &[]);
                Some(PersonalModel { values, metrics })
            }
        };
        let initial_loss = invitation.initial_loss.then(|| {
            let squares = self.rows.iter().map(|(x, y)| f64::from(predict(&values, x) - y).powi(2) / 2.0);
            squares.sum::<f64>() / f64::from(examples)
        });
        let (trained, metrics) = run(&values, rng("batch order"), mu, terms.correction);
        let steps = examples.saturating_mul(training.epochs);
        Ok(LocalOutcome { values: trained, examples, steps, initial_loss, personal, metrics })
    }
}

/// Gradient descent, row by row, with what a strategy adds to the gradient.
struct Descent<'a> {
    values: Vec<f32>,
    anchor: &'a [f32],
    pull: f32,
    correction: &'a [f32],
    rate: f32,
}

impl Descent<'_> {
    /// Returns the sum of losses of the last epoch.
    fn epochs(&mut self, rows: &[([f32; FEATURES], f32)], epochs: u32, mut rng: SeededRng) -> f64 {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut loss = 0.0;
        for _ in 0..epochs {
            rng.shuffle(&mut order);
            loss = 0.0;
            for row in &order {
                let (x, y) = &rows[*row];
                let error = predict(&self.values, x) - y;
                loss += f64::from(error * error) / 2.0;
                let inputs = std::iter::once(&1.0).chain(x);
                for (i, (w, x)) in self.values.iter_mut().zip(inputs).enumerate() {
                    let correction = self.correction.get(i).copied().unwrap_or(0.0);
                    *w -= self.rate * (error * x + self.pull * (*w - self.anchor[i]) + correction);
                }
            }
        }
        loss
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
