//! The words of the job machine: what happens to it, what it wants persisted, what it wants done then.
//!
//! Data only; [`crate::job`] decides, [`crate::store`] persists, the shell acts.

use bytes::Bytes;

use aivillage_base::fixed::Grid;
use aivillage_base::ports::Payload;
use aivillage_base::wire::{BlobRef, Declined, Down, Peer, RoundKey, UpdateHeader, UpdateReply};
use aivillage_base::{Architecture, Digest, NodeName};

use crate::handle::FinishedModel;
use crate::record::{Counted, JobRecord, MemberRecord, RoundRecord};
use crate::recruit::Candidate;
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
    /// The round's model is made and durable, or not.
    Computed(RoundKey, Result<BlobRef, ComputeError>),
    /// The finished model is in the catalogue under this id, or not.
    Published(Result<String, String>),
    /// The owner ends it.
    Cancel,
    /// Time has passed.
    Tick,
    /// A computation could not be carried out: what the state owes is to be done again.
    Retry,
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
    /// The store failed; trying again may help.
    Store(String),
}

/// Something to persist.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The job's record.
    Job(Box<JobRecord>),
    /// An attempt's record.
    Round(Box<RoundRecord>),
    /// A member's record while the attempt is under way.
    Member(RoundKey, MemberRecord),
    /// A small update.
    Payload(RoundKey, NodeName, Bytes),
    /// Member records and small updates of an ended attempt are no longer needed.
    Forget(RoundKey, Vec<NodeName>),
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
    /// A round's model is out: it may be fetched, and an older one may go.
    Model(BlobRef),
    /// Tell whoever listens.
    Event(EventKind),
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
    /// Grid of each tensor, in layout order.
    pub grids: Vec<Grid>,
    /// The accepted set, in name order.
    pub accepted: Vec<(NodeName, Counted)>,
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
