//! What all processes and nodes of a village share: time, the queue of events, the network, the store, the witness.

use std::sync::Arc;

use aivillage_base::ports::Sent;
use aivillage_base::wire::Down;
use aivillage_storage::{MemoryBlobs, MemoryRecords};

use crate::conduct::Conduct;
use crate::events::{AtNode, AtProcess, Event, Question, Queue, Reply};
use crate::faults::FaultKind;
use crate::net::{Net, Way};
use crate::plan::Plan;
use crate::secrets::Secrets;
use crate::serving::Served;
use crate::time::SimClock;
use crate::witness::{Breach, Witness};

/// Why a process stops in the middle of what it does.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It died.
    Died,
    /// An invariant is broken: the run ends.
    Breach(Breach),
}

impl From<Breach> for Halt {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

/// Where a question came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) call: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) conduct: Arc<dyn Conduct>,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) queue: Queue,
    pub(crate) net: Net,
    pub(crate) records: MemoryRecords,
    pub(crate) blobs: MemoryBlobs,
    pub(crate) witness: Witness,
    pub(crate) served: Served,
    /// How far the wall clock of each process is off, in milliseconds.
    pub(crate) skews: Vec<i64>,
    /// Of all nodes.
    pub(crate) secrets: Secrets,
    calls: u64,
    streams: u64,
}

impl World {
    pub(crate) fn new(seed: u64, clock: Arc<SimClock>, plan: Plan, served: Served) -> Self {
        Self {
            conduct: Arc::clone(&plan.conduct),
            skews: vec![0; plan.coordinators],
            net: Net::new(seed, plan.faults.clone(), plan.nodes),
            plan,
            records: MemoryRecords::new(clock.clone()),
            clock,
            queue: Queue::default(),
            blobs: MemoryBlobs::new(),
            witness: Witness::default(),
            served,
            secrets: Secrets::new(seed),
            calls: 0,
            streams: 0,
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.ms()
    }

    /// Plans an event between `low` and `high` milliseconds from now.
    pub(crate) fn soon(&mut self, low: u64, high: u64, event: impl Into<Event>) {
        let at = self.now() + self.net.between(low, high);
        self.queue.plan(at, event);
    }

    pub(crate) fn next_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    pub(crate) fn next_stream(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    /// Sends a message down a stream.
    pub(crate) fn send_down(&mut self, process: usize, stream: Option<u64>, node: usize, message: Down) -> Sent {
        let Some(stream) = stream else { return Sent::NotConnected };
        let message = Arc::new(message);
        for at in self.net.arrivals(self.now(), Way::Down { process, node }) {
            self.queue.plan(at, AtNode::Down { process, stream, node, message: Arc::clone(&message) });
        }
        Sent::Queued
    }

    /// Sends a node's question.
    pub(crate) fn ask(&mut self, from: Asker, process: usize, question: &Question) {
        let Asker { node, life, call } = from;
        for at in self.net.arrivals(self.now(), Way::Up { node, process }) {
            self.queue.plan(at, AtProcess::Question { process, node, life, call, question: question.clone() });
        }
    }

    /// Sends a process's answer.
    pub(crate) fn reply(&mut self, process: usize, to: Asker, reply: Reply) {
        let Asker { node, life, call } = to;
        for at in self.net.arrivals(self.now(), Way::Down { process, node }) {
            self.queue.plan(at, AtNode::Reply { node, life, call, reply: reply.clone() });
        }
    }

    /// Dies before or after the step of this name, perhaps.
    pub(crate) fn perhaps_die(&mut self, kind: FaultKind, step: &'static str) -> Result<(), Halt> {
        let faults = self.net.faults();
        let chance = if kind == FaultKind::CrashBeforePersist { faults.crash_before } else { faults.crash_after };
        if !self.net.strikes(self.now(), kind, chance) {
            return Ok(());
        }
        self.net.tally.died(kind, step);
        // Of two coordinators, the other one would have to die with the store that they share.
        if self.plan.coordinators == 1 && self.net.strikes(self.now(), FaultKind::PowerLoss, 0.5) {
            self.records.lose_power();
        }
        Err(Halt::Died)
    }
}
