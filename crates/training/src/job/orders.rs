//! What a job orders from its shell and its nodes: invitations, models, the way into the catalogue. Nothing is decided here.

use aivillage_base::Architecture;
use aivillage_base::fixed::Grid;
use aivillage_base::time::Now;
use aivillage_base::wire::{Down, Invitation, Peer};

use super::Job;
use crate::handle::FinishedModel;
use crate::round::Limits;
use crate::step::{ComputePlan, Effect};

impl Job {
    pub(super) fn limits(&self) -> Option<Limits> {
        let spec = &self.record.spec;
        let parameters = self.record.architecture.as_ref()?.parameters().ok()?;
        Some(Limits {
            min: spec.min_participants as usize,
            timeout_ms: spec.round_timeout_ms,
            silence_ms: self.rules.silence_ms,
            parameters,
            bound: Grid::default().bound,
            max_examples: spec.max_examples,
        })
    }

    pub(super) fn invite(&self, now: Now, peer: &Peer) -> Option<Effect> {
        let round = self.round.as_ref()?;
        let architecture = self.record.architecture.clone()?;
        let spec = &self.record.spec;
        let invitation = Invitation {
            key: round.key().clone(),
            job_name: spec.job_name.clone(),
            recipe: spec.recipe_name().to_owned(),
            grids: grids(&architecture),
            architecture,
            model: round.model_in(),
            training: spec.training.clone(),
            data: spec.data.clone(),
            seed: spec.seed,
            max_examples: spec.max_examples,
            privacy_techniques: Vec::new(),
            total_rounds: spec.total_rounds,
            deadline_ms: round.remaining(now),
        };
        Some(Effect::Send(peer.clone(), Down::Invite(Box::new(invitation))))
    }

    pub(super) fn compute(&self) -> Option<Effect> {
        let round = self.round.as_ref()?;
        let architecture = self.record.architecture.clone()?;
        Some(Effect::Compute(Box::new(ComputePlan {
            key: round.key().clone(),
            grids: grids(&architecture),
            architecture,
            model_in: round.model_in(),
            accepted: round.counted().map(|(n, c)| (n.clone(), c.clone())).collect(),
        })))
    }

    pub(super) fn finish(&self) -> Option<Effect> {
        let spec = &self.record.spec;
        Some(Effect::Publish(Box::new(FinishedModel {
            job_id: spec.job_id.clone(),
            job_name: spec.job_name.clone(),
            recipe: spec.recipe_name().to_owned(),
            architecture: self.record.architecture.clone()?,
            model: self.record.model?,
        })))
    }
}

/// The grid of each tensor of this architecture.
fn grids(architecture: &Architecture) -> Vec<Grid> {
    let tensors = architecture.layout().map_or(0, |layout| layout.len());
    vec![Grid::default(); tensors]
}
