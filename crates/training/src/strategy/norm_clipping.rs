//! Mean of updates that are shortened to a common length.
//!
//! Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 4: with C = `clipping_norm`,
//! w(r+1) = w(r) + sum_k n_k d_k min(1, C / |d_k|) / sum_k n_k. |d_k| is the Euclidean norm over all tensors that travel.
//!
//! Settings: `clipping_norm` (1e-9 to 1e9; absent = the median of the round's norms).
//! Assumes that dishonest nodes are few: each can move the model by C n_k / sum n at most, in a direction of its choice. It
//! bounds what one update does and does not take it out. Costs a pass for the norms.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Facts, Needs, Rule, affine, exact};

/// Settings of `norm_clipping`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormClipping {
    /// Longest norm, 1e-9 to 1e9; None = the median of the round's norms.
    pub clipping_norm: Option<f64>,
}

impl NormClipping {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { clipping_norm: settings.optional_number("clipping_norm", 1e-9, 1e9) }
    }
}

impl Rule for NormClipping {
    fn needs(&self) -> Needs {
        Needs::Norms
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let norms: Vec<f64> = facts.geometry.norms_squared.iter().map(|n| n.sqrt()).collect();
        let longest = self.clipping_norm.unwrap_or_else(|| exact::median(norms.clone()));
        let examples = exact::sum(facts.contributions.iter().map(|c| f64::from(c.weight)));
        let clipped = facts.contributions.iter().zip(norms);
        let coefficient = |weight: u32, norm: f64| f64::from(weight) / examples * affine::shrink(longest, norm);
        Ok(Choice::combination(&clipped.map(|(c, norm)| coefficient(c.weight, norm)).collect::<Vec<_>>(), 0.0))
    }
}
