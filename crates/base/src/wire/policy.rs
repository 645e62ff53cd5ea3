//! What a node's owner allows, as node.yaml says it and as the node's report tells it.
//!
//! The node enforces it (`training::participant::policy`); the coordinator only foretells from it who would refuse a job.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// What a node allows, whatever a job says: `privacy` of node.yaml.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePolicy {
    /// True: the coordinator never sees a single update of this node.
    pub require_secure_aggregation: bool,
    /// Fewest updates in a sum that may be opened, at least 3; None = as few as the protocol allows. It implies
    /// `require_secure_aggregation`.
    pub min_cohort: Option<u32>,
    /// Who may have created a job, by the name that the gateway knows them by; None = anybody.
    pub allowed_publishers: Option<Vec<String>>,
    /// Recipes it trains; None = all, empty = none.
    pub allowed_recipes: Option<Vec<String>>,
    /// Types of job it works for; None = all.
    pub allowed_job_types: Option<Vec<String>>,
    /// Largest bound on the norm of its update, > 0; a round without a bound is refused. None = any bound or none.
    pub max_clip: Option<f64>,
    /// Most rounds of a job it takes part in; None = any number.
    pub max_rounds: Option<u32>,
    /// Updates after their round.
    pub retain_updates: RetainUpdates,
    /// Keys of the helpers that it trusts not to work with the gateway; empty = it takes part in no job with a helper.
    pub helpers: Vec<NodeId>,
    /// When it takes part; None = always.
    pub hours: Option<Vec<Hours>>,
}

/// May the gateway keep a node's updates after their round, where a job asks for it?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetainUpdates {
    /// A job that asks is refused.
    Never,
    /// The node takes part, and its own updates are deleted with their round.
    #[default]
    Withheld,
    /// They may be kept.
    IfAsked,
}

/// A part of each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hours {
    /// First minute of the day in it, 0 to 1439.
    pub from_min: u16,
    /// First minute no longer in it; not after `from_min` = on the next day.
    pub to_min: u16,
    /// Minutes that the clock of these times is ahead of UTC, -840 to 840.
    pub offset_min: i16,
}
