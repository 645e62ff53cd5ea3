//! Coordinate-wise mean without the smallest and largest values.
//!
//! Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", algorithm 1, option II:
//! of the n values of each coordinate the floor(`beta` n) smallest and as many largest are dropped (Flower's rounding),
//! the rest is averaged. Numbers of examples do not count.
//!
//! Settings: `beta` (0 to 0.499999, default 0.2). 0 is the plain mean.
//! Assumes that at most floor(beta n) updates are not honest, and n >= 1 / beta, or nothing would be dropped.
//! Costs a partial sort per coordinate.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Facts, Rule};

/// Settings of `trimmed_mean`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimmedMean {
    /// Part dropped at each end, 0 to 0.499999.
    pub beta: f64,
}

impl TrimmedMean {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { beta: settings.number("beta", 0.0, 0.499_999, 0.2) }
    }

    /// Values dropped at each end of `count`: less than half of them.
    fn cut(self, count: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to half of the count")]
        let cut = (self.beta * f64::from(count)) as u32;
        cut
    }
}

impl Rule for TrimmedMean {
    fn cohort_min(&self) -> (u32, String) {
        if self.beta == 0.0 {
            return (1, "at least one update".to_owned());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates: refused as too many")]
        let near = (1.0 / self.beta) as u32;
        let least = (near.saturating_sub(1)..near.saturating_add(2)).find(|n| self.cut(*n) >= 1).unwrap_or(near);
        (least, format!("beta * n >= 1 with beta {}: of fewer nothing is dropped", self.beta))
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let count = facts.contributions.len();
        let cut = self.cut(u32::try_from(count).unwrap_or(u32::MAX));
        Ok(Choice::Middle { rows: (0..count).collect(), cut: cut as usize })
    }
}
