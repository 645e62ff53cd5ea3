//! Federated averaging of nodes that are held near the model they received.
//!
//! Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2: node k minimises
//! `F_k(w) + mu/2 |w - w(r)|^2`; the server averages as `fedavg` (the paper samples nodes by their examples and takes the
//! plain mean, which has the same expectation; Flower weights by examples, and so do we).
//!
//! Settings: `mu` (0 to 1000, default 0.01; the paper tunes over 0.001, 0.01, 0.1, 1). learning_rate * mu must stay below
//! 1, or the pull overshoots.
//! Assumes that every node is honest, as `fedavg`. Costs nodes one more term in each gradient.

use serde::{Deserialize, Serialize};

use aivillage_base::wire::LocalTraining;

use super::settings::Settings;
use super::{Choice, Facts, LocalDemands, Rule, Weighting};

/// Settings of `fedprox`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedProx {
    /// Strength of the pull towards the received model, 0 to 1000.
    pub mu: f64,
}

impl FedProx {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { mu: settings.number("mu", 0.0, 1000.0, 0.01) }
    }
}

/// A pull of this strength must not overshoot its goal in one step.
pub(super) fn pull_is_stable(key: &str, strength: f64, training: &LocalTraining) -> Result<(), String> {
    let rate = training.learning_rate;
    if rate * strength < 1.0 {
        return Ok(());
    }
    Err(format!("{key} {strength} with learning_rate {rate} overshoots: their product must be less than 1"))
}

impl Rule for FedProx {
    fn local(&self) -> LocalDemands {
        LocalDemands { proximal_mu: self.mu, ..LocalDemands::default() }
    }

    fn trains_with(&self, training: &LocalTraining) -> Result<(), String> {
        pull_is_stable("mu", self.mu, training)
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }
}
