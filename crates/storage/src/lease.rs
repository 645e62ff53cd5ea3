//! Who may act: the lease rule and the store's clock, pure, shared by the memory and the SQLite store.
//!
//! Promise: epochs of one lease only grow, and the clock that lets leases expire never goes back.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Fence, StoreError};
use aivillage_base::time::Clock;

/// A lease as it is stored; it outlives its holders so that epochs never repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// None once it was given back.
    pub(crate) holder: Option<String>,
    /// Grows with each new tenure.
    pub(crate) epoch: u64,
    /// First millisecond of the store's clock at which it is free again.
    pub(crate) expires_ms: u64,
}

/// What the lease becomes if `holder` asks for it at `now_ms`; None = somebody else has it.
pub(crate) fn acquire(current: Option<&Lease>, holder: &str, now_ms: u64, ttl: Duration) -> Option<Lease> {
    // Rounded up: a ttl of half a millisecond must not be over at once.
    let ttl_ms = u64::try_from(ttl.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    let epoch = match current {
        None => 1,
        Some(lease) => {
            let held = lease.holder.is_some() && now_ms < lease.expires_ms;
            let own = lease.holder.as_deref() == Some(holder);
            match (held, own) {
                (true, true) => lease.epoch,
                (true, false) => return None,
                (false, _) => lease.epoch + 1,
            }
        }
    };
    Some(Lease { holder: Some(holder.to_owned()), epoch, expires_ms: now_ms.saturating_add(ttl_ms) })
}

/// What the lease becomes if `holder` gives it back; None = not its to give.
pub(crate) fn release(current: Option<&Lease>, holder: &str) -> Option<Lease> {
    let lease = current?;
    (lease.holder.as_deref() == Some(holder)).then_some(Lease { holder: None, epoch: lease.epoch, expires_ms: 0 })
}

/// Whether a step behind this fence may still be written. Expiry alone does not forbid it: until somebody else takes
/// the lease the old holder is the only actor, and from then on its epoch is too small.
pub(crate) fn check(fence: &Fence, current: Option<&Lease>) -> Result<(), StoreError> {
    if current.is_some_and(|lease| lease.holder.is_some() && lease.epoch == fence.epoch) {
        return Ok(());
    }
    Err(StoreError::Fenced { lease: fence.lease.clone(), epoch: fence.epoch })
}

/// The store's clock: the wall clock, but it never goes back, and while the wall clock stands behind it, it goes on by
/// the monotonic clock. (Clamping alone would freeze it, and with it every lease, for as long as the wall was wrong.)
#[derive(Debug)]
pub(crate) struct StoreClock {
    clock: Arc<dyn Clock>,
    store_ms: u64,
    monotonic_ms: u64,
}

impl StoreClock {
    /// A clock that is not before `high_water_ms`, the largest time an earlier process has stored.
    pub(crate) fn new(clock: Arc<dyn Clock>, high_water_ms: u64) -> Self {
        let monotonic_ms = clock.now().monotonic_ms;
        Self { clock, store_ms: high_water_ms, monotonic_ms }
    }

    /// Milliseconds since 1970, never less than before.
    pub(crate) fn read(&mut self) -> u64 {
        let now = self.clock.now();
        let elapsed = now.monotonic_ms.saturating_sub(self.monotonic_ms);
        self.store_ms = now.wall_ms.max(self.store_ms.saturating_add(elapsed));
        self.monotonic_ms = self.monotonic_ms.max(now.monotonic_ms);
        self.store_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ManualClock;

    #[test]
    fn the_stores_clock_goes_on_while_the_wall_clock_is_behind() {
        let manual = ManualClock::at(1_000_000);
        let mut clock = StoreClock::new(manual.clone(), 1_005_000);
        assert_eq!(clock.read(), 1_005_000, "an earlier process had seen a later time");
        manual.advance(Duration::from_millis(700));
        assert_eq!(clock.read(), 1_005_700);
        manual.set_wall(3);
        manual.advance(Duration::from_millis(300));
        assert_eq!(clock.read(), 1_006_000, "a wall clock set back does not stop it");
        manual.set_wall(2_000_000);
        assert_eq!(clock.read(), 2_000_000, "a wall clock set right is followed");
    }

    #[test]
    fn a_ttl_below_a_millisecond_still_holds_for_one() {
        let lease = acquire(None, "a", 10, Duration::from_micros(1)).unwrap();
        assert_eq!(lease.expires_ms, 11);
    }
}
