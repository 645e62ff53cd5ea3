//! Randomness that a job's seed explains, and randomness that nobody can guess.
//!
//! [`SeededRng`] is a stream of BLAKE3's extendable output under a context string: the same (context, seed
//! material) gives the same numbers on every machine and version of this program, which the determinism
//! contract needs. It is for training (initial weights, batch order, splits), never for secrets or noise:
//! those come from [`os_bytes`].

use std::fmt;

/// A deterministic stream of numbers; see the module's front page for what it is not for.
pub struct SeededRng {
    reader: blake3::OutputReader,
    buffer: [u8; 512],
    used: usize,
}

impl fmt::Debug for SeededRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededRng")
    }
}

impl SeededRng {
    /// A stream for `purpose` (e.g. `"initial weights"`), a job's `seed` and further `parts` (round, node name …).
    /// Each part is length-prefixed, so no two lists of parts collide.
    #[must_use]
    pub fn new(purpose: &str, seed: u64, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("aivillage 2026 seeded rng v1");
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(&seed.to_le_bytes());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self { reader: hasher.finalize_xof(), buffer: [0; 512], used: 512 }
    }

    /// Uniform over all 64-bit values.
    pub fn next_u64(&mut self) -> u64 {
        if self.used == self.buffer.len() {
            self.reader.fill(&mut self.buffer);
            self.used = 0;
        }
        let mut word = [0u8; 8];
        word.copy_from_slice(&self.buffer[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(word)
    }

    /// Uniform over `0..bound`, without modulo bias (rejection). `bound` must be positive.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "below(0) has no value to return");
        let zone = u64::MAX - (u64::MAX % bound + 1) % bound;
        loop {
            let x = self.next_u64();
            if x <= zone {
                return x % bound;
            }
        }
    }

    /// Uniform over [0, 1) with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let x = (self.next_u64() >> 11) as f64;
        x * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = usize::try_from(self.below(i as u64 + 1)).expect("invariant: j <= i, a usize");
            items.swap(i, j);
        }
    }
}

/// Fills `out` with secret randomness from the operating system.
///
/// # Panics
/// If the operating system has none to give: there is nothing safe to do without it.
pub fn os_bytes(out: &mut [u8]) {
    getrandom::fill(out).expect("invariant: the operating system provides randomness");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_fixed_for_ever() {
        let mut rng = SeededRng::new("test", 1, &[b"a"]);
        let first = rng.next_u64();
        assert_eq!(first, SeededRng::new("test", 1, &[b"a"]).next_u64());
        assert_ne!(first, SeededRng::new("test", 2, &[b"a"]).next_u64());
        assert_ne!(first, SeededRng::new("test", 1, &[b"", b"a"]).next_u64());
    }

    #[test]
    fn bounded_draws_are_uniform() {
        let mut rng = SeededRng::new("test", 7, &[]);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[usize::try_from(rng.below(6)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
        let mean = (0..10_000).map(|_| rng.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
