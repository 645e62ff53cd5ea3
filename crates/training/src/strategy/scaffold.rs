//! SCAFFOLD: control variates take the drift of each node out of its gradients.
//!
//! Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", algorithm 1, option II.
//! Node k steps along gradient + c - c_k and sends two planes: its change d_k of the weights and the change e_k of its
//! variate c_k (each as long as the model). With S the accepted set and N nodes in all:
//! w(r+1) = w(r) + `server_learning_rate` mean_S d_k,  c(r+1) = c(r) + |S|/N mean_S e_k,  c(0) = 0.
//! Means are unweighted, as in the paper, whose objective is the mean over nodes.
//! State: `control` c, as long as the model; each node keeps its c_k, committed with the coordinator's receipt.
//!
//! Settings: `server_learning_rate` (1e-9 to 1000, default 1), `population` N (1 to 10,000,000; absent = the number of
//! nodes invited to the round).
//! Assumes honest nodes that take part again and again, and plain SGD: a node's variate is a mean of its gradients, and
//! with momentum the change of its weights is none. Costs twice the bytes of `fedavg`.

use serde::{Deserialize, Serialize};

use aivillage_base::wire::LocalTraining;

use super::settings::Settings;
use super::{Block, Choice, Facts, LocalDemands, Rule, Weighting, narrow};

/// Settings of `scaffold`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaffold {
    /// Step size of the server, 1e-9 to 1000.
    pub server_learning_rate: f64,
    /// Nodes in all, 1 to 10,000,000; None = those invited to the round.
    pub population: Option<u32>,
}

impl Scaffold {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            server_learning_rate: settings.server_learning_rate(1.0),
            population: settings.integer("population", 1, 10_000_000),
        }
    }
}

impl Rule for Scaffold {
    fn planes(&self) -> usize {
        2
    }

    fn slots(&self) -> &'static [&'static str] {
        &["control"]
    }

    fn local(&self) -> LocalDemands {
        LocalDemands { control_variates: true, ..LocalDemands::default() }
    }

    fn trains_with(&self, training: &LocalTraining) -> Result<(), String> {
        if training.momentum == 0.0 {
            return Ok(());
        }
        Err(format!(
            "momentum {} cannot be used with scaffold, whose control variates are means of plain gradients: leave \
             momentum out",
            training.momentum
        ))
    }

    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting::Equal)
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        Ok(Choice::unweighted(facts.contributions.len()))
    }

    fn apply(&self, facts: &Facts<'_>, block: &mut Block<'_, '_>) {
        block.advance(self.server_learning_rate);
        let population = self.population.unwrap_or(facts.population).max(facts.accepted);
        let part = f64::from(facts.accepted) / f64::from(population);
        for (c, e) in block.state[0].iter_mut().zip(block.second) {
            *c = narrow(f64::from(*c) + part * e);
        }
    }
}
