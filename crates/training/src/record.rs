//! What is persisted of jobs, rounds and members: exactly what a restart needs, and what an auditor reads.
//!
//! Records are JSON with a `schema` number; a newer number than [`SCHEMA`] is refused at load, never guessed at.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use aivillage_base::fixed::Grid;
use aivillage_base::wire::secure::MaskedInput;
use aivillage_base::wire::{BlobRef, Declined, LocalMetrics, Peer, Receipt, RoundKey, UpdateHeader};
use aivillage_base::{Architecture, NodeName};

use crate::aggregate::Totals;
use crate::spec::JobSpec;
use crate::strategy::Contribution;
use crate::view::{JobStatus, MemberView, Phase, RoundView};

mod secure;

pub use secure::{Helped, SecureMember, SecureRecord};

/// Version of the records in this file.
pub const SCHEMA: u32 = 2;

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// What was asked, complete.
    pub spec: JobSpec,
    /// Its life.
    pub life: Life,
    /// The model's shape, once the data of the first cohort fixed it.
    pub architecture: Option<Architecture>,
    /// The newest model: the start, then one a published round.
    pub model: Option<BlobRef>,
    /// What the strategy's server keeps from round to round; empty before the first round.
    #[serde(default)]
    pub state: Vec<StateSlot>,
    /// The newest update of each node that counted in a published round, where nodes keep state of their own for the job.
    #[serde(default)]
    pub receipts: BTreeMap<NodeName, Receipt>,
    /// Nodes that sent what no honest node sends, and what that was: not invited again until they connect anew.
    #[serde(default)]
    pub excluded: BTreeMap<NodeName, String>,
    /// Nodes that withheld what everybody had to say for an attempt to go on: not invited while there are enough others,
    /// until they connect anew.
    #[serde(default)]
    pub withheld: BTreeSet<NodeName>,
    /// Whose sum of the next round may have been opened already, though no model came of it: another set of nodes would let
    /// their difference be read, so the round is made of exactly these.
    #[serde(default)]
    pub opening: Option<Vec<NodeName>>,
    /// Published rounds; the next round is one more.
    pub rounds_done: u32,
    /// Attempts made at the next round.
    pub attempts: u32,
    /// Attempts in a row that failed because members failed, not because members were missing.
    pub failures_in_row: u32,
    /// Nodes that refuse this job, by their policy or because they have lost their state of it: not invited again.
    pub declined: BTreeMap<NodeName, Declined>,
    /// Wall clock at creation, Unix milliseconds.
    pub created_ms: u64,
    /// Wall clock at the end.
    pub ended_ms: Option<u64>,
}

impl JobRecord {
    /// A job that has just been accepted.
    #[must_use]
    pub fn new(spec: JobSpec, created_ms: u64) -> Self {
        Self {
            schema: SCHEMA,
            spec,
            life: Life::Created,
            architecture: None,
            model: None,
            state: Vec::new(),
            receipts: BTreeMap::new(),
            excluded: BTreeMap::new(),
            withheld: BTreeSet::new(),
            opening: None,
            rounds_done: 0,
            attempts: 0,
            failures_in_row: 0,
            declined: BTreeMap::new(),
            created_ms,
            ended_ms: None,
        }
    }
}

/// One vector of server state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSlot {
    /// Its name, as the strategy calls it.
    pub name: String,
    /// Its values: a bundle in the model's shape.
    pub blob: BlobRef,
}

/// A job with its attempts, as it was persisted.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// The job.
    pub record: JobRecord,
    /// Its attempts, oldest first; at most the last is open.
    pub attempts: Vec<RoundRecord>,
    /// Members of the open attempt.
    pub members: Vec<MemberRecord>,
}

impl Saved {
    /// A job without attempts.
    #[must_use]
    pub fn new(record: JobRecord) -> Self {
        Self { record, attempts: Vec::new(), members: Vec::new() }
    }
}

/// A job's life, with what belongs to each state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Life {
    /// Accepted.
    Created,
    /// Rounds under way, or (all rounds done) on its way into the catalogue.
    Running,
    /// In the catalogue.
    Completed {
        /// Catalogue id.
        model_id: String,
    },
    /// Given up.
    Failed {
        /// Why.
        reason: String,
    },
    /// Ended by its owner.
    Cancelled,
}

impl Life {
    /// The status without what belongs to it.
    #[must_use]
    pub fn status(&self) -> JobStatus {
        match self {
            Self::Created => JobStatus::Created,
            Self::Running => JobStatus::Running,
            Self::Completed { .. } => JobStatus::Completed,
            Self::Failed { .. } => JobStatus::Failed,
            Self::Cancelled => JobStatus::Cancelled,
        }
    }
}

/// One attempt at a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Which attempt.
    pub key: RoundKey,
    /// Where it is.
    pub stage: Stage,
    /// The model it starts from.
    pub model_in: BlobRef,
    /// The server state it starts from.
    #[serde(default)]
    pub state_in: Vec<StateSlot>,
    /// Grid of each tensor of the model, in layout order.
    #[serde(default)]
    pub grids: Vec<Grid>,
    /// Most examples that an update was expected to have, where the rule's weights depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_max: Option<u32>,
    /// Wall clock at opening, Unix milliseconds.
    pub opened_ms: u64,
    /// Wall clock at the end.
    pub closed_ms: Option<u64>,
    /// Time spent up to the last write of this record, in milliseconds: restarts do not reset a deadline.
    pub elapsed_ms: u64,
    /// What is agreed on in a round of secure aggregation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<SecureRecord>,
    /// Members, once the attempt has ended; until then each has a record of its own.
    pub members: Vec<MemberRecord>,
}

/// Where an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Participants agree on keys (secure aggregation).
    Keying,
    /// Waiting for updates.
    Collecting,
    /// The survivors are fixed; they open what hides their sum (secure aggregation).
    Unmasking,
    /// The accepted set is fixed; the model is being made.
    Publishing,
    /// Published.
    Done {
        /// The model that came out.
        model_out: BlobRef,
        /// The server state that came out.
        #[serde(default)]
        state_out: Vec<StateSlot>,
    },
    /// Given up.
    Abandoned {
        /// Why.
        reason: String,
    },
}

/// One member of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Who.
    pub peer: Peer,
    /// What became of it.
    pub state: MemberState,
    /// What it works on, if that is not this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// What it said of its keys (secure aggregation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<Box<SecureMember>>,
}

/// What a member of an asynchronous job works on, where that is older than the attempt it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The attempt it was invited for.
    pub key: RoundKey,
    /// The model it trains from: must stay as long as the member may fetch it.
    pub model: BlobRef,
}

/// What became of a member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MemberState {
    /// Invited, nothing final yet.
    Invited,
    /// Its policy refuses.
    Declined(Declined),
    /// It tried and failed.
    Failed {
        /// Its reason.
        reason: String,
    },
    /// Its update counts.
    Counted(Counted),
    /// Its update was refused.
    Refused {
        /// Machine-readable.
        reason: String,
        /// A sentence.
        detail: String,
    },
    /// The buffer was full while it was at work: its update counts in a later round.
    Carried,
    /// The round closed without it.
    Silent,
}

/// An update that counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Number of examples.
    pub weight: u32,
    /// Its integers.
    pub payload: BlobRef,
    /// True if the integers live in the record store, false if in the blob store.
    pub inline: bool,
    /// Values clipped to the grid.
    pub clipped: u64,
    /// Optimiser steps of the local training.
    #[serde(default = "one")]
    pub steps: u32,
    /// Loss of the received model on the node's rows.
    #[serde(default)]
    pub initial_loss: Option<f64>,
    /// The round whose model the update starts from, where that is an older one than its own (asynchronous jobs).
    #[serde(default)]
    pub base: Option<u32>,
    /// True if the node lets it be kept after its round.
    #[serde(default)]
    pub retain: bool,
    /// The node's measurements.
    pub metrics: LocalMetrics,
    /// Who vouches for a masked update: of one, weight and measurements are in the sum only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<MaskedInput>,
}

impl MemberRecord {
    /// A member that was just invited.
    #[must_use]
    pub fn invited(peer: Peer) -> Self {
        Self { peer, state: MemberState::Invited, base: None, secure: None }
    }

    /// What it was invited for, in the attempt `key`.
    #[must_use]
    pub fn works_on<'a>(&'a self, key: &'a RoundKey) -> &'a RoundKey {
        self.base.as_ref().map_or(key, |base| &base.key)
    }

    /// For people; `round` is the attempt's.
    #[must_use]
    pub fn view(&self, round: u32) -> MemberView {
        let mut view = MemberView {
            name: self.peer.name.clone(),
            status: "invited",
            reason: None,
            declined: None,
            weight: None,
            steps: None,
            staleness: None,
            bytes: None,
            clipped: None,
            metrics: None,
        };
        match &self.state {
            MemberState::Invited => {}
            MemberState::Declined(d) => {
                view.status = "declined";
                view.reason = Some(format!("{}: {}", d.rule, d.reason));
                view.declined = Some(d.clone());
            }
            MemberState::Failed { reason } => {
                view.status = "failed";
                view.reason = Some(reason.clone());
            }
            MemberState::Counted(c) => {
                view.status = "counted";
                view.bytes = Some(c.payload.bytes);
                view.clipped = Some(c.clipped);
                if c.masked.is_none() {
                    view.weight = Some(c.weight);
                    view.steps = Some(c.steps);
                    view.staleness = Some(c.contribution(round).staleness);
                    view.metrics = Some(c.metrics);
                }
            }
            MemberState::Refused { reason, detail } => {
                view.status = "refused";
                view.reason = Some(format!("{reason}: {detail}"));
            }
            MemberState::Carried => view.status = "carried",
            MemberState::Silent => view.status = "silent",
        }
        view
    }

    /// The update, if it counts.
    #[must_use]
    pub fn counted(&self) -> Option<&Counted> {
        match &self.state {
            MemberState::Counted(c) => Some(c),
            MemberState::Invited
            | MemberState::Declined(_)
            | MemberState::Failed { .. }
            | MemberState::Refused { .. }
            | MemberState::Carried
            | MemberState::Silent => None,
        }
    }
}

fn one() -> u32 {
    1
}

impl Counted {
    /// The update of this header.
    #[must_use]
    pub fn new(header: &UpdateHeader, inline: bool) -> Self {
        Self {
            weight: header.weight,
            payload: header.payload,
            inline,
            clipped: header.clipped,
            steps: header.steps,
            initial_loss: header.initial_loss,
            base: None,
            retain: header.retain,
            metrics: header.metrics,
            masked: header.secure.clone(),
        }
    }

    /// What a strategy sees of it in this round.
    #[must_use]
    pub fn contribution(&self, round: u32) -> Contribution {
        Contribution {
            weight: self.weight,
            steps: self.steps,
            initial_loss: self.initial_loss,
            staleness: self.base.map_or(0, |base| round.saturating_sub(base)),
        }
    }

    /// Is this the update that counts?
    #[must_use]
    pub fn is(&self, header: &UpdateHeader) -> bool {
        self.payload == header.payload && self.weight == header.weight
    }
}

impl RoundRecord {
    /// True until it is published or given up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.stage {
            Stage::Keying | Stage::Collecting | Stage::Unmasking | Stage::Publishing => true,
            Stage::Done { .. } | Stage::Abandoned { .. } => false,
        }
    }

    /// The helper's answer, where there is one.
    #[must_use]
    pub fn helped(&self) -> Option<&Counted> {
        self.secure.as_ref()?.helper.as_ref()?.answer.as_ref()
    }

    /// Updates that were kept after the attempt was published, for auditors.
    pub fn retained(&self) -> impl Iterator<Item = (&NodeName, &Counted)> {
        let done = matches!(self.stage, Stage::Done { .. });
        let counted = self.members.iter().filter_map(|m| Some((&m.peer.name, m.counted()?)));
        counted.filter(move |(_, c)| done && c.retain)
    }

    /// For people; `members` are the live ones while the attempt is under way.
    #[must_use]
    pub fn view(&self, members: &[MemberRecord], elapsed_ms: u64) -> RoundView {
        let (phase, reason, model) = match &self.stage {
            Stage::Keying => (Phase::Keying, None, None),
            Stage::Collecting => (Phase::Collecting, None, None),
            Stage::Unmasking => (Phase::Unmasking, None, None),
            Stage::Publishing => (Phase::Publishing, None, None),
            Stage::Done { model_out, .. } => (Phase::Done, None, Some(*model_out)),
            Stage::Abandoned { reason } => (Phase::Abandoned, Some(reason.clone()), None),
        };
        let counted: Vec<&Counted> = members.iter().filter_map(MemberRecord::counted).collect();
        let uploads: u64 = counted.iter().map(|c| c.payload.bytes).sum();
        RoundView {
            round: self.key.round,
            attempt: self.key.attempt,
            phase,
            reason,
            loss: self.totals().map_or_else(|| weighted(&counted, |m| Some(m.loss)), |t| Some(t.loss)),
            accuracy: self.totals().map_or_else(|| weighted(&counted, |m| m.accuracy), |t| t.accuracy),
            secure: self.secure.is_some(),
            weight: self.totals().map(|t| t.weight),
            bytes: uploads + self.model_in.bytes * members.iter().filter(|m| m.base.is_none()).count() as u64,
            model,
            opened_ms: Some(self.opened_ms),
            closed_ms: self.closed_ms,
            elapsed_ms,
            members: members.iter().map(|m| m.view(self.key.round)).collect(),
        }
    }
}

impl RoundRecord {
    /// What a masked round has let out beside its model.
    #[must_use]
    fn totals(&self) -> Option<Totals> {
        self.secure.as_ref().and_then(|secure| secure.totals)
    }
}

/// Mean of a self-declared figure over the updates that have it, weighted by examples.
fn weighted(counted: &[&Counted], figure: impl Fn(&LocalMetrics) -> Option<f64>) -> Option<f64> {
    let mut sum = 0.0;
    let mut weight = 0.0;
    for update in counted {
        if let Some(value) = figure(&update.metrics).filter(|v| v.is_finite()) {
            sum += value * f64::from(update.weight);
            weight += f64::from(update.weight);
        }
    }
    (weight > 0.0).then(|| sum / weight)
}
