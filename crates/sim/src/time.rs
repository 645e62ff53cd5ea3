//! Simulated time, and futures that need no runtime.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use aivillage_base::time::{Clock, Now};

/// Wall clock at the start of every simulation: 2026-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Moves only when the village moves it.
#[derive(Debug, Default)]
pub(crate) struct SimClock(AtomicU64);

impl SimClock {
    pub(crate) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::Relaxed);
    }

    pub(crate) fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The clocks as a process reads them that started at `started_ms` and whose wall clock is off by `skew_ms`.
    pub(crate) fn since(&self, started_ms: u64, skew_ms: i64) -> Now {
        Now { monotonic_ms: self.ms() - started_ms, wall_ms: (EPOCH_MS + self.ms()).saturating_add_signed(skew_ms) }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Now {
        self.since(0, 0)
    }
}

/// The value of a future that waits for nothing.
///
/// # Panics
/// If it does wait: only memory stores are used here, and theirs never do.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("invariant: the futures of memory stores are ready on their first poll"),
    }
}
