//! A gateway's data folder: one process owns it, and clients find that process through it.
//!
//! ```text
//! DIR/lock          held (flock) by the process that owns the folder
//! DIR/endpoint      JSON: where it answers; written when it does, removed when it stops
//! DIR/admin.key     an admin API key, mode 0600
//! DIR/store.sqlite  records      DIR/blobs/  models and large updates
//! DIR/ca/           the link's certificate authority      DIR/node/  the built-in node
//! ```

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::exit::{CliError, ExitCode};

/// Where the gateway of a folder answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Base URL of the HTTP API, `http://127.0.0.1:8000`.
    pub http: String,
    /// Address of the node link, `127.0.0.1:8001`.
    pub link: String,
    /// Process id.
    pub pid: u32,
}

/// Sole use of a folder by this process; given back when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of the folder at `path`; None if another process has it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn take(path: &Path) -> std::io::Result<Option<Self>> {
        let file = File::create(path.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A folder that this process owns; the lock goes with it.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    _lock: FolderLock,
}

impl DataFolder {
    /// Creates the folder if it is new (mode 0700) and takes its lock.
    ///
    /// # Errors
    /// Another process owns it (exit code 6), or it cannot be made.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        let fail = |what: &str, e: &dyn std::fmt::Display| {
            CliError::new(ExitCode::Failed, format!("{what} {}: {e}", path.display()))
                .hint("choose another folder with --data DIR, or mend its permissions")
        };
        let fresh = !path.exists();
        std::fs::create_dir_all(path).map_err(|e| fail("cannot create the data folder", &e))?;
        if fresh {
            private(path, 0o700).map_err(|e| fail("cannot protect the data folder", &e))?;
        }
        let Some(lock) = FolderLock::take(path).map_err(|e| fail("cannot lock the data folder", &e))? else {
            let owner = match Self::endpoint(path) {
                Ok(Some(e)) => format!("process {} serves it at {}", e.pid, e.http),
                Ok(None) | Err(_) => "another process is starting or stopping on it".to_owned(),
            };
            return Err(CliError::new(ExitCode::Conflict, format!("the folder {} is in use: {owner}", path.display()))
                .hint("stop that process first, or choose another folder with --data DIR"));
        };
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File with the admin key.
    #[must_use]
    pub fn admin_key(&self) -> PathBuf {
        self.path.join("admin.key")
    }

    /// Tells clients where this process answers.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn announce(&self, endpoint: &Endpoint) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(endpoint).unwrap_or_default();
        write_whole(&self.path.join("endpoint"), text.as_bytes())
            .map_err(|e| CliError::new(ExitCode::Failed, format!("cannot write {}/endpoint: {e}", self.path.display())))
    }

    /// Clients shall look no longer.
    pub fn withdraw(&self) {
        // It is rewritten at the next start; a file that stays only makes one error text less precise.
        let _removed = std::fs::remove_file(self.path.join("endpoint"));
    }

    /// Where the gateway of `path` answers, if one does.
    ///
    /// # Errors
    /// A damaged file.
    pub fn endpoint(path: &Path) -> Result<Option<Endpoint>, String> {
        match std::fs::read(path.join("endpoint")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| e.to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

fn private(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Writes a file whole or not at all.
///
/// # Errors
/// As the file system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    private(&temporary, 0o600)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_and_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataFolder::open(dir.path()).unwrap();
        first.announce(&Endpoint { http: "http://127.0.0.1:9".into(), link: "127.0.0.1:10".into(), pid: 77 }).unwrap();
        let error = DataFolder::open(dir.path()).unwrap_err();
        assert_eq!(error.code, ExitCode::Conflict);
        assert!(error.message.contains("process 77 serves it at http://127.0.0.1:9"), "{}", error.message);
        drop(first);
        assert!(DataFolder::open(dir.path()).is_ok());
    }
}
