//! How coordinators behave, and what a careless one would do instead.

use aivillage_base::NodeName;
use aivillage_base::ports::{Blobs, Fence, Records};
use aivillage_base::wire::{Down, Peer};
use aivillage_training::aggregate;
use aivillage_training::step::{ComputeError, ComputePlan, Made};

use crate::time::ready;

/// When a coordinator speaks and acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// After its step is persisted.
    PersistFirst,
    /// It answers updates before.
    SpeakFirst,
    /// It sends messages and deletes blobs before.
    ActFirst,
}

/// How coordinators behave. The default of each method is how they must; a test takes one away and expects the village
/// to be found broken.
pub trait Conduct: Send + Sync + std::fmt::Debug {
    /// When it speaks.
    fn order(&self) -> Order {
        Order::PersistFirst
    }
    /// What it shows the store as proof of its lease.
    fn fence(&self, fence: Fence) -> Option<Fence> {
        Some(fence)
    }
    /// What it sends to node number `node`, when it ought to send `message`.
    fn tells(&self, _to: &Peer, _node: usize, message: Down) -> Down {
        message
    }
    /// What it sums.
    fn compute(&self, plan: ComputePlan) -> ComputePlan {
        plan
    }
    /// How it makes a round's model. `arrived` names members in the order in which their updates came, as far as this
    /// process has seen them; whoever replays a record knows no such order.
    ///
    /// # Errors
    /// As [`aggregate::run`].
    fn make(
        &self,
        plan: &ComputePlan,
        _arrived: &[NodeName],
        records: &dyn Records,
        blobs: &dyn Blobs,
    ) -> Result<Made, ComputeError> {
        ready(aggregate::run(plan, records, blobs))
    }
    /// Does it read a job after it has the lease (or go on with what it knew)?
    fn reads_after_lease(&self) -> bool {
        true
    }
    /// Does it do what the stored state owes when it takes a job over?
    fn resumes(&self) -> bool {
        true
    }
    /// Does it trust its own wall clock, instead of the store, about whose a lease is?
    fn leases_by_clock(&self) -> bool {
        false
    }
    /// Does it give a request's id away after the request is stored?
    fn promises_after_commit(&self) -> bool {
        true
    }
}

/// As it must be.
#[derive(Debug)]
pub struct Faithful;

impl Conduct for Faithful {}
