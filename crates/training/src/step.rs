//! The words of the job machine: what happens to it, what it wants persisted, what it wants done then.
//!
//! Data only; [`crate::job`] decides, [`crate::store`] persists, the shell acts.

use std::collections::BTreeMap;

use bytes::Bytes;

use aivillage_base::fixed::Grid;
use aivillage_base::ports::Payload;
use aivillage_base::wire::secure::{Advert, Hex, Opening, Revealed, SecureTerms, SecureUp};
use aivillage_base::wire::{BlobRef, Declined, Down, LocalTraining, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, NodeName};

use crate::aggregate::Totals;
use crate::handle::FinishedModel;
use crate::record::{Counted, JobRecord, MemberRecord, RoundRecord, StateSlot};
use crate::recruit::Candidate;
use crate::strategy::Strategy;
use crate::view::EventKind;

/// What happens to a job.
#[derive(Debug, Clone)]
pub enum Input {
    /// It has its turn (again, after a restart).
    Started,
    /// A node that could take part is connected.
    Joined(Candidate),
    /// A node's stream has closed.
    Left(Peer),
    /// The first model exists.
    Initialised(Architecture, BlobRef),
    /// A node takes part, or not.
    Answer(Peer, RoundKey, Option<Declined>),
    /// A node tried and failed.
    Failed(Peer, RoundKey, String),
    /// An update whose bytes match its header.
    Update(Peer, UpdateHeader, Payload),
    /// A node says something of secure aggregation.
    Secure(Peer, RoundKey, Box<SecureUp>),
    /// The round's model is made and durable, or not.
    Computed(RoundKey, Result<Made, ComputeError>),
    /// The finished model is in the catalogue under this id, or not.
    Published(Result<String, String>),
    /// The owner ends it.
    Cancel,
    /// Time has passed.
    Tick,
    /// A computation could not be carried out: what the state owes is to be done again.
    Retry,
}

/// What a round makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The next model.
    pub model: BlobRef,
    /// The next server state.
    pub state: Vec<StateSlot>,
    /// What was learnt beside it, of a masked round.
    pub totals: Option<Totals>,
}

/// Why a round's model could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComputeError {
    /// This member's update is outside the grid or unreadable.
    BadUpdate {
        /// The member.
        node: NodeName,
        /// Machine-readable.
        reason: &'static str,
        /// A sentence.
        detail: String,
    },
    /// The shares of this member's secrets do not make the secrets that it committed to.
    BadShares {
        /// Who dealt them.
        node: NodeName,
        /// A sentence.
        detail: String,
    },
    /// The strategy cannot use this accepted set; says why.
    Unusable(String),
    /// The store failed; trying again may help.
    Store(String),
}

/// Something to persist.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The job's record.
    Job(Box<JobRecord>),
    /// An attempt's record after a step of it.
    Round(Box<RoundRecord>),
    /// An attempt's record, of which only the time spent has changed.
    Noted(Box<RoundRecord>),
    /// A member's record while the attempt is under way.
    Member(RoundKey, Box<MemberRecord>),
    /// A member's record with what it has said of keys: what was accepted of it before stays.
    Words(RoundKey, Box<MemberRecord>),
    /// A small update.
    Payload(RoundKey, NodeName, Bytes),
    /// Member records and small updates of an ended attempt are no longer needed.
    Forget(RoundKey, Vec<NodeName>),
    /// Member records of an ended attempt are no longer needed; their small updates are kept for auditors.
    Fold(RoundKey, Vec<NodeName>),
}

/// Something to do once the changes are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message.
    Send(Peer, Down),
    /// Make the first model; answer with [`Input::Initialised`].
    Initialise(Architecture),
    /// Make the round's model; answer with [`Input::Computed`].
    Compute(Box<ComputePlan>),
    /// Put the finished model into the catalogue; answer with [`Input::Published`].
    Publish(Box<FinishedModel>),
    /// Blobs that no record refers to any more.
    DeleteBlobs(Vec<Digest>),
    /// A round's model and server state are out: the model may be fetched, and older ones may go.
    Model(Made),
    /// Tell whoever listens.
    Event(EventKind),
}

/// Everything that opens the sum of the survivors' masked updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The terms.
    pub terms: SecureTerms,
    /// The context.
    pub ctx: Hex<32>,
    /// The helper and its answer, which takes the masks away in place of all that follows.
    pub help: Option<(NodeName, Counted)>,
    /// The roster.
    pub adverts: Vec<Advert>,
    /// The nonces of which its graph is drawn, in name order; none where all mask with all.
    pub reveals: Vec<Revealed>,
    /// Who sent shares, in name order.
    pub sharers: Vec<NodeName>,
    /// Commitments of the survivors to the seeds of their own masks.
    pub commitments: BTreeMap<NodeName, Hex<32>>,
    /// What the survivors opened.
    pub openings: BTreeMap<NodeName, Opening>,
}

/// Everything that makes a round's model.
#[derive(Debug, Clone, PartialEq)]
pub struct ComputePlan {
    /// Which attempt.
    pub key: RoundKey,
    /// Shape.
    pub architecture: Architecture,
    /// The model it starts from.
    pub model_in: BlobRef,
    /// The server state it starts from; empty = zero.
    pub state_in: Vec<StateSlot>,
    /// Grid of each tensor of the model, in layout order.
    pub grids: Vec<Grid>,
    /// The rule.
    pub strategy: Strategy,
    /// How the nodes trained.
    pub training: LocalTraining,
    /// Names of tensors that stayed on the nodes.
    pub personal: Vec<String>,
    /// Number of nodes invited.
    pub invited: u32,
    /// Most examples that an update was expected to have, where the rule's weights depend on it.
    pub examples_max: Option<u32>,
    /// What opens the sum of masked updates; None = the updates are plain.
    pub opened: Option<Opened>,
    /// The accepted set, in name order.
    pub accepted: Vec<(NodeName, Counted)>,
}

impl ComputePlan {
    /// Blobs that it reads: model, state and stored updates.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let start = std::iter::once(self.model_in.digest).chain(self.state_in.iter().map(|s| s.blob.digest));
        start.chain(self.summands().filter(|(_, c)| !c.inline).map(|(_, c)| c.payload.digest))
    }

    /// Whose bytes are added up: the accepted updates and, where there is one, the helper's answer.
    pub fn summands(&self) -> impl Iterator<Item = &(NodeName, Counted)> {
        self.accepted.iter().chain(self.opened.iter().filter_map(|opened| opened.help.as_ref()))
    }

    /// What makes the model of `attempt`, as the records of the job say it; None before the job has an architecture.
    ///
    /// `invited` counts the attempt's members, which its record holds only once it has ended.
    #[must_use]
    pub fn of(
        job: &JobRecord,
        attempt: &RoundRecord,
        invited: usize,
        accepted: Vec<(NodeName, Counted)>,
    ) -> Option<Self> {
        let architecture = job.architecture.clone()?;
        Some(Self {
            key: attempt.key.clone(),
            personal: job.spec.personal(&architecture),
            architecture,
            model_in: attempt.model_in,
            state_in: attempt.state_in.clone(),
            grids: attempt.grids.clone(),
            strategy: job.spec.strategy.clone(),
            training: job.spec.training.clone(),
            invited: u32::try_from(invited).unwrap_or(u32::MAX),
            examples_max: attempt.examples_max,
            opened: None,
            accepted,
        })
    }
}

/// The outcome of one step.
#[derive(Debug, Default)]
pub struct Step {
    /// What to persist, all together.
    pub changes: Vec<Change>,
    /// What to do then.
    pub effects: Vec<Effect>,
    /// What to say to the sender of an update, then.
    pub reply: Option<UpdateReply>,
    /// True if that update counts from this step on: its bytes must stay.
    pub kept: bool,
}
