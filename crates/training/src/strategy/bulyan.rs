//! Bulyan: Krum chooses a set, and each coordinate is a mean around the median of that set.
//!
//! El Mhamdi, Guerraoui and Rouault 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium", section 4:
//! Krum (see `krum`) is run n - 2f times, each time without the update it chose before; then each coordinate is the
//! mean of the n - 4f values nearest to the median of the chosen set's. This is Flower's `aggregate_bulyan`; Flower's newer
//! message interface runs Multi-Krum once instead of Krum repeatedly, and there we stay with the paper.
//! Numbers of examples do not count.
//!
//! Settings: `byzantine` f (0 to 24,999), required.
//! Assumes n >= 4f + 3. Costs what `krum` costs, O(n^2 log n) for the repeated choice, and a selection per coordinate.

use serde::{Deserialize, Serialize};

use super::exact::Scale;
use super::settings::Settings;
use super::{Choice, Facts, Geometry, Needs, Rule, krum};

/// Settings of `bulyan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bulyan {
    /// Nodes that may be dishonest, 0 to 24,999.
    pub byzantine: u32,
}

impl Bulyan {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self { byzantine: settings.byzantine(24_999) }
    }
}

impl Rule for Bulyan {
    fn cohort_min(&self) -> (u32, String) {
        (4 * self.byzantine + 3, format!("n >= 4f + 3 with byzantine f = {}", self.byzantine))
    }

    fn needs(&self) -> Needs {
        Needs::Distances
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let count = facts.contributions.len();
        let (least, why) = self.cohort_min();
        if count < least as usize {
            return Err(format!("bulyan needs {why}, and {count} updates are left"));
        }
        let double = 2 * self.byzantine as usize;
        let mut rows = repeated_krum(facts.geometry, count, self.byzantine, count - double);
        rows.sort_unstable();
        Ok(Choice::NearMedian { rows, keep: count - 2 * double })
    }
}

/// The updates that Krum chooses one after the other, each time among those not yet chosen.
fn repeated_krum(geometry: &Geometry, count: usize, byzantine: u32, wanted: usize) -> Vec<usize> {
    let scale = krum::scale(geometry);
    let near = krum::neighbours(count, byzantine).min(count - 1);
    let mut left = vec![true; count];
    let mut scores: Vec<Score> = (0..count).map(|of| Score::new(geometry, scale, of, count, near)).collect();
    let mut chosen = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let Some(best) = (0..count).filter(|i| left[*i]).min_by_key(|i| (scores[*i].sum, *i)) else { break };
        left[best] = false;
        chosen.push(best);
        let remaining = count - chosen.len();
        let near = krum::neighbours(remaining, byzantine).min(remaining.saturating_sub(1));
        for of in (0..count).filter(|i| left[*i]) {
            scores[of].without(best, near, &left, |other| scale.units(geometry.distance_squared(of, other)));
        }
    }
    chosen
}

/// One update's score while others are taken away: a sum over the nearest of those left.
///
/// Others are sorted by distance once. The sum holds those left of the first `edge` in that order. Taking one away moves
/// the edge back (the score spans one neighbour less) or, at the very end, on by one: O(n) an update over the whole choice.
struct Score {
    order: Vec<u32>,
    edge: usize,
    held: usize,
    sum: u128,
}

impl Score {
    fn new(geometry: &Geometry, scale: Scale, of: usize, count: usize, near: usize) -> Self {
        let units = |other: u32| scale.units(geometry.distance_squared(of, other as usize));
        let mut order: Vec<u32> =
            (0..u32::try_from(count).unwrap_or(u32::MAX)).filter(|other| *other as usize != of).collect();
        order.sort_by_cached_key(|other| (units(*other), *other));
        let sum = order[..near].iter().map(|other| units(*other)).sum();
        Self { order, edge: near, held: near, sum }
    }

    /// Takes `gone` away and holds `near` of those `left`.
    fn without(&mut self, gone: usize, near: usize, left: &[bool], units: impl Fn(usize) -> u128) {
        let gone_units = units(gone);
        // Without an edge entry nothing is held, and nothing can be taken away.
        let held = self.edge > 0 && {
            let last = self.order[self.edge - 1] as usize;
            (gone_units, gone) <= (units(last), last)
        };
        if held {
            self.sum -= gone_units;
            self.held -= 1;
        }
        while self.held > near {
            self.edge -= 1;
            let other = self.order[self.edge] as usize;
            if left[other] {
                self.sum -= units(other);
                self.held -= 1;
            }
        }
        while self.held < near && self.edge < self.order.len() {
            let other = self.order[self.edge] as usize;
            self.edge += 1;
            if left[other] {
                self.sum += units(other);
                self.held += 1;
            }
        }
    }
}
