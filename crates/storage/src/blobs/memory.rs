//! Blobs in memory: the folder's twin for tests and simulation.
//!
//! Promise: same answers as the folder, quota included; every future is ready on its first poll. Memory does not rot,
//! so `read` does not hash again. Must not know: files, threads, tokio.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use aivillage_base::Digest;
use aivillage_base::ports::{BlobReader, BlobWriter, Blobs, StoreError, SyncStats};
use aivillage_base::wire::BlobRef;
use async_trait::async_trait;
use bytes::Bytes;

use super::ledger::Ledger;
use super::{lost, missing};

/// A [`Blobs`] store that lives and dies with its value and its clones.
#[derive(Debug, Clone, Default)]
pub struct MemoryBlobs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    bytes: BTreeMap<Digest, Bytes>,
}

impl MemoryBlobs {
    /// An empty store without bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that holds at most `bytes`.
    #[must_use]
    pub fn with_quota(bytes: u64) -> Self {
        let state = State { ledger: Ledger::new(Some(bytes)), bytes: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

/// Memory counts as a disk without end: only the quota bounds it.
const FREE: u64 = u64::MAX;

#[derive(Debug)]
struct MemoryWriter {
    store: MemoryBlobs,
    bytes: Vec<u8>,
    promised: u64,
    failed: bool,
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        self.store.state().ledger.settle(self.promised, 0);
    }
}

#[async_trait]
impl BlobWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if self.failed {
            return Err(lost());
        }
        let received = (self.bytes.len() + bytes.len()) as u64;
        if let Some(more) = received.checked_sub(self.promised).filter(|more| *more > 0) {
            let promise = self.store.state().ledger.promise(more, FREE);
            self.failed = promise.is_err();
            promise?;
            self.promised = received;
        }
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn written(&self) -> Result<BlobRef, StoreError> {
        if self.failed {
            return Err(lost());
        }
        Ok(BlobRef { digest: Digest::of(&self.bytes), bytes: self.bytes.len() as u64 })
    }

    async fn finish(mut self: Box<Self>) -> Result<BlobRef, StoreError> {
        let blob = self.written()?;
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut state = self.store.state();
        state.ledger.insert(blob.digest, blob.bytes);
        state.bytes.insert(blob.digest, bytes);
        drop(state);
        Ok(blob)
    }
}

#[derive(Debug)]
struct MemoryReader(Bytes);

impl BlobReader for MemoryReader {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(out.len());
        let range = self
            .0
            .get(start..end)
            .ok_or_else(|| StoreError::Damaged(format!("a blob of {} bytes is shorter than {end}", self.0.len())))?;
        out.copy_from_slice(range);
        Ok(())
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn writer(&self, expected: u64) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.state().ledger.promise(expected, FREE)?;
        let store = self.clone();
        Ok(Box::new(MemoryWriter { store, bytes: Vec::new(), promised: expected, failed: false }))
    }

    async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().bytes.get(digest).cloned())
    }

    fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn BlobReader>>, StoreError> {
        let blob = self.state().bytes.get(digest).cloned();
        Ok(blob.map(|bytes| Arc::new(MemoryReader(bytes)) as Arc<dyn BlobReader>))
    }

    async fn read_at(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let state = self.state();
        let blob = state.bytes.get(digest).ok_or_else(|| missing(digest))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(blob.len());
        Ok(blob.slice(start..start.saturating_add(len).min(blob.len())))
    }

    async fn len(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.state().ledger.len(digest))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        let mut state = self.state();
        state.ledger.remove(digest);
        state.bytes.remove(digest);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.state().ledger.digests())
    }

    async fn available(&self) -> Result<u64, StoreError> {
        Ok(self.state().ledger.available(FREE))
    }

    fn sync_stats(&self) -> SyncStats {
        SyncStats::default()
    }
}
