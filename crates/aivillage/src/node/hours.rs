//! When a node's hours begin, it reports itself once more: a job that it has refused for the time of day asks again.
//!
//! Must not know: what the hours forbid. That is judged where a round is.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::Uplink;
use aivillage_base::time::Clock;
use aivillage_base::wire::NodeReport;
use aivillage_base::wire::policy::Hours;
use aivillage_training::participant::hours;

use super::folder::FileLog;
use super::introduce;

/// Longest time between two looks at the clock: it may be set, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(30);

/// Reports the node whenever its hours begin; never ends.
pub(super) async fn reporting(
    list: Option<Vec<Hours>>,
    clock: Arc<dyn Clock>,
    uplink: Arc<dyn Uplink>,
    log: Arc<FileLog>,
    report: NodeReport,
) -> std::convert::Infallible {
    let Some(list) = list else { return std::future::pending().await };
    let mut day = Day::new(list, clock.now().wall_ms);
    loop {
        tokio::time::sleep(day.pause(clock.now().wall_ms)).await;
        if day.begins(clock.now().wall_ms) {
            tracing::info!("the hours of this node begin");
            introduce(Arc::clone(&uplink), Arc::clone(&log), report.clone()).await;
        }
    }
}

/// The hours, and whether they were on at the last look.
struct Day {
    hours: Vec<Hours>,
    was_open: bool,
}

impl Day {
    fn new(hours: Vec<Hours>, wall_ms: u64) -> Self {
        Self { was_open: hours::open(&hours, wall_ms), hours }
    }

    /// Time until the next look.
    fn pause(&self, wall_ms: u64) -> Duration {
        hours::opens_in(&self.hours, wall_ms).map_or(LOOK, Duration::from_millis).min(LOOK)
    }

    /// Have they begun since the last look?
    fn begins(&mut self, wall_ms: u64) -> bool {
        let open = hours::open(&self.hours, wall_ms);
        let before = std::mem::replace(&mut self.was_open, open);
        open && !before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_begin_once_a_day_and_are_met_to_the_second() {
        let mut now_ms = 22 * 3_600_000;
        let mut day = Day::new(vec![hours::parse("23:00-06:00").unwrap()], now_ms);
        let mut begun = Vec::new();
        while now_ms < 72 * 3_600_000 {
            now_ms += u64::try_from(day.pause(now_ms).as_millis()).unwrap();
            if day.begins(now_ms) {
                begun.push(now_ms);
            }
        }
        assert_eq!(begun, [23 * 3_600_000, 47 * 3_600_000, 71 * 3_600_000]);
        let mut always = Day::new(vec![hours::parse("00:00-24:00").unwrap()], 5);
        assert!(!always.begins(10), "it has reported itself when it connected");
    }
}
