//! A node's folder: what it is, what it keeps, what it has sent.
//!
//! ```text
//! DIR/node.yaml       data, policy, kinds (optional)     DIR/identity.key    Ed25519 key, mode 0600
//! DIR/enrolment.json  gateway, its CA, certificate       DIR/sent.log        one JSON line a thing sent
//! DIR/cache/          models by their digest           DIR/lock         held (flock) by the process that runs it
//! DIR/state/          what it keeps of running jobs    DIR/models/      personal models ([`super::FolderState`])
//! DIR/pins.json       keys of others ([`PinFile`])     DIR/contexts     rounds of secure aggregation ([`super::keys`])
//! DIR/registry-*      enrolments as its gateway showed them ([`super::registry`])
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aivillage_base::time::Clock;
use aivillage_link::{Enrolment, Identity, Seal};
use aivillage_training::participant::{SentEntry, SentLog};
use serde_json::json;

use super::PinFile;
use crate::config::{self, NodeConfig};
use crate::crash::CrashPoint;
use crate::exit::{CliError, ExitCode};
use crate::folder::{FolderLock, write_whole};
use crate::roster::Roster;

/// A node's folder.
#[derive(Debug, Clone)]
pub struct NodeFolder {
    path: PathBuf,
    seal: Option<Seal>,
}

impl NodeFolder {
    /// Creates the folder (mode 0700) if it is new.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| {
            CliError::new(ExitCode::Failed, format!("cannot create the node's folder {}: {e}", path.display()))
                .hint("choose another folder with --dir DIR, or mend its permissions")
        })?;
        Ok(Self { path: path.to_owned(), seal: None })
    }

    /// Seals the node's key at rest, and opens it so; None = as it is.
    #[must_use]
    pub fn sealed(self, seal: Option<Seal>) -> Self {
        Self { seal, ..self }
    }

    /// Makes this process the only one that runs the node, while the lock lives: two processes under one identity
    /// would cut each other's stream for ever.
    ///
    /// # Errors
    /// Another process runs it (exit code 6), or the folder cannot be written.
    pub fn lock(&self) -> Result<FolderLock, CliError> {
        let lock = FolderLock::take(&self.path).map_err(|e| {
            CliError::new(ExitCode::Failed, format!("cannot lock the node's folder {}: {e}", self.path.display()))
                .hint("mend its permissions, or choose another folder with --dir DIR")
        })?;
        lock.ok_or_else(|| {
            let message = format!("the folder {} is in use: another process runs this node", self.path.display());
            CliError::new(ExitCode::Conflict, message).hint(
                "stop that process first; a second node needs a folder and a token of its own: --dir DIR --token T",
            )
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where fetched models are kept.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// The node's key, made on first use.
    ///
    /// # Errors
    /// The file is damaged or cannot be made.
    pub fn identity(&self) -> Result<Identity, CliError> {
        Identity::open_or_create(&self.path.join("identity.key"), self.seal.as_ref())
            .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))
    }

    /// The node's key if it has one.
    ///
    /// # Errors
    /// There is none, or the file is damaged.
    pub fn existing_identity(&self) -> Result<Identity, CliError> {
        if !self.path.join("identity.key").exists() {
            return Err(CliError::new(ExitCode::NotFound, format!("{} has no identity.key", self.path.display()))
                .hint("a node makes its key when it joins: aivillage node join URL --token T --dir DIR"));
        }
        self.identity()
    }

    /// The keys by which it knows others.
    #[must_use]
    pub fn pins(&self) -> PinFile {
        PinFile::new(&self.path)
    }

    /// The roster that its settings name; None = it trusts on first use.
    ///
    /// # Errors
    /// Exit code 3: it cannot be read, was changed, or lacks a signature.
    pub fn roster(&self, config: &NodeConfig) -> Result<Option<Roster>, CliError> {
        let Some(source) = &config.roster else { return Ok(None) };
        let roster = Roster::trusted(&self.path.join(&source.file), &source.signers);
        roster.map(Some).map_err(|e| {
            CliError::new(ExitCode::Configuration, e.to_string())
                .hint("aivillage roster show FILE says who has signed it")
        })
    }

    /// The node's settings; a folder without node.yaml has none to change.
    ///
    /// # Errors
    /// Exit code 3 with the place in the file.
    pub fn config(&self) -> Result<NodeConfig, CliError> {
        let found = config::node::load(&self.path.join("node.yaml"))
            .map_err(|e| CliError::new(ExitCode::Configuration, e.to_string()))?;
        Ok(found.unwrap_or_default())
    }

    /// What the node keeps of having joined.
    ///
    /// # Errors
    /// A damaged file.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, CliError> {
        let path = self.path.join("enrolment.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(CliError::new(ExitCode::Failed, format!("cannot read {}: {e}", path.display()))),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            CliError::new(ExitCode::Failed, format!("{} is damaged: {e}", path.display()))
                .hint("remove it and join again with a new token")
        })
    }

    /// Keeps an enrolment, whole or not at all.
    ///
    /// # Errors
    /// As the file system says.
    pub fn keep(&self, enrolment: &Enrolment) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(enrolment).map_err(std::io::Error::other)?;
        write_whole(&self.path.join("enrolment.json"), &text)
    }

    /// Forgets the enrolment; the identity and the log stay.
    ///
    /// # Errors
    /// As the file system says.
    pub fn forget(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.path.join("enrolment.json"))
    }

    /// Opens the log of what is sent.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn log(
        &self,
        to: &str,
        clock: Arc<dyn Clock>,
        crash: Option<Arc<CrashPoint>>,
    ) -> Result<Arc<FileLog>, CliError> {
        let path = self.path.join("sent.log");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file =
            file.map_err(|e| CliError::new(ExitCode::Failed, format!("cannot write {}: {e}", path.display())))?;
        Ok(Arc::new(FileLog { file: Mutex::new(file), to: to.to_owned(), clock, crash }))
    }
}

/// The log as lines of JSON.
#[derive(Debug)]
pub struct FileLog {
    file: Mutex<File>,
    to: String,
    clock: Arc<dyn Clock>,
    crash: Option<Arc<CrashPoint>>,
}

impl FileLog {
    /// Appends one line.
    ///
    /// # Errors
    /// As the file system says.
    pub fn append(&self, kind: &str, mut line: serde_json::Value) -> Result<(), String> {
        line["at"] = self.clock.now().rfc3339().into();
        line["to"] = self.to.clone().into();
        line["kind"] = kind.into();
        let mut text = line.to_string();
        text.push('\n');
        let step = self.crash.as_ref().map(|c| c.before(kind));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
        drop(file);
        if let (Some(crash), Some(step)) = (&self.crash, step) {
            crash.after(step, kind);
        }
        Ok(())
    }
}

impl SentLog for FileLog {
    fn record(&self, entry: &SentEntry) -> Result<(), String> {
        self.append(
            entry.kind,
            json!({
                "job": entry.key.job,
                "round": entry.key.round,
                "attempt": entry.key.attempt,
                "bytes": entry.bytes,
                "digest": entry.digest,
                "note": entry.note,
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_one_identity_is_refused_while_the_first_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (NodeFolder::open(dir.path()).unwrap(), NodeFolder::open(dir.path()).unwrap());
        let running = first.lock().unwrap();
        let error = second.lock().unwrap_err();
        assert_eq!(error.code, ExitCode::Conflict);
        assert!(error.to_string().contains("another process runs this node"), "{error}");
        drop(running);
        second.lock().unwrap();
    }

    #[test]
    fn a_sealed_identity_is_the_same_node_and_asks_for_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let with = |key: Option<&str>| NodeFolder::open(dir.path()).unwrap().sealed(key.map(Seal::new)).identity();
        let id = with(None).unwrap().id();
        assert_eq!(with(Some("right")).unwrap().id(), id);
        let error = with(None).unwrap_err().to_string();
        assert!(error.contains("identity.key") && error.contains("SECRET_KEY"), "{error}");
        assert_eq!(with(Some("right")).unwrap().id(), id);
    }
}
