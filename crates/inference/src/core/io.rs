//! What goes into the machine and what comes out.

use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, RequestId};

use crate::plan::{Candidate, Needs};
use crate::request::{ModelRef, Predictions, PrivacyLevel, RequestStatus, RequestView};

/// A request at the door.
#[derive(Debug, Clone, PartialEq)]
pub struct Admission {
    /// Its id.
    pub request: RequestId,
    /// The model that is to answer.
    pub model: ModelRef,
    /// What it needs of a node.
    pub needs: Needs,
    /// The level that is kept.
    pub privacy: PrivacyLevel,
    /// Milliseconds from submission until the answer is of no use.
    pub within_ms: u64,
    /// Of these, how many have passed (in an earlier process).
    pub elapsed_ms: u64,
    /// Must its outcome be stored before anybody sees it?
    pub durable: bool,
}

/// What a node made of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Predictions that fit the request.
    Done(Predictions),
    /// It did not work there.
    Failed {
        /// One sentence.
        reason: String,
        /// No node can do better.
        permanent: bool,
    },
}

/// What happens to the machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A request comes in; it is admitted or shed.
    Admit(Admission),
    /// An unfinished request of an earlier process: admitted even beyond the bound, because it was promised.
    Recover(Admission),
    /// A request comes in that cannot be taken for a reason outside: it is shed.
    Refuse(RequestId),
    /// An admitted request may be planned (it is stored, or needs not be).
    Start(RequestId),
    /// An admitted request is withdrawn: it failed.
    Abandon {
        /// The request.
        request: RequestId,
        /// Why.
        reason: String,
    },
    /// From now on its outcome must be stored before anybody sees it.
    MakeDurable(RequestId),
    /// Its outcome is stored.
    Stored(RequestId),
    /// The nodes that are connected and take requests; loads and failures in it are ignored.
    Nodes(Vec<Candidate>),
    /// What was handed to this node is lost: its stream has closed.
    Lost(NodeId),
    /// A message could not be handed to its node.
    Unsent {
        /// The request.
        request: RequestId,
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A node answers.
    Answered {
        /// The node.
        from: NodeId,
        /// The request.
        request: RequestId,
        /// Which attempt.
        attempt: u32,
        /// The answer.
        answer: Answer,
    },
    /// Time has passed.
    Tick,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// The request was refused because full.
    Shed(RequestId),
    /// Hand the request to this node.
    Send {
        /// The node.
        to: Peer,
        /// The request.
        request: RequestId,
        /// Which attempt, from 1.
        attempt: u32,
        /// Milliseconds the node has.
        left_ms: u64,
    },
    /// An attempt failed and the request goes on.
    Replanned {
        /// The request.
        request: RequestId,
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// The request has its outcome: store it and say `Stored` if durable, else tell whoever waits.
    Finished {
        /// The outcome.
        view: Box<RequestView>,
        /// Store it first?
        durable: bool,
    },
}

/// Requests by what became of them, since the machine was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// All.
    pub total: u64,
    /// Answered.
    pub ok: u64,
    /// Failed or withdrawn.
    pub failed: u64,
    /// Refused because full.
    pub shed: u64,
    /// Not answered in time.
    pub expired: u64,
    /// Sum of the response times of answered ones, in milliseconds.
    pub response_ms: u64,
}

impl Books {
    /// Books an outcome.
    pub(super) fn close(&mut self, status: RequestStatus, response_ms: u64) {
        match status {
            RequestStatus::Completed => {
                self.ok += 1;
                self.response_ms = self.response_ms.saturating_add(response_ms);
            }
            RequestStatus::Failed => self.failed += 1,
            RequestStatus::Expired => self.expired += 1,
            RequestStatus::Queued | RequestStatus::Processing => {
                unreachable!("invariant: only outcomes are booked")
            }
        }
    }
}
