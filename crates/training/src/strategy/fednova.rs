//! Normalised averaging: nodes that took more steps do not pull the model towards their own optimum.
//!
//! Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", equation 9
//! with tau_eff = sum_k p_k |a_k|, p_k = n_k / sum n. With d_k the change of a node that took t_k steps:
//! w(r+1) = w(r) + tau_eff sum_k p_k d_k / |a_k|.
//! |a_k| is the sum of the coefficients with which the t_k gradients enter d_k / -learning_rate. For SGD as nodes do it
//! (v <- momentum v + g + mu (w - w(r)), w <- w - learning_rate v) it is U(t_k) of the recurrence V <- momentum V - alpha U + 1,
//! U <- U + V from zero, with alpha = learning_rate mu. Without momentum and mu it is t_k; with momentum alone it is
//! (t - m (1 - m^t) / (1 - m)) / (1 - m), with mu alone (1 - (1 - alpha)^t) / alpha: the paper's values. It is the 1-norm of
//! a_k, as the paper has it, while no coefficient is negative, that is alpha <= (1 - sqrt(momentum))^2; it is taken as 1 to 2^23.
//!
//! All of it is made of integers that each node can tell of itself (`Part`), so sums of them are all that is needed: with S a
//! power of two, m_k = round(n_k S / |a_k|) and c_k = round(n_k S |a_k|), w(r+1) = w(r) + sum m_k d_k / D with
//! D = (S sum n_k)^2 / sum c_k. S is chosen from the most examples that a node is expected to have, as large as a sum of the
//! whole cohort allows (2^30 over those examples): a factor is wrong by less than |a_k| / 2 S n_k of itself.
//!
//! Settings: `mu` of a proximal term (0 to 1000, default 0). learning_rate * mu must stay below 1.
//! Assumes honest nodes, also in what they say of their steps. Costs what `fedavg` costs.

use serde::{Deserialize, Serialize};

use aivillage_base::wire::LocalTraining;

use super::fedprox::pull_is_stable;
use super::settings::Settings;
use super::{Choice, Contribution, Facts, LocalDemands, Rule, Weighting};

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

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Steps)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let largest = || facts.contributions.iter().map(|c| c.weight).max().unwrap_or(1);
        let scale = Scale::new(facts.examples_max.unwrap_or_else(largest), facts.population);
        let part = |c: &Contribution| Part::of(c.weight, c.steps, facts.training, scale);
        let parts: Vec<Part> = facts.contributions.iter().map(part).collect::<Result<_, _>>()?;
        let examples = parts.iter().map(|part| u64::from(part.examples)).sum();
        let coefficients = parts.iter().map(|part| u128::from(part.coefficients)).sum();
        let weights = parts.iter().map(|part| part.factor).collect();
        Ok(Choice::Mean { weights, divisor: scale.divisor(examples, coefficients), centre: 0.0 })
    }
}

/// Largest |a| that is told from larger ones.
const COEFFICIENTS_MAX: f64 = 8_388_608.0;
/// Binary places of the largest factor.
const FACTOR_BITS: u32 = 30;
/// Binary places of the largest sum of factors: times values of 24 bits it stays below 2^62.
const FACTORS_BITS: u32 = 39;
/// Largest [`Part::coefficients`] of a scale that a secure round can have.
pub(crate) const PART_MAX: u64 = 1 << (FACTOR_BITS + 23);

/// S, and the examples that it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    examples_max: u32,
    /// log2 of S.
    bits: u32,
}

impl Scale {
    /// For updates of up to `examples_max` examples, of which a round sums up to `cohort`.
    pub(crate) fn new(examples_max: u32, cohort: u32) -> Self {
        let places = |n: u32| u64::from(n.max(1)).next_power_of_two().ilog2();
        let largest = FACTOR_BITS.min(FACTORS_BITS.saturating_sub(places(cohort)));
        Self { examples_max: examples_max.max(1), bits: largest.saturating_sub(places(examples_max)) }
    }

    /// log2 of S.
    pub(crate) fn bits(self) -> u32 {
        self.bits
    }

    /// The largest factor.
    pub(crate) fn factor_max(self) -> u64 {
        u64::from(self.examples_max) << self.bits
    }

    /// S.
    fn factor(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a power of two")]
        let factor = (1_u64 << self.bits) as f64;
        factor
    }

    /// D.
    pub(crate) fn divisor(self, examples: u64, coefficients: u128) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "rounded once, the same way everywhere")]
        let (examples, coefficients) = (examples as f64 * self.factor(), coefficients as f64);
        examples * examples / coefficients
    }
}

/// What one update is to the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// `n_k`.
    pub(crate) examples: u32,
    /// `m_k`, at least 1.
    pub(crate) factor: u32,
    /// `c_k`, at least S `n_k`.
    pub(crate) coefficients: u64,
}

impl Part {
    /// Of `steps` steps over `examples` examples, of which no more count than the scale is made for.
    ///
    /// # Errors
    /// One sentence: there is no |a|.
    pub(crate) fn of(examples: u32, steps: u32, training: &LocalTraining, scale: Scale) -> Result<Self, String> {
        let a = coefficients_sum(steps, training.momentum, training.learning_rate * training.proximal_mu);
        if !a.is_finite() {
            return Err("the local steps do not converge (learning_rate, mu, momentum): they have no mean".to_owned());
        }
        let a = a.clamp(1.0, COEFFICIENTS_MAX);
        let examples = examples.clamp(1, scale.examples_max);
        let scaled = f64::from(examples) * scale.factor();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^32 and to 2^56")]
        let (factor, coefficients) = ((scaled / a).round_ties_even() as u32, (scaled * a).round_ties_even() as u64);
        Ok(Self { examples, factor: factor.max(1), coefficients })
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
    use super::super::exact;
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

    proptest::proptest! {
        #[test]
        fn integers_give_what_the_formula_gives(
            nodes in proptest::collection::vec((1..=5000_u32, 1..=3_u32), 3..40),
            momentum in 0.0..0.95_f64,
            pull in 0.0..0.3_f64,
        ) {
            let training = LocalTraining {
                epochs: 1, batch_size: 1, learning_rate: 0.5, momentum, weight_decay: 0.0, proximal_mu: pull / 0.5,
            };
            let node = |(weight, epochs): &(u32, u32)| {
                Contribution { weight: *weight, steps: weight * epochs, initial_loss: None, staleness: 0 }
            };
            let contributions: Vec<Contribution> = nodes.iter().map(node).collect();
            let facts = Facts {
                round: 1,
                training: &training,
                population: 40,
                examples_max: Some(5000),
                accepted: 1,
                contributions: &contributions,
                geometry: &super::super::Geometry::default(),
            };
            let Choice::Mean { weights, divisor, .. } = FedNova { mu: 0.0 }.choose(&facts).unwrap() else {
                panic!("a mean");
            };
            let examples: f64 = nodes.iter().map(|node| f64::from(node.0)).sum();
            let normaliser = |c: &Contribution| coefficients_sum(c.steps, momentum, pull).max(1.0);
            let effective: f64 = contributions.iter().map(|c| f64::from(c.weight) / examples * normaliser(c)).sum();
            for (c, weight) in contributions.iter().zip(weights) {
                let expected = effective * f64::from(c.weight) / examples / normaliser(c);
                let found = f64::from(weight) / divisor;
                // Half a unit of the factor, and what the sum of coefficients is rounded by.
                let bound = 0.51 / f64::from(weight) + 1e-6;
                proptest::prop_assert!((found / expected - 1.0).abs() < bound, "{c:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn no_scale_leaves_the_sums_without_room() {
        for cohort in [1, 3, 128, 513, 10_000, u32::MAX] {
            for examples in [1, 2, 1000, 1 << 24, u32::MAX] {
                let scale = Scale::new(examples, cohort);
                let most = u128::from(scale.factor_max()) * u128::from(cohort);
                assert!(scale.bits() == 0 || most <= 1 << FACTORS_BITS, "{examples} {cohort}");
                assert!(u32::try_from(scale.factor_max()).is_ok());
            }
        }
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
