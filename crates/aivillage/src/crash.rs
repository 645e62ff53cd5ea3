//! Fault injection: the process kills itself with SIGKILL at a chosen persisted step.
//!
//! A step is one commit to the record store, or one line of a node's log of what it sends. `before:N` dies when the N-th
//! step is about to be made durable, `after:N` when it has just been, so nothing of the process survives but what the
//! disk holds. `before:NAME:N` counts only steps of that name: changes that arrive together are one commit, so numbers
//! over all steps can shift from run to run. It is how the demo's `--chaos` and the crash tests prove that any step may be
//! the last.
//! Only a hidden flag turns it on.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aivillage_base::ports::{Batch, Records, Row, Scan, StoreError, SyncStats};
use async_trait::async_trait;

/// When to die.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashPlan {
    /// Dies before the step is durable, else after.
    pub before: bool,
    /// Counts only steps of this name; None = all steps.
    pub name: Option<String>,
    /// Which step, from 1, counted since the process started.
    pub step: u64,
}

impl fmt::Display for CrashPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.before { "before" } else { "after" })?;
        match &self.name {
            Some(name) => write!(f, ":{name}:{}", self.step),
            None => write!(f, ":{}", self.step),
        }
    }
}

impl FromStr for CrashPlan {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let error = || format!("`{s}` is not `before:N`, `after:N` or `after:NAME:N` with N from 1");
        let (when, step) = s.split_once(':').ok_or_else(error)?;
        let before = match when {
            "before" => true,
            "after" => false,
            _ => return Err(error()),
        };
        let (name, step) = match step.rsplit_once(':') {
            Some(("", _)) => return Err(error()),
            Some((name, step)) => (Some(name.to_owned()), step),
            None => (None, step),
        };
        let step = step.parse().ok().filter(|n| *n > 0).ok_or_else(error)?;
        Ok(Self { before, name, step })
    }
}

/// Counts steps and dies at the planned one.
#[derive(Debug)]
pub struct CrashPoint {
    plan: CrashPlan,
    steps: AtomicU64,
}

impl CrashPoint {
    /// A point that has seen no step yet.
    #[must_use]
    pub fn new(plan: CrashPlan) -> Arc<Self> {
        Arc::new(Self { plan, steps: AtomicU64::new(0) })
    }

    /// A step is about to be made durable; returns its number, 0 for one that is not counted.
    pub fn before(&self, name: &str) -> u64 {
        if self.plan.name.as_deref().is_some_and(|wanted| wanted != name) {
            return 0;
        }
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if self.plan.before && step == self.plan.step {
            self.die(name);
        }
        step
    }

    /// That step is durable.
    pub fn after(&self, step: u64, name: &str) {
        if !self.plan.before && step == self.plan.step {
            self.die(name);
        }
    }

    fn die(&self, name: &str) {
        // One line for whoever planned it; a failure to write it changes nothing.
        let _written = writeln!(std::io::stderr(), "crash-at {} {name}", self.plan);
        let _sent = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way; nothing more may happen here.
        loop {
            std::thread::park();
        }
    }
}

/// A record store whose commits are steps.
#[derive(Debug)]
pub struct CrashingRecords {
    inner: Arc<dyn Records>,
    point: Arc<CrashPoint>,
}

impl CrashingRecords {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: Arc<dyn Records>, point: Arc<CrashPoint>) -> Self {
        Self { inner, point }
    }
}

#[async_trait]
impl Records for CrashingRecords {
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError> {
        self.inner.get(table, key).await
    }

    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.inner.scan(table, scan).await
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let name = batch.name;
        let step = self.point.before(name);
        let result = self.inner.commit(batch).await;
        self.point.after(step, name);
        result
    }

    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        self.inner.acquire(lease, holder, ttl).await
    }

    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError> {
        self.inner.release(lease, holder).await
    }

    fn sync_stats(&self) -> SyncStats {
        self.inner.sync_stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_read_back_what_they_print_and_slips_are_refused() {
        for text in ["before:1", "after:37", "after:round_closed:2"] {
            assert_eq!(text.parse::<CrashPlan>().unwrap().to_string(), text);
        }
        for bad in ["", "before", "before:0", "during:1", "after:x", "after::1", "after:x:0"] {
            assert!(bad.parse::<CrashPlan>().is_err(), "{bad}");
        }
    }
}
