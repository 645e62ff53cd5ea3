//! The network: when a message arrives, twice or never; and all of the village's dice.

use std::collections::BTreeMap;

use aivillage_base::rng::SeededRng;

use crate::faults::{FaultKind, Faults, Tally};

/// Ordinary time on the way, in milliseconds.
const LATENCY_MS: u64 = 20;
/// Longest time on the way, in milliseconds.
const DELAY_MS_MAX: u64 = 3_000;

/// One direction between two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Down { process: usize, node: usize },
    Up { node: usize, process: usize },
}

#[derive(Debug)]
pub(crate) struct Net {
    rng: SeededRng,
    faults: Faults,
    pub(crate) tally: Tally,
    /// Latest arrival of what was sent so far.
    latest: BTreeMap<Way, u64>,
    /// Nodes that are cut off.
    pub(crate) cut: Vec<bool>,
}

impl Net {
    pub(crate) fn new(seed: u64, faults: Faults, nodes: usize) -> Self {
        let rng = SeededRng::new("village", seed, &[]);
        Self { rng, faults, tally: Tally::default(), latest: BTreeMap::new(), cut: vec![false; nodes] }
    }

    /// Uniform from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.rng.below(high - low + 1)
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Does this fault strike now? Counted if it does.
    pub(crate) fn strikes(&mut self, now: u64, kind: FaultKind, chance: f64) -> bool {
        let strikes = now < self.faults.until_ms && self.rng.unit() < chance;
        if strikes {
            self.tally.count(kind);
        }
        strikes
    }

    /// When what is sent now arrives: never, once or twice.
    pub(crate) fn arrivals(&mut self, now: u64, way: Way) -> Vec<u64> {
        let (loss, duplicate, delay) = (self.faults.loss, self.faults.duplicate, self.faults.delay);
        if self.strikes(now, FaultKind::Loss, loss) {
            return Vec::new();
        }
        let copies = if self.strikes(now, FaultKind::Duplicate, duplicate) { 2 } else { 1 };
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let slow = self.strikes(now, FaultKind::Delay, delay);
            let at = now + self.between(1, if slow { DELAY_MS_MAX } else { LATENCY_MS });
            arrivals.push(at);
            let latest = self.latest.entry(way).or_default();
            if at < *latest {
                self.tally.count(FaultKind::Reorder);
            }
            *latest = at.max(*latest);
        }
        arrivals
    }
}
