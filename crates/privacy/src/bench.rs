//! How fast this machine masks: the figure behind `aivillage bench`.

use std::time::Duration;

use aivillage_base::time::Clock;

use crate::secagg::mask::{self, MaskKey, Sign};
use crate::secagg::ring::Width;

/// A vector of 2 MiB: larger than the nearest caches, as a model is.
const VALUES: usize = 1 << 18;

/// What to measure, and how long.
#[derive(Debug, Clone, Copy)]
pub struct MaskBench {
    /// Width of the masked values.
    pub width: Width,
    /// Neighbours: streams over one vector, at least 1.
    pub keys: usize,
    /// Length of a slice, at least 1 ms.
    pub slice: Duration,
    /// Slices of which the median counts, at least 1.
    pub slices: usize,
}

/// Gigabytes (10^9) of mask stream made **and added** in a second on one thread; the median of the slices after a first one
/// that does not count.
#[must_use]
pub fn measure(bench: MaskBench, clock: &dyn Clock) -> f64 {
    let key = |i: usize| {
        let sign = if i.is_multiple_of(2) { Sign::Add } else { Sign::Subtract };
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&(i as u64).to_le_bytes());
        (MaskKey::derive(&secret, &[0; 32], "bench"), sign)
    };
    let keys: Vec<_> = (0..bench.keys.max(1)).map(key).collect();
    let mut words = vec![0; VALUES];
    let limit = u64::try_from(bench.slice.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut speeds: Vec<f64> = (0..=bench.slices.max(1))
        .map(|_| {
            let started = clock.now().monotonic_ms;
            let mut passes = 0u32;
            loop {
                mask::apply(&keys, bench.width, 0, &mut words);
                passes += 1;
                let elapsed_ms = clock.now().monotonic_ms.saturating_sub(started);
                if elapsed_ms >= limit {
                    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 bytes and milliseconds")]
                    let (bytes, ms) = ((VALUES * mask::word_bytes(bench.width) * keys.len()) as f64, elapsed_ms as f64);
                    return bytes * f64::from(passes) / (ms * 1e6);
                }
            }
        })
        .skip(1)
        .collect();
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

#[cfg(test)]
mod tests {
    use aivillage_base::time::SystemClock;

    use super::*;

    #[test]
    fn a_speed_is_measured() {
        for width in Width::ALL {
            let bench = MaskBench { width, keys: 2, slice: Duration::from_millis(1), slices: 1 };
            let speed = measure(bench, &SystemClock::new());
            assert!(speed > 0.0 && speed.is_finite(), "{width:?} {speed}");
        }
    }
}
