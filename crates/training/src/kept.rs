//! Which models and server states of a job stay: pure, so that the simulator lives by the same rule.
//!
//! Each round makes a generation: a model and the server state that came with it. The newest two stay whole, and so does
//! whatever somebody still needs. Older models stay as long as they are small together; older state goes at once: an
//! auditor who replays the record makes it again.

use std::collections::{BTreeSet, VecDeque};

use aivillage_base::Digest;
use aivillage_base::wire::BlobRef;

use crate::record::{Saved, Stage};
use crate::step::Made;

/// Bytes of round models kept a job; at least the two newest stay.
const MODELS_KEPT_BYTES: u64 = 64 << 20;
/// Generations that stay whole.
const WHOLE: usize = 2;

/// The models and server states that a job keeps, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    generations: VecDeque<Made>,
}

impl Kept {
    /// What a stored job keeps; some of it may have gone before.
    #[must_use]
    pub fn of(saved: &Saved) -> Self {
        let mut kept = Self::default();
        for round in &saved.attempts {
            if let Stage::Done { model_out, state_out } = &round.stage {
                kept.generations.push_back(Made { model: *model_out, state: state_out.clone(), totals: None });
            }
        }
        if let Some(model) = saved.record.model.filter(|m| !kept.generations.iter().any(|g| g.model == *m)) {
            kept.generations.push_back(Made { model, state: saved.record.state.clone(), totals: None });
        }
        kept
    }

    /// All blobs it refers to.
    #[must_use]
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.generations.iter().flat_map(|g| blobs(g).map(|b| b.digest)).collect()
    }

    /// A round's model and state are out. Returns the blobs that may go: nothing that stays refers to them, and they are
    /// not among those `needed`.
    pub fn add(&mut self, made: Made, needed: &BTreeSet<Digest>) -> Vec<Digest> {
        let before = self.digests();
        self.generations.push_back(made);
        let old = self.generations.len().saturating_sub(WHOLE);
        for generation in self.generations.iter_mut().take(old) {
            generation.state.retain(|slot| needed.contains(&slot.blob.digest));
        }
        let mut total: u64 = self.generations.iter().map(|g| g.model.bytes).sum();
        let mut place = 0;
        for _ in 0..old {
            let oldest = &self.generations[place];
            if total <= MODELS_KEPT_BYTES || needed.contains(&oldest.model.digest) || !oldest.state.is_empty() {
                place += 1;
                continue;
            }
            total -= oldest.model.bytes;
            self.generations.remove(place);
        }
        before.difference(&self.digests()).copied().collect()
    }
}

fn blobs(made: &Made) -> impl Iterator<Item = &BlobRef> {
    std::iter::once(&made.model).chain(made.state.iter().map(|slot| &slot.blob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StateSlot;
    use crate::testing::blob;

    fn round(n: u32, megabytes: u64) -> Made {
        let model = BlobRef { bytes: megabytes << 20, ..blob(&format!("model {n}")) };
        let state = vec![StateSlot { name: "momentum".into(), blob: blob(&format!("state {n}")) }];
        Made { model, state, totals: None }
    }

    fn digest(text: &str) -> Digest {
        blob(text).digest
    }

    #[test]
    fn small_models_stay_and_old_state_goes() {
        let mut kept = Kept::default();
        let gone: Vec<Digest> = (1..=10).flat_map(|n| kept.add(round(n, 1), &BTreeSet::new())).collect();
        assert_eq!(gone, (1..=8).map(|n| digest(&format!("state {n}"))).collect::<Vec<_>>());
        assert!(kept.digests().contains(&digest("model 1")));
    }

    #[test]
    fn of_large_models_two_stay_and_what_somebody_needs() {
        let mut kept = Kept::default();
        let needed = BTreeSet::from([digest("model 1"), digest("state 2")]);
        for n in 1..=6 {
            kept.add(round(n, 60), &needed);
        }
        let names = ["model 1", "model 2", "state 2", "model 5", "state 5", "model 6", "state 6"];
        assert_eq!(kept.digests(), names.map(digest).into_iter().collect());
        let gone = kept.add(round(7, 60), &BTreeSet::new());
        assert!(gone.contains(&digest("model 1")) && gone.contains(&digest("state 2")), "nobody needs them now");
        assert_eq!(kept.digests().len(), 4);
    }

    #[test]
    fn what_a_newer_round_made_again_stays() {
        let mut kept = Kept::default();
        let same = |n: u32| Made { state: round(1, 1).state, ..round(n, 1) };
        for n in 1..=5 {
            assert_eq!(kept.add(same(n), &BTreeSet::new()), []);
        }
    }
}
