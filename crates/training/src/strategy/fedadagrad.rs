//! Adagrad at the server: each coordinate's step shrinks with all it has moved so far.
//!
//! Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedAdagrad), see `fedopt`:
//! v(r) = v(r-1) + d^2; rate = eta.
//!
//! Settings: `eta` (1e-9 to 1000, default 0.1), `beta_1` (0 to 0.999999, default 0), `tau` (1e-12 to 1, default 0.001):
//! Flower's.
//! Assumes that every node is honest, as `fedavg`. Costs two vectors of state beside it.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, Choice, Facts, Rule, Weighting, fedopt};

/// Settings of `fedadagrad`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAdagrad {
    /// Step size of the server, 1e-9 to 1000.
    pub eta: f64,
    /// Decay of the first moment, 0 to 0.999999.
    pub beta_1: f64,
    /// Added to the root of the second moment, 1e-12 to 1.
    pub tau: f64,
}

impl FedAdagrad {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { eta: settings.eta(0.1), beta_1: settings.decay("beta_1", 0.0), tau: settings.tau() }
    }
}

impl Rule for FedAdagrad {
    fn slots(&self) -> &'static [&'static str] {
        fedopt::SLOTS
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }

    fn apply(&self, _: &Facts<'_>, block: &mut Block<'_, '_>) {
        fedopt::step(block, self.eta, self.beta_1, self.tau, |v, d| v + d * d);
    }
}
