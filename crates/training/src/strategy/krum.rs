//! Krum: the one update that lies closest to its neighbours.
//!
//! Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4: the score of
//! an update is the sum of its squared Euclidean distances to its n - f - 2 nearest others; the update of the lowest score
//! is the whole change of the model. Of equal scores the first by name counts. Numbers of examples do not count.
//!
//! Settings: `byzantine` f (0 to 49,998), required: how many nodes may be dishonest.
//! Assumes n >= 2f + 3. Throws away all honest updates but one: it converges slower than a mean, and with strongly different
//! data it follows one node. Costs all distances: O(n^2) products of vectors, in one pass over the updates.

use serde::{Deserialize, Serialize};

use super::exact::Scale;
use super::settings::Settings;
use super::{Choice, Facts, Geometry, Needs, Rule};

/// Settings of `krum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Krum {
    /// Nodes that may be dishonest, 0 to 49,998.
    pub byzantine: u32,
}

impl Krum {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { byzantine: settings.byzantine(49_998) }
    }
}

impl Settings<'_> {
    /// `byzantine`, 0 to `high`, without default: only the owner of the job can know it.
    pub(super) fn byzantine(&mut self, high: u32) -> u32 {
        self.required_integer("byzantine", 0, high, "how many nodes may be dishonest")
    }
}

/// Krum's condition on the cohort.
pub(super) fn cohort_min(byzantine: u32) -> (u32, String) {
    (2 * byzantine + 3, format!("n >= 2f + 3 with byzantine f = {byzantine}"))
}

/// Number of nearest others whose distances make a score, of `count` updates.
pub(super) fn neighbours(count: usize, byzantine: u32) -> usize {
    count.saturating_sub(byzantine as usize + 2).max(1)
}

/// The scale on which squared distances of this geometry are integers.
pub(super) fn scale(geometry: &Geometry) -> Scale {
    Scale::new(geometry.distances_squared.iter().copied().fold(0.0, f64::max))
}

/// Krum's score of each update, as an exact sum.
pub(super) fn scores(geometry: &Geometry, count: usize, byzantine: u32) -> Vec<u128> {
    let scale = scale(geometry);
    let near = neighbours(count, byzantine);
    let score = |of: usize| {
        let mut others: Vec<f64> =
            (0..count).filter(|other| *other != of).map(|other| geometry.distance_squared(of, other)).collect();
        if near < others.len() {
            others.select_nth_unstable_by(near, f64::total_cmp);
            others.truncate(near);
        }
        others.into_iter().map(|d| scale.units(d)).sum()
    };
    (0..count).map(score).collect()
}

impl Rule for Krum {
    fn cohort_min(&self) -> (u32, String) {
        cohort_min(self.byzantine)
    }

    fn needs(&self) -> Needs {
        Needs::Distances
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let count = facts.contributions.len();
        let scores = scores(facts.geometry, count, self.byzantine);
        let best = (0..count).min_by_key(|i| (scores[*i], *i)).ok_or("krum needs an update")?;
        let weights = (0..count).map(|i| u32::from(i == best)).collect();
        Ok(Choice::Mean { weights, divisor: 1.0, centre: 0.0 })
    }
}
