//! Large updates that are under way: what has arrived of each is kept when its connection breaks, and the node goes on there.
//!
//! ```text
//!  ask ──> offset ──> turn (an older connection of the same update gives way) ──> bytes … ──> whole: leaves
//!                       └─ broken: kept, at most `upload_kept`, as long as the coordinator still wants it
//! ```
//! What is kept is an open writer of the blob store: a draft file, its hash so far and its promise of room. It goes with the
//! process, and then the node begins again. Bounds: one update a node and job, [`NODE_MAX`] a node, [`KEPT_MAX`] in all; of
//! those, `uploads` receive at a time, and one that has long received gives way when others wait (its bytes are kept).
//! Must not know: what an update is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::ports::BlobWriter;
use aivillage_base::wire::{BlobRef, Peer, UpdateHeader};
use aivillage_base::{JobId, NodeId};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Updates under way of one node: it trains one at a time, so more are of jobs that it has left.
const NODE_MAX: usize = 4;
/// Updates under way in all; each has an open file and up to 256 KiB in memory.
const KEPT_MAX: usize = 128;
/// An update that has received for so long gives way to one that waits.
const SLICE: Duration = Duration::from_secs(20);
/// Longest wait for a place to receive.
const PLACE_WAIT: Duration = Duration::from_secs(10);

/// All large updates that are under way.
#[derive(Debug)]
pub(super) struct Partials {
    open: Mutex<HashMap<(NodeId, JobId), Arc<Partial>>>,
    places: Arc<Semaphore>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Partial {
    peer: Peer,
    blob: BlobRef,
    now: Mutex<Now>,
    intake: Arc<tokio::sync::Mutex<Intake>>,
}

/// What its newest connection has said and does.
#[derive(Debug)]
struct Now {
    header: UpdateHeader,
    /// Tells the connection that sends to give way.
    give_way: CancellationToken,
    since: Option<Instant>,
    touched: Instant,
}

/// What has arrived.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// None before the first byte and after a failure of the store.
    pub(super) writer: Option<Box<dyn BlobWriter>>,
    pub(super) received: u64,
}

/// The right to add bytes to an update, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    partial: Arc<Partial>,
    pub(super) intake: OwnedMutexGuard<Intake>,
    /// Fires when a newer connection wants to go on, or others wait for the place.
    pub(super) give_way: CancellationToken,
}

impl Turn {
    /// From now on it receives.
    pub(super) fn receives(&self) {
        self.partial.now().since = Some(Instant::now());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut now = self.partial.now();
        now.since = None;
        now.touched = Instant::now();
    }
}

impl Partial {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an older connection has put away what it received.
    async fn turn(self: &Arc<Self>) -> Turn {
        let give_way = CancellationToken::new();
        std::mem::replace(&mut self.now().give_way, give_way.clone()).cancel();
        let intake = Arc::clone(&self.intake).lock_owned().await;
        Turn { partial: Arc::clone(self), intake, give_way }
    }

    fn key(&self) -> (NodeId, JobId) {
        (self.peer.id, self.now().header.key.job.clone())
    }
}

impl Partials {
    /// None yet; `receiving` at a time may receive.
    pub(super) fn new(receiving: usize) -> Self {
        Self { open: Mutex::default(), places: Arc::new(Semaphore::new(receiving.max(1))) }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<(NodeId, JobId), Arc<Partial>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The update of these bytes, if some have arrived; an older update of the same node and job is forgotten.
    fn find(&self, peer: &Peer, header: &UpdateHeader) -> Option<Arc<Partial>> {
        let key = (peer.id, header.key.job.clone());
        let mut open = self.open();
        let same = open.get(&key)?.blob == header.payload;
        if !same {
            open.remove(&key).into_iter().for_each(|old| old.now().give_way.cancel());
            return None;
        }
        let found = Arc::clone(open.get(&key)?);
        drop(open);
        let mut now = found.now();
        now.header = header.clone();
        now.touched = Instant::now();
        drop(now);
        Some(found)
    }

    /// How many bytes of this update are here. A connection that still sends it gives way.
    pub(super) async fn offset(&self, peer: &Peer, header: &UpdateHeader) -> u64 {
        match self.find(peer, header) {
            Some(partial) => partial.turn().await.intake.received,
            None => 0,
        }
    }

    /// The right to add to this update, which is new if nothing of it is here.
    pub(super) async fn turn(&self, peer: &Peer, header: &UpdateHeader) -> Turn {
        let partial = self.find(peer, header).unwrap_or_else(|| self.add(peer, header));
        partial.turn().await
    }

    fn add(&self, peer: &Peer, header: &UpdateHeader) -> Arc<Partial> {
        let now =
            Now { header: header.clone(), give_way: CancellationToken::new(), since: None, touched: Instant::now() };
        let partial = Arc::new(Partial {
            peer: peer.clone(),
            blob: header.payload,
            now: Mutex::new(now),
            intake: Arc::default(),
        });
        let mut open = self.open();
        if open.keys().filter(|(node, _)| *node == peer.id).count() >= NODE_MAX {
            forget_longest_idle(&mut open, |kept| kept.peer.id == peer.id);
        }
        if open.len() >= KEPT_MAX {
            forget_longest_idle(&mut open, |_| true);
        }
        open.insert((peer.id, header.key.job.clone()), Arc::clone(&partial));
        partial
    }

    /// Is there a place to receive now? Asks one that has long received to give way if not.
    pub(super) fn has_place(&self) -> bool {
        if self.places.available_permits() > 0 {
            return true;
        }
        let open = self.open();
        let longest = open.values().filter_map(|p| Some((p.now().since?, p))).min_by_key(|(since, _)| *since);
        if let Some((since, partial)) = longest
            && since.elapsed() >= SLICE
        {
            partial.now().give_way.cancel();
        }
        false
    }

    /// A place to receive; None if none gets free.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = tokio::time::timeout(PLACE_WAIT, Arc::clone(&self.places).acquire_owned()).await.ok()?;
        Some(place.expect("invariant: the semaphore is never closed"))
    }

    /// Forgets an update, complete or unwanted; what it had on disk goes with its turn.
    pub(super) fn forget(&self, turn: &Turn) {
        self.remove(&turn.partial);
    }

    fn remove(&self, partial: &Arc<Partial>) {
        let key = partial.key();
        let mut open = self.open();
        if open.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, partial)) {
            open.remove(&key);
        }
    }

    /// Forgets what this node has under way for the job: it is not wanted any more.
    pub(super) fn unwanted(&self, peer: &Peer, header: &UpdateHeader) {
        let gone = self.open().remove(&(peer.id, header.key.job.clone()));
        gone.into_iter().for_each(|old| old.now().give_way.cancel());
    }

    /// Updates of which nobody sends anything now, with their newest headers; those untouched for longer than `kept` are
    /// forgotten.
    pub(super) fn idle(&self, kept: Duration) -> Vec<(Peer, UpdateHeader)> {
        let mut open = self.open();
        open.retain(|_, partial| {
            let now = partial.now();
            now.since.is_some() || now.touched.elapsed() < kept
        });
        let idle = open.values().filter(|partial| partial.now().since.is_none());
        idle.map(|partial| (partial.peer.clone(), partial.now().header.clone())).collect()
    }
}

fn forget_longest_idle(open: &mut HashMap<(NodeId, JobId), Arc<Partial>>, among: impl Fn(&Partial) -> bool) {
    let candidates = open.iter().filter(|(_, partial)| among(partial));
    // One that receives is younger than any that waits.
    let age = |partial: &Partial| {
        let now = partial.now();
        (now.since.is_some(), now.touched)
    };
    let oldest = candidates.min_by_key(|(_, partial)| age(partial)).map(|(key, _)| key.clone());
    if let Some(gone) = oldest.and_then(|key| open.remove(&key)) {
        gone.now().give_way.cancel();
    }
}
