//! One blob on its way into the folder: bytes to `tmp/`, hash on the way, then fsync, rename, fsync of the folder.
//!
//! Promise: dropped at any point before it is published, it leaves no file and holds no room. Small blobs stay in
//! memory until they are complete and cost one hop to a blocking thread. Everything here blocks: the folder calls
//! it on blocking threads only.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use aivillage_base::Digest;
use aivillage_base::ports::StoreError;
use aivillage_base::wire::BlobRef;

use super::folder::Shared;
use crate::disk;

/// Bytes gathered in memory before a trip to the disk: a hop to a blocking thread costs about as much as writing this.
const GATHER: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    draft: Option<Draft>,
    hasher: blake3::Hasher,
    gathered: Vec<u8>,
    /// Bytes taken so far.
    received: u64,
    /// Bytes the ledger has promised us.
    promised: u64,
    /// Bytes of those on the disk.
    written: u64,
}

/// A file in `tmp/`, removed unless it was renamed.
#[derive(Debug)]
struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the folder is opened next.
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an abandoned blob could not be removed");
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.shared.ledger().settle(self.promised, self.written);
    }
}

impl Intake {
    /// An intake for about `expected` bytes, for which room is promised.
    pub(super) fn open(shared: Arc<Shared>, expected: u64) -> Result<Self, StoreError> {
        let free = disk::free_bytes(shared.dir())?;
        shared.ledger().promise(expected, free)?;
        Ok(Self {
            shared,
            draft: None,
            hasher: blake3::Hasher::new(),
            gathered: Vec::new(),
            received: 0,
            promised: expected,
            written: 0,
        })
    }

    /// Takes bytes without touching the disk, if they are few and promised; false = call [`Self::append`].
    pub(super) fn gather(&mut self, bytes: &[u8]) -> bool {
        let received = self.received + bytes.len() as u64;
        let fits = self.gathered.len() + bytes.len() <= GATHER && received <= self.promised;
        if fits {
            if self.gathered.capacity() == 0 {
                let expected = usize::try_from(self.promised).unwrap_or(GATHER);
                self.gathered.reserve_exact(expected.min(GATHER).max(bytes.len()));
            }
            self.gathered.extend_from_slice(bytes);
            self.received = received;
        }
        fits
    }

    /// Takes bytes and writes all that was gathered; asks for more room if they are more than announced.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.received += bytes.len() as u64;
        if self.received > self.promised {
            let more = self.received - self.promised;
            let free = disk::free_bytes(self.shared.dir())?;
            self.shared.ledger().promise(more, free)?;
            self.promised = self.received;
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        self.write_out(&gathered)?;
        // Kept for the next: fresh memory of this size costs as much as hashing what comes into it.
        gathered.clear();
        self.gathered = gathered;
        self.write_out(bytes)
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let draft = match &mut self.draft {
            Some(draft) => draft,
            None => self.draft.insert(Draft::create(&self.shared)?),
        };
        let len = bytes.len() as u64;
        draft.file.write_all(bytes).map_err(|e| disk::unwritable("write", &draft.path, len, &e))?;
        self.hasher.update(bytes);
        self.written += len;
        self.shared.ledger().wrote(len);
        Ok(())
    }

    /// Length and hash of what was taken so far.
    pub(super) fn written(&self) -> BlobRef {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.gathered);
        BlobRef { digest: hasher.finalize().into(), bytes: self.received }
    }

    /// Makes the blob durable, then visible.
    pub(super) fn publish(mut self) -> Result<BlobRef, StoreError> {
        self.append(&[])?;
        let digest = Digest::from(self.hasher.finalize());
        let blob = BlobRef { digest, bytes: self.received };
        let Some(draft) = self.draft.take() else { return Err(super::lost()) };
        self.shared
            .sync()
            .time(|| draft.file.sync_all())
            .map_err(|e| disk::unwritable("sync", &draft.path, blob.bytes, &e))?;
        self.shared.place(blob, |target| {
            let mut draft = draft;
            fs::rename(&draft.path, target)?;
            draft.published = true;
            Ok(())
        })?;
        Ok(blob)
    }
}

impl Draft {
    fn create(shared: &Shared) -> Result<Self, StoreError> {
        let path = shared.new_draft_path();
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| disk::unwritable("create", &path, 0, &e))?;
        Ok(Self { file, path, published: false })
    }
}
