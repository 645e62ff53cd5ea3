//! Which node takes a request: a pure function of the request's needs and of what the nodes look like now.
//!
//! Hard rules (kind of node, memory) hold for every strategy; preference, speed, failures and load only order what is
//! left. Ties are broken by name, so the same arguments give the same choice. Must not know clocks, messages, stores.

use std::collections::BTreeSet;

use aivillage_base::wire::{NodeType, Peer};
use aivillage_base::{NodeId, NodeName};

use crate::config::Strategy;

#[cfg(test)]
mod tests;

/// What a request needs of a node.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Needs {
    /// One of these kinds; empty = any.
    pub node_types: Vec<NodeType>,
    /// Preferably one of these kinds.
    pub preferred_node_types: Vec<NodeType>,
    /// At least this much memory, in 2^30 bytes.
    pub memory_gb: f64,
    /// Preferably this fast, in 10^9 operations a second.
    pub compute_gflops: f64,
}

/// A connected node that takes requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Who it is.
    pub peer: Peer,
    /// Kinds of node it is.
    pub node_types: Vec<NodeType>,
    /// Measured speed, in 10^9 operations a second.
    pub gflops: f64,
    /// Memory, in 2^30 bytes.
    pub memory_gb: f64,
    /// Requests handed to it and not answered.
    pub in_flight: usize,
    /// Failures since its last success.
    pub failures: u32,
}

/// What the planner says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// This one.
    Choice(Peer),
    /// Nodes would do, but each has as much as it may: wait for an answer.
    Busy,
    /// Every node that would do has failed on this request.
    Exhausted,
    /// No node would do; [`missing`] says why.
    Nobody,
}

/// Bounds and memory of the planner.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// How to order.
    pub strategy: Strategy,
    /// Most requests in work on one node.
    pub per_node_in_flight: usize,
    /// Who was chosen last, for `round_robin`.
    pub last: Option<&'a NodeName>,
}

/// Chooses a node for `needs` among `candidates`, leaving out `failed`.
#[must_use]
pub fn plan(needs: &Needs, candidates: &[Candidate], failed: &BTreeSet<NodeId>, rules: Rules<'_>) -> Plan {
    let able: Vec<&Candidate> = candidates.iter().filter(|c| able(needs, c)).collect();
    if able.is_empty() {
        return Plan::Nobody;
    }
    let willing: Vec<&Candidate> = able.into_iter().filter(|c| !failed.contains(&c.peer.id)).collect();
    if willing.is_empty() {
        return Plan::Exhausted;
    }
    let free = || willing.iter().copied().filter(|c| c.in_flight < rules.per_node_in_flight);
    let best = match rules.strategy {
        Strategy::CapabilityAware => free().min_by(|a, b| {
            let key = |c: &Candidate| (!preferred(needs, c), c.gflops < needs.compute_gflops, c.failures);
            key(a).cmp(&key(b)).then(load(a).total_cmp(&load(b))).then_with(|| a.peer.name.cmp(&b.peer.name))
        }),
        Strategy::LeastLoaded => {
            free().min_by_key(|c| (!preferred(needs, c), c.in_flight, c.failures, c.peer.name.clone()))
        }
        Strategy::RoundRobin => free().min_by_key(|c| {
            // Names after the last one come first, then from the beginning: a ring.
            let wrapped = rules.last.is_some_and(|last| c.peer.name <= *last);
            (!preferred(needs, c), wrapped, c.peer.name.clone())
        }),
    };
    best.map_or(Plan::Busy, |c| Plan::Choice(c.peer.clone()))
}

fn able(needs: &Needs, c: &Candidate) -> bool {
    shares(&needs.node_types, &c.node_types) && c.memory_gb >= needs.memory_gb
}

/// True if the lists have a kind in common, or nothing is asked for.
fn shares(asked: &[NodeType], has: &[NodeType]) -> bool {
    asked.is_empty() || asked.iter().any(|t| has.contains(t))
}

fn preferred(needs: &Needs, c: &Candidate) -> bool {
    shares(&needs.preferred_node_types, &c.node_types)
}

/// Expected wait: requests in work, this one included, over speed.
fn load(c: &Candidate) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful of requests")]
    let requests = (c.in_flight + 1) as f64;
    // A node that measured nothing is taken as very slow, not as infinitely so.
    requests / c.gflops.max(1e-3)
}

/// A sentence about why no candidate would do.
#[must_use]
pub fn missing(needs: &Needs, candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        return "no node that takes requests is connected".to_owned();
    }
    let of_kind = candidates.iter().filter(|c| shares(&needs.node_types, &c.node_types)).count();
    if of_kind == 0 {
        return format!(
            "none of the {} connected nodes is of a kind that the model supports ({})",
            candidates.len(),
            names(&needs.node_types)
        );
    }
    format!(
        "none of the {of_kind} connected nodes of a supported kind has the {} GB of memory that the model needs",
        needs.memory_gb
    )
}

fn names(types: &[NodeType]) -> String {
    let name = |t: &NodeType| NodeType::ALL.iter().find(|(_, known)| known == t).map_or("", |(name, _)| name);
    types.iter().map(name).collect::<Vec<_>>().join(", ")
}
