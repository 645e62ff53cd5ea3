//! A roster: who may be in a round of secure aggregation, as a file that people sign and hand over outside of the gateway.
//!
//! ```text
//! roster: 1
//! nodes:        {"north": "<key>", ...}                names and enrolled Ed25519 keys, 64 hex characters each
//! signatures:   [{key: "<key>", signature: "<128 hex>"}, ...]
//! ```
//! What is signed is [`Roster::text`]: one line a node under a first line that no other text has, so order and layout of the
//! file do not matter, and a signature fits nothing else. Promise: a [`Roster`] that was read bears only valid signatures.
//! Must not know: whom a node trusts to sign.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use aivillage_base::wire::Peer;
use aivillage_base::wire::secure::Hex;
use aivillage_base::{Digest, NodeId, NodeName};
use aivillage_link::Identity;
use aivillage_privacy::secagg::signed::text_is_signed;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Version of the file and of the text that is signed.
const VERSION: u32 = 1;
/// First line of what is signed.
const LABEL: &str = "aivillage roster v1";
/// Largest file that is read: about 30,000 nodes.
const BYTES_MAX: u64 = 4 << 20;

/// A roster that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// No such file, or not for us.
    #[error("cannot read the roster {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} is no roster: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// One sentence.
        why: String,
    },
    /// The names or keys were changed after they were signed.
    #[error("the signature of {by} in {} does not fit its nodes: they are not what was signed", path.display())]
    BadSignature {
        /// The file.
        path: PathBuf,
        /// The key that is said to have signed.
        by: NodeId,
    },
    /// Whose signature is needed has not signed.
    #[error("{} is not signed by {by}, whose signature this node asks for", path.display())]
    NotSigned {
        /// The file.
        path: PathBuf,
        /// The key that should have signed.
        by: NodeId,
    },
}

/// The word of one key for a roster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    key: NodeId,
    signature: Hex<64>,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    roster: u32,
    nodes: BTreeMap<NodeName, NodeId>,
    #[serde(default)]
    signatures: Vec<Signature>,
}

/// Names and keys, and who has signed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    nodes: BTreeMap<NodeName, NodeId>,
    signatures: Vec<Signature>,
}

impl Roster {
    /// A roster that nobody has signed yet.
    ///
    /// # Errors
    /// It is empty, or two names have one key: a sentence.
    pub fn new(nodes: BTreeMap<NodeName, NodeId>) -> Result<Self, String> {
        let mut seen = BTreeMap::new();
        for (name, key) in &nodes {
            if let Some(other) = seen.insert(key, name) {
                return Err(format!("{other} and {name} have one key"));
            }
        }
        match nodes.is_empty() {
            true => Err("there is no node on it".to_owned()),
            false => Ok(Self { nodes, signatures: Vec::new() }),
        }
    }

    /// Reads a file (YAML or JSON) and checks every signature in it.
    ///
    /// # Errors
    /// [`RosterError`]
    pub fn read(path: &Path) -> Result<Self, RosterError> {
        let unreadable = |source| RosterError::Unreadable { path: path.to_owned(), source };
        let damaged = |why: String| RosterError::Damaged { path: path.to_owned(), why };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > BYTES_MAX {
            return Err(damaged(format!("it has {bytes} bytes, and at most {BYTES_MAX} are read")));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let document: Document = serde_saphyr::from_str(&text)
            .map_err(|e| damaged(e.without_snippet().to_string().lines().next().unwrap_or_default().to_owned()))?;
        if document.roster != VERSION {
            return Err(damaged(format!("it is of version {}, and this program knows {VERSION}", document.roster)));
        }
        let mut roster = Self::new(document.nodes).map_err(damaged)?;
        let mut seen = BTreeSet::new();
        for signature in document.signatures {
            if !seen.insert(signature.key) {
                return Err(damaged(format!("{} has signed twice", signature.key)));
            }
            if !text_is_signed(&signature.key, roster.text().as_bytes(), &signature.signature) {
                return Err(RosterError::BadSignature { path: path.to_owned(), by: signature.key });
            }
            roster.signatures.push(signature);
        }
        Ok(roster)
    }

    /// As [`Self::read`], for a node that asks for the signature of each of these keys.
    ///
    /// # Errors
    /// [`RosterError`]
    pub fn trusted(path: &Path, signers: &[NodeId]) -> Result<Self, RosterError> {
        let roster = Self::read(path)?;
        match signers.iter().find(|key| !roster.signers().any(|by| by == **key)) {
            Some(by) => Err(RosterError::NotSigned { path: path.to_owned(), by: *by }),
            None => Ok(roster),
        }
    }

    /// What is signed: the label, then name and key of each node in name order, a line each. Names hold no spaces.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{LABEL}\n");
        for (name, key) in &self.nodes {
            let _infallible = writeln!(text, "{name} {key}");
        }
        text
    }

    /// BLAKE3 of [`Self::text`]: what people compare by voice.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.text().as_bytes())
    }

    /// Adds a signature; false = this key has signed already.
    pub fn sign(&mut self, identity: &Identity) -> bool {
        let key = identity.id();
        if self.signers().any(|by| by == key) {
            return false;
        }
        let signature = Hex(identity.sign_text(self.text().as_bytes()));
        self.signatures.push(Signature { key, signature });
        true
    }

    /// Whose signatures it bears.
    pub fn signers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.signatures.iter().map(|signature| signature.key)
    }

    /// Names and keys.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeName, NodeId> {
        &self.nodes
    }

    /// The name on it that has this key.
    #[must_use]
    pub fn name_of(&self, key: &NodeId) -> Option<&NodeName> {
        self.nodes.iter().find(|(_, other)| *other == key).map(|(name, _)| name)
    }

    /// Is this node on it, with this key?
    ///
    /// # Errors
    /// A sentence for whoever looks at the round.
    pub fn check(&self, peer: &Peer) -> Result<(), String> {
        match self.nodes.get(&peer.name) {
            Some(key) if *key == peer.id => Ok(()),
            Some(key) => Err(format!("{} has the key {} now, and {key} on this node's roster", peer.name, peer.id)),
            None => Err(format!("{} with the key {} is not on this node's roster", peer.name, peer.id)),
        }
    }

    /// The file.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = format!(
            "# Who may be in a round of secure aggregation: names and enrolled keys. Show and check: aivillage roster show FILE\n\
             roster: {VERSION}\nnodes:\n"
        );
        for (name, key) in &self.nodes {
            let _infallible = writeln!(out, "  \"{name}\": \"{key}\"");
        }
        if !self.signatures.is_empty() {
            out.push_str("signatures:\n");
        }
        for Signature { key, signature } in &self.signatures {
            let _infallible = writeln!(out, "  - key: \"{key}\"\n    signature: \"{signature}\"");
        }
        out
    }
}
