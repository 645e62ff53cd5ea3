//! A gateway's link in a test: real listener, CA in a temporary folder, memory records, and an inbox that remembers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aivillage_base::ports::{Blobs, Inbox, InboxError, Payload, Records, put_blob};
use aivillage_base::time::{Clock, Now, SystemClock};
use aivillage_base::wire::{BlobRef, Down, Peer, Up, UpdateHeader, UpdateReply};
use aivillage_base::{Digest, ErrorKind, NodeId, NodeName};
use aivillage_link::client::ClientConfig;
use aivillage_link::{
    Authority, Enrolment, Identity, LinkClient, LinkConfig, LinkDeps, LinkError, LinkServer, NewToken, Registry,
    Streams, join,
};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The system's clock, moved by a test.
#[derive(Debug, Default)]
pub(crate) struct ShiftedClock {
    system: SystemClock,
    shift_ms: AtomicI64,
}

impl ShiftedClock {
    pub(crate) fn shift(&self, by: i64) {
        self.shift_ms.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Now {
        let now = self.system.now();
        let shift = self.shift_ms.load(Ordering::SeqCst);
        Now { wall_ms: now.wall_ms.saturating_add_signed(shift), ..now }
    }
}

/// What an inbox has heard, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Connected(NodeId),
    Disconnected(NodeId),
    Message(Up),
    Update(UpdateHeader, Payload),
}

/// An inbox that remembers, and answers as the test says.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: mpsc::Sender<Heard>,
    pub(crate) offers: Mutex<Option<UpdateReply>>,
    pub(crate) fetchable: Mutex<Vec<Digest>>,
    pub(crate) busy: Mutex<bool>,
}

impl Ear {
    async fn hear(&self, heard: Heard) {
        self.heard.send(heard).await.unwrap();
    }
}

#[async_trait]
impl Inbox for Ear {
    async fn connected(&self, node: &Peer) {
        self.hear(Heard::Connected(node.id)).await;
    }
    async fn disconnected(&self, node: &Peer) {
        self.hear(Heard::Disconnected(node.id)).await;
    }
    async fn message(&self, _: &Peer, message: Up) -> Result<(), InboxError> {
        if *self.busy.lock().unwrap() {
            return Err(InboxError { kind: ErrorKind::Overloaded, detail: "full".to_owned() });
        }
        self.hear(Heard::Message(message)).await;
        Ok(())
    }
    async fn offer(&self, _: &Peer, _: &UpdateHeader) -> Option<UpdateReply> {
        self.offers.lock().unwrap().clone()
    }
    async fn update(&self, _: &Peer, header: UpdateHeader, payload: Payload) -> UpdateReply {
        self.hear(Heard::Update(header, payload)).await;
        UpdateReply::Accepted
    }
    async fn may_fetch(&self, _: &Peer, digest: &Digest) -> bool {
        self.fetchable.lock().unwrap().contains(digest)
    }
}

pub(crate) struct Village {
    pub(crate) clock: Arc<ShiftedClock>,
    pub(crate) authority: Authority,
    pub(crate) registry: Registry,
    pub(crate) streams: Streams,
    pub(crate) ear: Arc<Ear>,
    pub(crate) blobs: Arc<MemoryBlobs>,
    pub(crate) config: LinkConfig,
    pub(crate) server: LinkServer,
    heard: tokio::sync::Mutex<mpsc::Receiver<Heard>>,
    cancel: CancellationToken,
    _dir: tempfile::TempDir,
}

pub(crate) fn config() -> LinkConfig {
    LinkConfig {
        heartbeat: Duration::from_millis(200),
        handshake: Duration::from_millis(500),
        header: Duration::from_millis(500),
        retry_after: Duration::from_millis(50),
        drain: Duration::from_secs(2),
        ..LinkConfig::default()
    }
}

async fn listener(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    soon(bound).await
}

impl Village {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: LinkConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ShiftedClock::default());
        let authority = Authority::open(dir.path(), clock.clone(), None).unwrap();
        let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(clock.clone()));
        let registry = Registry::open(records, authority.pin(), clock.clone()).await.unwrap();
        let (heard, receiver) = mpsc::channel(1024);
        let ear =
            Arc::new(Ear { heard, offers: Mutex::default(), fetchable: Mutex::default(), busy: Mutex::default() });
        let blobs = Arc::new(MemoryBlobs::new());
        let cancel = CancellationToken::new();
        let streams = Streams::new(config.clone());
        let deps = LinkDeps {
            authority: authority.clone(),
            registry: registry.clone(),
            inbox: ear.clone(),
            blobs: blobs.clone(),
            clock: clock.clone(),
        };
        let listener = listener(([127, 0, 0, 1], 0).into()).await;
        let server = LinkServer::start(listener, streams.clone(), deps, cancel.clone()).unwrap();
        let heard = tokio::sync::Mutex::new(receiver);
        Self { clock, authority, registry, streams, ear, blobs, config, server, heard, cancel, _dir: dir }
    }

    pub(crate) fn address(&self) -> String {
        self.server.address().to_string()
    }

    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        soon(self.server.stopped()).await;
    }

    /// Stops and starts on the same port, with the same records.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.restart_stopped().await;
    }

    /// Starts again after [`Self::stop`].
    pub(crate) async fn restart_stopped(&mut self) {
        let address = self.server.address();
        self.cancel = CancellationToken::new();
        self.streams = Streams::new(self.config.clone());
        let deps = LinkDeps {
            authority: self.authority.clone(),
            registry: self.registry.clone(),
            inbox: self.ear.clone(),
            blobs: self.blobs.clone(),
            clock: self.clock.clone(),
        };
        let (streams, cancel) = (self.streams.clone(), self.cancel.clone());
        self.server = LinkServer::start(listener(address).await, streams, deps, cancel).unwrap();
    }

    pub(crate) async fn token(&self, owner: &str) -> String {
        let new = NewToken { owner: NodeName::new(owner).unwrap(), ttl: Duration::from_secs(600) };
        self.registry.create_token(new).await.unwrap().token.reveal()
    }

    pub(crate) async fn join(&self, owner: &str) -> (Arc<Identity>, Enrolment) {
        let identity = Arc::new(Identity::generate().unwrap());
        let token = self.token(owner).await;
        let enrolment = join(&self.address(), &token, &identity, &self.clock()).await.unwrap();
        (identity, enrolment)
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// A node that has joined and listens.
    pub(crate) async fn node(&self, owner: &str) -> Node {
        let (identity, enrolment) = self.join(owner).await;
        Node::start(enrolment, identity, self.clock())
    }

    pub(crate) async fn heard(&self) -> Heard {
        soon(async { self.heard.lock().await.recv().await.unwrap() }).await
    }

    /// The next thing heard that is no coming or going.
    pub(crate) async fn heard_said(&self) -> Heard {
        loop {
            match self.heard().await {
                Heard::Connected(_) | Heard::Disconnected(_) => {}
                said @ (Heard::Message(_) | Heard::Update(..)) => return said,
            }
        }
    }

    pub(crate) async fn blob(&self, bytes: Bytes) -> BlobRef {
        let blob = put_blob(&*self.blobs as &dyn Blobs, bytes).await.unwrap();
        self.ear.fetchable.lock().unwrap().push(blob.digest);
        blob
    }
}

impl Drop for Village {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A node's link in a test, listening until it is dropped.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) link: LinkClient,
    pub(crate) kept: Arc<Mutex<Vec<Enrolment>>>,
    messages: mpsc::Receiver<Down>,
    running: tokio::task::JoinHandle<Result<(), LinkError>>,
    cancel: CancellationToken,
}

impl Node {
    pub(crate) fn start(enrolment: Enrolment, identity: Arc<Identity>, clock: Arc<dyn Clock>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeper = kept.clone();
        let on_renewed = Box::new(move |renewed: &Enrolment| {
            keeper.lock().unwrap().push(renewed.clone());
            Ok(())
        });
        let times = ClientConfig { first_wait: Duration::from_millis(20), longest_wait: Duration::from_millis(200) };
        let id = identity.id();
        let link = LinkClient::new(enrolment, identity, clock, on_renewed, times).unwrap();
        let (sender, messages) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let (running, stop) = (link.clone(), cancel.clone());
        let running = tokio::spawn(async move { running.run(sender, stop).await });
        Self { id, link, kept, messages, running, cancel }
    }

    pub(crate) async fn next(&mut self) -> Down {
        soon(self.messages.recv()).await.expect("the stream runs")
    }

    pub(crate) async fn welcomed(&mut self) {
        let first = self.next().await;
        assert!(matches!(first, Down::Welcome { .. }), "{first:?}");
    }

    /// How listening ended by itself.
    pub(crate) async fn ended(&mut self) -> Result<(), LinkError> {
        soon(&mut self.running).await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Waits, but never for ever.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens in time")
}

pub(crate) fn ended(job: &str) -> Down {
    Down::JobEnded { job: job.parse().unwrap(), status: "completed".to_owned(), receipt: None }
}
