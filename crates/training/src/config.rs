//! What an operator decides for all jobs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How members of a round are chosen when more are eligible than there are places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Fastest measured nodes first, ties by name.
    CapabilityAware,
    /// Seeded by job and round.
    Random,
}

impl Selection {
    /// All kinds with their names.
    pub const ALL: [(&'static str, Self); 2] = [("capability_aware", Self::CapabilityAware), ("random", Self::Random)];
}

/// Settings of the training coordinator.
#[derive(Debug, Clone)]
pub struct TrainingConfig {
    /// Name in status, records and leases.
    pub coordinator_id: String,
    /// Jobs that run at once; more wait as `created`.
    pub max_concurrent_jobs: usize,
    /// Rounds of a job that names none.
    pub default_rounds: u32,
    /// Longest time of one attempt at a round.
    pub round_timeout: Duration,
    /// Fewest members of a round of a job that names none.
    pub min_participants: u32,
    /// Most members of a round of a job that names none.
    pub max_participants: u32,
    /// How long an invited node may stay silent before the round no longer waits for it.
    pub selection_timeout: Duration,
    /// Who is chosen.
    pub selection: Selection,
    /// Does a job that says nothing of privacy promise secure aggregation?
    pub enable_secure_aggregation: bool,
    /// Strategy of a job that names none: one of [`WITHOUT_SETTINGS`](crate::strategy::WITHOUT_SETTINGS).
    pub default_strategy: String,
    /// Does a job that names no strategy need one that is robust against dishonest nodes? Then it takes
    /// `default_strategy` if that is robust, else [`ROBUST_DEFAULT`](crate::strategy::ROBUST_DEFAULT).
    pub byzantine_tolerance: bool,
}

impl Default for TrainingConfig {
    /// The guide's values, but for promises: none is made that nobody asked for.
    fn default() -> Self {
        Self {
            coordinator_id: "aivillage_training_coord".into(),
            max_concurrent_jobs: 10,
            default_rounds: 100,
            round_timeout: Duration::from_secs(30 * 60),
            min_participants: 3,
            max_participants: 50,
            selection_timeout: Duration::from_secs(10),
            selection: Selection::CapabilityAware,
            enable_secure_aggregation: false,
            default_strategy: "fedavg".into(),
            byzantine_tolerance: false,
        }
    }
}
