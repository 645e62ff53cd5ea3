//! What a node brings to secure aggregation: its signature, whom it knows, what it has begun, and randomness.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::rng::os_bytes;
use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, NodeName};
use aivillage_privacy::rand_core::{TryCryptoRng, TryRng};
use aivillage_privacy::secagg::signed::Signer;

use super::Draws;
use crate::participant::registry::Registry;

/// The keys by which a node knows the others.
///
/// # Behavior
/// - The first key of a name is remembered, durably, before `check` returns; from then on another key is refused.
pub trait Pins: Send + Sync + Debug {
    /// Are these the keys of these names?
    ///
    /// # Errors
    /// One sentence: one is another than before, or not on the node's roster.
    fn check(&self, peers: &[&Peer]) -> Result<(), String>;
}

/// The contexts that a node has begun.
///
/// # Behavior
/// - A node that restarts never begins a context again: `begin` returns after the note outlives the process, `settle` after
///   it outlives the machine. Between them only keys and their shares leave, which say nothing of the data.
pub trait Contexts: Send + Sync + Debug {
    /// Notes a context; false = it was begun before.
    ///
    /// # Errors
    /// One sentence; nothing of the context may be said then.
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String>;

    /// Waits until all contexts begun so far are durable. Blocks on the disk: for blocking threads.
    ///
    /// # Errors
    /// One sentence; no masked value may leave then.
    fn settle(&self) -> Result<(), String>;

    /// Which sum this node has opened that starts from this model; None = none yet.
    ///
    /// # Errors
    /// One sentence.
    fn opened(&self, model: &[u8; 32]) -> Result<Option<[u8; 32]>, String>;

    /// Notes, durably, which sum is about to be opened; false = another one was, and this one must not be. Of two that come
    /// at once only one is told yes.
    ///
    /// # Errors
    /// One sentence; nothing may be opened then.
    fn open(&self, model: &[u8; 32], sum: &[u8; 32]) -> Result<bool, String>;
}

/// What a node brings to secure aggregation.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs with the enrolled key.
    pub signer: Arc<dyn Signer>,
    /// The keys of others.
    pub pins: Arc<dyn Pins>,
    /// Contexts begun.
    pub contexts: Arc<dyn Contexts>,
    /// Enrolments.
    pub registry: Arc<dyn Registry>,
    /// Graphs drawn.
    pub draws: Arc<Draws>,
}

/// [`Pins`] in memory.
#[derive(Debug, Default)]
pub struct MemoryPins(Mutex<BTreeMap<NodeName, NodeId>>);

impl Pins for MemoryPins {
    fn check(&self, peers: &[&Peer]) -> Result<(), String> {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in peers {
            let known = *pins.entry(peer.name.clone()).or_insert(peer.id);
            if known != peer.id {
                return Err(changed(peer, &known));
            }
        }
        Ok(())
    }
}

/// What is said of a key that is not the one remembered.
#[must_use]
pub fn changed(peer: &Peer, known: &NodeId) -> String {
    format!(
        "{} has the key {} now, and had {known} before: if it was enrolled anew, its owner can tell, and this node forgets \
         the old key when its pin is removed",
        peer.name, peer.id
    )
}

/// [`Contexts`] in memory.
#[derive(Debug, Default)]
pub struct MemoryContexts(Mutex<Begun>);

/// Contexts, and which sum was opened over which model.
type Begun = (BTreeSet<[u8; 32]>, BTreeMap<[u8; 32], [u8; 32]>);

impl MemoryContexts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contexts for MemoryContexts {
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String> {
        Ok(self.lock().0.insert(*ctx))
    }

    fn settle(&self) -> Result<(), String> {
        Ok(())
    }

    fn opened(&self, model: &[u8; 32]) -> Result<Option<[u8; 32]>, String> {
        Ok(self.lock().1.get(model).copied())
    }

    fn open(&self, model: &[u8; 32], sum: &[u8; 32]) -> Result<bool, String> {
        Ok(self.lock().1.entry(*model).or_insert(*sum) == sum)
    }
}

/// Randomness of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct SystemRandom;

impl TryRng for SystemRandom {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        os_bytes(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        os_bytes(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        os_bytes(out);
        Ok(())
    }
}

impl TryCryptoRng for SystemRandom {}
