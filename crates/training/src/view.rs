//! What outsiders are told about jobs and rounds: snapshots made for reading, never stored.

use aivillage_base::wire::{BlobRef, Declined, LocalMetrics};
use aivillage_base::{JobId, NodeName};

use crate::spec::JobSpec;

/// A job's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// Accepted, waiting for its turn.
    Created,
    /// Its rounds are under way.
    Running,
    /// All rounds are published; terminal.
    Completed,
    /// It cannot go on; terminal.
    Failed,
    /// Ended by its owner; terminal.
    Cancelled,
}

impl JobStatus {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// True if nothing can follow.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Created | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }
}

/// Where a round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for enough eligible nodes.
    Recruiting,
    /// Participants agree on keys (secure aggregation).
    Keying,
    /// Waiting for updates.
    Collecting,
    /// The survivors open what hides their sum (secure aggregation).
    Unmasking,
    /// Computing and storing the new model.
    Publishing,
    /// Published.
    Done,
    /// Given up; a new attempt follows.
    Abandoned,
}

impl Phase {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recruiting => "recruiting",
            Self::Keying => "keying",
            Self::Collecting => "collecting",
            Self::Unmasking => "unmasking",
            Self::Publishing => "publishing",
            Self::Done => "done",
            Self::Abandoned => "abandoned",
        }
    }
}

/// One member of a round and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    /// Enrolled name.
    pub name: NodeName,
    /// `invited`, `declined`, `failed`, `counted`, `refused`, `silent`, or `carried` (at work for a later round).
    pub status: &'static str,
    /// Why, where there is a why.
    pub reason: Option<String>,
    /// Its refusal with its signature, if it declined.
    pub declined: Option<Declined>,
    /// Weight of its update, if counted: as the node declares it, at most the job's `max_examples`.
    pub weight: Option<u32>,
    /// Optimiser steps of its training, if counted.
    pub steps: Option<u32>,
    /// Rounds published since the model that its update started from, if counted; 0 in synchronous jobs.
    pub staleness: Option<u32>,
    /// Length of its update in bytes, if counted.
    pub bytes: Option<u64>,
    /// Values clipped to the grid's bound, if counted.
    pub clipped: Option<u64>,
    /// Its own measurements, if counted.
    pub metrics: Option<LocalMetrics>,
}

/// One attempt at a round.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundView {
    /// Counts from 1.
    pub round: u32,
    /// Counts from 1 within the round.
    pub attempt: u32,
    /// Where it is.
    pub phase: Phase,
    /// Why it was abandoned or what it waits for.
    pub reason: Option<String>,
    /// Who was invited and what became of each.
    pub members: Vec<MemberView>,
    /// Weighted mean of the members' training loss.
    pub loss: Option<f64>,
    /// Weighted mean of the members' accuracy with the model they *received*.
    pub accuracy: Option<f64>,
    /// Bytes of updates received and of models to be fetched.
    pub bytes: u64,
    /// True under secure aggregation: of single updates nothing is known but their size and their count of clipped values.
    pub secure: bool,
    /// Sum of the updates' weights, where the weights themselves are not known.
    pub weight: Option<u64>,
    /// The model that came out.
    pub model: Option<BlobRef>,
    /// Wall clock at opening and at the end, in Unix milliseconds.
    pub opened_ms: Option<u64>,
    /// See `opened_ms`.
    pub closed_ms: Option<u64>,
    /// From opening to end, in milliseconds, restarts included.
    pub elapsed_ms: u64,
}

/// A whole job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// What was asked, with all defaults filled in.
    pub spec: JobSpec,
    /// Its life.
    pub status: JobStatus,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// Published rounds.
    pub rounds_done: u32,
    /// The attempt under way, if any.
    pub current: Option<RoundView>,
    /// Ended attempts, oldest first.
    pub rounds: Vec<RoundView>,
    /// The newest model.
    pub model: Option<BlobRef>,
    /// The round whose model did best on the nodes' own data (they say so when they receive it), if known.
    pub best_round: Option<u32>,
    /// Catalogue entry, once completed.
    pub model_id: Option<String>,
    /// Wall clock at creation, in Unix milliseconds.
    pub created_ms: u64,
    /// Wall clock at the end, in Unix milliseconds.
    pub ended_ms: Option<u64>,
}

/// A job in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSummary {
    /// Its id.
    pub job_id: JobId,
    /// Its name.
    pub job_name: String,
    /// Its life.
    pub status: JobStatus,
    /// Published rounds.
    pub rounds_done: u32,
    /// Rounds to publish.
    pub total_rounds: u32,
    /// Wall clock at creation, in Unix milliseconds.
    pub created_ms: u64,
}

/// Something that happened to a job; `sequence` grows by one with each event since the coordinator started.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// Order within the job.
    pub sequence: u64,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// The job's status changed.
    Status {
        /// New status.
        status: JobStatus,
        /// Why, if there is a why.
        reason: Option<String>,
    },
    /// The round waits for eligible nodes.
    Recruiting {
        /// Round.
        round: u32,
        /// What it waits for.
        waiting_for: String,
    },
    /// Nodes were invited.
    RoundOpened {
        /// Round.
        round: u32,
        /// Attempt.
        attempt: u32,
        /// Invited nodes.
        invited: Vec<NodeName>,
    },
    /// A member's state changed.
    Member {
        /// Round.
        round: u32,
        /// The member.
        member: Box<MemberView>,
    },
    /// A round ended: published or abandoned.
    RoundEnded(Box<RoundView>),
}

/// Figures over all jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrainingStats {
    /// Jobs that have not ended.
    pub unfinished: u64,
    /// Rounds published since start.
    pub rounds_published: u64,
    /// Updates counted since start.
    pub updates_counted: u64,
    /// Updates refused since start.
    pub updates_refused: u64,
    /// Nodes taking part in a round right now.
    pub participants_active: u64,
}
