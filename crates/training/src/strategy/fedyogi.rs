//! Yogi at the server: Adam whose second moment changes slowly in both directions.
//!
//! Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2 (FedYogi), see `fedopt`:
//! v(r) = v(r-1) - (1 - beta_2) d^2 sign(v(r-1) - d^2), with sign(0) = 0; rate = eta.
//!
//! Settings: `eta` (1e-9 to 1000, default 0.01), `beta_1` (0 to 0.999999, default 0.9), `beta_2` (0 to 0.999999, default
//! 0.99), `tau` (1e-12 to 1, default 0.001): Flower's.
//! Assumes that every node is honest, as `fedavg`. Costs two vectors of state beside it.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, Choice, Facts, Rule, Weighting, fedopt};

/// Settings of `fedyogi`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedYogi {
    /// Step size of the server, 1e-9 to 1000.
    pub eta: f64,
    /// Decay of the first moment, 0 to 0.999999.
    pub beta_1: f64,
    /// Decay of the second moment, 0 to 0.999999.
    pub beta_2: f64,
    /// Added to the root of the second moment, 1e-12 to 1.
    pub tau: f64,
}

impl FedYogi {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            eta: settings.eta(0.01),
            beta_1: settings.decay("beta_1", 0.9),
            beta_2: settings.decay("beta_2", 0.99),
            tau: settings.tau(),
        }
    }
}

impl Rule for FedYogi {
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
        let second = |v: f64, d: f64| {
            let step = (1.0 - self.beta_2) * (d * d);
            match v.total_cmp(&(d * d)) {
                Ordering::Greater => v - step,
                Ordering::Equal => v,
                Ordering::Less => v + step,
            }
        };
        fedopt::step(block, self.eta, self.beta_1, self.tau, second);
    }
}
