//! What jobs' tasks and the coordinator share: boards to read without asking, and who still needs which blob.
//!
//! A blob goes when nobody refers to it any more. Nothing here survives a restart: it is counted again from the records.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{broadcast, mpsc};

use aivillage_base::ports::{Blobs, StoreError};
use aivillage_base::wire::Peer;
use aivillage_base::{Digest, JobId};

use crate::actor::Message;
use crate::handle::Deps;
use crate::view::{EventKind, JobEvent};

/// What a job's task publishes for others to see without asking it.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) outbox: mpsc::Sender<Message>,
    pub(crate) events: broadcast::Sender<JobEvent>,
    pub(crate) sequence: u64,
    /// What members of the attempt under way may fetch.
    pub(crate) offered: BTreeMap<Digest, BTreeSet<Peer>>,
}

/// What jobs' tasks and the coordinator share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) boards: Mutex<HashMap<JobId, Board>>,
    /// Which jobs keep which model blobs, and how many counted updates refer to which payload blobs.
    models: Mutex<HashMap<Digest, BTreeSet<JobId>>>,
    pub(crate) payloads: tokio::sync::Mutex<HashMap<Digest, u32>>,
    /// Blobs that this process has hashed and made durable itself: read without being hashed again.
    verified: Mutex<BTreeSet<Digest>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere must not stop the coordinator; these maps are valid between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn outbox(&self, job: &JobId) -> Option<mpsc::Sender<Message>> {
        lock(&self.boards).get(job).map(|b| b.outbox.clone())
    }

    pub(crate) fn outboxes(&self) -> Vec<mpsc::Sender<Message>> {
        lock(&self.boards).values().map(|b| b.outbox.clone()).collect()
    }

    pub(crate) fn publish_event(&self, job: &JobId, kind: EventKind) {
        if let Some(board) = lock(&self.boards).get_mut(job) {
            board.sequence += 1;
            // Nobody listening is fine.
            let _listeners = board.events.send(JobEvent { sequence: board.sequence, kind });
        }
    }

    /// The job has no task any more.
    pub(crate) fn close(&self, job: &JobId) {
        lock(&self.boards).remove(job);
    }

    /// Members of the attempt under way may fetch what it starts from.
    pub(crate) fn offer(&self, job: &JobId, offered: BTreeMap<Digest, BTreeSet<Peer>>) {
        if let Some(board) = lock(&self.boards).get_mut(job) {
            board.offered = offered;
        }
    }

    pub(crate) fn keep_model(&self, job: &JobId, digest: Digest) {
        lock(&self.models).entry(digest).or_default().insert(job.clone());
    }

    /// Deletes a model's blob unless another job or the catalogue has the same bytes.
    pub(crate) async fn drop_model(&self, deps: &Deps, job: &JobId, digest: Digest) {
        let unused = {
            let mut models = lock(&self.models);
            let keepers = models.entry(digest).or_default();
            keepers.remove(job);
            let unused = keepers.is_empty();
            if unused {
                models.remove(&digest);
            }
            unused
        };
        if unused {
            lock(&self.verified).remove(&digest);
        }
        if unused
            && !deps.catalogue.uses(&digest).await
            && let Err(error) = deps.blobs.delete(&digest).await
        {
            tracing::warn!(%digest, %error, "an old round's model could not be deleted");
        }
    }

    /// One more counted update refers to this blob. False if the blob is gone: it must be sent again.
    pub(crate) async fn keep_payload(&self, blobs: &dyn Blobs, digest: Digest) -> Result<bool, StoreError> {
        let mut payloads = self.payloads.lock().await;
        if blobs.len(&digest).await?.is_none() {
            return Ok(false);
        }
        *payloads.entry(digest).or_default() += 1;
        // Whoever hands an update over has hashed it on its way in.
        self.note_verified(digest);
        Ok(true)
    }

    pub(crate) fn note_verified(&self, digest: Digest) {
        lock(&self.verified).insert(digest);
    }

    /// Those of the blobs that need not be hashed again.
    pub(crate) fn verified(&self, blobs: impl Iterator<Item = Digest>) -> BTreeSet<Digest> {
        let verified = lock(&self.verified);
        blobs.filter(|digest| verified.contains(digest)).collect()
    }

    /// Deletes a blob of an ended attempt that an earlier process did not come to delete, unless an update counts on it.
    pub(crate) async fn sweep_payload(&self, blobs: &dyn Blobs, digest: Digest) {
        if !self.payloads.lock().await.contains_key(&digest) {
            self.drop_payload(blobs, digest).await;
        }
    }

    /// One update fewer refers to this blob; the last one takes it along.
    pub(crate) async fn drop_payload(&self, blobs: &dyn Blobs, digest: Digest) {
        let mut payloads = self.payloads.lock().await;
        let left = payloads.get(&digest).copied().unwrap_or(1).saturating_sub(1);
        if left > 0 {
            payloads.insert(digest, left);
            return;
        }
        payloads.remove(&digest);
        lock(&self.verified).remove(&digest);
        if let Err(error) = blobs.delete(&digest).await {
            tracing::warn!(%digest, %error, "an update could not be deleted");
        }
    }
}
