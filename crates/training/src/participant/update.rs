//! From an invitation and the received bytes to the update and the node's next state. Blocking, and pure but for training.
//!
//! ```text
//! received model --own tensors put over it--> start --train(terms)--> trained
//! update = trained - received, on the grids, without the tensors that stay here
//!          then, for SCAFFOLD, the change of the control variate in the same way
//! ```
//! Promise: the same invitation, name, bytes, state and data give the same update and the same next state, to the bit. What
//! is added to a control variate is what was quantised, so the coordinator's sum and the nodes' variates do not drift apart.

use std::ops::Range;

use aivillage_base::arch::TensorSpec;
use aivillage_base::fixed::Grid;
use aivillage_base::wire::{BlobRef, Invitation, LocalMetrics, LocalRule, Receipt, UpdateHeader};
use aivillage_base::{Architecture, Digest, NodeName, bundle, fixed};
use aivillage_privacy::secagg::mask::{MaskKey, Sign};
use aivillage_privacy::secagg::ring::Width;
use bytes::Bytes;

use super::policy::{NodePolicy, may_keep};
use super::state::LocalState;
use crate::secure::{self, Counts};
use crate::trainer::{LocalOutcome, LocalTerms, TrainError, Trainer};

/// Values quantised at once: the update of a large model is written without a second copy of it.
const BLOCK: usize = 1 << 16;

/// How often an update is rounded anew, each time a little shorter, until it keeps to the bound of its norm.
const CLIP_TRIES: u32 = 64;

/// What a node trains from.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// The model, a bundle.
    pub model: &'a [u8],
    /// The server's control variate, a bundle in the model's shape; None = zero.
    pub control: Option<&'a [u8]>,
    /// What the node keeps of the job; empty for strategies that keep nothing.
    pub state: &'a LocalState,
}

/// What a node would send, everything the coordinator would learn from it, and what the node keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The front of the update.
    pub header: UpdateHeader,
    /// Its integers, little-endian i32 in layout order.
    pub payload: Bytes,
    /// What to keep, durably, before the update leaves; empty = nothing.
    pub state: LocalState,
    /// What was measured of the personal model, if there is one; stays on the node.
    pub personal: Option<LocalMetrics>,
}

impl Prepared {
    /// The same update under these masks; what was measured travels behind its values.
    #[must_use]
    pub fn masked(self, masks: &[(MaskKey, Sign)], counts: Counts, width: Width) -> Self {
        // Nobody else holds the plain bytes, so this takes them as they lie.
        let plain = Vec::from(self.payload);
        let payload = Bytes::from(secure::masked(plain, counts, &self.header.metrics, masks, width));
        let blob = BlobRef { digest: Digest::of(&payload), bytes: payload.len() as u64 };
        let told = UpdateHeader::new(self.header.key.clone(), blob, 0, LocalMetrics::default());
        Self { header: UpdateHeader { clipped: self.header.clipped, ..told }, payload, ..self }
    }

    /// Under what its state is kept.
    #[must_use]
    pub fn mark(&self) -> Receipt {
        Receipt { key: self.header.key.clone(), digest: self.header.payload.digest }
    }
}

/// Trains and quantises, without keeping or sending anything.
///
/// # Errors
/// A sentence that contains no data.
pub fn prepare(
    trainer: &dyn Trainer,
    name: &NodeName,
    policy: &NodePolicy,
    invitation: &Invitation,
    received: Received<'_>,
) -> Result<Prepared, String> {
    let plan = Plan::new(invitation, received)?;
    let correction = plan.correction()?;
    let start = plan.start()?;
    let terms = LocalTerms { correction: &correction, personal: &received.state.model };
    let outcome = trainer.train(invitation, name.as_str(), start, terms).map_err(|e: TrainError| e.to_string())?;
    plan.check(&outcome)?;
    let mut update = plan.changes(&outcome)?;
    let personal = outcome.personal.as_ref().map(|p| p.metrics);
    let state = LocalState {
        control: plan.next_control(&outcome, &mut update)?,
        own: plan.own(&outcome),
        model: outcome.personal.map_or_else(Vec::new, |personal| personal.values),
    };
    let payload = Bytes::from(update.bytes);
    let header = UpdateHeader {
        clipped: update.clipped,
        steps: outcome.steps.max(1),
        initial_loss: outcome.initial_loss,
        retain: may_keep(policy, invitation),
        ..UpdateHeader::new(
            invitation.key.clone(),
            BlobRef { digest: Digest::of(&payload), bytes: payload.len() as u64 },
            outcome.examples.clamp(1, invitation.max_examples),
            finite(outcome.metrics),
        )
    };
    Ok(Prepared { header, payload, state, personal })
}

/// JSON has no NaN; a measurement that is none is left out or zero.
fn finite(metrics: LocalMetrics) -> LocalMetrics {
    LocalMetrics {
        loss: if metrics.loss.is_finite() { metrics.loss } else { f64::MAX },
        accuracy: metrics.accuracy.filter(|a| a.is_finite()),
        train_ms: metrics.train_ms,
    }
}

/// One tensor of the model.
struct Tensor {
    name: String,
    /// Where its values are among the model's.
    range: Range<usize>,
    grid: Grid,
    /// Does it stay on the node?
    personal: bool,
}

/// What an invitation asks for, checked against what was received.
struct Plan<'a> {
    invitation: &'a Invitation,
    received: Received<'a>,
    tensors: Vec<Tensor>,
    /// Where the values of the received bundle start.
    offset: usize,
    parameters: usize,
}

impl<'a> Plan<'a> {
    fn new(invitation: &'a Invitation, received: Received<'a>) -> Result<Self, String> {
        let header = bundle::read_header(received.model, received.model.len() as u64).map_err(|e| e.to_string())?;
        same_shape("the model", &header.architecture, invitation)?;
        let layout = header.architecture.layout().map_err(|e| e.to_string())?;
        if invitation.grids.len() != layout.len() {
            return Err(format!("{} grids for {} tensors", invitation.grids.len(), layout.len()));
        }
        if let Some(name) = invitation.personal.iter().find(|p| !layout.iter().any(|t| t.name == **p)) {
            return Err(format!("tensor `{name}` is to stay on the node, but the model has none of that name"));
        }
        let parameters = header.parameters;
        let LocalState { control, model, own } = received.state;
        if [control, model, own].iter().any(|v| !v.is_empty() && v.len() != parameters) {
            return Err("what this node kept of the job has another shape than its model".to_owned());
        }
        if matches!(invitation.local, LocalRule::Scaffold { .. }) && invitation.training.momentum != 0.0 {
            // Option II of the paper recovers the mean gradient from the distance gone, which holds for plain SGD only.
            return Err("scaffold needs local training without momentum: set momentum to 0".to_owned());
        }
        let tensors = tensors(layout, invitation);
        Ok(Self { invitation, received, tensors, offset: header.data_offset, parameters })
    }

    /// The received values of a range.
    fn received(&self, range: &Range<usize>) -> impl Iterator<Item = f32> + use<'a> {
        floats(self.received.model, self.offset, range)
    }

    /// The values training starts from: those received, with the node's own put over them.
    fn start(&self) -> Result<Vec<f32>, String> {
        let (_, mut values) = bundle::read(self.received.model).map_err(|e| e.to_string())?;
        let own = &self.received.state.own;
        for tensor in self.tensors.iter().filter(|t| t.personal && !own.is_empty()) {
            values[tensor.range.clone()].copy_from_slice(&own[tensor.range.clone()]);
        }
        Ok(values)
    }

    /// c - `c_i`; empty if both are zero, or there are none.
    fn correction(&self) -> Result<Vec<f32>, String> {
        if !matches!(self.invitation.local, LocalRule::Scaffold { .. }) {
            return Ok(Vec::new());
        }
        let own = &self.received.state.control;
        let mut correction = match self.received.control {
            Some(bytes) => {
                let (architecture, values) = bundle::read(bytes).map_err(|e| format!("the control variate: {e}"))?;
                same_shape("the control variate", &architecture, self.invitation)?;
                values
            }
            None if own.is_empty() => return Ok(Vec::new()),
            None => vec![0.0; self.parameters],
        };
        for (c, own) in correction.iter_mut().zip(own) {
            *c -= own;
        }
        Ok(correction)
    }

    fn check(&self, outcome: &LocalOutcome) -> Result<(), String> {
        let personal = outcome.personal.as_ref().map_or(self.parameters, |p| p.values.len());
        if outcome.values.len() != self.parameters || personal != self.parameters {
            return Err("the trained model has another shape than the invitation's".to_owned());
        }
        if matches!(self.invitation.local, LocalRule::Ditto { .. }) && outcome.personal.is_none() {
            return Err("this node's training makes no personal model, which the strategy asks for".to_owned());
        }
        match outcome.initial_loss {
            None if self.invitation.initial_loss => {
                Err("this node did not measure the received model's loss".to_owned())
            }
            Some(loss) if !loss.is_finite() => {
                Err("the received model's loss on this node's rows is not finite".to_owned())
            }
            None | Some(_) => Ok(()),
        }
    }

    /// An update without values yet, with room for all that it will hold, also under masks where they are no wider.
    fn update(&self) -> Update {
        let values: usize = self.tensors.iter().filter(|t| !t.personal).map(|t| t.range.len()).sum();
        let planes = if matches!(self.invitation.local, LocalRule::Scaffold { .. }) { 2 } else { 1 };
        Update { bytes: Vec::with_capacity(values * planes * 4 + secure::BEHIND_BYTES), ..Update::default() }
    }

    /// The change of the weights on the grids: within the norm that the invitation allows, if it names one.
    fn changes(&self, outcome: &LocalOutcome) -> Result<Update, String> {
        let changes = |tensor: &Tensor| {
            let (trained, old) = (&outcome.values[tensor.range.clone()], self.received(&tensor.range));
            trained.iter().zip(old).map(|(new, old)| new - old)
        };
        let Some(clip) = self.invitation.clip else {
            let mut update = self.update();
            for tensor in self.tensors.iter().filter(|t| !t.personal) {
                update.append(tensor, changes(tensor), |_, _| {})?;
            }
            return Ok(update);
        };
        let squares =
            self.tensors.iter().filter(|t| !t.personal).flat_map(changes).map(|c| f64::from(c) * f64::from(c));
        let mut shrink = f64::min(1.0, clip / squares.sum::<f64>().sqrt().max(f64::MIN_POSITIVE));
        for _ in 0..CLIP_TRIES {
            let (mut update, mut norm) = (self.update(), 0.0);
            for tensor in self.tensors.iter().filter(|t| !t.personal) {
                #[expect(clippy::cast_possible_truncation, reason = "changes are f32")]
                let shrunk = changes(tensor).map(|c| (f64::from(c) * shrink) as f32);
                update.append(tensor, shrunk, |_, sent| norm += sent * sent)?;
            }
            // What is sent counts, not what it was rounded from.
            if norm <= clip * clip {
                return Ok(update);
            }
            shrink *= 1.0 - f64::powi(2.0, -10);
        }
        Err(format!("the update does not fit a norm of {clip} on the round's grid: raise `clip`"))
    }

    /// The received model with this node's tensors as they are now; empty if none stays here.
    fn own(&self, outcome: &LocalOutcome) -> Vec<f32> {
        if self.invitation.personal.is_empty() {
            return Vec::new();
        }
        let mut own = Vec::with_capacity(self.parameters);
        for tensor in &self.tensors {
            if tensor.personal {
                own.extend_from_slice(&outcome.values[tensor.range.clone()]);
            } else {
                own.extend(self.received(&tensor.range));
            }
        }
        own
    }

    /// SCAFFOLD, option II: `c_i+` - `c_i` = (w received - w trained) / (steps * rate) - c goes into the update; returns `c_i+`.
    fn next_control(&self, outcome: &LocalOutcome, update: &mut Update) -> Result<Vec<f32>, String> {
        if !matches!(self.invitation.local, LocalRule::Scaffold { .. }) {
            return Ok(Vec::new());
        }
        let distance = f64::from(outcome.steps.max(1)) * self.invitation.training.learning_rate;
        let mut control = self.received.state.control.clone();
        control.resize(self.parameters, 0.0);
        // The server's variate has the model's shape, so its values start at the same place of its bundle.
        let server = self.received.control.unwrap_or_default();
        for tensor in self.tensors.iter().filter(|t| !t.personal) {
            let trained = outcome.values[tensor.range.clone()].iter().map(|v| f64::from(*v));
            let gone = self.received(&tensor.range).zip(trained).map(|(old, new)| (f64::from(old) - new) / distance);
            let c = floats(server, self.offset, &tensor.range).map(f64::from).chain(std::iter::repeat(0.0));
            #[expect(clippy::cast_possible_truncation, reason = "control variates are f32")]
            let changes = gone.zip(c).map(|(gradient, c)| (gradient - c) as f32);
            let kept = &mut control[tensor.range.clone()];
            update.append(tensor, changes, |i, change| {
                #[expect(clippy::cast_possible_truncation, reason = "exact below 2^24 steps of the grid")]
                let sum = (f64::from(kept[i]) + change) as f32;
                kept[i] = sum;
            })?;
        }
        Ok(control)
    }
}

/// Values of a bundle whose values start at `offset`; none if the bundle is empty.
fn floats<'a>(bundle: &'a [u8], offset: usize, range: &Range<usize>) -> impl Iterator<Item = f32> + use<'a> {
    let bytes = bundle.get(offset + range.start * 4..offset + range.end * 4).unwrap_or_default();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

fn same_shape(what: &str, architecture: &Architecture, invitation: &Invitation) -> Result<(), String> {
    if *architecture == invitation.architecture {
        return Ok(());
    }
    Err(format!("{what}'s architecture is not the invitation's"))
}

fn tensors(layout: Vec<TensorSpec>, invitation: &Invitation) -> Vec<Tensor> {
    let mut at = 0;
    let tensor = |(spec, grid): (TensorSpec, &Grid)| {
        let range = at..at + spec.len();
        at = range.end;
        Tensor { personal: invitation.personal.contains(&spec.name), name: spec.name, range, grid: *grid }
    };
    layout.into_iter().zip(&invitation.grids).map(tensor).collect()
}

/// The integers of an update as they grow.
#[derive(Default)]
struct Update {
    bytes: Vec<u8>,
    clipped: u64,
    values: Vec<f32>,
    integers: Vec<i32>,
}

impl Update {
    /// Quantises the changes of one tensor; `done` is told each change as the coordinator will see it.
    fn append(
        &mut self,
        tensor: &Tensor,
        changes: impl Iterator<Item = f32>,
        mut done: impl FnMut(usize, f64),
    ) -> Result<(), String> {
        let (step, mut changes) = (tensor.grid.step(), changes.peekable());
        let mut at = 0;
        while changes.peek().is_some() {
            self.values.clear();
            self.values.extend(changes.by_ref().take(BLOCK));
            self.integers.clear();
            let quantised = tensor.grid.quantise(&self.values, &mut self.integers);
            self.clipped += quantised.map_err(|e| format!("tensor {} from value {at}: {e}", tensor.name))?;
            for (i, q) in self.integers.iter().enumerate() {
                done(at + i, f64::from(*q) * step);
            }
            self.bytes.extend_from_slice(&fixed::to_bytes(&self.integers));
            at += self.values.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
