//! Records in one SQLite file: what a running village uses.
//!
//! ```text
//! commit, acquire, release ─▶ bounded queue ─▶ writer thread ─▶ one transaction per group ─▶ COMMIT (fsync) ─▶ answers
//! get, scan ────────────────▶ bounded queue ─▶ reader threads (read-only connections, WAL snapshots)
//! ```
//!
//! Promises: an answer of `commit` means the write-ahead log is on disk (`synchronous=FULL`), unless the batch asks for its
//! place in the order only; calls that wait together share one fsync; a refused batch undoes only itself; a row whose bytes have changed on disk is
//! [`StoreError::Damaged`]. A call whose future is dropped may still take effect, as after a lost connection.
//! No async runtime is needed: the threads are the store's own, so SQLite never blocks a task.
//! Must not know: what is inside a record.

mod apply;
mod fault;
mod reader;
mod schema;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use aivillage_base::ports::{Batch, Records, Row, Scan, StoreError, SyncStats};
use aivillage_base::time::Clock;
use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::disk;
use crate::lease::StoreClock;
use crate::meter::SyncMeter;
use reader::Read;
use writer::{Job, Work, Writer};

/// Calls waiting for a thread; more wait in their callers. Four full groups: enough to keep the disk busy, and even
/// with updates of 16 KiB in each it stays within a few MB.
const QUEUE: usize = 512;

/// Threads that read. Two, so that a long scan does not hold up a lookup.
const READERS: usize = 2;

/// A [`Records`] store in one SQLite file. Dropping it finishes what is queued and closes the file.
pub struct SqliteRecords {
    queues: Option<Queues>,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    sync: Arc<SyncMeter>,
    file: String,
}

struct Queues {
    jobs: mpsc::Sender<Job>,
    reads: mpsc::Sender<Read>,
}

impl fmt::Debug for SqliteRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqliteRecords({})", self.file)
    }
}

impl SqliteRecords {
    /// Opens the file, creating or migrating it; leases expire by `clock`, clamped never to go back even over
    /// restarts. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the file cannot be opened or is of a newer version, [`StoreError::Damaged`] if
    /// it is not one of ours.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        Self::open_tuned(path, clock, |_| Ok(()))
    }

    /// `tune` may change settings of the writing connection: how the tests make a small disk.
    fn open_tuned(
        path: &Path,
        clock: Arc<dyn Clock>,
        tune: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Self, StoreError> {
        let opened = |e| fault::store_error(&format!("cannot open {}", path.display()), &e);
        let connection = schema::open_writer(path)?;
        tune(&connection).map_err(opened)?;
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            disk::sync_dir(folder).map_err(|e| disk::unusable("sync the folder", folder, &e))?;
        }
        let clock = StoreClock::new(clock, apply::high_water_ms(&connection).map_err(opened)?);
        let sync = Arc::new(SyncMeter::default());

        let (read_queue, reads) = mpsc::channel(QUEUE);
        let reads = Arc::new(Mutex::new(reads));
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let connection = schema::open_reader(path)?;
            let reads = Arc::clone(&reads);
            readers.push(spawn("store-read", move || reader::run(&connection, &reads))?);
        }
        let (job_queue, jobs) = mpsc::channel(QUEUE);
        let writer = Writer::new(connection, clock, Arc::clone(&sync), path);
        let writer = spawn("store-write", move || writer.run(jobs))?;
        Ok(Self {
            queues: Some(Queues { jobs: job_queue, reads: read_queue }),
            readers,
            writer: Some(writer),
            sync,
            file: path.display().to_string(),
        })
    }

    fn queues(&self) -> &Queues {
        self.queues.as_ref().expect("invariant: only drop takes the queues")
    }

    async fn write(&self, work: Work) -> Result<Option<u64>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queues().jobs.send(Job { work, answer }).await.map_err(|_| self.stopped())?;
        answered.await.map_err(|_| self.stopped())?
    }

    async fn read<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Read) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queues().reads.send(job(answer)).await.map_err(|_| self.stopped())?;
        answered.await.map_err(|_| self.stopped())?
    }

    fn stopped(&self) -> StoreError {
        StoreError::Unavailable(format!("the thread that serves {} has stopped; restart the process", self.file))
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(512 * 1024)
        .spawn(run)
        .map_err(|e| StoreError::Unavailable(format!("cannot start the thread {name}: {e}")))
}

impl Drop for SqliteRecords {
    fn drop(&mut self) {
        let Some(Queues { jobs, reads }) = self.queues.take() else { return };
        // Readers first: SQLite folds the log into the file when its last connection closes, which a read-only one
        // cannot do.
        drop(reads);
        self.readers.drain(..).for_each(|thread| join(thread, &self.file));
        drop(jobs);
        if let Some(thread) = self.writer.take() {
            join(thread, &self.file);
        }
    }
}

fn join(thread: JoinHandle<()>, file: &str) {
    if thread.join().is_err() {
        tracing::error!(file, "a thread of the store has panicked");
    }
}

#[async_trait]
impl Records for SqliteRecords {
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError> {
        self.read(|answer| Read::Get { table, key: key.to_owned(), answer }).await
    }

    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.read(|answer| Read::Scan {
            table,
            prefix: scan.prefix.to_owned(),
            after: scan.after.map(str::to_owned),
            limit: scan.limit,
            answer,
        })
        .await
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.write(Work::Commit(batch)).await.map(|_| ())
    }

    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        self.write(Work::Acquire { lease: lease.to_owned(), holder: holder.to_owned(), ttl }).await
    }

    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError> {
        self.write(Work::Release { lease: lease.to_owned(), holder: holder.to_owned() }).await.map(|_| ())
    }

    fn sync_stats(&self) -> SyncStats {
        self.sync.stats()
    }
}
