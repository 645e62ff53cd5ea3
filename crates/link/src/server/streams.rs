//! Event streams: a bounded queue for each connected node, and the NDJSON body that empties it.
//!
//! Promises: sending never blocks; one stream a node, a newer one replaces the older; `connected` and `disconnected` reach
//! the inbox in their true order for each node, `disconnected` only when no newer stream has replaced the one that
//! closed. Must not know what the messages mean.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aivillage_base::NodeId;
use aivillage_base::ports::{Inbox, Sent, Transport};
use aivillage_base::wire::{Down, Peer};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::Frame;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::LinkConfig;
use super::body::BodyError;
use crate::lines;

/// Messages that wait together are sent as one write of about this many bytes.
const WRITE: usize = 32 * 1024;
/// A node that finds its stream replaced waits this long: two processes with one identity must not chase each other.
const REPLACED_PAUSE_MS: u64 = 5_000;
/// Nodes are spread over this many locks for the order of their comings and goings.
const ORDERS: usize = 16;

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The gateway stops: what is queued still goes out.
    Stopping,
    /// A newer stream of the same node is open.
    Replaced,
    /// The node must not hear any more.
    Revoked,
}

/// Open event streams, a cheap handle; the coordinator's [`Transport`].
#[derive(Debug, Clone)]
pub struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LinkConfig,
    slots: Mutex<Slots>,
    orders: [tokio::sync::Mutex<()>; ORDERS],
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Slots {
    open: HashMap<NodeId, Slot>,
    generations: u64,
    stopping: bool,
}

#[derive(Debug)]
struct Slot {
    peer: Peer,
    generation: u64,
    queue: mpsc::Sender<Arc<Down>>,
    /// Taken when the stream has been told to end.
    end: Option<oneshot::Sender<End>>,
}

impl Streams {
    /// No streams yet; `config` holds for the server that will open them (a queue has at least one place, heartbeats
    /// come at most 100 times a second).
    #[must_use]
    pub fn new(mut config: LinkConfig) -> Self {
        config.queue = config.queue.max(1);
        config.heartbeat = config.heartbeat.max(Duration::from_millis(10));
        let inner = Inner {
            config,
            slots: Mutex::default(),
            orders: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn config(&self) -> &LinkConfig {
        &self.inner.config
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a node's stream to end, if one is open.
    pub(super) fn end(&self, node: &NodeId, why: End) {
        if let Some(end) = self.slots().open.get_mut(node).and_then(|slot| slot.end.take()) {
            let _ = end.send(why);
        }
    }

    /// Tells all streams to end, and refuses new ones if the gateway stops.
    pub(super) fn end_all(&self, why: End) {
        let mut slots = self.slots();
        slots.stopping |= why == End::Stopping;
        for slot in slots.open.values_mut() {
            if let Some(end) = slot.end.take() {
                let _ = end.send(why);
            }
        }
    }

    /// Opens a node's stream in place of an older one; None when stopping. It lives at most `life`.
    pub(super) async fn open(
        &self,
        peer: Peer,
        life: Duration,
        inbox: &Arc<dyn Inbox>,
    ) -> Option<impl Stream<Item = Result<Frame<Bytes>, BodyError>> + Send + use<>> {
        let _order = self.order(&peer.id).lock().await;
        let (queue, messages) = mpsc::channel(self.inner.config.queue);
        let (end, ended) = oneshot::channel();
        let generation = {
            let mut slots = self.slots();
            if slots.stopping {
                return None;
            }
            slots.generations += 1;
            let generation = slots.generations;
            let slot = Slot { peer: peer.clone(), generation, queue, end: Some(end) };
            let older = slots.open.insert(peer.id, slot);
            if let Some(end) = older.and_then(|slot| slot.end) {
                let _ = end.send(End::Replaced);
            }
            generation
        };
        let departure = Departure { streams: self.clone(), inbox: inbox.clone(), peer: Some(peer.clone()), generation };
        inbox.connected(&peer).await;
        let now = Instant::now();
        let feed = Feed {
            messages,
            ended,
            heartbeat: self.inner.config.heartbeat,
            expires: now.checked_add(life).unwrap_or(now),
            retry_after_ms: u64::try_from(self.inner.config.retry_after.as_millis()).unwrap_or(0),
            welcome: Some(self.welcome()),
            over: false,
            _departure: departure,
        };
        Some(stream::unfold(feed, Feed::next))
    }

    fn welcome(&self) -> Down {
        let config = &self.inner.config;
        Down::Welcome {
            coordinator: config.coordinator.clone(),
            heartbeat_ms: u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn order(&self, node: &NodeId) -> &tokio::sync::Mutex<()> {
        &self.inner.orders[usize::from(node.0[0]) % ORDERS]
    }
}

impl Transport for Streams {
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent {
        let slots = self.slots();
        let Some(slot) = slots.open.get(to).filter(|slot| slot.end.is_some()) else {
            return Sent::NotConnected;
        };
        match slot.queue.try_send(message) {
            Ok(()) => Sent::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Sent::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Sent::NotConnected,
        }
    }

    fn connected(&self) -> Vec<Peer> {
        let slots = self.slots();
        let open = slots.open.values().filter(|slot| slot.end.is_some());
        let mut peers: Vec<_> = open.map(|slot| slot.peer.clone()).collect();
        drop(slots);
        peers.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        peers
    }
}

/// What a stream's body draws from.
struct Feed {
    messages: mpsc::Receiver<Arc<Down>>,
    ended: oneshot::Receiver<End>,
    heartbeat: Duration,
    expires: Instant,
    retry_after_ms: u64,
    welcome: Option<Down>,
    over: bool,
    _departure: Departure,
}

impl Feed {
    /// The next write, or None at the end.
    async fn next(mut self) -> Option<(Result<Frame<Bytes>, BodyError>, Self)> {
        if self.over {
            return None;
        }
        let line = if let Some(welcome) = self.welcome.take() {
            lines::encode(&welcome)
        } else {
            tokio::select! {
                biased;
                end = &mut self.ended => self.last(end.unwrap_or(End::Replaced))?,
                () = tokio::time::sleep_until(self.expires) => {
                    self.over = true;
                    // The certificate has run out: the node comes back at once with a fresh one.
                    lines::encode(&Down::Goodbye { retry_after_ms: 0 })
                }
                message = self.messages.recv() => self.waiting(lines::encode(&*message?)),
                () = tokio::time::sleep(self.heartbeat) => lines::encode(&Down::Heartbeat),
            }
        };
        Some((Ok(Frame::data(line.into())), self))
    }

    /// Adds what else is queued, up to the size of a write.
    fn waiting(&mut self, mut line: Vec<u8>) -> Vec<u8> {
        while line.len() < WRITE {
            let Ok(message) = self.messages.try_recv() else { break };
            line.append(&mut lines::encode(&*message));
        }
        line
    }

    /// The last write of a stream that was told to end.
    fn last(&mut self, end: End) -> Option<Vec<u8>> {
        self.over = true;
        match end {
            End::Revoked => None,
            End::Replaced => Some(lines::encode(&Down::Goodbye { retry_after_ms: REPLACED_PAUSE_MS })),
            End::Stopping => {
                let mut line = Vec::new();
                while let Ok(message) = self.messages.try_recv() {
                    line.append(&mut lines::encode(&*message));
                }
                let goodbye = Down::Goodbye { retry_after_ms: self.retry_after_ms };
                line.append(&mut lines::encode(&goodbye));
                Some(line)
            }
        }
    }
}

/// Tells the inbox that a node is gone when its stream is dropped, whatever dropped it.
struct Departure {
    streams: Streams,
    inbox: Arc<dyn Inbox>,
    peer: Option<Peer>,
    generation: u64,
}

impl Drop for Departure {
    fn drop(&mut self) {
        let (Some(peer), Ok(runtime)) = (self.peer.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (streams, inbox, generation) = (self.streams.clone(), self.inbox.clone(), self.generation);
        let leave = async move {
            let _order = streams.order(&peer.id).lock().await;
            {
                let mut slots = streams.slots();
                if slots.open.get(&peer.id).is_none_or(|slot| slot.generation != generation) {
                    return;
                }
                slots.open.remove(&peer.id);
            }
            inbox.disconnected(&peer).await;
        };
        self.streams.inner.tasks.spawn_on(leave, &runtime);
    }
}
