//! Blobs as files: `ab/abcdef…` named by BLAKE3, written once, verified when read.
//!
//! ```text
//! blobs/tmp/<pid>-<n>   being written; removed when the folder is opened
//! blobs/ab/abcdef…      complete, fsynced, named by its hash
//! ```
//!
//! Promises: a blob is listed only after its bytes and its name are on disk; a rewritten blob replaces a damaged one;
//! file work happens on tokio's blocking threads. A deletion is not fsynced: after a power cut a forgotten blob may be
//! back, which is harmless, since nothing refers to it. One process owns the folder. Must not know: what a blob means.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use aivillage_base::Digest;
use aivillage_base::ports::{BlobReader, BlobWriter, Blobs, StoreError, SyncStats};
use aivillage_base::wire::BlobRef;
use async_trait::async_trait;
use bytes::Bytes;

use super::intake::Intake;
use super::ledger::Ledger;
use super::{lost, missing};
use crate::disk;
use crate::meter::SyncMeter;

const DRAFTS: &str = "tmp";

/// A [`Blobs`] store in a folder. Cheap to clone. Its async methods need a tokio runtime.
#[derive(Debug, Clone)]
pub struct FolderBlobs {
    shared: Arc<Shared>,
}

/// What the folder's handles and writers share.
#[derive(Debug)]
pub(super) struct Shared {
    dir: PathBuf,
    ledger: Mutex<Ledger>,
    /// Two-character folders whose own names are on disk.
    prefixes: Mutex<BTreeSet<String>>,
    /// Shared while a blob gets its name, exclusive while one loses it: so file and ledger agree.
    names: RwLock<()>,
    sync: SyncMeter,
    drafts: AtomicU64,
}

impl FolderBlobs {
    /// Opens the folder, creating it if absent; removes what earlier processes left half-written. Blocks on the disk.
    /// `quota_bytes` bounds the sum of all blobs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] with the path if the folder cannot be used.
    pub fn open(dir: &Path, quota_bytes: Option<u64>) -> Result<Self, StoreError> {
        let drafts = dir.join(DRAFTS);
        disk::create_private_dir(&drafts)?;
        for draft in entries(&drafts)? {
            fs::remove_file(&draft).map_err(|e| disk::unusable("remove the leftover", &draft, &e))?;
        }
        let shared = Shared {
            dir: dir.to_owned(),
            ledger: Mutex::new(Ledger::new(quota_bytes)),
            prefixes: Mutex::default(),
            names: RwLock::new(()),
            sync: SyncMeter::default(),
            drafts: AtomicU64::new(0),
        };
        for path in entries(dir)? {
            match prefix_name(&path) {
                Some(prefix) => shared.take_stock(&path, prefix)?,
                None if path == drafts => {}
                None => tracing::warn!(path = %path.display(), "not a blob; left alone"),
            }
        }
        disk::sync_dir(dir).map_err(|e| disk::unusable("sync", dir, &e))?;
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// Paths of a folder's entries.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(dir)
        .and_then(|all| all.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>())
        .map_err(|e| disk::unusable("list", dir, &e))
}

/// The two hex characters, if the path is one of our folders.
fn prefix_name(path: &Path) -> Option<&str> {
    let name = path.file_name().and_then(OsStr::to_str)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (name.len() == 2 && name.bytes().all(hex) && path.is_dir()).then_some(name)
}

impl Shared {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn sync(&self) -> &SyncMeter {
        &self.sync
    }

    /// The books. Their methods leave no half-done sums behind, so a poisoned lock is as good as a healthy one.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new_draft_path(&self) -> PathBuf {
        let n = self.drafts.fetch_add(1, Ordering::Relaxed);
        self.dir.join(DRAFTS).join(format!("{}-{n}", std::process::id()))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    /// Lists what an earlier process has stored in one folder. The folder is synced once: that process may have been
    /// killed between a rename and its sync, and a listed blob must survive a power cut.
    fn take_stock(&self, folder: &Path, prefix: &str) -> Result<(), StoreError> {
        for path in entries(folder)? {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let digest = name.parse::<Digest>().ok().filter(|d| d.to_string() == name && name.starts_with(prefix));
            let meta = path.metadata().map_err(|e| disk::unusable("look at", &path, &e))?;
            match digest {
                Some(digest) if meta.is_file() => self.ledger().insert(digest, meta.len()),
                Some(_) | None => tracing::warn!(path = %path.display(), "not a blob; left alone"),
            }
        }
        disk::sync_dir(folder).map_err(|e| disk::unusable("sync", folder, &e))?;
        self.prefixes().insert(prefix.to_owned());
        Ok(())
    }

    fn prefixes(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `rename` give a synced file the blob's name, makes the name durable, then lists the blob.
    pub(super) fn place(&self, blob: BlobRef, rename: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), StoreError> {
        let target = self.path(&blob.digest);
        let folder = target.parent().unwrap_or(&self.dir);
        let failed = |e: io::Error| disk::unwritable("store", &target, blob.bytes, &e);
        let _naming = self.names.read().unwrap_or_else(PoisonError::into_inner);
        self.make_prefix(folder).map_err(failed)?;
        rename(&target).map_err(failed)?;
        self.sync.time(|| disk::sync_dir(folder)).map_err(failed)?;
        self.ledger().insert(blob.digest, blob.bytes);
        Ok(())
    }

    /// Makes the two-character folder durable. Under its lock, so that nobody uses a folder another has just made
    /// before its name is on disk.
    fn make_prefix(&self, folder: &Path) -> io::Result<()> {
        let name = folder.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let mut known = self.prefixes();
        if known.contains(name) {
            return Ok(());
        }
        fs::create_dir_all(folder)?;
        self.sync.time(|| disk::sync_dir(&self.dir))?;
        known.insert(name.to_owned());
        Ok(())
    }

    /// The file of a listed blob and its length.
    fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(len) = self.ledger().len(digest) else { return Ok(None) };
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some((file, len))),
            // Deleted between the two lines above, or taken away behind our back.
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.ledger().len(digest).is_none() => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Damaged(format!(
                "{} has been removed by somebody else; restore the data folder from a backup",
                path.display()
            ))),
            Err(e) => Err(disk::unusable("open", &path, &e)),
        }
    }

    fn read(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let Some((file, len)) = self.open_blob(digest)? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        // One byte more than expected is enough to see that the file has grown.
        file.take(len.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| disk::unusable("read", &self.path(digest), &e))?;
        if bytes.len() as u64 != len || Digest::of(&bytes) != *digest {
            return Err(StoreError::Damaged(format!(
                "{} no longer matches its name; restore it from a backup or let its sender send it again",
                self.path(digest).display()
            )));
        }
        Ok(Some(Bytes::from(bytes)))
    }

    fn read_at(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let Some((file, size)) = self.open_blob(digest)? else { return Err(missing(digest)) };
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut block = vec![0; len.min(left)];
        FolderReader { file, path: self.path(digest) }.read_at(offset, &mut block)?;
        Ok(Bytes::from(block))
    }

    fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        let _naming = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if !self.ledger().remove(digest) {
            return Ok(());
        }
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(disk::unusable("delete", &path, &e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| StoreError::Unavailable(format!("a file task has stopped: {e}")))?
}

/// A blob's open file.
#[derive(Debug)]
struct FolderReader {
    file: File,
    path: PathBuf,
}

impl BlobReader for FolderReader {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(out, offset).map_err(|e| {
            if e.kind() == io::ErrorKind::UnexpectedEof {
                return StoreError::Damaged(format!("{} is shorter than it was", self.path.display()));
            }
            disk::unusable("read", &self.path, &e)
        })
    }
}

#[derive(Debug)]
struct FolderWriter {
    /// None after a failed or cancelled call.
    intake: Option<Intake>,
}

#[async_trait]
impl BlobWriter for FolderWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut intake = self.intake.take().ok_or_else(lost)?;
        if !intake.gather(&bytes) {
            intake = blocking(move || intake.append(&bytes).map(|()| intake)).await?;
        }
        self.intake = Some(intake);
        Ok(())
    }

    fn written(&self) -> Result<BlobRef, StoreError> {
        self.intake.as_ref().map(Intake::written).ok_or_else(lost)
    }

    async fn finish(mut self: Box<Self>) -> Result<BlobRef, StoreError> {
        let intake = self.intake.take().ok_or_else(lost)?;
        blocking(move || intake.publish()).await
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn writer(&self, expected: u64) -> Result<Box<dyn BlobWriter>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let intake = blocking(move || Intake::open(shared, expected)).await?;
        Ok(Box::new(FolderWriter { intake: Some(intake) }))
    }

    async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let (shared, digest) = (Arc::clone(&self.shared), *digest);
        blocking(move || shared.read(&digest)).await
    }

    fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn BlobReader>>, StoreError> {
        let Some((file, _)) = self.shared.open_blob(digest)? else { return Ok(None) };
        Ok(Some(Arc::new(FolderReader { file, path: self.shared.path(digest) })))
    }

    async fn read_at(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let (shared, digest) = (Arc::clone(&self.shared), *digest);
        blocking(move || shared.read_at(&digest, offset, len)).await
    }

    async fn len(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.shared.ledger().len(digest))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        let (shared, digest) = (Arc::clone(&self.shared), *digest);
        blocking(move || shared.delete(&digest)).await
    }

    async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.shared.ledger().digests())
    }

    async fn available(&self) -> Result<u64, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let free = disk::free_bytes(&shared.dir)?;
            Ok(shared.ledger().available(free))
        })
        .await
    }

    fn sync_stats(&self) -> SyncStats {
        self.shared.sync.stats()
    }
}
