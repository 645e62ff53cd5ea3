//! How many neighbours a participant shares its seeds with, and how many of them rebuild one.
//!
//! A threshold t must be too high for the adversary and low enough for who is left. A **curious** coordinator with X corrupt
//! neighbours rebuilds a seed if X >= t. A **semi-malicious** one tells half of the honest neighbours that the participant
//! dropped and the others that it stayed, and gets both of its seeds if (k - X) + 2X >= 2t, that is X >= 2t - k. The sum is
//! lost if fewer than t neighbours stay. Full graph (Bonawitz et al. 2017): the counts decide. k-regular graph (Bell et al.
//! 2020): a participant's neighbours are k random others, so X and the number that stays are hypergeometric, and the graph of
//! honest participants that stay must hang together, else its parts are sums of their own.
//!
//! Promises: tails are summed exactly in logarithms whose bits are the same on every machine, and rounded to the safe side;
//! all participants compute the same plan. With corrupt 1/5, dropout 1/4, 40 bits of security and 30 of correctness,
//! participants: curious 10: 6/3, 100: 46/21, 1000: 134/66 (k/t); semi-malicious 320: 220/143, 1000: 486/317.

use tail::{Binomials, Tail};

mod tail;

/// Up to this number of participants each shares with all others.
pub const FULL_GRAPH_MAX: u32 = 128;

/// Counts of participants are floors of a fraction times n; this much is added first, so that 0.29 · 100 is 29.
const ROUNDING: f64 = 1e-9;

/// What the coordinator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adversary {
    /// It follows the protocol and reads what corrupt participants read.
    Curious,
    /// It also tells different participants different things about who dropped out.
    SemiMalicious,
}

/// What is assumed of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assumptions {
    /// Fraction of participants that work for the adversary, gamma; 0 to below 1.
    pub corrupt: f64,
    /// Fraction that may drop out, delta; 0 to below 1.
    pub dropout: f64,
    /// What the coordinator may do.
    pub adversary: Adversary,
    /// Some update is disclosed with probability at most 2^-this. Random graphs only; the full graph has no such chance.
    pub security_bits: f64,
    /// The sum is lost, though no more drop out than assumed, with probability at most 2^-this. Random graphs only.
    pub correctness_bits: f64,
}

impl Default for Assumptions {
    /// A fifth corrupt, a quarter drops out, semi-malicious, 40 bits of security, 30 of correctness.
    fn default() -> Self {
        Self {
            corrupt: 0.2,
            dropout: 0.25,
            adversary: Adversary::SemiMalicious,
            security_bits: 40.0,
            correctness_bits: 30.0,
        }
    }
}

/// Numbers under which the assumptions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Neighbours of each participant, k; n - 1 is the full graph.
    pub neighbours: usize,
    /// Shares that rebuild a seed, t.
    pub threshold: usize,
}

/// No threshold is both safe and within reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoThreshold {
    /// Whoever knows their own update and the sum of two knows the other.
    #[error("{participants} participants are too few: a sum of fewer than 3 hides nobody, so recruit more")]
    TooFew {
        /// n.
        participants: usize,
    },
    /// More shares are needed than are sure to be there.
    #[error(
        "{participants} participants of whom {corrupt} may be corrupt and {dropped} may drop out, each with {neighbours} \
         neighbours, have no safe threshold: it would have to be {needed}, and only {available} shares are sure to be there; \
         recruit more participants, or assume fewer corrupt or fewer dropouts"
    )]
    Contradiction {
        /// n.
        participants: usize,
        /// floor(gamma·n).
        corrupt: usize,
        /// floor(delta·n).
        dropped: usize,
        /// k.
        neighbours: usize,
        /// The smallest safe threshold; k + 1 if none is.
        needed: usize,
        /// The largest threshold that is reached.
        available: usize,
    },
    /// The graph may fall apart, or does not exist.
    #[error(
        "{neighbours} neighbours are no choice for {participants} participants of whom {corrupt} may be corrupt and {dropped} \
         may drop out: give each 2 to {participants} - 1, an even number if the participants are odd, and enough that the \
         others stay connected"
    )]
    Neighbours {
        /// n.
        participants: usize,
        /// floor(gamma·n).
        corrupt: usize,
        /// floor(delta·n).
        dropped: usize,
        /// k.
        neighbours: usize,
    },
}

/// The plan for `n` participants: [`full`] up to [`FULL_GRAPH_MAX`], [`sparse`] above.
///
/// # Errors
/// [`NoThreshold`], as they do.
pub fn choose(n: usize, assumptions: &Assumptions) -> Result<Plan, NoThreshold> {
    if n <= FULL_GRAPH_MAX as usize { full(n, assumptions) } else { sparse(n, assumptions) }
}

/// Everybody shares with everybody: t = floor((n + floor(gamma·n)) / 2) + 1, if at least t stay.
///
/// Counted among n shares: **each participant also keeps a share of its own seeds**, and gives it as if it were a neighbour.
/// The same for both adversaries, since the full graph is for few, who better be safe. No chance is involved.
///
/// # Errors
/// [`NoThreshold::TooFew`] below 3 participants; [`NoThreshold::Contradiction`] if t > n - floor(delta·n).
pub fn full(n: usize, assumptions: &Assumptions) -> Result<Plan, NoThreshold> {
    let Counts { corrupt, dropped } = Counts::new(n, assumptions)?;
    let threshold = usize::midpoint(n, corrupt) + 1;
    let available = n - dropped;
    if threshold > available {
        let neighbours = n - 1;
        return Err(NoThreshold::Contradiction {
            participants: n,
            corrupt,
            dropped,
            neighbours,
            needed: threshold,
            available,
        });
    }
    Ok(Plan { neighbours: n - 1, threshold })
}

/// The smallest even number of random neighbours for which there is a threshold, and the smallest such; the full graph if no
/// smaller one will do.
///
/// # Errors
/// As [`full`].
pub fn sparse(n: usize, assumptions: &Assumptions) -> Result<Plan, NoThreshold> {
    let counts = Counts::new(n, assumptions)?;
    let binomials = Binomials::up_to(n);
    (2..n - 1)
        .step_by(2)
        .find_map(|k| random(n, k, counts, assumptions, &binomials).ok())
        .map_or_else(|| full(n, assumptions), Ok)
}

/// The smallest threshold for `k` random neighbours; for k = n - 1 [`full`].
///
/// # Errors
/// [`NoThreshold::Neighbours`] for a k that no graph has (0, 1, n and more, or odd with odd n) or whose graph may fall apart;
/// else as [`full`].
pub fn with_neighbours(n: usize, k: usize, assumptions: &Assumptions) -> Result<Plan, NoThreshold> {
    let counts = Counts::new(n, assumptions)?;
    if k == n - 1 {
        return full(n, assumptions);
    }
    if k < 2 || k >= n || (k % 2 == 1 && n % 2 == 1) {
        return Err(counts.bad_neighbours(n, k));
    }
    random(n, k, counts, assumptions, &Binomials::up_to(n))
}

/// How many of n.
#[derive(Debug, Clone, Copy)]
struct Counts {
    corrupt: usize,
    dropped: usize,
}

impl Counts {
    fn new(n: usize, assumptions: &Assumptions) -> Result<Self, NoThreshold> {
        if n < 3 {
            return Err(NoThreshold::TooFew { participants: n });
        }
        Ok(Self { corrupt: count(n, assumptions.corrupt), dropped: count(n, assumptions.dropout) })
    }

    fn bad_neighbours(self, n: usize, k: usize) -> NoThreshold {
        NoThreshold::Neighbours { participants: n, corrupt: self.corrupt, dropped: self.dropped, neighbours: k }
    }
}

/// floor(fraction·n); all n for what is no fraction, under which nothing is safe.
fn count(n: usize, fraction: f64) -> usize {
    if !(0.0..1.0).contains(&fraction) {
        return n;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "participants are fewer than 2^52, and the product lies between 0 and n"
    )]
    let count = (fraction * n as f64 + ROUNDING).floor() as usize;
    count.min(n)
}

fn random(
    n: usize,
    k: usize,
    counts: Counts,
    assumptions: &Assumptions,
    binomials: &Binomials,
) -> Result<Plan, NoThreshold> {
    let Counts { corrupt, dropped } = counts;
    // Half of the chance of a disclosure for each of its two causes, and a share of it for each participant.
    let disclosed = -(assumptions.security_bits + 1.0) * std::f64::consts::LN_2;
    let lost = -assumptions.correctness_bits * std::f64::consts::LN_2;
    let each = tail::ln(n);
    if binomials.disconnected(n, k, corrupt + dropped) > disclosed {
        return Err(counts.bad_neighbours(n, k));
    }

    // Seen by one honest participant that stays: the others are n - 1, of them `corrupt` and n - 1 - `dropped`.
    let corrupt_neighbours = Tail::new(binomials, n - 1, corrupt.min(n - 1), k);
    let gone_neighbours = Tail::new(binomials, n - 1, dropped.min(n - 1), k);
    let safe = |t: usize| {
        let seen = match assumptions.adversary {
            Adversary::Curious => t,
            Adversary::SemiMalicious => (2 * t).saturating_sub(k),
        };
        corrupt_neighbours.at_least(seen) + each <= disclosed
    };
    // Fewer than t stay: more than k - t are gone.
    let reached = |t: usize| gone_neighbours.at_least(k - t + 1) + each <= lost;

    // One share alone would be the seed.
    let needed = (2..=k).find(|t| safe(*t)).unwrap_or(k + 1);
    let available = (1..=k).rev().find(|t| reached(*t)).unwrap_or(0);
    if needed > available {
        return Err(NoThreshold::Contradiction { participants: n, corrupt, dropped, neighbours: k, needed, available });
    }
    Ok(Plan { neighbours: k, threshold: needed })
}

#[cfg(test)]
mod tests;
