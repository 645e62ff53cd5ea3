//! The two tasks that serve the machine; both end with the cancellation token.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::RequestId;
use tokio::sync::watch;

use super::Coordinator;
use crate::core::Input;
use crate::request::RequestView;
use crate::store;

/// Pause before outcomes that the store did not take are offered again.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two looks at expired results.
const SWEEP: Duration = Duration::from_secs(30);
/// Longest sleep of the timer: a bound against a clock that stands still.
const NAP_MS_MAX: u64 = 60_000;

impl Coordinator {
    /// Ticks the machine when it asks for it, and tells it of changes in the inventory.
    pub(crate) async fn timers(self: Arc<Self>, mut inventory: watch::Receiver<u64>) {
        loop {
            let now = self.deps.clock.now().monotonic_ms;
            let wake = self.state().core.next_wake();
            if wake.is_some_and(|at| at <= now) {
                self.drive(Input::Tick);
                continue;
            }
            let nap = wake.map_or(NAP_MS_MAX, |at| (at - now).min(NAP_MS_MAX));
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.timer.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(nap)) => {}
                changed = inventory.changed() => {
                    if changed.is_ok() {
                        self.refresh_nodes();
                    }
                }
            }
        }
    }

    /// Stores outcomes and sweeps results that have expired.
    pub(crate) async fn keeper(self: Arc<Self>) {
        let sweep = self.deps.config.result_retention.clamp(Duration::from_millis(10), SWEEP);
        let mut sweeps = tokio::time::interval(sweep);
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => {
                    // Outcomes that are there are stored before the process goes; the rest is taken over by the next.
                    self.store_outcomes().await;
                    return;
                }
                () = self.outcomes.notified() => {
                    if !self.store_outcomes().await {
                        tokio::select! {
                            () = self.cancel.cancelled() => {}
                            () = tokio::time::sleep(RETRY) => {}
                        }
                        self.outcomes.notify_one();
                    }
                }
                _ = sweeps.tick() => self.sweep().await,
            }
        }
    }

    /// Stores every outcome there is, a page in each commit; false if the store did not take one.
    async fn store_outcomes(&self) -> bool {
        loop {
            let mut views: Vec<RequestView> = self.state().core.unstored();
            if views.is_empty() {
                return true;
            }
            views.truncate(store::PAGE);
            let now = self.deps.clock.now().wall_ms;
            if let Err(e) = store::finish(&*self.deps.records, &views, now).await {
                tracing::error!(outcomes = views.len(), error = %e, "outcomes of requests are not stored, trying again");
                return false;
            }
            let expires = self.expires(now);
            for view in views {
                {
                    let mut state = self.state();
                    state.stored.unfinished.remove(&view.request_id);
                    state.stored.finished.insert((expires, view.request_id));
                }
                self.drive(Input::Stored(view.request_id));
            }
        }
    }

    async fn sweep(&self) {
        loop {
            let now = self.deps.clock.now().wall_ms;
            let old: Vec<(u64, RequestId)> = self
                .state()
                .stored
                .finished
                .iter()
                .take_while(|(at, _)| *at <= now)
                .take(store::PAGE)
                .copied()
                .collect();
            if old.is_empty() {
                return;
            }
            let ids: Vec<RequestId> = old.iter().map(|(_, id)| *id).collect();
            if let Err(e) = store::forget(&*self.deps.records, &ids).await {
                tracing::warn!(results = ids.len(), error = %e, "expired results are not removed, trying again later");
                return;
            }
            let mut state = self.state();
            for entry in &old {
                state.stored.finished.remove(entry);
            }
        }
    }
}
