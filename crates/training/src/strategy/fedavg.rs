//! Federated averaging: model + weighted mean of the changes.
//!
//! McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1:
//! w(r+1) = w(r) + sum_k n_k d_k / sum_k n_k, where d_k is node k's change of the weights on the round's grid (as long as
//! the model) and n_k its number of examples.
//! Settings: none. Assumes that every node is honest: one update can move the model as far as the grid's range reaches.
//! Costs one pass over the updates.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Facts, Rule, Weighting};

/// `fedavg` has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAvg {}

impl FedAvg {
    pub(super) fn read(_: &mut Settings<'_>) -> Self {
        Self {}
    }
}

impl Rule for FedAvg {
    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }
}
