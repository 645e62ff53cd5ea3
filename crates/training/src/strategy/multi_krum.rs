//! Multi-Krum: the mean of the updates that lie closest to their neighbours.
//!
//! Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 5: scores as in
//! `krum`; the `to_keep` updates of the lowest scores are averaged (of equal scores the first by name). The paper's
//! mean is unweighted; Flower weights by numbers of examples, and so do we: a dishonest update that is kept counts by what
//! its node says, up to the job's `max_examples`.
//!
//! Settings: `byzantine` f (0 to 49,998), required; `to_keep` (1 to 100,000; absent = n - f - 2, the most for which the
//! proof holds). Assumes n >= 2f + 3 and to_keep <= n - f. Costs what `krum` costs.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Choice, Contribution, Facts, Needs, Rule, krum};

/// Settings of `multi_krum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiKrum {
    /// Nodes that may be dishonest, 0 to 49,998.
    pub byzantine: u32,
    /// Updates that are averaged, 1 to 100,000; None = n - f - 2.
    pub to_keep: Option<u32>,
}

impl MultiKrum {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { byzantine: settings.byzantine(49_998), to_keep: settings.integer("to_keep", 1, 100_000) }
    }
}

impl Rule for MultiKrum {
    fn cohort_min(&self) -> (u32, String) {
        let (least, why) = krum::cohort_min(self.byzantine);
        match self.to_keep {
            Some(keep) if keep + self.byzantine > least => {
                (keep + self.byzantine, format!("to_keep {keep} <= n - f with byzantine f = {}", self.byzantine))
            }
            Some(_) | None => (least, why),
        }
    }

    fn needs(&self) -> Needs {
        Needs::Distances
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let count = facts.contributions.len();
        let scores = krum::scores(facts.geometry, count, self.byzantine);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|i| (scores[*i], *i));
        let keep = self.to_keep.map_or_else(|| krum::neighbours(count, self.byzantine), |keep| keep as usize);
        let mut kept = vec![false; count];
        for index in order.into_iter().take(keep) {
            kept[index] = true;
        }
        let counts = |(c, kept): (&Contribution, bool)| Contribution { weight: if kept { c.weight } else { 0 }, ..*c };
        let weighted: Vec<Contribution> = facts.contributions.iter().zip(kept).map(counts).collect();
        Ok(Choice::by_examples(&weighted))
    }
}
