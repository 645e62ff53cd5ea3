//! Ditto: beside the common model, each node trains one of its own that is drawn towards it and never leaves.
//!
//! Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", algorithm 1. The server averages
//! as `fedavg` (the paper's global objective is free to choose); node k minimises F_k(v) + lambda/2 |v - w(r)|^2 over its
//! own v, which it keeps from round to round.
//!
//! Settings: `lambda` (1e-6 to 1000, default 0.1; small = the node alone, large = the common model). learning_rate *
//! lambda must stay below 1, or the pull overshoots.
//! Assumes that every node is honest as far as the common model goes. Costs nodes a second training.

use serde::{Deserialize, Serialize};

use aivillage_base::wire::LocalTraining;

use super::fedprox::pull_is_stable;
use super::settings::Settings;
use super::{Choice, Facts, LocalDemands, Rule, Weighting};

/// Settings of `ditto`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ditto {
    /// Strength of the pull towards the common model, 1e-6 to 1000.
    pub lambda: f64,
}

impl Ditto {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { lambda: settings.number("lambda", 1e-6, 1000.0, 0.1) }
    }
}

impl Rule for Ditto {
    fn local(&self) -> LocalDemands {
        LocalDemands { personal_lambda: Some(self.lambda), ..LocalDemands::default() }
    }

    fn trains_with(&self, training: &LocalTraining) -> Result<(), String> {
        pull_is_stable("lambda", self.lambda, training)
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Examples)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::by_examples(facts.contributions))
    }
}
