//! The chain of enrolments: every one, and every revocation, hashed onto the one before.
//!
//! Who knows a head knows all that came before it: an operator that shows one participant another history, or takes an entry
//! back, cannot show both the same head. Participants sign the head they were shown into their keys of a round and check the
//! others' against their own chain. Promise: a [`Chain`] holds only entries that follow each other. Must not know: how
//! entries are kept or travel.

use aivillage_base::wire::Peer;
use aivillage_base::wire::secure::{Hex, RegistryHead};
use aivillage_base::{NodeId, NodeName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Label of what is hashed.
const LABEL: &[u8] = b"aivillage enrolment registry v1\0";

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It has this name from now on.
    Enrolled,
    /// It is refused from now on, and its name is free.
    Revoked,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts from 1, without gaps.
    pub sequence: u64,
    /// Hash of the entry before; zeros for the first.
    pub previous: Hex<32>,
    /// What.
    pub event: Event,
    /// The node's name.
    pub name: NodeName,
    /// Its key.
    pub id: NodeId,
    /// When, by the gateway's clock: milliseconds since 1970.
    pub at_ms: u64,
}

impl Entry {
    /// SHA-256 of all of it; the name, the only part of no fixed length, comes last.
    #[must_use]
    pub fn hash(&self) -> Hex<32> {
        let event = match self.event {
            Event::Enrolled => 1,
            Event::Revoked => 2,
        };
        let hasher = Sha256::new()
            .chain_update(LABEL)
            .chain_update(self.previous.0)
            .chain_update(self.sequence.to_le_bytes())
            .chain_update([event])
            .chain_update(self.at_ms.to_le_bytes())
            .chain_update(self.id.0)
            .chain_update(self.name.as_str());
        Hex(hasher.finalize().into())
    }
}

/// An entry that does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("entry {sequence} of the enrolment registry does not follow the one before it")]
pub struct Broken {
    /// Its number.
    pub sequence: u64,
}

/// Entries from the first one on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    entries: Vec<Entry>,
    hashes: Vec<Hex<32>>,
}

impl Chain {
    /// The chain of these entries.
    ///
    /// # Errors
    /// [`Broken`]
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Result<Self, Broken> {
        let mut chain = Self::default();
        for entry in entries {
            chain.push(entry)?;
        }
        Ok(chain)
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// [`Broken`]; nothing has changed then.
    pub fn push(&mut self, entry: Entry) -> Result<(), Broken> {
        let head = self.head();
        if entry.sequence != head.sequence + 1 || entry.previous != head.hash {
            return Err(Broken { sequence: entry.sequence });
        }
        self.hashes.push(entry.hash());
        self.entries.push(entry);
        Ok(())
    }

    /// The entry that would come next.
    #[must_use]
    pub fn next(&self, event: Event, name: &NodeName, id: NodeId, at_ms: u64) -> Entry {
        let head = self.head();
        Entry { sequence: head.sequence + 1, previous: head.hash, event, name: name.clone(), id, at_ms }
    }

    /// Number and hash of the last entry.
    #[must_use]
    pub fn head(&self) -> RegistryHead {
        let sequence = self.hashes.len() as u64;
        self.hashes.last().map_or_else(RegistryHead::default, |hash| RegistryHead { sequence, hash: *hash })
    }

    /// Was this the head once, or is it now?
    #[must_use]
    pub fn contains(&self, head: &RegistryHead) -> bool {
        let Some(before) = head.sequence.checked_sub(1) else { return *head == RegistryHead::default() };
        let hash = usize::try_from(before).ok().and_then(|index| self.hashes.get(index));
        hash == Some(&head.hash)
    }

    /// The entries after this number.
    #[must_use]
    pub fn after(&self, sequence: u64) -> &[Entry] {
        let from = usize::try_from(sequence).unwrap_or(usize::MAX).min(self.entries.len());
        &self.entries[from..]
    }

    /// Has this key this name, and was it not revoked?
    #[must_use]
    pub fn is_enrolled(&self, peer: &Peer) -> bool {
        let last = self.entries.iter().rev().find(|entry| entry.id == peer.id);
        last.is_some_and(|entry| entry.event == Event::Enrolled && entry.name == peer.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn chain() -> Chain {
        let mut chain = Chain::default();
        let events = [(Event::Enrolled, "a", 1), (Event::Enrolled, "b", 2), (Event::Revoked, "a", 1)];
        for (event, text, key) in [events.as_slice(), &[(Event::Enrolled, "a", 3)]].concat() {
            chain.push(chain.next(event, &name(text), NodeId([key; 32]), 7)).unwrap();
        }
        chain
    }

    #[test]
    fn a_chain_holds_every_head_it_had_and_no_other() {
        let whole = chain();
        let mut growing = Chain::default();
        assert!(whole.contains(&growing.head()), "the empty one");
        for entry in whole.after(0) {
            growing.push(entry.clone()).unwrap();
            assert!(whole.contains(&growing.head()));
            assert!(!Chain::default().contains(&growing.head()));
        }
        let head = whole.head();
        assert!(!whole.contains(&RegistryHead { sequence: head.sequence + 1, ..head }));
        assert!(!whole.contains(&RegistryHead { sequence: head.sequence - 1, ..head }));
        assert!(!whole.contains(&RegistryHead { sequence: 0, ..head }));
        assert_eq!(whole.after(2).len(), 2);
        assert!(whole.after(9).is_empty());
    }

    #[test]
    fn no_part_of_an_entry_can_change_and_none_be_left_out() {
        let entries = chain().after(0).to_vec();
        let first = entries[0].clone();
        let changes = [
            Entry { event: Event::Revoked, ..first.clone() },
            Entry { name: name("c"), ..first.clone() },
            Entry { id: NodeId([9; 32]), ..first.clone() },
            Entry { at_ms: 8, ..first },
        ];
        for changed in changes {
            let all = std::iter::once(changed).chain(entries[1..].iter().cloned());
            assert_eq!(Chain::of(all), Err(Broken { sequence: 2 }));
        }
        for left_out in 0..entries.len() - 1 {
            let rest = entries.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, entry)| entry.clone());
            assert!(Chain::of(rest).is_err(), "{left_out}");
        }
    }

    #[test]
    fn a_name_belongs_to_the_key_that_has_it_now() {
        let peer = |text: &str, key: u8| Peer { id: NodeId([key; 32]), name: name(text) };
        let chain = chain();
        assert!(chain.is_enrolled(&peer("a", 3)) && chain.is_enrolled(&peer("b", 2)));
        for gone in [peer("a", 1), peer("b", 3), peer("c", 9)] {
            assert!(!chain.is_enrolled(&gone), "{gone:?}");
        }
    }
}
