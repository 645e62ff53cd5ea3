//! A clock that a test moves by hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::time::{Clock, Now};

/// Stands still until it is told otherwise.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Now>,
}

impl ManualClock {
    /// A clock whose wall reads `wall_ms` and whose monotonic reading is zero.
    #[must_use]
    pub fn at(wall_ms: u64) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(Now { monotonic_ms: 0, wall_ms }) })
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let mut now = self.reading();
        now.monotonic_ms += ms;
        now.wall_ms += ms;
    }

    /// Somebody sets the wall clock; no time passes.
    pub fn set_wall(&self, wall_ms: u64) {
        self.reading().wall_ms = wall_ms;
    }

    fn reading(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        *self.reading()
    }
}
