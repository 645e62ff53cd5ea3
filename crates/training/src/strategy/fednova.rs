//! Normalised averaging: nodes that took more steps do not pull the model towards their own optimum.
//!
//! Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", equation 9
//! with tau_eff = sum_k p_k |a_k|, p_k = n_k / sum n. With d_k the change of a node that took t_k steps:
//! w(r+1) = w(r) + tau_eff sum_k p_k d_k / |a_k|.
//! |a_k| is the sum of the coefficients with which the t_k gradients enter d_k / -learning_rate. For SGD as nodes do it
//! (v <- momentum v + g + mu (w - w(r)), w <- w - learning_rate v) it is U(t_k) of the recurrence V <- momentum V - alpha U + 1,
//! U <- U + V from zero, with alpha = learning_rate mu. Without momentum and mu it is t_k; with momentum alone it is
//! (t - m (1 - m^t) / (1 - m)) / (1 - m), with mu alone (1 - (1 - alpha)^t) / alpha: the paper's values. It is the 1-norm of
//! a_k, as the paper has it, while no coefficient is negative, that is alpha <= (1 - sqrt(momentum))^2.
//!
//! Settings: `mu` of a proximal term (0 to 1000, default 0). learning_rate * mu must stay below 1.
//! Assumes honest nodes, also in what they say of their steps. Costs what `fedavg` costs.

use serde::{Deserialize, Serialize};

use aivillage_base::wire::LocalTraining;

use super::fedprox::pull_is_stable;
use super::settings::Settings;
use super::{Choice, Facts, LocalDemands, Rule, exact};

/// Settings of `fednova`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedNova {
    /// Strength of the pull towards the received model, 0 to 1000.
    pub mu: f64,
}

impl FedNova {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { mu: settings.number("mu", 0.0, 1000.0, 0.0) }
    }
}

impl Rule for FedNova {
    fn local(&self) -> LocalDemands {
        LocalDemands { proximal_mu: self.mu, ..LocalDemands::default() }
    }

    fn trains_with(&self, training: &LocalTraining) -> Result<(), String> {
        pull_is_stable("mu", self.mu, training)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let (pull, momentum) = (facts.training.learning_rate * facts.training.proximal_mu, facts.training.momentum);
        let examples = exact::sum(facts.contributions.iter().map(|c| f64::from(c.weight)));
        let parts: Vec<(f64, f64)> = facts
            .contributions
            .iter()
            .map(|c| (f64::from(c.weight) / examples, coefficients_sum(c.steps, momentum, pull)))
            .collect();
        if parts.iter().any(|(_, a)| !a.is_finite() || *a <= 0.0) {
            return Err("the local steps do not converge (learning_rate, mu, momentum): they have no mean".to_owned());
        }
        let effective = exact::sum(parts.iter().map(|(p, a)| p * a));
        Ok(Choice::combination(&parts.iter().map(|(p, a)| effective * p / a).collect::<Vec<_>>(), 0.0))
    }
}

/// |a| of `steps` steps: the recurrence as a matrix on (U, V, 1), to the power of `steps` by squaring.
fn coefficients_sum(steps: u32, momentum: f64, pull: f64) -> f64 {
    let mut square = [[1.0 - pull, momentum, 1.0], [-pull, momentum, 1.0], [0.0, 0.0, 1.0]];
    let mut result = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    let mut rest = steps;
    while rest > 0 {
        if rest & 1 == 1 {
            result = product(&result, &square);
        }
        square = product(&square, &square);
        rest >>= 1;
    }
    result[0][2]
}

fn product(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    a.map(|row| [0, 1, 2].map(|column| row[0] * b[0][column] + row[1] * b[1][column] + row[2] * b[2][column]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps one by one, each gradient's coefficient by itself.
    fn naive(steps: u32, momentum: f64, pull: f64) -> f64 {
        let coefficient = |of: u32| {
            let (mut u, mut v) = (0.0, 0.0);
            for step in 0..steps {
                v = momentum * v - pull * u + if step == of { 1.0 } else { 0.0 };
                u += v;
            }
            f64::abs(u)
        };
        (0..steps).map(coefficient).sum()
    }

    #[test]
    fn the_normaliser_is_the_norm_of_the_gradients_coefficients() {
        for (momentum, pull) in [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.5, 0.05), (0.25, 0.25)] {
            for steps in [1, 2, 7, 40] {
                let (found, expected) = (coefficients_sum(steps, momentum, pull), naive(steps, momentum, pull));
                assert!((found / expected - 1.0).abs() < 1e-12, "{momentum} {pull} {steps}: {found} {expected}");
            }
        }
        let (m, t) = (0.9_f64, 25);
        let closed = (f64::from(t) - m * (1.0 - exact::power(m, 25)) / (1.0 - m)) / (1.0 - m);
        assert!((coefficients_sum(25, m, 0.0) / closed - 1.0).abs() < 1e-12);
        assert!(coefficients_sum(u32::MAX, 0.9, 0.0).is_finite());
    }
}
