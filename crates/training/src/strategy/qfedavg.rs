//! Fair averaging: nodes whose loss is high count for more.
//!
//! Li et al. 2020, "Fair Resource Allocation in Federated Learning", algorithm 2. With L = 1 / `learning_rate` of the local
//! training, d_k node k's change, F_k the loss of the received model on its rows (plus 1e-10, as Flower has it):
//! g_k = -L d_k,  h_k = q F_k^(q-1) |g_k|^2 + L F_k^q,  w(r+1) = w(r) + sum_k F_k^q L d_k / sum_k h_k.
//! Numbers of examples do not count. q = 0 is the plain mean.
//! Flower's examples hand in the loss of the training; we follow the paper: the loss before it.
//!
//! Settings: `q` (0 to 5, default 0.1).
//! Assumes honest nodes, also in what they say of their loss: it weights their update. A loss that is not a number from
//! 0 to 1e12 is refused. Costs a pass for the norms, and each node a pass over its rows.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Contribution, Facts, LocalDemands, Needs, Rule, exact};

/// Losses above are refused: their powers would leave the range of numbers.
const LOSS_MAX: f64 = 1e12;

/// Settings of `qfedavg`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QFedAvg {
    /// How much fairness, 0 to 5.
    pub q: f64,
}

impl QFedAvg {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { q: settings.number("q", 0.0, 5.0, 0.1) }
    }

    fn loss(contribution: &Contribution) -> Result<f64, String> {
        match contribution.initial_loss {
            None => Err("the loss of the received model is missing, which qfedavg weights by".to_owned()),
            Some(loss) if (0.0..=LOSS_MAX).contains(&loss) => Ok(loss + 1e-10),
            Some(loss) => Err(format!("a loss of {loss} cannot be used: qfedavg takes 0 to {LOSS_MAX:e}")),
        }
    }
}

impl Rule for QFedAvg {
    fn needs(&self) -> Needs {
        Needs::Norms
    }

    fn local(&self) -> LocalDemands {
        LocalDemands { initial_loss: true, ..LocalDemands::default() }
    }

    fn accepts(&self, contribution: &Contribution) -> Result<(), String> {
        Self::loss(contribution).map(|_| ())
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let lipschitz = 1.0 / facts.training.learning_rate;
        let losses: Vec<f64> = facts.contributions.iter().map(Self::loss).collect::<Result<_, _>>()?;
        let scaled: Vec<f64> = losses.iter().map(|loss| libm::pow(*loss, self.q) * lipschitz).collect();
        let steps = losses.iter().zip(&scaled).zip(&facts.geometry.norms_squared).map(|((loss, scaled), norm)| {
            let gradient = lipschitz * lipschitz * norm;
            self.q * libm::pow(*loss, self.q - 1.0) * gradient + scaled
        });
        let step = exact::sum(steps);
        Ok(Choice::combination(&scaled.iter().map(|scaled| scaled / step).collect::<Vec<_>>(), 0.0))
    }
}
