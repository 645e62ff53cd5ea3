//! The gateway's side of the link: one listener, one task a connection, one event stream a node.
//!
//! ```text
//!  accept ─ TLS handshake ─┬─ no certificate: join, renew; 8 KiB; a few seconds of life
//!                          └─ certificate of our CA: events, messages, updates, blobs (until it runs out)
//! ```
//!
//! [`LinkServer::start`] owns the accept loop; [`Streams`] (made before it, because rooms need a transport before there is
//! an inbox) holds the queues of open event streams and is the [`Transport`]. Promises: all caps of [`LinkConfig`] hold for
//! every peer; cancelling says goodbye to each node, lets calls end, and is over after `drain`. Must not know what the
//! messages mean.

mod body;
mod connection;
mod partials;
mod routes;
mod strangers;
mod streams;
mod uploads;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::NodeId;
use aivillage_base::ports::{Blobs, Inbox, Sent, Transport};
use aivillage_base::time::Clock;
use aivillage_base::wire::{Down, Peer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::ca::Authority;
use crate::registry::Registry;
use crate::tls::{self, TlsError};

use connection::Door;
use partials::Partials;
use streams::End;
pub use streams::Streams;

/// Limits and times of the link. The defaults serve a few hundred nodes.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// What `Welcome` says of the coordinator.
    pub coordinator: String,
    /// Longest pause between two messages to a node; nodes reconnect after twice this silence.
    pub heartbeat: Duration,
    /// Messages that wait for one node; more are dropped (they are hints). A node is asked for a few rounds and
    /// predictions at a time, so 256 means that it does not read.
    pub queue: usize,
    /// Life of a node's certificate.
    pub certificate_life: Duration,
    /// Open connections, each costs about 50 KiB.
    pub connections: usize,
    /// Connections that have shown no certificate yet, or never will; one host has at most 16 of them.
    pub strangers: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for a request's headers, and for a stranger's whole visit.
    pub header: Duration,
    /// Time an authenticated connection may idle between requests.
    pub idle: Duration,
    /// Longest pause inside a body.
    pub body_pause: Duration,
    /// Large messages held in memory at once.
    pub large_messages: usize,
    /// Largest update, in bytes (4 bytes a parameter).
    pub update_max: u64,
    /// Large updates that receive at once; more wait for their turn. Each takes up to half a MiB of memory.
    pub uploads: usize,
    /// How long what has arrived of a large update is kept when its node does not go on with it.
    pub upload_kept: Duration,
    /// How often the coordinator is asked again whether it wants an update that is under way: its round may end.
    pub upload_check: Duration,
    /// What a goodbye asks nodes to wait.
    pub retry_after: Duration,
    /// Time for calls to end when stopping.
    pub drain: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            coordinator: "aivillage".to_owned(),
            heartbeat: seconds(10),
            queue: 256,
            certificate_life: seconds(24 * 60 * 60),
            connections: 1024,
            strangers: 64,
            handshake: seconds(10),
            header: seconds(10),
            idle: seconds(120),
            body_pause: seconds(30),
            large_messages: 16,
            update_max: 4 << 30,
            uploads: 64,
            upload_kept: seconds(10 * 60),
            upload_check: seconds(2),
            retry_after: seconds(1),
            drain: seconds(10),
        }
    }
}

/// What the link works with.
#[derive(Debug)]
pub struct LinkDeps {
    /// Signs certificates.
    pub authority: Authority,
    /// Knows tokens and nodes.
    pub registry: Registry,
    /// Takes what nodes send.
    pub inbox: Arc<dyn Inbox>,
    /// Takes large updates, gives models.
    pub blobs: Arc<dyn Blobs>,
    /// Time of certificates.
    pub clock: Arc<dyn Clock>,
}

/// The link cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener has no address.
    #[error("the link's listener cannot be used: {0}")]
    Listener(#[from] std::io::Error),
}

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: LinkConfig,
    pub(crate) deps: LinkDeps,
    pub(crate) streams: Streams,
    pub(crate) large: Semaphore,
    partials: Partials,
}

/// A running link.
#[derive(Debug)]
pub struct LinkServer {
    address: SocketAddr,
    streams: Streams,
    stopped: CancellationToken,
}

impl LinkServer {
    /// Serves `listener` until `cancel`. `streams` carries the limits ([`Streams::new`]).
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(
        listener: TcpListener,
        streams: Streams,
        deps: LinkDeps,
        cancel: CancellationToken,
    ) -> Result<Self, StartError> {
        let address = listener.local_addr()?;
        let acceptor = tls::server(&deps.authority, &deps.clock)?.into();
        let config = streams.config().clone();
        let revocations = deps.registry.revocations();
        let large = Semaphore::new(config.large_messages);
        let partials = Partials::new(config.uploads);
        let shared = Arc::new(Shared { config, deps, streams: streams.clone(), large, partials });
        let stopped = CancellationToken::new();
        let door = Door::new(shared.clone(), acceptor, cancel.clone());
        streams.tasks().spawn(uploads::sweep(shared.clone(), cancel.clone()));
        streams.tasks().spawn(revoke_streams(shared, revocations, cancel));
        let done = stopped.clone().drop_guard();
        tokio::spawn(async move {
            door.serve(listener).await;
            drop(done);
        });
        Ok(Self { address, streams, stopped })
    }

    /// Where nodes connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when all connections have ended, at most `drain` after cancellation.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }
}

impl Transport for LinkServer {
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent {
        self.streams.send(to, message)
    }

    fn connected(&self) -> Vec<Peer> {
        self.streams.connected()
    }
}

/// Ends the streams of revoked nodes at once.
async fn revoke_streams(shared: Arc<Shared>, mut revocations: broadcast::Receiver<NodeId>, cancel: CancellationToken) {
    loop {
        let next = tokio::select! {
            () = cancel.cancelled() => return,
            next = revocations.recv() => next,
        };
        match next {
            Ok(node) => shared.streams.end(&node, End::Revoked),
            Err(broadcast::error::RecvError::Closed) => return,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                for peer in shared.streams.connected() {
                    if shared.deps.registry.admit(&peer.id).is_err() {
                        shared.streams.end(&peer.id, End::Revoked);
                    }
                }
            }
        }
    }
}
