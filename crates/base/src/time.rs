//! Clocks as arguments: nothing in the house reads the time by itself.
//!
//! Round timers are persisted elapsed time + [`Now::monotonic_ms`]; certificates, tokens and records carry
//! [`Now::wall_ms`]. [`SystemClock`] is the one place that asks the operating system.

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Milliseconds since this process started; never goes back, means nothing to another process.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970-01-01 UTC; may jump.
    pub wall_ms: u64,
}

impl Now {
    /// RFC 3339 text of the wall clock, in UTC, with milliseconds.
    #[must_use]
    pub fn rfc3339(self) -> String {
        rfc3339(self.wall_ms)
    }
}

/// RFC 3339 text, in UTC, with milliseconds, of a wall clock reading.
#[must_use]
pub fn rfc3339(wall_ms: u64) -> String {
    let ms = i64::try_from(wall_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "9999-12-31T23:59:59.999Z".to_owned(), |t| format!("{t:.3}"))
}

/// Where the time comes from.
///
/// # Behavior
/// - `monotonic_ms` never decreases within one clock.
/// - `wall_ms` is the best guess of UTC and may jump either way.
pub trait Clock: Send + Sync + Debug {
    /// Reads both clocks.
    fn now(&self) -> Now;
}

/// The operating system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at zero now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the operating system's clocks")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the operating system's clocks")]
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now {
            monotonic_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_prints_as_rfc3339_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
