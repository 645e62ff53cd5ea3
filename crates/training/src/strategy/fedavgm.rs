//! Federated averaging with momentum at the server.
//!
//! Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
//! Classification", section 4.3. With d the mean of the changes weighted by examples:
//! v(r) = `server_momentum` v(r-1) + d,  w(r+1) = w(r) + `server_learning_rate` v(r),  v(0) = 0.
//! State: `momentum` v, as long as the model.
//!
//! Settings: `server_learning_rate` (1e-9 to 1000, default 1), `server_momentum` (0 to 0.999999, default 0.9).
//! Flower's default momentum is 0, which makes it `fedavg`; the paper's value is ours.
//! Assumes that every node is honest, as `fedavg`. Costs one vector of state beside it.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, Choice, Facts, Rule, Weighting, narrow};

/// Settings of `fedavgm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAvgM {
    /// Step size of the server, 1e-9 to 1000.
    pub server_learning_rate: f64,
    /// Part of the last round's direction that stays, 0 to 0.999999.
    pub server_momentum: f64,
}

impl FedAvgM {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            server_learning_rate: settings.server_learning_rate(1.0),
            server_momentum: settings.number("server_momentum", 0.0, 0.999_999, 0.9),
        }
    }
}

impl Rule for FedAvgM {
    fn slots(&self) -> &'static [&'static str] {
        &["momentum"]
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }

    fn apply(&self, _: &Facts<'_>, block: &mut Block<'_, '_>) {
        let velocity = block.state[0].iter_mut();
        for ((w, v), d) in block.weights.iter_mut().zip(velocity).zip(block.direction) {
            let next = self.server_momentum * f64::from(*v) + d;
            *v = narrow(next);
            *w = narrow(f64::from(*w) + self.server_learning_rate * next);
        }
    }
}
