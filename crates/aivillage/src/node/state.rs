//! What a node keeps of its jobs on disk, and the personal models its owner finds there.
//!
//! ```text
//! DIR/state/JOB/ROUND-ATTEMPT-DIGEST/control.safetensors   SCAFFOLD's control variate
//!                                    model.safetensors     Ditto's personal model
//!                                    own.safetensors       the received model with the tensors that stay here
//! DIR/models/personal-JOB.safetensors   model or own of the last update that counted; stays after the job
//! ```
//! Promise: a state is there whole or not at all, whatever is killed: it is written beside its place, synced, and renamed.
//! All files are bundles that any safetensors library reads; they derive from private data, so they are this user's alone
//! (folders 0700, files 0600).
//!
//! States go when their job ends, and when a job has not been heard of for 30 days ([`STALE_MS`]): a node that was away at
//! the end would keep them for ever. Personal models stay until their owner removes them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use aivillage_base::time::Clock;
use aivillage_base::wire::{Receipt, RoundKey};
use aivillage_base::{Architecture, JobId, bundle};
use aivillage_training::participant::{LocalState, NodeState};

use crate::crash::CrashPoint;

/// States of a job that has not been heard of for so long are dropped when the node starts: 30 days.
const STALE_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Values written at once.
const BLOCK: usize = 1 << 16;
/// Name of the step for planned crashes.
const STEP: &str = "state";

/// A node's states as files; one process at a time (the folder's lock).
#[derive(Debug)]
pub struct FolderState {
    states: PathBuf,
    models: PathBuf,
    crash: Option<Arc<CrashPoint>>,
}

impl FolderState {
    /// The states of the node's folder `dir`, as they are.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { states: dir.join("state"), models: dir.join("models"), crash: None }
    }

    /// For the process that runs the node: drops what a kill left half done, and the states of forgotten jobs.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(dir: &Path, clock: &dyn Clock, crash: Option<Arc<CrashPoint>>) -> Result<Self, String> {
        let this = Self { crash, ..Self::new(dir) };
        this.sweep(clock.now().wall_ms).map_err(|e| failed("tidy", &this.states, &e))?;
        Ok(this)
    }

    fn sweep(&self, now_ms: u64) -> io::Result<()> {
        for job in entries(&self.states)? {
            let modified = std::fs::metadata(&job)?.modified()?;
            let modified_ms = modified.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis());
            if modified_ms + u128::from(STALE_MS) < u128::from(now_ms) {
                std::fs::remove_dir_all(&job)?;
                continue;
            }
            for unfinished in entries(&job)?.into_iter().filter(|path| is_unfinished(path)) {
                std::fs::remove_dir_all(unfinished)?;
            }
        }
        Ok(())
    }

    fn job(&self, job: &JobId) -> PathBuf {
        self.states.join(job.as_str())
    }

    fn place(&self, mark: &Receipt) -> PathBuf {
        let RoundKey { job, round, attempt } = &mark.key;
        self.job(job).join(format!("{round}-{attempt}-{}", mark.digest))
    }

    fn write(&self, mark: &Receipt, architecture: &Architecture, state: &LocalState) -> io::Result<()> {
        let place = self.place(mark);
        if place.exists() {
            return Ok(());
        }
        let unfinished = unfinished(&place);
        let job = self.job(&mark.key.job);
        private_dir(&job)?;
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        private_dir(&unfinished)?;
        for (name, values) in files(state).into_iter().filter(|(_, values)| !values.is_empty()) {
            write_bundle(&unfinished.join(name), architecture, values)?;
        }
        sync(&unfinished)?;
        std::fs::rename(&unfinished, &place)?;
        sync(&job)?;
        sync(&self.states)
    }

    fn remove(&self, mark: &Receipt) -> io::Result<()> {
        let place = self.place(mark);
        let unfinished = unfinished(&place);
        // Renamed first: half of a state must never pass for one.
        match std::fs::rename(&place, &unfinished) {
            Ok(()) => std::fs::remove_dir_all(&unfinished)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // The job's folder goes with its last state.
        let _not_empty = std::fs::remove_dir(self.job(&mark.key.job));
        Ok(())
    }

    fn link(&self, mark: &Receipt) -> io::Result<()> {
        let place = self.place(mark);
        let sources = ["model.safetensors", "own.safetensors"].map(|name| place.join(name));
        let Some(source) = sources.iter().find(|path| path.exists()) else { return Ok(()) };
        private_dir(&self.models)?;
        let target = self.models.join(format!("personal-{}.safetensors", mark.key.job));
        let temporary = self.models.join(format!(".personal-{}", mark.key.job));
        remove_file(&temporary)?;
        // A second name for the same bytes; where the file system has none, a copy.
        if std::fs::hard_link(source, &temporary).is_err() {
            std::fs::copy(source, &temporary)?;
            File::open(&temporary)?.sync_all()?;
        }
        std::fs::rename(&temporary, &target)?;
        // Two names of one file: the rename has done nothing.
        remove_file(&temporary)?;
        sync(&self.models)
    }
}

impl NodeState for FolderState {
    fn kept(&self, job: &JobId) -> Result<Vec<Receipt>, String> {
        let folder = self.job(job);
        let found = entries(&folder).map_err(|e| failed("read", &folder, &e))?;
        Ok(found.iter().filter_map(|path| mark(job, path)).collect())
    }

    fn read(&self, mark: &Receipt, architecture: &Architecture) -> Result<LocalState, String> {
        let place = self.place(mark);
        let mut state = LocalState::default();
        let slots = [&mut state.control, &mut state.model, &mut state.own];
        for (slot, (name, _)) in slots.into_iter().zip(files(&LocalState::default())) {
            let path = place.join(name);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound && place.exists() => continue,
                Err(error) => return Err(failed("read", &path, &error)),
            };
            let (found, values) = bundle::read(&bytes).map_err(|e| failed("read", &path, &e))?;
            if found != *architecture {
                return Err(format!("{} holds a model of another shape than the job's", path.display()));
            }
            *slot = values;
        }
        Ok(state)
    }

    fn put(&self, mark: &Receipt, architecture: &Architecture, state: &LocalState) -> Result<(), String> {
        let step = self.crash.as_ref().map(|crash| crash.before(STEP));
        self.write(mark, architecture, state).map_err(|e| failed("write", &self.place(mark), &e))?;
        if let (Some(crash), Some(step)) = (&self.crash, step) {
            crash.after(step, STEP);
        }
        Ok(())
    }

    fn forget(&self, mark: &Receipt) -> Result<(), String> {
        self.remove(mark).map_err(|e| failed("remove", &self.place(mark), &e))
    }

    fn publish(&self, mark: &Receipt) -> Result<(), String> {
        self.link(mark).map_err(|e| failed("write", &self.models, &e))
    }
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

/// The files of a state, in a fixed order.
fn files(state: &LocalState) -> [(&'static str, &[f32]); 3] {
    let LocalState { control, model, own } = state;
    [("control.safetensors", control), ("model.safetensors", model), ("own.safetensors", own)]
}

/// Under which update the folder `path` keeps a state; None for anything else.
fn mark(job: &JobId, path: &Path) -> Option<Receipt> {
    let mut parts = path.file_name()?.to_str()?.splitn(3, '-');
    let (round, attempt) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let digest = parts.next()?.parse().ok()?;
    Some(Receipt { key: RoundKey { job: job.clone(), round, attempt }, digest })
}

fn unfinished(place: &Path) -> PathBuf {
    place.with_extension("unfinished")
}

fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "unfinished")
}

/// What is in a folder; nothing if there is none.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in a folder durable.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn write_bundle(path: &Path, architecture: &Architecture, values: &[f32]) -> io::Result<()> {
    let header = bundle::header_bytes(architecture).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&header)?;
    let mut bytes = Vec::with_capacity(BLOCK * 4);
    for block in values.chunks(BLOCK) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|v| v.to_le_bytes()));
        file.write_all(&bytes)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use aivillage_base::time::SystemClock;
    use aivillage_base::{Digest, Recipe, Task};

    use super::*;

    fn architecture(inputs: usize) -> Architecture {
        Recipe::LinearRegression.build(&[inputs], Task::Regression).unwrap()
    }

    fn mark_of(job: &str, round: u32) -> Receipt {
        let key = RoundKey { job: JobId::new(job).unwrap(), round, attempt: 1 };
        Receipt { key, digest: Digest::of(&round.to_le_bytes()) }
    }

    fn state(value: f32) -> LocalState {
        LocalState { control: vec![value, 1.0], model: Vec::new(), own: vec![value, 2.0] }
    }

    #[test]
    fn a_state_is_read_as_it_was_put_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, m) = (FolderState::open(dir.path(), &SystemClock::new(), None).unwrap(), mark_of("j", 1));
        assert_eq!(store.kept(&m.key.job).unwrap(), []);
        assert!(store.read(&m, &architecture(1)).is_err());
        store.put(&m, &architecture(1), &state(0.5)).unwrap();
        store.put(&m, &architecture(1), &state(9.0)).unwrap();
        assert_eq!(store.kept(&m.key.job).unwrap(), std::slice::from_ref(&m));
        assert_eq!(store.read(&m, &architecture(1)).unwrap(), state(0.5));
        assert!(store.read(&m, &architecture(2)).unwrap_err().contains("another shape"));
        for (path, mode) in [(store.place(&m), 0o700), (store.place(&m).join("own.safetensors"), 0o600)] {
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
        }
        store.forget(&m).unwrap();
        store.forget(&m).unwrap();
        assert_eq!(entries(&store.states).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_personal_model_outlives_its_states_and_is_replaced_by_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderState::new(dir.path());
        let path = dir.path().join("models/personal-j.safetensors");
        for round in 1..=2u8 {
            let m = mark_of("j", round.into());
            store.put(&m, &architecture(1), &state(f32::from(round))).unwrap();
            store.publish(&m).unwrap();
            store.publish(&m).unwrap();
            store.forget(&m).unwrap();
            let (found, values) = bundle::read(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!((found, values), (architecture(1), vec![f32::from(round), 2.0]));
        }
        assert_eq!(entries(&store.models).unwrap(), [path]);
    }

    #[test]
    fn a_start_drops_what_is_half_done_or_forgotten_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = FolderState::new(dir.path());
        let (fresh, old) = (mark_of("fresh", 1), mark_of("old", 1));
        store.put(&fresh, &architecture(1), &state(1.0)).unwrap();
        store.put(&old, &architecture(1), &state(1.0)).unwrap();
        private_dir(&unfinished(&store.place(&mark_of("fresh", 2)))).unwrap();
        assert_eq!(store.kept(&fresh.key.job).unwrap(), std::slice::from_ref(&fresh));
        let long_ago = UNIX_EPOCH + std::time::Duration::from_secs(1);
        File::open(store.job(&old.key.job)).unwrap().set_modified(long_ago).unwrap();
        let store = FolderState::open(dir.path(), &SystemClock::new(), None).unwrap();
        assert_eq!(store.kept(&old.key.job).unwrap(), []);
        assert_eq!(entries(&store.job(&fresh.key.job)).unwrap(), [store.place(&fresh)]);
    }
}
