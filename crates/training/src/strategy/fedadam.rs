//! Adam at the server.
//!
//! Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedAdam), see `fedopt`:
//! v(r) = beta_2 v(r-1) + (1 - beta_2) d^2,  rate = eta sqrt(1 - beta_2^(r+1)) / (1 - beta_1^(r+1)) in round r = 1, 2, ..
//! The correction of the bias is not in the paper's algorithm; it is Flower's (Kingma and Ba 2015, end of section 2, with
//! the exponent one ahead), and we follow Flower, so that settings can be carried over.
//!
//! Settings: `eta` (1e-9 to 1000, default 0.1), `beta_1` (0 to 0.999999, default 0.9), `beta_2` (0 to 0.999999, default
//! 0.99), `tau` (1e-12 to 1, default 0.001).
//! Assumes that every node is honest, as `fedavg`. Costs two vectors of state beside it.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, Choice, Facts, Rule, Weighting, exact, fedopt};

/// Settings of `fedadam`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAdam {
    /// Step size of the server, 1e-9 to 1000.
    pub eta: f64,
    /// Decay of the first moment, 0 to 0.999999.
    pub beta_1: f64,
    /// Decay of the second moment, 0 to 0.999999.
    pub beta_2: f64,
    /// Added to the root of the second moment, 1e-12 to 1.
    pub tau: f64,
}

impl FedAdam {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            eta: settings.eta(0.1),
            beta_1: settings.decay("beta_1", 0.9),
            beta_2: settings.decay("beta_2", 0.99),
            tau: settings.tau(),
        }
    }
}

impl Rule for FedAdam {
    fn slots(&self) -> &'static [&'static str] {
        fedopt::SLOTS
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }

    fn apply(&self, facts: &Facts<'_>, block: &mut Block<'_, '_>) {
        let rounds = facts.round.saturating_add(1);
        let corrected = (1.0 - exact::power(self.beta_2, rounds)).sqrt() / (1.0 - exact::power(self.beta_1, rounds));
        let second = |v: f64, d: f64| self.beta_2 * v + (1.0 - self.beta_2) * (d * d);
        fedopt::step(block, self.eta * corrected, self.beta_1, self.tau, second);
    }
}
