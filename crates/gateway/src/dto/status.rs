//! `GET status`.

use aivillage_fog::Summary;
use aivillage_inference::request::InferenceStats;
use aivillage_training::view::{JobStatus, JobSummary, TrainingStats};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ports;

/// The house at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HouseStatus {
    /// Null while inference is off.
    pub(crate) inference: Option<InferenceStatus>,
    /// Null while training is off.
    pub(crate) training: Option<TrainingStatus>,
    /// RFC 3339, UTC.
    pub(crate) timestamp: String,
    /// Version of the program.
    pub(crate) version: String,
    /// Seconds since the gateway started.
    pub(crate) uptime_s: u64,
    /// Only for callers with a key or on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Configuration>,
    /// Configured promises that this build does not keep; only for callers with a key or on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_in_effect: Option<Vec<NotInEffect>>,
}

/// Where the configuration came from and why parts are off.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Configuration {
    /// The file, or that defaults are used.
    pub(crate) source: String,
    /// Address of the node link.
    pub(crate) link: Option<String>,
    /// Why a part is off; null = it runs.
    pub(crate) parts: Parts,
}

/// Why a part is off; null = it runs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Parts {
    pub(crate) inference: Option<String>,
    pub(crate) training: Option<String>,
}

/// A configured promise that this build does not keep.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotInEffect {
    /// Dotted path.
    key: String,
    /// Configured value.
    value: String,
    /// Why it has no effect.
    why: String,
    /// What to set instead.
    way_out: String,
}

impl From<ports::NotInEffect> for NotInEffect {
    fn from(n: ports::NotInEffect) -> Self {
        Self { key: n.key, value: n.value, why: n.why, way_out: n.way_out }
    }
}

/// The inference coordinator.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InferenceStatus {
    coordinator_id: String,
    statistics: InferenceStatistics,
}

/// total_requests = ok + failed + shed + expired + active.
#[derive(Debug, Serialize, ToSchema)]
struct InferenceStatistics {
    /// Models of the catalogue, in any state.
    registered_models: usize,
    /// Mean time from submission to answer, in milliseconds; 0 before the first.
    avg_response_time_ms: f64,
    total_requests: u64,
    ok: u64,
    failed: u64,
    /// Refused because full.
    shed: u64,
    /// Not answered in time.
    expired: u64,
    /// In work or waiting.
    active: u64,
    /// Waiting for a node.
    queued: u64,
    /// Connected nodes that take requests.
    serving_nodes: usize,
}

impl InferenceStatus {
    pub(crate) fn new(coordinator_id: String, stats: InferenceStats) -> Self {
        let statistics = InferenceStatistics {
            registered_models: stats.registered_models,
            avg_response_time_ms: stats.avg_response_time_ms,
            total_requests: stats.total_requests,
            ok: stats.ok,
            failed: stats.failed,
            shed: stats.shed,
            expired: stats.expired,
            active: stats.active,
            queued: stats.queued,
            serving_nodes: stats.serving_nodes,
        };
        Self { coordinator_id, statistics }
    }
}

/// The training coordinator.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TrainingStatus {
    coordinator_id: String,
    participant_summary: ParticipantSummary,
    jobs: JobCounts,
    rounds_published: u64,
    updates_counted: u64,
    updates_refused: u64,
}

/// total = connected + declared + offline.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ParticipantSummary {
    pub(crate) total: usize,
    pub(crate) connected: usize,
    /// Spoken of, never connected.
    pub(crate) declared: usize,
    pub(crate) offline: usize,
    /// Taking part in a round right now.
    pub(crate) active: u64,
}

impl ParticipantSummary {
    pub(crate) fn new(summary: Summary, active: u64) -> Self {
        Self {
            total: summary.total,
            connected: summary.connected,
            declared: summary.declared,
            offline: summary.offline,
            active,
        }
    }
}

/// Jobs by status.
#[derive(Debug, Default, Serialize, ToSchema)]
struct JobCounts {
    created: u64,
    running: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl JobCounts {
    fn of(jobs: &[JobSummary]) -> Self {
        let mut counts = Self::default();
        for job in jobs {
            *match job.status {
                JobStatus::Created => &mut counts.created,
                JobStatus::Running => &mut counts.running,
                JobStatus::Completed => &mut counts.completed,
                JobStatus::Failed => &mut counts.failed,
                JobStatus::Cancelled => &mut counts.cancelled,
            } += 1;
        }
        counts
    }
}

impl TrainingStatus {
    pub(crate) fn new(coordinator_id: String, summary: Summary, stats: TrainingStats, jobs: &[JobSummary]) -> Self {
        Self {
            coordinator_id,
            participant_summary: ParticipantSummary::new(summary, stats.participants_active),
            jobs: JobCounts::of(jobs),
            rounds_published: stats.rounds_published,
            updates_counted: stats.updates_counted,
            updates_refused: stats.updates_refused,
        }
    }
}
