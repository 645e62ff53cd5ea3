//! Centred clipping: updates are shortened towards what the last round did.
//!
//! Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust Optimization", algorithm 2: from the last
//! round's direction v (zero in the first round), `iterations` times
//! v <- v + 1/n sum_k (d_k - v) min(1, `tau` / |d_k - v|);  then w(r+1) = w(r) + v.
//! Numbers of examples do not count. v stays a combination of the updates and the last v, so the iteration runs on distances
//! alone (`affine`).
//! State: `centre`, v rounded to the round's grid (by half a step at most), as long as the model.
//!
//! Settings: `tau` (1e-9 to 1e9; absent = the median distance of the round's updates from the last v), `iterations` (1 to
//! 100, default 1: with the last round as start one is enough for the paper's theorem).
//! Assumes that dishonest nodes are a small part (the theorem: at most 10 %) and that directions change slowly from round to
//! round, as with momentum. Costs all distances and one vector of state.

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::{Block, CENTRE, Choice, Facts, Needs, Rule, affine, exact, narrow};

/// Settings of `centered_clipping`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenteredClipping {
    /// Longest distance from the centre, 1e-9 to 1e9; None = the round's median distance.
    pub tau: Option<f64>,
    /// Iterations, 1 to 100.
    pub iterations: u32,
}

impl CenteredClipping {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            tau: settings.optional_number("tau", 1e-9, 1e9),
            iterations: settings.integer("iterations", 1, 100).unwrap_or(1),
        }
    }
}

impl Rule for CenteredClipping {
    fn needs(&self) -> Needs {
        Needs::DistancesAndCentre
    }

    fn slots(&self) -> &'static [&'static str] {
        &[CENTRE]
    }

    fn robust(&self) -> bool {
        true
    }

    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String> {
        let n = facts.contributions.len();
        #[expect(clippy::cast_precision_loss, reason = "at most 100,000 updates")]
        let count = n as f64;
        let mut shares = vec![0.0; n + 1];
        shares[n] = 1.0;
        let mut radius = self.tau;
        for _ in 0..self.iterations {
            let mut distances = affine::distances(facts.geometry, &shares);
            distances.truncate(n);
            let tau = *radius.get_or_insert_with(|| exact::median(distances.clone()));
            let kept = 1.0 - exact::sum(distances.iter().map(|d| affine::shrink(tau, *d))) / count;
            let moved = distances.iter().map(|d| affine::shrink(tau, *d) / count).chain([0.0]);
            shares = shares.iter().zip(moved).map(|(share, moved)| share * kept.max(0.0) + moved).collect();
        }
        Ok(Choice::combination(&shares[..n], shares[n]))
    }

    fn apply(&self, _: &Facts<'_>, block: &mut Block<'_, '_>) {
        block.advance(1.0);
        let (step, bound) = (block.grid.step(), f64::from(block.grid.bound));
        for (centre, d) in block.state[0].iter_mut().zip(block.direction) {
            *centre = narrow((d / step).round_ties_even().clamp(-bound, bound) * step);
        }
    }
}
