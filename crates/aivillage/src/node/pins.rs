//! By which keys a node knows the others: those it has met, in a file, or those of a roster that was signed.
//!
//! ```text
//! DIR/pins.json   name -> key of every other participant that this node has met, mode 0600
//! ```
//! Promise: a pin is durable before it is relied on, and one that its owner removes is gone for a running node too: every
//! check looks whether the file is still the one that was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aivillage_base::wire::Peer;
use aivillage_base::{NodeId, NodeName};
use aivillage_training::participant::{Pins, secure};
use rustix::fs::{FlockOperation, flock};

use crate::folder::write_whole;
use crate::roster::Roster;

/// The pins of a node's folder.
#[derive(Debug, Clone)]
pub struct PinFile {
    dir: PathBuf,
}

impl PinFile {
    /// Of the folder at `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("pins.json")
    }

    /// All pins, in name order.
    ///
    /// # Errors
    /// A file that is damaged or cannot be read: one sentence.
    pub fn list(&self) -> Result<BTreeMap<NodeName, NodeId>, String> {
        let path = self.path();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                format!(
                    "{} is damaged: {e}; restore it, or remove it to trust the keys of the next round",
                    path.display()
                )
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(format!("cannot read {}: {e}", path.display())),
        }
    }

    /// Removes a pin: the next key of this name is trusted. Returns the key that was pinned; None = there was none.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read or written: one sentence.
    pub fn forget(&self, name: &NodeName) -> Result<Option<NodeId>, String> {
        let _changing = self.changing()?;
        let mut pins = self.list()?;
        let forgotten = pins.remove(name);
        if forgotten.is_some() {
            self.write(&pins)?;
        }
        Ok(forgotten)
    }

    /// Pins each of these that has no pin yet, all at once; returns what is pinned then.
    fn pin(&self, peers: &[&Peer]) -> Result<BTreeMap<NodeName, NodeId>, String> {
        let _changing = self.changing()?;
        let mut pins = self.list()?;
        let before = pins.len();
        for peer in peers {
            pins.entry(peer.name.clone()).or_insert(peer.id);
        }
        if pins.len() > before {
            self.write(&pins)?;
        }
        Ok(pins)
    }

    /// Which file it is, and in which state; None = there is none.
    fn stamp(&self) -> Result<Option<Stamp>, String> {
        let path = self.path();
        match std::fs::metadata(&path) {
            Ok(data) => Ok(Some(Stamp([data.ino(), data.size(), nanoseconds(&data)]))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("cannot read {}: {e}", path.display())),
        }
    }

    /// One process changes the file at a time: the node that runs, and its owner's command.
    fn changing(&self) -> Result<File, String> {
        let path = self.dir.join("pins.lock");
        let lock = File::create(&path).and_then(|file| {
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        lock.map_err(|e| format!("cannot lock {}: {e}", path.display()))
    }

    fn write(&self, pins: &BTreeMap<NodeName, NodeId>) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(pins).map_err(|e| e.to_string())?;
        let path = self.path();
        let written = write_whole(&path, &text).and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|e| format!("cannot write {}: {e}", path.display()))
    }
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 3]);

/// When the file was changed last: also by writing into it.
fn nanoseconds(data: &std::fs::Metadata) -> u64 {
    (data.ctime() as u64).wrapping_mul(1_000_000_000).wrapping_add(data.ctime_nsec() as u64)
}

/// The pins as they were read last.
#[derive(Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    pins: BTreeMap<NodeName, NodeId>,
}

/// Trust on first use: the first key of a name is pinned, another one is refused until the owner removes the pin.
#[derive(Debug)]
pub(super) struct FirstUse {
    file: PinFile,
    own: NodeId,
    seen: Mutex<Seen>,
}

impl FirstUse {
    /// Pins in the folder at `dir`, of the node with the key `own`.
    ///
    /// # Errors
    /// A damaged file.
    pub(super) fn open(dir: &Path, own: NodeId) -> Result<Self, String> {
        let file = PinFile::new(dir);
        file.list()?;
        Ok(Self { file, own, seen: Mutex::default() })
    }
}

impl Pins for FirstUse {
    fn check(&self, peers: &[&Peer]) -> Result<(), String> {
        // A node with a new key under its old name knows itself.
        let others: Vec<&Peer> = peers.iter().copied().filter(|peer| peer.id != self.own).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.file.stamp()?;
        if stamp.is_none() || stamp != seen.stamp {
            // What is read now is at least as new as the stamp.
            *seen = Seen { stamp, pins: self.file.list()? };
        }
        if others.iter().any(|peer| !seen.pins.contains_key(&peer.name)) {
            *seen = Seen { stamp: None, pins: self.file.pin(&others)? };
        }
        for peer in others {
            match seen.pins.get(&peer.name) {
                Some(known) if *known == peer.id => {}
                Some(known) => return Err(secure::changed(peer, known)),
                None => return Err(format!("the key of {} could not be pinned", peer.name)),
            }
        }
        Ok(())
    }
}

/// Only who is on the roster, itself included.
#[derive(Debug)]
pub(super) struct OnRoster(pub(super) Roster);

impl Pins for OnRoster {
    fn check(&self, peers: &[&Peer]) -> Result<(), String> {
        peers.iter().try_for_each(|peer| self.0.check(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, key: u8) -> Peer {
        Peer { id: NodeId([key; 32]), name: NodeName::new(name).unwrap() }
    }

    fn open(dir: &Path) -> Result<FirstUse, String> {
        FirstUse::open(dir, NodeId([9; 32]))
    }

    #[test]
    fn the_first_key_of_a_name_is_remembered_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let pins = open(dir.path()).unwrap();
        pins.check(&[&peer("a", 1)]).unwrap();
        pins.check(&[&peer("b", 2)]).unwrap();
        let again = open(dir.path()).unwrap();
        again.check(&[&peer("a", 1)]).unwrap();
        let refused = again.check(&[&peer("a", 3)]).unwrap_err();
        assert!(refused.contains("had 0101"), "{refused}");
        std::fs::write(dir.path().join("pins.json"), "{").unwrap();
        assert!(open(dir.path()).unwrap_err().contains("damaged"));
        assert!(
            pins.check(&[&peer("a", 1)]).unwrap_err().contains("damaged"),
            "what cannot be read vouches for nobody"
        );
    }

    #[test]
    fn a_pin_that_the_owner_removes_is_gone_for_the_running_node() {
        let dir = tempfile::tempdir().unwrap();
        let pins = open(dir.path()).unwrap();
        pins.check(&[&peer("a", 1)]).unwrap();
        pins.check(&[&peer("b", 2)]).unwrap();
        let owner = PinFile::new(dir.path());
        let a = NodeName::new("a").unwrap();
        assert_eq!(owner.forget(&a), Ok(Some(NodeId([1; 32]))));
        assert_eq!(owner.forget(&a), Ok(None));
        pins.check(&[&peer("a", 3)]).unwrap();
        assert!(pins.check(&[&peer("a", 1)]).is_err(), "the old key is refused from now on");
        assert!(pins.check(&[&peer("b", 1)]).is_err(), "other pins stay");
    }

    #[test]
    fn the_keys_of_a_round_are_pinned_together_and_one_changed_key_refuses_them() {
        let dir = tempfile::tempdir().unwrap();
        let pins = open(dir.path()).unwrap();
        let (a, b, c) = (peer("a", 1), peer("b", 2), peer("c", 3));
        pins.check(&[&a, &b]).unwrap();
        pins.check(&[&a, &b, &c]).unwrap();
        assert_eq!(PinFile::new(dir.path()).list().unwrap().len(), 3);
        assert!(pins.check(&[&a, &peer("b", 9), &peer("c", 7)]).unwrap_err().starts_with("c has the key 0707"));
    }

    #[test]
    fn a_node_knows_itself_whatever_its_name_was_pinned_to() {
        let dir = tempfile::tempdir().unwrap();
        let pins = open(dir.path()).unwrap();
        pins.check(&[&peer("me", 1)]).unwrap();
        pins.check(&[&peer("me", 9)]).unwrap();
        assert!(pins.check(&[&peer("me", 2)]).is_err());
    }
}
