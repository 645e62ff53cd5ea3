//! The few things both stores ask of a file system: private folders, durable names, free space, telling errors apart.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use aivillage_base::ports::StoreError;

/// Creates `dir` and its parents for this user only (0700); an existing folder keeps its mode.
pub(crate) fn create_private_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| unusable("create the folder", dir, &e))
}

/// Waits until the names in `dir` are on disk: a new file is durable only with its name.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Bytes that this user can still write on the disk that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| unusable("ask the free space of", path, &io::Error::from(e)))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// An error of the file system, with what was tried and where.
pub(crate) fn unusable(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot {what} {}: {error}", path.display()))
}

/// As [`unusable`], but a full disk (or a user's quota) is [`StoreError::Full`].
pub(crate) fn unwritable(what: &str, path: &Path, needed: u64, error: &io::Error) -> StoreError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let folder = path.parent().unwrap_or(path);
        return StoreError::Full { needed, available: free_bytes(folder).unwrap_or(0) };
    }
    unusable(what, path, error)
}
