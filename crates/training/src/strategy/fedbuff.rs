//! Buffered asynchronous averaging: a model comes out whenever K updates are in, whichever model they started from.
//!
//! Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm 1. With s_k the rounds
//! published since the model that update d_k started from:
//! w(r+1) = w(r) + `server_learning_rate` / K sum_k d_k / (1 + s_k)^`staleness_exponent`.
//! Numbers of examples do not count, as in the paper.
//!
//! Settings: `buffer_size` K (1 to 100,000, default 10), `staleness_exponent` (0 to 10, default 0.5: the paper's
//! 1 / sqrt(1 + s)), `max_staleness` (0 to 1000, default 10; an older update is refused), `server_learning_rate` (1e-9 to
//! 1000, default 1).
//! Assumes that every node is honest, as `fedavg`. Never waits for the slowest node; which updates make a model depends on
//! when they come, so two runs differ (the record of each replays to its bits).

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, Buffer, Choice, Facts, Rule};

/// Settings of `fedbuff`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedBuff {
    /// Updates that make a new model, 1 to 100,000.
    pub buffer_size: u32,
    /// Power of 1 + staleness that an update is divided by, 0 to 10.
    pub staleness_exponent: f64,
    /// Oldest update that counts, in rounds, 0 to 1000.
    pub max_staleness: u32,
    /// Step size of the server, 1e-9 to 1000.
    pub server_learning_rate: f64,
}

impl FedBuff {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            buffer_size: settings.integer("buffer_size", 1, 100_000).unwrap_or(10),
            staleness_exponent: settings.number("staleness_exponent", 0.0, 10.0, 0.5),
            max_staleness: settings.integer("max_staleness", 0, 1000).unwrap_or(10),
            server_learning_rate: settings.server_learning_rate(1.0),
        }
    }
}

impl Rule for FedBuff {
    fn cohort_min(&self) -> (u32, String) {
        (self.buffer_size, format!("buffer_size is {}", self.buffer_size))
    }

    fn buffer(&self) -> Option<Buffer> {
        Some(Buffer { size: self.buffer_size, max_staleness: self.max_staleness })
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        #[expect(clippy::cast_precision_loss, reason = "at most 100,000 updates")]
        let count = facts.contributions.len() as f64;
        let damped = |staleness: u32| libm::pow(1.0 + f64::from(staleness), -self.staleness_exponent) / count;
        Ok(Choice::combination(&facts.contributions.iter().map(|c| damped(c.staleness)).collect::<Vec<_>>(), 0.0))
    }

    fn apply(&self, _: &Facts<'_>, block: &mut Block<'_, '_>) {
        block.advance(self.server_learning_rate);
    }
}
