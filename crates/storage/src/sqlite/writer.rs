//! The thread that writes: group commit.
//!
//! ```text
//! take the first job, drain what else waits ─▶ BEGIN ─▶ per job: SAVEPOINT, apply, RELEASE or ROLLBACK TO
//!                                             ─▶ one COMMIT (fsync, unless all are only ordered) ─▶ answer all
//! ```
//!
//! Promises: nobody is answered before the COMMIT that holds their writes; a refusal undoes its own savepoint only; a
//! failure of the file itself fails the group, which is then tried again one by one so that no job pays for another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Batch, Durability, StoreError};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::apply;
use super::fault::plain;
use crate::disk;
use crate::lease::StoreClock;
use crate::meter::SyncMeter;

/// Jobs that share one COMMIT at most: bounds how long the first of them waits for the others' work.
const GROUP_MAX: usize = 128;

/// What to do.
pub(super) enum Work {
    Commit(Batch),
    Acquire { lease: String, holder: String, ttl: Duration },
    Release { lease: String, holder: String },
}

type Outcome = Result<Option<u64>, StoreError>;

/// Work and who waits for it; the outcome of an acquired lease is its epoch.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) answer: oneshot::Sender<Outcome>,
}

pub(super) struct Writer {
    connection: Connection,
    clock: StoreClock,
    sync: Arc<SyncMeter>,
    path: PathBuf,
    /// What a COMMIT of the connection survives now.
    durability: Durability,
}

impl Writer {
    pub(super) fn new(connection: Connection, clock: StoreClock, sync: Arc<SyncMeter>, path: &Path) -> Self {
        Self { connection, clock, sync, path: path.to_owned(), durability: Durability::Durable }
    }

    /// Serves until the store is dropped and its queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Ok(job) = queue.try_recv()
            {
                group.push(job);
            }
            self.settle(group);
        }
    }

    fn settle(&mut self, mut group: Vec<Job>) {
        match self.attempt(&group) {
            Ok(outcomes) => {
                for (job, outcome) in group.into_iter().zip(outcomes) {
                    // A caller that has gone away needs no answer.
                    let _ = job.answer.send(outcome);
                }
            }
            Err(error) if group.len() == 1 => {
                let Some(job) = group.pop() else { return };
                let error = self.sized(error, &job.work);
                tracing::error!(file = %self.path.display(), %error, "a write to the record store failed");
                let _ = job.answer.send(Err(error));
            }
            Err(_) => group.into_iter().for_each(|job| self.settle(vec![job])),
        }
    }

    /// One transaction for the whole group; Err = the file failed and nothing of the group is written.
    fn attempt(&mut self, group: &[Job]) -> Result<Vec<Outcome>, StoreError> {
        self.roll_back()?;
        self.set_durability(group)?;
        let changes = self.connection.total_changes();
        self.run_sql("BEGIN IMMEDIATE")?;
        let done = self.apply_all(group).and_then(|outcomes| self.commit(changes).map(|()| outcomes));
        if done.is_err()
            && let Err(error) = self.roll_back()
        {
            tracing::error!(file = %self.path.display(), %error, "rolling back failed; tried again before the next write");
        }
        done
    }

    /// A COMMIT waits for the disk if anybody in the group does. One that does not leaves its pages to the next that does, in
    /// the order of the write-ahead log.
    fn set_durability(&mut self, group: &[Job]) -> Result<(), StoreError> {
        let ordered = |job: &Job| matches!(&job.work, Work::Commit(b) if b.durability == Durability::Ordered);
        let wanted = if group.iter().all(ordered) { Durability::Ordered } else { Durability::Durable };
        if wanted != self.durability {
            self.run_sql(match wanted {
                Durability::Durable => "PRAGMA synchronous = FULL",
                Durability::Ordered => "PRAGMA synchronous = NORMAL",
            })?;
            self.durability = wanted;
        }
        Ok(())
    }

    /// Ends a transaction that has failed. SQLite itself has ended it after some errors: then there is nothing to do.
    fn roll_back(&self) -> Result<(), StoreError> {
        if self.connection.is_autocommit() { Ok(()) } else { self.run_sql("ROLLBACK") }
    }

    fn apply_all(&mut self, group: &[Job]) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(group.len());
        for job in group {
            self.run_sql("SAVEPOINT job")?;
            let outcome = self.apply(&job.work);
            match &outcome {
                Ok(_) => {}
                Err(StoreError::Conflict { .. } | StoreError::Fenced { .. }) => self.run_sql("ROLLBACK TO job")?,
                Err(StoreError::Full { .. } | StoreError::Damaged(_) | StoreError::Unavailable(_)) => {
                    return outcome.map(|_| Vec::new());
                }
            }
            self.run_sql("RELEASE job")?;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn apply(&mut self, work: &Work) -> Outcome {
        match work {
            Work::Commit(batch) => apply::commit(&self.connection, batch).map(|()| None),
            Work::Acquire { lease, holder, ttl } => {
                let now_ms = self.clock.read();
                apply::acquire(&self.connection, lease, holder, now_ms, *ttl).map_err(plain)
            }
            Work::Release { lease, holder } => {
                apply::release(&self.connection, lease, holder).map(|()| None).map_err(plain)
            }
        }
    }

    /// COMMIT waits for the disk only if something was written that must be durable; only then it counts as a wait.
    fn commit(&self, changes_before: u64) -> Result<(), StoreError> {
        if self.durability == Durability::Ordered || self.connection.total_changes() == changes_before {
            return self.run_sql("COMMIT");
        }
        self.sync.time(|| self.run_sql("COMMIT"))
    }

    fn run_sql(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.prepare_cached(sql).and_then(|mut s| s.execute([])).map(|_| ()).map_err(plain)
    }

    /// Puts the sizes into "the disk is full".
    fn sized(&self, error: StoreError, work: &Work) -> StoreError {
        if !matches!(error, StoreError::Full { .. }) {
            return error;
        }
        let needed = match work {
            Work::Commit(batch) => batch.writes.iter().map(|w| w.value.as_ref().map_or(0, Vec::len) as u64).sum(),
            Work::Acquire { .. } | Work::Release { .. } => 0,
        };
        let folder = self.path.parent().unwrap_or(&self.path);
        StoreError::Full { needed, available: disk::free_bytes(folder).unwrap_or(0) }
    }
}
