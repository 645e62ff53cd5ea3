//! A blob store with few open files and a damaged blob: what a disk does to an aggregation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aivillage_base::Digest;
use aivillage_base::ports::{BlobReader, BlobWriter, Blobs, StoreError, SyncStats};
use aivillage_storage::MemoryBlobs;
use async_trait::async_trait;
use bytes::Bytes;

/// Memory blobs behind a limit.
#[derive(Debug, Clone)]
pub(super) struct FaultyBlobs {
    pub(super) inner: MemoryBlobs,
    /// Blobs that can be open at a time.
    pub(super) limit: usize,
    /// Its first byte is not what was written.
    pub(super) damaged: Option<Digest>,
    pub(super) open: Arc<AtomicUsize>,
    /// How often a blob was opened.
    pub(super) opened: Arc<AtomicUsize>,
}

impl FaultyBlobs {
    pub(super) fn new(inner: MemoryBlobs, limit: usize) -> Self {
        Self { inner, limit, damaged: None, open: Arc::default(), opened: Arc::default() }
    }
}

#[derive(Debug)]
struct Reader {
    inner: Arc<dyn BlobReader>,
    damaged: bool,
    open: Arc<AtomicUsize>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlobReader for Reader {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, out)?;
        if let (true, 0, Some(first)) = (self.damaged, offset, out.first_mut()) {
            *first ^= 1;
        }
        Ok(())
    }
}

#[async_trait]
impl Blobs for FaultyBlobs {
    async fn writer(&self, expected: u64) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.inner.writer(expected).await
    }

    async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.inner.read(digest).await
    }

    fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn BlobReader>>, StoreError> {
        if self.open.fetch_add(1, Ordering::SeqCst) >= self.limit {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return Err(StoreError::Unavailable("too many open files".to_owned()));
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        let inner = self.inner.open(digest)?.expect("the tests of this store open what is there");
        let damaged = self.damaged == Some(*digest);
        Ok(Some(Arc::new(Reader { inner, damaged, open: Arc::clone(&self.open) })))
    }

    async fn read_at(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.inner.read_at(digest, offset, len).await
    }

    async fn len(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.inner.len(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        self.inner.delete(digest).await
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        self.inner.list().await
    }

    async fn available(&self) -> Result<u64, StoreError> {
        self.inner.available().await
    }

    fn sync_stats(&self) -> SyncStats {
        self.inner.sync_stats()
    }
}
