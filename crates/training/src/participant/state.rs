//! What a node keeps of a job from round to round: SCAFFOLD's control variate, Ditto's personal model, tensors that stay on
//! the node.
//!
//! ```text
//! trained -> put (durable) -> update leaves -> ... -> next invitation says which update counted last
//!                                                      that one's state is taken up, older ones are dropped
//! ```
//! The coordinator's word decides, so node and coordinator never disagree about which round a state belongs to: a state whose
//! update did not count is as if it had never been, and a state that ought to be there and is not is an error, never a
//! silent restart. A node that is killed anywhere finds what it kept, trains again and arrives at the same bits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aivillage_base::wire::{Invitation, LocalRule, Receipt, RoundKey};
use aivillage_base::{Architecture, JobId};

/// A node's own state of one job after one update; vectors in layout order of the whole model, empty = none.
#[derive(Clone, Default, PartialEq)]
pub struct LocalState {
    /// SCAFFOLD's control variate of this node.
    pub control: Vec<f32>,
    /// Ditto's personal model.
    pub model: Vec<f32>,
    /// The received model with this node's own values in the tensors that stay here.
    pub own: Vec<f32>,
}

impl fmt::Debug for LocalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (control, model, own) = (self.control.len(), self.model.len(), self.own.len());
        write!(f, "LocalState({control}, {model} and {own} values)")
    }
}

impl LocalState {
    /// True if there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.control.is_empty() && self.model.is_empty() && self.own.is_empty()
    }

    /// The model to use on this node: Ditto's, or the received one with the node's own tensors; empty = none.
    #[must_use]
    pub fn personal(&self) -> &[f32] {
        if self.model.is_empty() { &self.own } else { &self.model }
    }

    /// Does a node keep anything for a job that invites like this?
    #[must_use]
    pub fn needed(invitation: &Invitation) -> bool {
        invitation.local != LocalRule::Plain || !invitation.personal.is_empty()
    }
}

/// Where a node keeps its states, each under the update it was made with.
///
/// # Behavior
/// - `put` returns after the state is durable; a mark that is kept already stays as it is.
/// - A state is read as it was put, or not at all.
/// - Blocking.
pub trait NodeState: Send + Sync + fmt::Debug {
    /// Marks of the states kept for `job`, in any order.
    ///
    /// # Errors
    /// One sentence.
    fn kept(&self, job: &JobId) -> Result<Vec<Receipt>, String>;

    /// The state kept under `mark`, whose model has this shape.
    ///
    /// # Errors
    /// One sentence: it is not there, damaged, or of another shape.
    fn read(&self, mark: &Receipt, architecture: &Architecture) -> Result<LocalState, String>;

    /// Keeps a state.
    ///
    /// # Errors
    /// One sentence; the update it belongs to must not leave then.
    fn put(&self, mark: &Receipt, architecture: &Architecture, state: &LocalState) -> Result<(), String>;

    /// Forgets the state under `mark`, if it is there.
    ///
    /// # Errors
    /// One sentence.
    fn forget(&self, mark: &Receipt) -> Result<(), String>;

    /// Makes the personal model of the state under `mark`, if it has one, the one that this node's owner finds for the job.
    ///
    /// # Errors
    /// One sentence.
    fn publish(&self, mark: &Receipt) -> Result<(), String>;
}

/// The state from which an invited node trains: that of the update that counted last, zero if none did.
///
/// States of earlier attempts that did not count are dropped: their attempts have ended. Later ones stay, so an invitation
/// that comes late destroys nothing.
///
/// # Errors
/// The store's; or a sentence that the state of the counted update is not there.
pub fn settle(store: &dyn NodeState, invitation: &Invitation) -> Result<LocalState, String> {
    let (attempt, counted) = (&invitation.key, invitation.receipt.as_ref());
    let kept = store.kept(&attempt.job)?;
    let state = match counted {
        None => LocalState::default(),
        Some(mark) if kept.contains(mark) => {
            store.publish(mark)?;
            store.read(mark, &invitation.architecture)?
        }
        Some(mark) => return Err(lost(mark, &kept)),
    };
    for mark in kept.iter().filter(|m| m.key < *attempt && Some(*m) != counted) {
        store.forget(mark)?;
    }
    Ok(state)
}

/// Why a node cannot take part in a round that needs its state: the state of its counted update is not there. None = it can.
///
/// # Errors
/// The store's.
pub fn missing(store: &dyn NodeState, invitation: &Invitation) -> Result<Option<String>, String> {
    let Some(mark) = &invitation.receipt else { return Ok(None) };
    let kept = store.kept(&invitation.key.job)?;
    Ok((!kept.contains(mark)).then(|| lost(mark, &kept)))
}

fn lost(mark: &Receipt, kept: &[Receipt]) -> String {
    let RoundKey { round, attempt, .. } = &mark.key;
    let (digest, n) = (mark.digest.short(), kept.len());
    format!(
        "this node's update {digest} of round {round}, attempt {attempt}, counted last, but the state it kept with it is \
         lost ({n} others are there): its folder was changed, or it or the gateway was restored from an older copy; it \
         cannot go on in this job, and takes part in new ones"
    )
}

/// The job has ended: the personal model of the last counted update is published, all states are dropped.
///
/// # Errors
/// The store's.
pub fn end(store: &dyn NodeState, job: &JobId, counted: Option<&Receipt>) -> Result<(), String> {
    let kept = store.kept(job)?;
    if let Some(mark) = counted.filter(|mark| kept.contains(mark)) {
        store.publish(mark)?;
    }
    kept.iter().try_for_each(|mark| store.forget(mark))
}

/// States in memory, for simulations and tests: what a disk would hold.
#[derive(Debug, Default)]
pub struct MemoryState {
    states: Mutex<BTreeMap<Receipt, LocalState>>,
    published: Mutex<BTreeMap<JobId, LocalState>>,
}

impl MemoryState {
    /// The state whose personal model was published last for `job`.
    #[must_use]
    pub fn published(&self, job: &JobId) -> Option<LocalState> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).get(job).cloned()
    }

    fn states(&self) -> std::sync::MutexGuard<'_, BTreeMap<Receipt, LocalState>> {
        // The map is valid between any two statements, whatever panicked.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeState for MemoryState {
    fn kept(&self, job: &JobId) -> Result<Vec<Receipt>, String> {
        Ok(self.states().keys().filter(|mark| mark.key.job == *job).cloned().collect())
    }

    fn read(&self, mark: &Receipt, _: &Architecture) -> Result<LocalState, String> {
        self.states().get(mark).cloned().ok_or_else(|| "it is not there".to_owned())
    }

    fn put(&self, mark: &Receipt, _: &Architecture, state: &LocalState) -> Result<(), String> {
        self.states().entry(mark.clone()).or_insert_with(|| state.clone());
        Ok(())
    }

    fn forget(&self, mark: &Receipt) -> Result<(), String> {
        self.states().remove(mark);
        Ok(())
    }

    fn publish(&self, mark: &Receipt) -> Result<(), String> {
        let state = self.states().get(mark).filter(|s| !s.personal().is_empty()).cloned();
        if let Some(state) = state {
            let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.insert(mark.key.job.clone(), state);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
