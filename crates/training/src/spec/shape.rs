//! How a job and the shape of its model go together: what travels, what stays on the nodes.

use aivillage_base::arch::TensorSpec;
use aivillage_base::fixed::Grid;
use aivillage_base::{Architecture, ErrorKind, Task, suggest};

use super::{Faults, JobSpec, Start, matches};
use crate::error::Fault;

impl JobSpec {
    /// Values of the model that a plane of an update holds: all but those of tensors that stay on the nodes. None if the
    /// architecture does not hold together.
    #[must_use]
    pub fn shared_values(&self, architecture: &Architecture) -> Option<usize> {
        let stays = |t: &TensorSpec| self.personal_tensors.iter().any(|pattern| matches(pattern, &t.name));
        Some(architecture.layout().ok()?.iter().filter(|t| !stays(t)).map(TensorSpec::len).sum())
    }

    /// The fault of a job whose updates, models and server state cannot be stored on a disk with so many bytes
    /// `available`, if its model has so many `parameters`.
    #[must_use]
    pub(crate) fn space_fault(&self, parameters: usize, available: u64) -> Option<Fault> {
        let rule = self.strategy.rule();
        let model = parameters as u64 * 4;
        let update = model.saturating_mul(rule.planes() as u64);
        let updates = update.saturating_mul(u64::from(self.max_participants));
        // The generation that a round starts from, the one it makes, and the newest before.
        let kept = model.saturating_mul(1 + rule.slots().len() as u64).saturating_mul(3);
        let round = updates.saturating_add(kept);
        let all = updates.saturating_mul(u64::from(self.total_rounds)).saturating_add(kept);
        let (pointer, detail) = if round > available {
            let (members, strategy) = (self.max_participants, self.strategy.name());
            let what =
                format!("a round of {members} updates of {update} bytes with strategy `{strategy}` needs {round}");
            ("/max_participants", format!("{what} bytes of disk, {available} are available: lower max_participants"))
        } else if self.retain_updates && all > available {
            let (rounds, members) = (self.total_rounds, self.max_participants);
            let what = format!("{rounds} rounds of {members} updates of {update} bytes, all kept, need {all}");
            (
                "/retain_updates",
                format!("{what} bytes of disk, {available} are available: keep none, lower total_rounds"),
            )
        } else {
            return None;
        };
        let detail = format!("{detail}, or make room");
        Some(Fault { pointer: pointer.into(), detail, kind: ErrorKind::Invalid })
    }

    /// Do nodes keep something for this job from round to round?
    #[must_use]
    pub fn nodes_keep_state(&self) -> bool {
        let demands = self.strategy.rule().local();
        demands.control_variates || demands.personal_lambda.is_some() || !self.personal_tensors.is_empty()
    }

    /// Can a model of this shape be trained as the job asks?
    ///
    /// # Errors
    /// One sentence: a name of `personal_tensors` that means no tensor, or all tensors stay on the nodes.
    pub fn fits(&self, architecture: &Architecture) -> Result<(), String> {
        let layout = architecture.layout().map_err(|e| e.0)?;
        let names: Vec<&str> = layout.iter().map(|t| t.name.as_str()).collect();
        let means_none = |pattern: &&String| !names.iter().any(|name| matches(pattern, name));
        if let Some(pattern) = self.personal_tensors.iter().find(means_none) {
            return Err(format!("personal_tensors: {}", suggest::unknown("tensor", pattern, &names)));
        }
        if !layout.is_empty() && self.shared_values(architecture) == Some(0) {
            let list = names.join(", ");
            return Err(format!(
                "personal_tensors: all tensors of the model would stay on the nodes ({list}), and nothing would be trained \
                 together: leave at least one out"
            ));
        }
        Ok(())
    }
}

/// What can be known of the model at submit is looked at then; the rest when the first cohort fixes its shape.
pub(super) fn check(spec: &JobSpec, faults: &mut Faults) {
    let known = match &spec.start {
        Start::Model(model) => Some(model.architecture.clone()),
        Start::Recipe(recipe) => {
            let data = spec.data.input.as_ref().zip(spec.data.classes);
            data.and_then(|(input, classes)| recipe.build(input, Task::Classification { classes }).ok())
        }
    };
    if let Some(Err(detail)) = known.map(|architecture| spec.fits(&architecture)) {
        faults.invalid("/strategy/config/personal_tensors", &detail);
    }
}

/// Sums must fit 64 bits whatever the members send: a member is not to be blamed for a sum that is too large.
///
/// Means weighted by examples are the ones that can grow: the strategies' own coefficients are scaled to stay below 2^62
/// ([`crate::strategy::Choice::combination`]), and ranks sum bare values.
pub(super) fn check_sums(max_participants: u32, max_examples: u32, faults: &mut Faults) {
    let bound = u64::from(Grid::default().bound.unsigned_abs());
    let updates = u64::from(max_participants.max(1));
    let largest = u128::from(updates) * u128::from(max_examples) * u128::from(bound);
    if largest > i64::MAX.unsigned_abs().into() {
        let most = i64::MAX.unsigned_abs() / bound / updates;
        faults.invalid(
            "/hyperparameters/max_examples",
            &format!(
                "{updates} updates of weight {max_examples} with values up to {bound} grid steps can sum to {largest}, more \
                 than a 64-bit sum holds ({}): use at most {most} for this cohort, or lower max_participants",
                i64::MAX
            ),
        );
    }
}
