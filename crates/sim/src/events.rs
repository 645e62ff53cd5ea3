//! What will happen, in the order of simulated time.

use std::collections::BTreeMap;
use std::sync::Arc;

use aivillage_base::JobId;
use aivillage_base::wire::{BlobRef, Down, PredictTask, RoundKey, Up, UpdateHeader, UpdateReply};
use aivillage_training::step::Input;
use bytes::Bytes;

/// A node's question to a coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    Say(Up),
    Upload(Box<UpdateHeader>, Bytes),
    Fetch(BlobRef),
}

/// A coordinator's answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Update(UpdateReply),
    Blob(Bytes),
    Refused(String),
    Busy,
}

/// Something that happens. `life` numbers the lives of a process or node: what was meant for an earlier one is dropped.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Wire(Wire),
    AtNode(AtNode),
    AtProcess(Box<AtProcess>),
    Client(Client),
    Fate(Fate),
}

/// A stream opens or breaks.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// A node tries to open its stream to a process.
    Dial { node: usize, life: u64, process: usize },
    /// A node notices that its stream is gone.
    Hung { node: usize, process: usize, stream: u64 },
    /// A process notices that a stream is gone.
    Broken { process: usize, node: usize, stream: u64 },
}

/// Something happens at a node.
#[derive(Debug, Clone)]
pub(crate) enum AtNode {
    /// A message arrives at a node.
    Down { process: usize, stream: u64, node: usize, message: Arc<Down> },
    /// An answer arrives at a node.
    Reply { node: usize, life: u64, call: u64, reply: Reply },
    /// A node has waited long enough for an answer.
    Unanswered { node: usize, life: u64, call: u64 },
    /// A node has trained.
    Trained { node: usize, life: u64, key: RoundKey },
    /// A node has heard nothing new of a round of secure aggregation.
    Repeat { node: usize, life: u64, key: RoundKey },
    /// A node has predicted.
    Predicted { node: usize, life: u64, process: usize, task: Box<PredictTask> },
}

/// Something happens at a process.
#[derive(Debug, Clone)]
pub(crate) enum AtProcess {
    /// A question arrives at a process.
    Question { process: usize, node: usize, life: u64, call: u64, question: Question },
    /// A process looks at what waits for it.
    Wake { process: usize, life: u64 },
    /// Time has passed for a process.
    Tick { process: usize, life: u64 },
    /// A computation of a process has ended.
    Made { process: usize, life: u64, job: JobId, input: Box<Input> },
}

/// A client wants something.
#[derive(Debug, Clone)]
pub(crate) enum Client {
    /// A client creates a job, again until it is told that it exists.
    Create { job: usize },
    /// A client submits a request.
    Submit { request: usize },
    /// A client cancels a job, again until it has ended.
    Cancel { job: usize },
}

/// Something befalls the village.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// A process starts.
    Start { process: usize },
    /// A process stands still for this long.
    Freeze { process: usize, ms: u64 },
    /// The wall clock under a process jumps.
    Jump { process: usize, ms: i64 },
    /// A node dies.
    Kill { node: usize },
    /// A node starts.
    Boot { node: usize },
    /// Nodes are cut off, or no longer.
    Cut { nodes: Vec<usize>, off: bool },
}

impl From<Wire> for Event {
    fn from(event: Wire) -> Self {
        Self::Wire(event)
    }
}

impl From<AtNode> for Event {
    fn from(event: AtNode) -> Self {
        Self::AtNode(event)
    }
}

impl From<AtProcess> for Event {
    fn from(event: AtProcess) -> Self {
        Self::AtProcess(Box::new(event))
    }
}

impl From<Client> for Event {
    fn from(event: Client) -> Self {
        Self::Client(event)
    }
}

impl From<Fate> for Event {
    fn from(event: Fate) -> Self {
        Self::Fate(event)
    }
}

/// Events by time; those of one millisecond in the order in which they were planned.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: BTreeMap<(u64, u64), Event>,
    planned: u64,
}

impl Queue {
    pub(crate) fn plan(&mut self, at: u64, event: impl Into<Event>) {
        self.planned += 1;
        self.events.insert((at, self.planned), event.into());
    }

    pub(crate) fn next(&mut self) -> Option<(u64, Event)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}
