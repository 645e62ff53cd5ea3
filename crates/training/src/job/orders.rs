//! What a job orders from its shell and its nodes: invitations, models, the way into the catalogue. Nothing is decided here.

use aivillage_base::Architecture;
use aivillage_base::fixed::Grid;
use aivillage_base::time::Now;
use aivillage_base::wire::helper::{HelpRequest, HelperKey};
use aivillage_base::wire::secure::{SecureTerms, Withstands};
use aivillage_base::wire::{BlobRef, Down, Invitation, LocalRule, Peer, RoundKey};
use aivillage_privacy::secagg::ring::Overflow;

use super::Job;
use crate::handle::FinishedModel;
use crate::record::{Helped, SecureRecord, StateSlot};
use crate::round::{Limits, StartPoint};
use crate::spec::STANDARD;
use crate::step::{ComputePlan, Effect, Step};
use crate::strategy::Weighting;
use crate::{recruit, secure};

impl Job {
    pub(super) fn limits(&self) -> Option<Limits> {
        let spec = &self.record.spec;
        let rule = spec.strategy.rule();
        let values = spec.shared_values(self.record.architecture.as_ref()?)?;
        let min = spec.min_participants.max(rule.cohort_min().0);
        Some(Limits {
            min: self.record.opening.as_ref().map_or(0, Vec::len).max(min as usize),
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
        let common = Invitation {
            secure: round.secure().map(|secure| secure.terms),
            ..self.invitation(round.key(), round.model_in(), round.state_in(), round.grids())?
        };
        let invitation = Invitation {
            receipt: self.record.receipts.get(&peer.name).cloned(),
            deadline_ms: round.remaining(now),
            ..common
        };
        Some(Effect::Send(peer.clone(), Down::Invite(Box::new(invitation))))
    }

    /// The key of the job's helper; the outer None = it has one, and it is not here.
    #[expect(clippy::option_option, reason = "no helper is no fault")]
    fn helper_key(&self) -> Option<Option<HelperKey>> {
        recruit::helper(&self.record.spec, &self.candidates).ok()
    }

    fn helper_peer(&self) -> Option<Peer> {
        let name = self.record.spec.helper.as_ref()?;
        Some(self.candidates.get(name)?.peer.clone())
    }

    /// Asks the helper, if the attempt waits for it.
    pub(super) fn ask_helper(&self, step: &mut Step) {
        let Some(round) = self.round.as_ref().filter(|round| round.wants_help()) else { return };
        let (Some(helper), Some(secure)) = (round.helper(), round.secure()) else { return };
        let Some(common) = self.invitation(round.key(), round.model_in(), round.state_in(), round.grids()) else {
            return;
        };
        let invitation = Invitation { secure: Some(secure.terms), ..common };
        let request = HelpRequest { invitation, inputs: round.helped_inputs() };
        step.effects.push(Effect::Send(helper.peer.clone(), Down::Help(Box::new(request))));
    }

    /// What all members of an attempt are told, but the terms of secure aggregation.
    fn invitation(&self, key: &RoundKey, model: BlobRef, state: &[StateSlot], grids: &[Grid]) -> Option<Invitation> {
        let architecture = self.record.architecture.clone()?;
        let spec = &self.record.spec;
        Some(Invitation {
            key: key.clone(),
            job_name: spec.job_name.clone(),
            publisher: spec.publisher.clone(),
            job_type: STANDARD.to_owned(),
            recipe: spec.recipe_name().to_owned(),
            grids: grids.to_vec(),
            local: self.local_rule(state),
            initial_loss: spec.strategy.rule().local().initial_loss,
            personal: spec.personal(&architecture),
            receipt: None,
            retain_updates: spec.retain_updates,
            architecture,
            model,
            training: spec.training.clone(),
            data: spec.data.clone(),
            seed: spec.seed,
            max_examples: spec.max_examples,
            clip: spec.clip,
            privacy_techniques: spec.privacy_techniques(),
            secure: None,
            total_rounds: spec.total_rounds,
            deadline_ms: 0,
        })
    }

    /// What the nodes do beside training.
    fn local_rule(&self, state: &[StateSlot]) -> LocalRule {
        let demands = self.record.spec.strategy.rule().local();
        if demands.control_variates {
            return LocalRule::Scaffold { control: state.first().map(|slot| slot.blob) };
        }
        demands.personal_lambda.map_or(LocalRule::Plain, |lambda| LocalRule::Ditto { lambda })
    }

    /// Where the next attempt starts; an error is why no attempt of this job can.
    pub(super) fn start_point(
        &self,
        key: &RoundKey,
        model: BlobRef,
        cohort: &[Peer],
    ) -> Option<Result<StartPoint, String>> {
        let architecture = self.record.architecture.as_ref()?;
        let (state, grids) = (self.record.state.clone(), grids(architecture));
        let examples_max = self.examples_max(cohort);
        let secure = match self.record.spec.secure {
            None => None,
            Some(withstands) => match self.terms(withstands, cohort, examples_max) {
                Ok(terms) => {
                    let terms = SecureTerms { helper: self.helper_key()?, ..terms };
                    let invitation = self.invitation(key, model, &state, &grids)?;
                    let record = SecureRecord::new(terms, &Invitation { secure: Some(terms), ..invitation });
                    Some(SecureRecord { helper: self.helper_peer().map(Helped::new), ..record })
                }
                Err(overflow) => return Some(Err(overflow.to_string())),
            },
        };
        let by_steps = self.record.spec.strategy.rule().weighting() == Some(Weighting::Steps);
        Some(Ok(StartPoint { model, state, grids, examples_max: by_steps.then_some(examples_max), secure }))
    }

    /// Most examples that an update of this cohort can have: no more than the rows its node has reported.
    fn examples_max(&self, cohort: &[Peer]) -> u32 {
        let spec = &self.record.spec;
        let rows = cohort.iter().filter_map(|peer| self.candidates.get(&peer.name)).flat_map(|c| &c.data);
        let rows = rows.filter(|data| recruit::fits(data, &spec.data)).map(|data| data.rows).max().unwrap_or(0);
        // Rounded up: a node whose data has grown a little still fits, and the largest data set is not told to everybody.
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).checked_next_power_of_two().unwrap_or(u32::MAX);
        rows.clamp(1, spec.max_examples)
    }

    /// The terms of secure aggregation among this cohort. What nodes report is known anyway, and the smaller the factors, the
    /// fewer bytes a value takes.
    fn terms(&self, withstands: Withstands, cohort: &[Peer], examples_max: u32) -> Result<SecureTerms, Overflow> {
        let spec = &self.record.spec;
        let weighting = spec.strategy.rule().weighting().unwrap_or(Weighting::Equal);
        let cohort = u32::try_from(cohort.len()).unwrap_or(u32::MAX);
        let terms = secure::terms(withstands, (spec.min_participants, cohort), weighting, examples_max)?;
        Ok(SecureTerms { graph: secure::graph(cohort, self.rules.full_graph_max), ..terms })
    }

    pub(super) fn compute(&self, now: Now) -> Option<Effect> {
        let round = self.round.as_ref()?;
        let accepted = round.counted().map(|(n, c)| (n.clone(), c.clone())).collect();
        let plan = ComputePlan::of(&self.record, &round.record(now), round.members().len(), accepted)?;
        Some(Effect::Compute(Box::new(ComputePlan { opened: round.opened(), ..plan })))
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
