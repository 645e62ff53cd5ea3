//! The gateway's registry of enrolments as this node has seen it, kept over restarts.
//!
//! ```text
//! DIR/registry-XXXXXXXX.jsonl   one entry a line, of the gateway whose CA has this BLAKE3; synced before it is relied on
//! ```
//! Promise: what the gateway shows later goes on from what it has shown before, or this node raises an alarm: then the gateway
//! shows different nodes different histories, has taken one back, or was restored from an older backup.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::wire::secure::{Advert, RegistryHead};
use aivillage_base::{Digest, ErrorKind};
use aivillage_link::{Chain, Entry, LinkClient, LinkError, Reason};
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_training::participant::Registry;
use async_trait::async_trait;

/// Longest chain that is read: 100,000 enrolments and revocations take some 40 MB.
const ENTRIES_MAX: u64 = 100_000;

/// How long what was read counts as fresh, on one connection.
const FRESH: Duration = Duration::from_secs(10);

/// Pauses between two tries to reach a gateway.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whoever can be asked for entries.
#[async_trait]
pub(super) trait Source: Send + Sync + std::fmt::Debug {
    /// Some entries after this number; none = there are no more.
    ///
    /// # Errors
    /// As [`LinkClient::registry`].
    async fn entries(&self, after: u64) -> Result<Vec<Entry>, LinkError>;
}

#[async_trait]
impl Source for LinkClient {
    async fn entries(&self, after: u64) -> Result<Vec<Entry>, LinkError> {
        self.registry(after).await
    }
}

/// The entries in the file at `path`, and how many bytes of it hold them: a line that was torn by a kill is not counted.
fn read(path: &Path) -> Result<(Chain, u64), String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Chain::default(), 0)),
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let damaged = |e: &dyn std::fmt::Display| {
        format!("{} is damaged: {e}; restore it, or remove it to trust what the gateway shows next", path.display())
    };
    let mut chain = Chain::default();
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let entry = serde_json::from_slice(line).map_err(|e| damaged(&e))?;
        chain.push(entry).map_err(|e| damaged(&e))?;
    }
    Ok((chain, whole as u64))
}

/// The file for the gateway with this CA.
fn path(dir: &Path, ca_pem: &str) -> PathBuf {
    dir.join(format!("registry-{}.jsonl", Digest::of(ca_pem.as_bytes()).short()))
}

/// How far a node's folder knows the registry of the gateway with this CA.
///
/// # Errors
/// A damaged file: one sentence.
pub fn known_head(dir: &Path, ca_pem: &str) -> Result<RegistryHead, String> {
    read(&path(dir, ca_pem)).map(|(chain, _)| chain.head())
}

/// The registry in a node's folder.
#[derive(Debug)]
pub(super) struct FolderRegistry {
    source: Arc<dyn Source>,
    chain: Mutex<Chain>,
    /// When it was read to its end last.
    read: Mutex<Option<tokio::time::Instant>>,
    /// Held by whoever reads on.
    file: tokio::sync::Mutex<File>,
    path: PathBuf,
}

impl FolderRegistry {
    /// Of the folder at `dir`, for the gateway with this CA.
    ///
    /// # Errors
    /// A file that is damaged or cannot be written: one sentence.
    pub(super) fn open(dir: &Path, ca_pem: &str, source: Arc<dyn Source>) -> Result<Self, String> {
        let path = path(dir, ca_pem);
        let (chain, bytes) = read(&path)?;
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = opened.and_then(|file| file.set_len(bytes).map(|()| file));
        let file = file.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(Self { source, chain: Mutex::new(chain), read: Mutex::new(None), file: tokio::sync::Mutex::new(file), path })
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> MutexGuard<'_, Option<tokio::time::Instant>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until there is an answer: a gateway that restarts costs no round. Who waits gives up with the round.
    async fn asked(&self, after: u64) -> Result<Vec<Entry>, LinkError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.source.entries(after).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::debug!(%error, "the enrolments are asked for again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// What follows `head`: nothing if that was all. The first entry asked for is the one this node knows already, so that a
    /// gateway whose registry has become shorter or another one is found out.
    async fn part(&self, head: RegistryHead) -> Result<Vec<Entry>, Alarm> {
        let fork = |detail: String| Alarm::new("fork", detail);
        let mut entries = match self.asked(head.sequence.saturating_sub(1)).await {
            Ok(entries) => entries,
            // A gateway from before there was a registry.
            Err(LinkError::Refused { reason: Reason::NotFound, .. }) if head.sequence == 0 => return Ok(Vec::new()),
            Err(LinkError::Refused { reason: Reason::NotFound, .. }) => {
                return Err(fork("the gateway shows no registry of enrolments any more".to_owned()));
            }
            Err(error) => return Err(Alarm::new("registry", format!("the enrolments cannot be read: {error}"))),
        };
        if head.sequence == 0 {
            return Ok(entries);
        }
        let same = entries.first().is_some_and(|first| first.sequence == head.sequence && first.hash() == head.hash);
        if !same {
            return Err(fork(format!(
                "the gateway shows another registry of enrolments than before: entry {} was {}",
                head.sequence, head.hash
            )));
        }
        entries.remove(0);
        Ok(entries)
    }
}

#[async_trait]
impl Registry for FolderRegistry {
    async fn refresh(&self) -> Result<(), Alarm> {
        let mut file = self.file.lock().await;
        loop {
            let mut longer = self.chain().clone();
            let entries = self.part(longer.head()).await?;
            if entries.is_empty() {
                *self.read() = Some(tokio::time::Instant::now());
                return Ok(());
            }
            let mut lines = Vec::new();
            for entry in entries {
                serde_json::to_writer(&mut lines, &entry).expect("invariant: entries serialise to JSON");
                lines.push(b'\n');
                longer.push(entry).map_err(|e| Alarm::new("fork", e.to_string()))?;
            }
            if longer.head().sequence > ENTRIES_MAX {
                return Err(Alarm::new("registry", format!("there are more than {ENTRIES_MAX} enrolments")));
            }
            let written = file.write_all(&lines).and_then(|()| file.sync_data());
            written.map_err(|e| Alarm::new("registry", format!("cannot write {}: {e}", self.path.display())))?;
            *self.chain() = longer;
        }
    }

    async fn freshen(&self) -> Result<(), Alarm> {
        let fresh = self.read().is_some_and(|read| read.elapsed() < FRESH);
        if fresh { Ok(()) } else { self.refresh().await }
    }

    fn expire(&self) {
        *self.read() = None;
    }

    fn head(&self) -> RegistryHead {
        self.chain().head()
    }

    fn check(&self, advert: &Advert) -> Result<(), Alarm> {
        let chain = self.chain();
        let (name, shown, known) = (&advert.peer.name, advert.registry, chain.head());
        if shown == RegistryHead::default() && known == shown {
            return Ok(());
        }
        if shown.sequence == 0 || !chain.contains(&shown) {
            let (length, hash) = (shown.sequence, shown.hash);
            let detail = format!("{name} was shown another registry of enrolments: entry {length} is {hash} there");
            return Err(Alarm::new("fork", detail));
        }
        match chain.is_enrolled(&advert.peer) {
            true => Ok(()),
            false => Err(Alarm::new("not_enrolled", format!("{name} with the key {} is not enrolled", advert.peer.id))),
        }
    }
}

#[cfg(test)]
mod tests;
