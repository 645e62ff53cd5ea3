//! What a node brings to secure aggregation: its own signature, the keys it knows others by, the contexts it has begun.
//!
//! ```text
//! DIR/contexts    the contexts it has begun, 32 bytes each, appended before anything of one leaves, synced before masked values
//! DIR/openings    model and hash of each sum that it has helped to open, 64 bytes each, synced before it is opened
//! ```
//! Promise: a context is noted before its first word, and durable before a masked value leaves; secrets are never here.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::NodeId;
use aivillage_base::time::SystemClock;
use aivillage_link::Identity;
use aivillage_privacy::secagg::signed::Signer;
use aivillage_training::participant::{Contexts, Draws, Keys, Pins, Registry};

use super::pins::{FirstUse, OnRoster};
use crate::roster::Roster;

/// Everything that the node in this folder brings to secure aggregation: without a roster, trust on first use.
///
/// # Errors
/// A file that is damaged or cannot be read: one sentence.
pub(super) fn keys(
    dir: &Path,
    identity: Identity,
    roster: Option<Roster>,
    registry: Arc<dyn Registry>,
) -> Result<Keys, String> {
    let pins: Arc<dyn Pins> = match roster {
        Some(roster) => Arc::new(OnRoster(roster)),
        None => Arc::new(FirstUse::open(dir, identity.id())?),
    };
    let contexts = Arc::new(FolderContexts::open(dir)?);
    let draws = Arc::new(Draws::new(Arc::new(SystemClock::new())));
    Ok(Keys { signer: Arc::new(LinkSigner(identity)), pins, contexts, registry, draws })
}

/// Signs with the key that the node is enrolled under.
#[derive(Debug)]
struct LinkSigner(Identity);

impl Signer for LinkSigner {
    fn id(&self) -> NodeId {
        self.0.id()
    }

    fn sign(&self, text: &[u8]) -> [u8; 64] {
        self.0.sign_text(text)
    }
}

/// Contexts as two files.
#[derive(Debug)]
struct FolderContexts {
    begun: Mutex<Entries<32>>,
    openings: Mutex<Entries<64>>,
}

impl FolderContexts {
    /// The contexts of the node's folder.
    ///
    /// # Errors
    /// They cannot be read or written.
    fn open(dir: &Path) -> Result<Self, String> {
        let this = Self {
            begun: Mutex::new(Entries::open(dir.join("contexts"))?),
            openings: Mutex::new(Entries::open(dir.join("openings"))?),
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| format!("cannot sync {}: {e}", dir.display()))?;
        Ok(this)
    }
}

impl Contexts for FolderContexts {
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.known.contains(ctx) {
            return Ok(false);
        }
        begun.write(ctx)?;
        begun.keep(*ctx);
        Ok(true)
    }

    fn settle(&self) -> Result<(), String> {
        // The file is synced beside the lock: who begins the next context does not wait for this one's disk.
        let (path, file) = {
            let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            (begun.path.clone(), begun.file.try_clone())
        };
        let synced = file.and_then(|file| file.sync_data());
        synced.map_err(|e| format!("cannot sync {}: {e}", path.display()))
    }

    fn opened(&self, model: &[u8; 32]) -> Result<Option<[u8; 32]>, String> {
        Ok(self.openings.lock().unwrap_or_else(PoisonError::into_inner).opened(model))
    }

    fn open(&self, model: &[u8; 32], sum: &[u8; 32]) -> Result<bool, String> {
        let mut entry = [0; 64];
        entry[..32].copy_from_slice(model);
        entry[32..].copy_from_slice(sum);
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        match openings.opened(model) {
            Some(before) => Ok(before == *sum),
            None => {
                openings.write(&entry)?;
                openings.sync()?;
                openings.keep(entry);
                Ok(true)
            }
        }
    }
}

impl Entries<64> {
    /// The sum that was opened over this model.
    fn opened(&self, model: &[u8; 32]) -> Option<[u8; 32]> {
        let from = |half: u8| {
            let mut entry = [half; 64];
            entry[..32].copy_from_slice(model);
            entry
        };
        self.known.range(from(0)..=from(u8::MAX)).next().and_then(|entry| entry.last_chunk()).copied()
    }
}

/// Entries of one size in a file that only grows.
#[derive(Debug)]
struct Entries<const N: usize> {
    path: PathBuf,
    file: File,
    known: BTreeSet<[u8; N]>,
    /// Bytes of whole entries.
    length: u64,
}

impl<const N: usize> Entries<N> {
    fn open(path: PathBuf) -> Result<Self, String> {
        let fail = |e: io::Error| format!("cannot use {}: {e}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(fail)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let (whole, rest) = bytes.as_chunks::<N>();
        let length = (bytes.len() - rest.len()) as u64;
        // A kill in the middle of an append: nothing that belongs to it has left.
        file.set_len(length).map_err(fail)?;
        let known = whole.iter().copied().collect();
        Ok(Self { file, known, length, path })
    }

    /// Writes an entry behind those that are kept.
    fn write(&self, entry: &[u8; N]) -> Result<(), String> {
        // Half an entry of a write that failed would shift all that follow.
        let written = self.file.set_len(self.length).and_then(|()| (&self.file).write_all(entry));
        written.map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }

    /// What was written counts from now on.
    fn keep(&mut self, entry: [u8; N]) {
        self.length += N as u64;
        self.known.insert(entry);
    }

    fn sync(&self) -> Result<(), String> {
        self.file.sync_data().map_err(|e| format!("cannot sync {}: {e}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_begun_once_over_restarts_and_torn_writes() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(contexts.begin(&[1; 32]), Ok(true));
        assert_eq!(contexts.begin(&[1; 32]), Ok(false));
        assert_eq!(contexts.settle(), Ok(()));
        let torn = [[1; 32].as_slice(), &[2; 5]].concat();
        std::fs::write(dir.path().join("contexts"), torn).unwrap();
        let again = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(again.begin(&[1; 32]), Ok(false));
        assert_eq!(again.begin(&[2; 32]), Ok(true));
        drop(again);
        assert_eq!(FolderContexts::open(dir.path()).unwrap().begin(&[2; 32]), Ok(false));
    }

    #[test]
    fn which_sum_was_opened_over_a_model_is_known_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(contexts.opened(&[7; 32]), Ok(None));
        assert_eq!(contexts.open(&[7; 32], &[1; 32]), Ok(true));
        assert_eq!(contexts.open(&[7; 32], &[1; 32]), Ok(true));
        assert_eq!(contexts.open(&[7; 32], &[9; 32]), Ok(false), "one sum a model");
        assert_eq!(contexts.open(&[8; 32], &[2; 32]), Ok(true));
        let again = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(again.opened(&[7; 32]), Ok(Some([1; 32])));
        assert_eq!(again.opened(&[8; 32]), Ok(Some([2; 32])));
        assert_eq!(std::fs::metadata(dir.path().join("openings")).unwrap().len(), 128);
    }
}
