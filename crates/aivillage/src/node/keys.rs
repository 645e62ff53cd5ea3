//! What a node keeps for secure aggregation: the keys it knows others by, the contexts it has begun, its own signature.
//!
//! ```text
//! DIR/pins.json   name -> key of every other participant that this node has met, mode 0600
//! DIR/contexts    the contexts it has begun, 32 bytes each, appended and synced before anything of one leaves
//! ```
//! Promise: a pin is durable before it is relied on, a context before its first word; secrets of a context are never here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, NodeName};
use aivillage_link::Identity;
use aivillage_privacy::secagg::signed::Signer;
use aivillage_training::participant::{Contexts, Keys, Pins, secure};

use crate::folder::write_whole;

/// Everything that the node in this folder brings to secure aggregation.
///
/// # Errors
/// A file that is damaged or cannot be read: one sentence.
pub(super) fn keys(dir: &Path, identity: Identity) -> Result<Keys, String> {
    Ok(Keys {
        signer: Arc::new(LinkSigner(identity)),
        pins: Arc::new(FolderPins::open(dir)?),
        contexts: Arc::new(FolderContexts::open(dir)?),
    })
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

/// Pins as a file.
#[derive(Debug)]
struct FolderPins {
    path: PathBuf,
    known: Mutex<BTreeMap<NodeName, NodeId>>,
}

impl FolderPins {
    /// The pins of the node's folder.
    ///
    /// # Errors
    /// A damaged file.
    fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("pins.json");
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                format!(
                    "{} is damaged: {e}; restore it, or remove it to trust the keys of the next round",
                    path.display()
                )
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
        };
        Ok(Self { path, known: Mutex::new(known) })
    }
}

impl Pins for FolderPins {
    fn check(&self, peer: &Peer) -> Result<(), String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&peer.name) {
            Some(id) if *id == peer.id => return Ok(()),
            Some(id) => return Err(secure::changed(peer, id)),
            None => {}
        }
        let mut more = known.clone();
        more.insert(peer.name.clone(), peer.id);
        let text = serde_json::to_vec_pretty(&more).map_err(|e| e.to_string())?;
        let synced = || match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        };
        let written = write_whole(&self.path, &text).and_then(|()| synced());
        written.map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        *known = more;
        Ok(())
    }
}

/// Contexts as a file.
#[derive(Debug)]
struct FolderContexts {
    path: PathBuf,
    begun: Mutex<(BTreeSet<[u8; 32]>, File)>,
}

impl FolderContexts {
    /// The contexts of the node's folder.
    ///
    /// # Errors
    /// It cannot be read or written.
    fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("contexts");
        let fail = |e: io::Error| format!("cannot use {}: {e}", path.display());
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(fail)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let (whole, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() {
            // A kill in the middle of an append: nothing of that context has left.
            file.set_len((bytes.len() - rest.len()) as u64).map_err(fail)?;
        }
        Ok(Self { begun: Mutex::new((whole.iter().copied().collect(), file)), path })
    }
}

impl Contexts for FolderContexts {
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.0.contains(ctx) {
            return Ok(false);
        }
        let written = begun.1.write_all(ctx).and_then(|()| begun.1.sync_data());
        written.map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        begun.0.insert(*ctx);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, key: u8) -> Peer {
        Peer { id: NodeId([key; 32]), name: NodeName::new(name).unwrap() }
    }

    #[test]
    fn the_first_key_of_a_name_is_remembered_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let pins = FolderPins::open(dir.path()).unwrap();
        pins.check(&peer("a", 1)).unwrap();
        pins.check(&peer("b", 2)).unwrap();
        let again = FolderPins::open(dir.path()).unwrap();
        again.check(&peer("a", 1)).unwrap();
        let refused = again.check(&peer("a", 3)).unwrap_err();
        assert!(refused.contains("had 0101"), "{refused}");
        std::fs::write(dir.path().join("pins.json"), "{").unwrap();
        assert!(FolderPins::open(dir.path()).unwrap_err().contains("damaged"));
    }

    #[test]
    fn a_context_is_begun_once_over_restarts_and_torn_writes() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(contexts.begin(&[1; 32]), Ok(true));
        assert_eq!(contexts.begin(&[1; 32]), Ok(false));
        let torn = [[1; 32].as_slice(), &[2; 5]].concat();
        std::fs::write(dir.path().join("contexts"), torn).unwrap();
        let again = FolderContexts::open(dir.path()).unwrap();
        assert_eq!(again.begin(&[1; 32]), Ok(false));
        assert_eq!(again.begin(&[2; 32]), Ok(true));
        drop(again);
        assert_eq!(FolderContexts::open(dir.path()).unwrap().begin(&[2; 32]), Ok(false));
    }
}
