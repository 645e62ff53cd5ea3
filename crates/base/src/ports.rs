//! What rooms need from the outside world, as traits: records, blobs, transport.
//!
//! A room states its needs here and never learns who serves them: SQLite or memory, a folder or an object store, TLS
//! sockets or a simulated network. Each trait has a `# Behavior` list that one contract suite checks for every
//! implementation.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::ids::NodeId;
use crate::wire::{BlobRef, Down, Peer, Up, UpdateHeader, UpdateReply};

/// A stored value with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Key within its table.
    pub key: String,
    /// Counts writes of this key, from 1.
    pub version: u64,
    /// The record, as its room encoded it.
    pub value: Bytes,
}

/// What must be true of a key for a batch to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key has no value.
    Absent,
    /// The key's value has this version.
    Version(u64),
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Name of the table: a constant of the room that owns it.
    pub table: &'static str,
    /// Key within the table.
    pub key: String,
    /// Precondition.
    pub expect: Expect,
    /// New value; None deletes.
    pub value: Option<Vec<u8>>,
}

/// Proof that a lease is still held; checked inside the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Name of the lease.
    pub lease: String,
    /// The epoch it was acquired with.
    pub epoch: u64,
}

/// What a batch survives once its commit has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The machine's death: it is on the disk.
    #[default]
    Durable,
    /// This process's death; the machine's, once a later durable batch has returned. Never is a later batch kept without it.
    Ordered,
}

/// Writes that become durable together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What this step is called in metrics, logs and fault plans, e.g. `round_opened`.
    pub name: &'static str,
    /// What it survives.
    pub durability: Durability,
    /// If set, the batch fails with [`StoreError::Fenced`] unless this epoch is the current one.
    pub fence: Option<Fence>,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, durability: Durability::Durable, fence: None, writes: Vec::new() }
    }

    /// Adds a write of `value` as JSON without precondition.
    pub fn put<T: serde::Serialize>(&mut self, table: &'static str, key: impl Into<String>, value: &T) {
        let value = serde_json::to_vec(value).expect("invariant: records serialise to JSON");
        self.writes.push(Write { table, key: key.into(), expect: Expect::Any, value: Some(value) });
    }

    /// Adds a deletion without precondition.
    pub fn delete(&mut self, table: &'static str, key: impl Into<String>) {
        self.writes.push(Write { table, key: key.into(), expect: Expect::Any, value: None });
    }

    /// Sets the precondition of the write added last.
    pub fn expect(&mut self, expect: Expect) {
        if let Some(last) = self.writes.last_mut() {
            last.expect = expect;
        }
    }
}

/// Which rows of a table to list: keys that start with `prefix` and come after `after`, in key order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scan<'a> {
    /// Common start of the keys.
    pub prefix: &'a str,
    /// Exclusive lower bound, for paging.
    pub after: Option<&'a str>,
    /// Most rows to return.
    pub limit: usize,
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A precondition did not hold; nothing was written.
    #[error("{table}/{key} is not as expected: somebody else wrote it")]
    Conflict {
        /// Table of the key.
        table: &'static str,
        /// The key.
        key: String,
    },
    /// The lease's epoch has moved on; nothing was written and the caller must stop acting for it.
    #[error("lease {lease} is held by a newer epoch than {epoch}")]
    Fenced {
        /// Name of the lease.
        lease: String,
        /// The epoch that was presented.
        epoch: u64,
    },
    /// No room left: quota or disk.
    #[error("no space for {needed} bytes: {available} are available")]
    Full {
        /// Bytes asked for.
        needed: u64,
        /// Bytes left.
        available: u64,
    },
    /// What is stored is not what was written.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// The store is closed or cannot be reached.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
}

impl StoreError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Fenced { .. } | Self::Unavailable(_) | Self::Full { .. } => ErrorKind::Unavailable,
            Self::Damaged(_) => ErrorKind::Internal,
        }
    }
}

/// Time spent making things durable, since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Number of waits for the disk.
    pub count: u64,
    /// Their total, in microseconds.
    pub total_us: u64,
}

/// A transactional store of small records.
///
/// # Behavior
/// - `commit` is atomic, and as durable as the batch asks for when it returns; on error nothing of the batch is visible.
/// - Reads see every commit that returned before they began.
/// - Versions of a key count from 1 and survive deletion only as [`Expect::Absent`].
/// - `acquire` gives a strictly larger epoch each time the holder changes or an expired lease is taken, by the
///   store's own clock, which never goes back; a holder that acquires again before expiry keeps its epoch and gets a
///   new expiry.
#[async_trait]
pub trait Records: Send + Sync + Debug {
    /// One row.
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError>;
    /// Rows in key order.
    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError>;
    /// All writes or none.
    async fn commit(&self, batch: Batch) -> Result<(), StoreError>;
    /// Takes or extends a lease; None if another holder has it.
    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError>;
    /// Gives a lease back if `holder` has it.
    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError>;
    /// Waits for the disk so far.
    fn sync_stats(&self) -> SyncStats;
}

/// A blob being written: bytes go in, hash comes out.
#[async_trait]
pub trait BlobWriter: Send + Debug {
    /// Appends bytes.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;
    /// Length and hash of the bytes so far: a sender's claim is checked before there is a blob.
    fn written(&self) -> Result<BlobRef, StoreError>;
    /// Makes it durable under its hash. Dropping the writer instead leaves nothing behind.
    async fn finish(self: Box<Self>) -> Result<BlobRef, StoreError>;
}

/// A blob opened for reads that block, from any thread; it stays readable if the blob is deleted meanwhile.
pub trait BlobReader: Send + Sync + Debug {
    /// Fills `out` from `offset`; not verified. A blob that ends before `out` is full is [`StoreError::Damaged`].
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError>;
}

/// Content-addressed bytes.
///
/// # Behavior
/// - A blob is visible only complete, durable and under the BLAKE3 of its bytes; writing it twice is one blob.
/// - `read` of a whole blob verifies its hash: damage is [`StoreError::Damaged`], never wrong bytes.
/// - `read_at` of a block does not verify (the caller verified once or hashes as it goes).
#[async_trait]
pub trait Blobs: Send + Sync + Debug {
    /// Starts a blob of about `expected` bytes, refusing with [`StoreError::Full`] what would not fit.
    async fn writer(&self, expected: u64) -> Result<Box<dyn BlobWriter>, StoreError>;
    /// The whole blob, verified; None if there is none.
    async fn read(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError>;
    /// Opens a blob for blocking reads; None if there is none. Blocks on the disk: for blocking threads.
    fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn BlobReader>>, StoreError>;
    /// Up to `len` bytes from `offset`; fewer only at the end.
    async fn read_at(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes, StoreError>;
    /// Length in bytes, if present.
    async fn len(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;
    /// Forgets a blob; absent is fine.
    async fn delete(&self, digest: &Digest) -> Result<(), StoreError>;
    /// Digests of all blobs.
    async fn list(&self) -> Result<Vec<Digest>, StoreError>;
    /// Bytes that can still be written: the smaller of quota and free disk space, less a reserve.
    async fn available(&self) -> Result<u64, StoreError>;
    /// Waits for the disk so far.
    fn sync_stats(&self) -> SyncStats;
}

/// Writes `bytes` as one blob.
///
/// # Errors
/// As [`Blobs::writer`] and [`BlobWriter`].
pub async fn put_blob(blobs: &dyn Blobs, bytes: Bytes) -> Result<BlobRef, StoreError> {
    let mut writer = blobs.writer(bytes.len() as u64).await?;
    writer.write(bytes).await?;
    writer.finish().await
}

/// What became of a message handed to a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Queued; it may still be lost.
    Queued,
    /// The node has no stream open.
    NotConnected,
    /// The node's queue is full: it does not read.
    Full,
}

/// The coordinator's side of a link: messages to nodes are hints.
///
/// # Behavior
/// - `send` never blocks; messages to one node arrive in order or not at all.
#[async_trait]
pub trait Transport: Send + Sync + Debug {
    /// Hands a message over.
    fn send(&self, to: &NodeId, message: Arc<Down>) -> Sent;
    /// Nodes whose streams are open, in name order.
    fn connected(&self) -> Vec<Peer>;
}

/// Where an update's integers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// In memory: at most [`INLINE_MAX`] bytes.
    Inline(Bytes),
    /// In the blob store, durable, hash verified.
    Stored(BlobRef),
}

/// Largest update that lives inline in the record store, in bytes.
pub const INLINE_MAX: usize = 16 * 1024;

/// What a link hands its coordinator; the binary wires rooms behind it.
///
/// # Behavior
/// - Every method is safe to call twice with the same arguments.
#[async_trait]
pub trait Inbox: Send + Sync + Debug {
    /// A node's stream has opened.
    async fn connected(&self, node: &Peer);
    /// A node's stream has closed.
    async fn disconnected(&self, node: &Peer);
    /// A message without weights.
    async fn message(&self, from: &Peer, message: Up) -> Result<(), InboxError>;
    /// Would this update be accepted? Asked before its bytes are read; None = send them.
    async fn offer(&self, from: &Peer, header: &UpdateHeader) -> Option<UpdateReply>;
    /// An update whose bytes have arrived and match `header.payload`.
    async fn update(&self, from: &Peer, header: UpdateHeader, payload: Payload) -> UpdateReply;
    /// May this node fetch this blob?
    async fn may_fetch(&self, from: &Peer, digest: &Digest) -> bool;
}

/// A message that could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct InboxError {
    /// What the node can do.
    pub kind: ErrorKind,
    /// One sentence.
    pub detail: String,
}

/// Why a node's call to its coordinator failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// No connection or no answer: try again after a pause.
    #[error("the coordinator cannot be reached: {0}")]
    Unreachable(String),
    /// The coordinator asks to come back later.
    #[error("the coordinator is busy, come back in {after_ms} ms")]
    Busy {
        /// Milliseconds to wait.
        after_ms: u64,
    },
    /// It will not help to try again.
    #[error("the coordinator refuses: {0}")]
    Refused(String),
}

/// A node's side of a link.
///
/// # Behavior
/// - Each call is one try; the caller decides about another.
/// - `fetch` returns only bytes whose BLAKE3 is the asked one.
#[async_trait]
pub trait Uplink: Send + Sync + Debug {
    /// Sends a message without weights.
    async fn send(&self, message: &Up) -> Result<(), UplinkError>;
    /// Sends an update.
    async fn upload(&self, header: &UpdateHeader, payload: Bytes) -> Result<UpdateReply, UplinkError>;
    /// Fetches and verifies a blob.
    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError>;
}
