//! Coordinate-wise median of the changes.
//!
//! Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", algorithm 1, option I:
//! each coordinate of the model moves by the median of that coordinate over the updates (of an even number: the mean of the
//! two in the middle). Numbers of examples do not count: a node cannot vote twice.
//!
//! Settings: none. Assumes that more than half of the updates are honest and that their data are alike: with strongly
//! different data the median of a coordinate may be no node's wish. Costs a selection per coordinate.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Facts, Rule};

/// `median` has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Median {}

impl Median {
    pub(super) fn read(_: &mut Settings<'_>) -> Self {
        Self {}
    }
}

impl Rule for Median {
    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let count = facts.contributions.len();
        Ok(Choice::Middle { rows: (0..count).collect(), cut: count.saturating_sub(1) / 2 })
    }
}
