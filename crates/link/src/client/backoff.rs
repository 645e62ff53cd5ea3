//! How long to wait before the next try: exponential, with jitter, so that a village does not knock all at once.
//!
//! Pure: the random number is an argument.

use std::time::Duration;

/// Waits from `first`, doubling up to `most`, each shortened by up to a half at random.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// It worked: the next wait is short again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next wait; `chance` is uniform over all values. Never shorter than `asked` by the gateway, and then up to
    /// half as long again.
    pub(crate) fn wait(&mut self, asked: Option<Duration>, chance: u32) -> Duration {
        let share = f64::from(chance) / f64::from(u32::MAX);
        if let Some(asked) = asked {
            return asked + asked.mul_f64(0.5 * share);
        }
        let wait = self.next.mul_f64(0.5 + 0.5 * share);
        self.next = (self.next * 2).min(self.most);
        wait
    }
}

/// A uniform number for [`Backoff::wait`].
pub(crate) fn chance() -> u32 {
    let mut bytes = [0u8; 4];
    aivillage_base::rng::os_bytes(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_grow_to_their_bound_and_honour_what_is_asked(chances in proptest::collection::vec(any::<u32>(), 1..30), asked in 0u64..10_000) {
            let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
            let mut backoff = Backoff::new(first, most);
            for (i, chance) in chances.iter().enumerate() {
                let full = (first * 2u32.saturating_pow(u32::try_from(i).unwrap().min(20))).min(most);
                let wait = backoff.wait(None, *chance);
                prop_assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
                let told = backoff.wait(Some(Duration::from_millis(asked)), *chance);
                prop_assert!(told >= Duration::from_millis(asked));
            }
            backoff.reset();
            prop_assert!(backoff.wait(None, u32::MAX) <= first);
        }
    }
}
