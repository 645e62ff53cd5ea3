//! Geometric median: the point whose distances to the updates have the smallest weighted sum.
//!
//! Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for Federated Learning" (RFA), algorithm 2, the smoothed
//! Weiszfeld iteration: from the weighted mean, z <- sum_k b_k d_k / sum_k b_k with b_k = n_k / max(`smoothing`, |d_k - z|), until
//! the sum of n_k |d_k - z| changes by less than `tolerance` of itself. z is a combination of the updates, so the iteration
//! runs on their distances alone (`affine`); then one weighted sum is made. The paper stops after some rounds of
//! messages; here a step costs n^2 and no message, so it runs to the end.
//!
//! Settings: `smoothing` (1e-12 to 1, default 1e-6), `max_iterations` (1 to 10,000, default 100), `tolerance` (0 to 0.1,
//! default 1e-9).
//! Assumes that dishonest nodes hold less than half of all examples (breakdown point 1/2); each node says its own number,
//! capped by the job's `max_examples`. Needs no other setting, which is why it stands in where a robust rule is asked for
//! and none is named. Costs all distances, and 16 n^2 bytes.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Facts, Needs, Rule, affine, exact};

/// Settings of `geometric_median`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeometricMedian {
    /// Distances below count as this, 1e-12 to 1, in units of the weights.
    pub smoothing: f64,
    /// Most iterations, 1 to 10,000.
    pub max_iterations: u32,
    /// Relative change of the objective that ends the iteration, 0 to 0.1.
    pub tolerance: f64,
}

impl GeometricMedian {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            smoothing: settings.number("smoothing", 1e-12, 1.0, 1e-6),
            max_iterations: settings.integer("max_iterations", 1, 10_000).unwrap_or(100),
            tolerance: settings.number("tolerance", 0.0, 0.1, 1e-9),
        }
    }
}

impl Rule for GeometricMedian {
    fn needs(&self) -> Needs {
        Needs::Distances
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let examples = exact::sum(facts.contributions.iter().map(|c| f64::from(c.weight)));
        let parts: Vec<f64> = facts.contributions.iter().map(|c| f64::from(c.weight) / examples).collect();
        let mut shares = parts.clone();
        let mut last = f64::INFINITY;
        for _ in 0..self.max_iterations {
            let distances = affine::distances(facts.geometry, &shares);
            let objective = exact::sum(parts.iter().zip(&distances).map(|(part, d)| part * d));
            if (last - objective).abs() <= self.tolerance * objective {
                break;
            }
            last = objective;
            let pull = parts.iter().zip(&distances).map(|(part, d)| part / d.max(self.smoothing));
            let total = exact::sum(pull.clone());
            shares = pull.map(|pull| pull / total).collect();
        }
        Ok(Choice::combination(&shares, 0.0))
    }
}
