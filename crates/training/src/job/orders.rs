//! What a job orders from its shell and its nodes: invitations, models, the way into the catalogue. Nothing is decided here.

use aivillage_base::Architecture;
use aivillage_base::fixed::Grid;
use aivillage_base::time::Now;
use aivillage_base::wire::{BlobRef, Down, Invitation, LocalRule, Peer};

use super::Job;
use crate::handle::FinishedModel;
use crate::round::{Limits, Round, StartPoint};
use crate::step::{ComputePlan, Effect};

impl Job {
    pub(super) fn limits(&self) -> Option<Limits> {
        let spec = &self.record.spec;
        let rule = spec.strategy.rule();
        let values = spec.shared_values(self.record.architecture.as_ref()?)?;
        Some(Limits {
            min: spec.min_participants.max(rule.cohort_min().0) as usize,
            timeout_ms: spec.round_timeout_ms,
            silence_ms: self.rules.silence_ms,
            parameters: values * rule.planes(),
            bound: Grid::default().bound,
            max_examples: spec.max_examples,
            retain: spec.retain_updates,
            buffer: rule.buffer(),
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
            grids: round.grids().to_vec(),
            local: self.local_rule(round),
            initial_loss: spec.strategy.rule().local().initial_loss,
            personal: spec.personal(&architecture),
            receipt: self.record.receipts.get(&peer.name).cloned(),
            retain_updates: spec.retain_updates,
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

    /// What the nodes do beside training.
    fn local_rule(&self, round: &Round) -> LocalRule {
        let demands = self.record.spec.strategy.rule().local();
        if demands.control_variates {
            return LocalRule::Scaffold { control: round.state_in().first().map(|slot| slot.blob) };
        }
        demands.personal_lambda.map_or(LocalRule::Plain, |lambda| LocalRule::Ditto { lambda })
    }

    /// Where the next attempt starts.
    pub(super) fn start_point(&self, model: BlobRef) -> Option<StartPoint> {
        let architecture = self.record.architecture.as_ref()?;
        Some(StartPoint { model, state: self.record.state.clone(), grids: grids(architecture) })
    }

    pub(super) fn compute(&self, now: Now) -> Option<Effect> {
        let round = self.round.as_ref()?;
        let accepted = round.counted().map(|(n, c)| (n.clone(), c.clone())).collect();
        let plan = ComputePlan::of(&self.record, &round.record(now), round.members().len(), accepted)?;
        Some(Effect::Compute(Box::new(plan)))
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
