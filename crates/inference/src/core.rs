//! The coordinator as a pure machine: `step(now, input) -> outputs`, without clock, sockets, store or weights.
//!
//! ```text
//!            Start              Choice                 answer, or no hope
//! Admitted ────────> Queued <──────────> Running ──────────────────────────> Done ──Stored──> gone
//!     │                 │   node failed,    │                                  ^
//!     │                 │   lost, too slow  │                                  │
//!     └─────────────────┴───────────────────┴────────── deadline ──────────────┘
//! ```
//!
//! Promises, for any sequence of inputs: the books balance (requests = ok + failed + shed + expired + active); a request
//! finishes exactly once; a node never has more than its bound of requests; an answer counts only from the node and for
//! the attempt that is running; a request whose deadline has passed is gone after the next `Tick`.
//! Must not know: rows, bundles, how an answer is stored or who waits for it. `now` is monotonic milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, NodeName, RequestId};

use crate::config::Strategy;
use crate::plan::{Candidate, Rules};
use crate::request::{Predictions, RequestMetadata, RequestStatus, RequestView};

mod io;
mod moves;
#[cfg(test)]
mod tests;

pub use io::{Admission, Answer, Books, Input, Output};

/// Times a request is handed to a node before it fails: an input that kills its nodes must not visit the whole village.
pub const ATTEMPTS_MAX: u32 = 8;
/// Pause before nodes that failed on a request get another try, doubled each time, in milliseconds.
const PAUSE_MS: u64 = 50;
/// Longest such pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 1_000;
/// Shortest time an attempt gets before another node is tried, in milliseconds.
const ATTEMPT_MS_MIN: u64 = 20;

/// Bounds and strategy.
#[derive(Debug, Clone, Copy)]
pub struct CoreConfig {
    /// Most requests at one time.
    pub active_max: usize,
    /// Most requests handed to one node at one time.
    pub per_node_in_flight: usize,
    /// How nodes are chosen.
    pub strategy: Strategy,
}

#[derive(Debug)]
enum Phase {
    Admitted,
    Queued { not_before: u64 },
    Running { peer: Peer },
    Done(Box<RequestView>),
}

#[derive(Debug)]
struct Active {
    admission: Admission,
    /// Order of admission: the queue is first in, first out.
    seq: u64,
    admitted: u64,
    deadline: u64,
    first_sent: Option<u64>,
    attempts: u32,
    failed_on: BTreeSet<NodeId>,
    pauses: u32,
    /// What went wrong last.
    reason: Option<String>,
    phase: Phase,
    /// When `Tick` must look at it; its entry in `timers`.
    due: Option<u64>,
}

/// The machine.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    nodes: Vec<Candidate>,
    requests: BTreeMap<RequestId, Active>,
    queue: BTreeMap<u64, RequestId>,
    timers: BTreeSet<(u64, RequestId)>,
    /// Outcomes that wait for `Stored`.
    done: BTreeSet<RequestId>,
    seq: u64,
    last: Option<NodeName>,
    books: Books,
}

impl Core {
    /// A machine without nodes and requests.
    #[must_use]
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            nodes: Vec::new(),
            requests: BTreeMap::new(),
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            done: BTreeSet::new(),
            seq: 0,
            last: None,
            books: Books::default(),
        }
    }

    /// Takes an input in; unknown, late and repeated ones change nothing.
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Admit(admission) => self.admit(now, admission, self.config.active_max, &mut out),
            Input::Recover(admission) => self.admit(now, admission, usize::MAX, &mut out),
            Input::Refuse(id) => {
                self.books.total += 1;
                self.books.shed += 1;
                out.push(Output::Shed(id));
            }
            Input::Start(id) => {
                if let Some(active) = self.requests.get(&id)
                    && matches!(active.phase, Phase::Admitted)
                {
                    self.enqueue(id, 0);
                }
            }
            Input::Abandon { request, reason } => self.abandon(now, request, reason),
            Input::MakeDurable(id) => {
                if let Some(active) = self.requests.get_mut(&id) {
                    active.admission.durable = true;
                }
            }
            Input::Stored(id) => {
                if self.done.remove(&id) {
                    self.requests.remove(&id);
                }
            }
            Input::Nodes(nodes) => self.set_nodes(now, nodes, &mut out),
            Input::Lost(node) => self.lost(now, node, &mut out),
            Input::Unsent { request, attempt, reason } => {
                if let Some(peer) = self.running(request, attempt) {
                    self.attempt_failed(now, request, &peer, reason, &mut out);
                }
            }
            Input::Answered { from, request, attempt, answer } => {
                if let Some(peer) = self.running(request, attempt).filter(|p| p.id == from) {
                    self.answered(now, request, &peer, answer, &mut out);
                }
            }
            Input::Tick => self.tick(now, &mut out),
        }
        self.dispatch(now, &mut out);
        out
    }

    /// When `Tick` is next needed, in monotonic milliseconds.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What became of requests.
    #[must_use]
    pub fn books(&self) -> Books {
        self.books
    }

    /// Requests without an outcome.
    #[must_use]
    pub fn active(&self) -> usize {
        self.requests.len() - self.done.len()
    }

    /// Requests that wait for a node.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The nodes with their loads, in name order.
    #[must_use]
    pub fn nodes(&self) -> &[Candidate] {
        &self.nodes
    }

    /// Is this request still without an outcome?
    #[must_use]
    pub fn is_active(&self, id: &RequestId) -> bool {
        self.requests.get(id).is_some_and(|a| !matches!(a.phase, Phase::Done(_)))
    }

    /// What its owner may see of it; None once it is gone. An outcome that is not stored yet is not shown.
    #[must_use]
    pub fn view(&self, now: u64, id: &RequestId) -> Option<RequestView> {
        let active = self.requests.get(id)?;
        let status = match active.phase {
            Phase::Admitted | Phase::Queued { .. } => RequestStatus::Queued,
            Phase::Running { .. } | Phase::Done(_) => RequestStatus::Processing,
        };
        let reason = (status == RequestStatus::Queued).then(|| self.waits_for(active));
        Some(active.view(now, *id, status, None, reason))
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            strategy: self.config.strategy,
            per_node_in_flight: self.config.per_node_in_flight,
            last: self.last.as_ref(),
        }
    }

    /// Outcomes that wait for `Stored`: for another try after the store failed.
    #[must_use]
    pub fn unstored(&self) -> Vec<RequestView> {
        let views = self.done.iter().filter_map(|id| match &self.requests.get(id)?.phase {
            Phase::Done(view) => Some((**view).clone()),
            Phase::Admitted | Phase::Queued { .. } | Phase::Running { .. } => None,
        });
        views.collect()
    }
}

impl Active {
    fn view(
        &self,
        now: u64,
        id: RequestId,
        status: RequestStatus,
        result: Option<Predictions>,
        error: Option<String>,
    ) -> RequestView {
        let nodes_used = match (&self.phase, status) {
            (Phase::Running { peer }, RequestStatus::Processing | RequestStatus::Completed) => {
                vec![peer.name.clone()]
            }
            _ => Vec::new(),
        };
        let elapsed = self.admission.elapsed_ms;
        RequestView {
            request_id: id,
            status,
            result,
            model: self.admission.model.clone(),
            metadata: RequestMetadata {
                processing_time_ms: elapsed + now.saturating_sub(self.admitted),
                queue_ms: elapsed + self.first_sent.unwrap_or(now).saturating_sub(self.admitted),
                nodes_used,
                attempts: self.attempts,
                privacy_level_achieved: self.admission.privacy,
                cached: false,
            },
            error,
        }
    }
}
