//! How a job and the shape of its model go together: what travels, what stays on the nodes.

use aivillage_base::arch::TensorSpec;
use aivillage_base::{Architecture, suggest};

use super::{JobSpec, matches};

impl JobSpec {
    /// Values of the model that a plane of an update holds: all but those of tensors that stay on the nodes. None if the
    /// architecture does not hold together.
    #[must_use]
    pub fn shared_values(&self, architecture: &Architecture) -> Option<usize> {
        let stays = |t: &TensorSpec| self.personal_tensors.iter().any(|pattern| matches(pattern, &t.name));
        Some(architecture.layout().ok()?.iter().filter(|t| !stays(t)).map(TensorSpec::len).sum())
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
