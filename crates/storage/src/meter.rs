//! Counts and times waits for the disk, so that figures can be told net of them.
//!
//! The readings feed metrics only and decide nothing: that is why this file may ask the operating system for time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aivillage_base::ports::SyncStats;

/// Waits since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct SyncMeter {
    count: AtomicU64,
    total_us: AtomicU64,
}

impl SyncMeter {
    /// Runs one wait and counts it.
    #[expect(clippy::disallowed_methods, reason = "a stopwatch for metrics in microseconds; no decision depends on it")]
    pub(crate) fn time<T>(&self, wait: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let out = wait();
        let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
        out
    }

    /// The sums so far.
    pub(crate) fn stats(&self) -> SyncStats {
        SyncStats { count: self.count.load(Ordering::Relaxed), total_us: self.total_us.load(Ordering::Relaxed) }
    }
}
