//! Training jobs: what is told about them.

use aivillage_base::time::rfc3339;
use aivillage_base::wire::secure::Withstands;
use aivillage_base::wire::{BlobRef, DataRequirements, Declined, LocalMetrics};
use aivillage_training::JobSpec;
use aivillage_training::spec::STANDARD;
use aivillage_training::view::{EventKind, JobSummary, JobView, MemberView, RoundView};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::dto::when;

/// Bytes that can be fetched.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Blob {
    /// BLAKE3, 64 hex characters.
    pub(crate) blake3: String,
    /// Length.
    pub(crate) bytes: u64,
}

impl From<BlobRef> for Blob {
    fn from(blob: BlobRef) -> Self {
        Self { blake3: blob.digest.to_string(), bytes: blob.bytes }
    }
}

/// A job with its rounds.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobAnswer {
    job_id: String,
    job_name: String,
    /// Who created it: whom their API key was made for, or `anonymous`.
    publisher: String,
    /// `created`, `running`, `completed`, `failed` or `cancelled`.
    status: &'static str,
    /// Of the attempt under way: `recruiting`, `keying`, `collecting`, `unmasking`, `publishing`; null when there is none.
    phase: Option<&'static str>,
    /// Why it failed, or what it waits for.
    reason: Option<String>,
    job_type: &'static str,
    /// Recipe or catalogue model.
    model_architecture: String,
    /// Published rounds.
    rounds_completed: u32,
    total_rounds: u32,
    min_participants: u32,
    max_participants: u32,
    mobile_friendly: bool,
    /// `secure_aggregation`, or none: then the gateway sees each node's update.
    privacy_techniques: Vec<String>,
    /// Parameters of the techniques.
    privacy: Privacy,
    strategy: String,
    /// The strategy's settings, defaults included.
    strategy_config: Map<String, Value>,
    /// Does the job ask to keep updates after their round?
    retain_updates: bool,
    /// `{dataset, input, classes, min_rows}`: which data nodes must have.
    #[schema(value_type = Object)]
    dataset_requirements: DataRequirements,
    hyperparameters: Hyperparameters,
    /// Seed of all training randomness.
    seed: u64,
    /// Of the newest published round, and bytes over all rounds shown.
    metrics: JobMetrics,
    /// The round whose model did best on the nodes' own data, as far as they have said.
    best_round: Option<u32>,
    /// The newest model.
    model: Option<Blob>,
    /// Its catalogue entry, once the job is completed.
    model_id: Option<String>,
    created_at: String,
    ended_at: Option<String>,
    /// The attempt under way.
    current_round: Option<Round>,
    /// Ended attempts, oldest first.
    rounds: Vec<Round>,
}

/// Parameters of privacy techniques; null = the technique is not used, or there is no such bound.
#[derive(Debug, Serialize, ToSchema)]
struct Privacy {
    /// Share of a cohort that may work with the gateway.
    corrupt: Option<f64>,
    /// Share of a cohort that may leave at any step.
    dropout: Option<f64>,
    /// `semi_malicious`: the gateway may lie about who is left; `curious`: it only reads.
    adversary: Option<&'static str>,
    /// Neighbours of each participant; null = as many as these assumptions need.
    neighbours: Option<u32>,
    /// `cohort`: its members hold shares of what hides the sum; `two_helper`: a helper takes the masks away.
    variant: Option<&'static str>,
    /// Name of the helper.
    helper: Option<String>,
    /// Largest L2 norm of an update, kept by each honest node.
    clip: Option<f64>,
}

impl Privacy {
    fn of(spec: &JobSpec) -> Self {
        let adversary = |w: Withstands| if w.lying_coordinator { "semi_malicious" } else { "curious" };
        // With a helper there is nothing that a threshold has to withstand.
        let cohort = spec.secure.filter(|_| spec.helper.is_none());
        Self {
            corrupt: cohort.map(|w| w.corrupt),
            dropout: cohort.map(|w| w.dropout),
            adversary: cohort.map(adversary),
            neighbours: cohort.and_then(|w| w.neighbours),
            variant: spec.secure.map(|_| if spec.helper.is_some() { "two_helper" } else { "cohort" }),
            helper: spec.helper.as_ref().map(ToString::to_string),
            clip: spec.clip,
        }
    }
}

/// How nodes train.
#[derive(Debug, Serialize, ToSchema)]
struct Hyperparameters {
    local_epochs: u32,
    batch_size: u32,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    max_examples: u32,
    round_timeout_s: f64,
}

/// Figures of a job.
#[derive(Debug, Serialize, ToSchema)]
struct JobMetrics {
    /// Weighted mean of the members' training loss.
    loss: Option<f64>,
    /// Weighted mean of the members' accuracy with the model they received.
    accuracy: Option<f64>,
    /// Updates received and models to be fetched.
    bytes: u64,
}

/// One attempt at a round.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Round {
    round: u32,
    attempt: u32,
    /// `recruiting`, `keying`, `collecting`, `unmasking`, `publishing`, `done` or `abandoned`.
    phase: &'static str,
    /// Why it was abandoned or what it waits for.
    reason: Option<String>,
    /// Who was invited and what became of each.
    participants: Vec<Member>,
    loss: Option<f64>,
    /// With the model that the members *received*.
    accuracy: Option<f64>,
    bytes: u64,
    /// True if updates are summed under masks: then single ones say nothing but their size and their clipped values.
    secure: bool,
    /// Sum of the updates' weights, where the weights themselves are not known.
    weight: Option<u64>,
    model: Option<Blob>,
    opened_at: Option<String>,
    closed_at: Option<String>,
    /// From opening to end, restarts included.
    elapsed_ms: u64,
}

/// One member of a round.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Member {
    name: String,
    /// `invited`, `declined`, `failed`, `counted`, `refused`, `silent`, or `carried` (at work for a later round).
    status: &'static str,
    /// Why, where there is a why.
    reason: Option<String>,
    /// Its refusal, if it declined.
    declined: Option<Refusal>,
    /// Examples its update counts for: as the node declares it, at most the job's `max_examples`.
    weight: Option<u32>,
    /// Optimiser steps of its training.
    steps: Option<u32>,
    /// Rounds published since the model that its update started from; 0 but in asynchronous jobs.
    staleness: Option<u32>,
    bytes: Option<u64>,
    /// Values cut to the grid's bound.
    clipped: Option<u64>,
    /// Its own measurements.
    metrics: Option<MemberMetrics>,
}

/// A node's no.
#[derive(Debug, Serialize, ToSchema)]
struct Refusal {
    /// The rule of the node that refuses, as in its node.yaml.
    rule: String,
    /// What it demands and what the job asks.
    reason: String,
    /// Ed25519 signature of the node's enrolled key over attempt, rule and reason; 128 hex characters.
    signature: String,
}

impl From<Declined> for Refusal {
    fn from(declined: Declined) -> Self {
        Self { rule: declined.rule, reason: declined.reason, signature: declined.signature.to_string() }
    }
}

/// What a node measured of itself.
#[derive(Debug, Serialize, ToSchema)]
struct MemberMetrics {
    loss: f64,
    accuracy: Option<f64>,
    train_ms: u64,
}

impl From<LocalMetrics> for MemberMetrics {
    fn from(m: LocalMetrics) -> Self {
        Self { loss: m.loss, accuracy: m.accuracy, train_ms: m.train_ms }
    }
}

impl From<MemberView> for Member {
    fn from(m: MemberView) -> Self {
        Self {
            name: m.name.to_string(),
            status: m.status,
            reason: m.reason,
            declined: m.declined.map(Into::into),
            weight: m.weight,
            steps: m.steps,
            staleness: m.staleness,
            bytes: m.bytes,
            clipped: m.clipped,
            metrics: m.metrics.map(Into::into),
        }
    }
}

impl From<RoundView> for Round {
    fn from(r: RoundView) -> Self {
        Self {
            round: r.round,
            attempt: r.attempt,
            phase: r.phase.as_str(),
            reason: r.reason,
            participants: r.members.into_iter().map(Into::into).collect(),
            loss: r.loss,
            accuracy: r.accuracy,
            bytes: r.bytes,
            secure: r.secure,
            weight: r.weight,
            model: r.model.map(Into::into),
            opened_at: when(r.opened_ms),
            closed_at: when(r.closed_ms),
            elapsed_ms: r.elapsed_ms,
        }
    }
}

/// The settings as a request may give them.
fn strategy_config(spec: &JobSpec) -> Map<String, Value> {
    let settings = serde_json::to_value(&spec.strategy).map(|mut v| v["config"].take());
    let mut config = match settings {
        Ok(Value::Object(config)) => config,
        Ok(_) | Err(_) => Map::new(),
    };
    // A setting that is left out has a meaning of its own.
    config.retain(|_, value| !value.is_null());
    if !spec.personal_tensors.is_empty() {
        config.insert("personal_tensors".to_owned(), spec.personal_tensors.clone().into());
    }
    config
}

impl JobAnswer {
    /// At most the newest `rounds_max` ended attempts.
    pub(crate) fn new(view: JobView, rounds_max: usize) -> Self {
        let spec = view.spec;
        let hyperparameters = Hyperparameters {
            local_epochs: spec.training.epochs,
            batch_size: spec.training.batch_size,
            learning_rate: spec.training.learning_rate,
            momentum: spec.training.momentum,
            weight_decay: spec.training.weight_decay,
            max_examples: spec.max_examples,
            round_timeout_s: spec.round_timeout_ms as f64 / 1000.0,
        };
        let newest = view.rounds.iter().rev().find(|r| r.model.is_some());
        let metrics = JobMetrics {
            loss: newest.and_then(|r| r.loss),
            accuracy: newest.and_then(|r| r.accuracy),
            bytes: view.rounds.iter().chain(&view.current).map(|r| r.bytes).sum(),
        };
        let skip = view.rounds.len().saturating_sub(rounds_max);
        Self {
            job_name: spec.job_name.clone(),
            publisher: spec.publisher.clone(),
            status: view.status.as_str(),
            phase: view.current.as_ref().map(|r| r.phase.as_str()),
            reason: view.reason,
            job_type: STANDARD,
            model_architecture: spec.recipe_name().to_owned(),
            rounds_completed: view.rounds_done,
            total_rounds: spec.total_rounds,
            min_participants: spec.min_participants,
            max_participants: spec.max_participants,
            mobile_friendly: spec.mobile_friendly,
            privacy_techniques: spec.privacy_techniques(),
            privacy: Privacy::of(&spec),
            strategy: spec.strategy.name().to_owned(),
            strategy_config: strategy_config(&spec),
            retain_updates: spec.retain_updates,
            dataset_requirements: spec.data,
            hyperparameters,
            seed: spec.seed,
            metrics,
            best_round: view.best_round,
            model: view.model.map(Into::into),
            model_id: view.model_id,
            created_at: rfc3339(view.created_ms),
            ended_at: when(view.ended_ms),
            current_round: view.current.map(Into::into),
            rounds: view.rounds.into_iter().skip(skip).map(Into::into).collect(),
            job_id: spec.job_id.to_string(),
        }
    }
}

/// All jobs, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobList {
    jobs: Vec<JobLine>,
}

/// A job in a listing.
#[derive(Debug, Serialize, ToSchema)]
struct JobLine {
    job_id: String,
    job_name: String,
    /// `created`, `running`, `completed`, `failed` or `cancelled`.
    status: &'static str,
    rounds_completed: u32,
    total_rounds: u32,
    created_at: String,
}

impl From<Vec<JobSummary>> for JobList {
    fn from(jobs: Vec<JobSummary>) -> Self {
        let line = |j: JobSummary| JobLine {
            job_id: j.job_id.to_string(),
            job_name: j.job_name,
            status: j.status.as_str(),
            rounds_completed: j.rounds_done,
            total_rounds: j.total_rounds,
            created_at: rfc3339(j.created_ms),
        };
        Self { jobs: jobs.into_iter().map(line).collect() }
    }
}

/// Data of a server-sent event; the event's name says which.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum EventBody {
    /// `status`
    Status { status: &'static str, reason: Option<String> },
    /// `recruiting`
    Recruiting { round: u32, waiting_for: String },
    /// `round_opened`
    RoundOpened { round: u32, attempt: u32, invited: Vec<String> },
    /// `member`
    Member { round: u32, member: Member },
    /// `round_ended`
    RoundEnded(Box<Round>),
}

impl EventBody {
    /// Name of the event and its data.
    pub(crate) fn named(kind: EventKind) -> (&'static str, Self) {
        match kind {
            EventKind::Status { status, reason } => ("status", Self::Status { status: status.as_str(), reason }),
            EventKind::Recruiting { round, waiting_for } => ("recruiting", Self::Recruiting { round, waiting_for }),
            EventKind::RoundOpened { round, attempt, invited } => {
                let invited = invited.iter().map(ToString::to_string).collect();
                ("round_opened", Self::RoundOpened { round, attempt, invited })
            }
            EventKind::Member { round, member } => ("member", Self::Member { round, member: (*member).into() }),
            EventKind::RoundEnded(round) => ("round_ended", Self::RoundEnded(Box::new((*round).into()))),
        }
    }
}
