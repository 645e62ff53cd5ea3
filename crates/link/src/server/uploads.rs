//! Updates on their way in: asked for first, hashed while they arrive, handed over only if they are what they claim.
//!
//! ```text
//!  small: PUT                             ──> accepted | refused | retry
//!  large: GET, how much is here?          ──> {"offset": n} | accepted | refused | retry
//!         PUT, upload-offset: n, the rest ──> accepted | refused | retry
//! ```
//! Promise: the coordinator is asked before the body of a large one is sent, and again while it comes; what has arrived of
//! it stays when the connection breaks ([`super::partials`]); bytes that do not match the header reach nobody. Must not know
//! what an update is.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::Digest;
use aivillage_base::ports::{INLINE_MAX, Payload, StoreError};
use aivillage_base::wire::{BlobRef, Peer, UpdateHeader, UpdateReply};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::{self, Answer, ReadError};
use super::partials::Turn;
use super::{Shared, routes};
use crate::protocol::{Reason, Refusal, Standing, UPDATE_HEADER, UPDATE_OFFSET};

/// What a node waits when the store has no room or does not answer.
const STORE_RETRY_MS: u64 = 10_000;
/// What a node waits for a place to send.
const PLACE_RETRY_MS: u64 = 1_000;
/// Who has to give way stops after so much silence: a line that broke has nothing more on its way …
const SILENCE: Duration = Duration::from_millis(200);
/// … and after this time in any case.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// `GET updates`: from which byte on is the update of this header wanted?
pub(super) async fn ask(shared: &Arc<Shared>, peer: &Peer, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let header = header(request)?;
    let standing = match before(shared, peer, &header).await {
        Some(reply) => Standing::Reply(reply),
        None => standing(shared, peer, &header).await,
    };
    Ok(body::json(&standing))
}

async fn standing(shared: &Shared, peer: &Peer, header: &UpdateHeader) -> Standing {
    let offset = shared.partials.offset(peer, header).await;
    let retry = |after_ms| Standing::Reply(UpdateReply::Retry { after_ms });
    if !shared.partials.has_place() {
        return retry(PLACE_RETRY_MS);
    }
    // The writer of an update that has begun holds its room.
    match shared.deps.blobs.available().await {
        Ok(room) if offset == 0 && room < header.payload.bytes => {
            tracing::warn!(node = %peer.name, update = %header.key, room, "no room for an update");
            retry(STORE_RETRY_MS)
        }
        Ok(_) => Standing::Send { offset },
        Err(error) => {
            tracing::warn!(%error, "blob store");
            retry(STORE_RETRY_MS)
        }
    }
}

/// What can be said without a byte of the update; None = it is wanted.
async fn before(shared: &Shared, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
    let (bytes, max) = (header.payload.bytes, shared.config.update_max);
    if bytes > max {
        return Some(refused("too_large", format!("the update has {bytes} bytes, at most {max} are taken")));
    }
    let reply = shared.deps.inbox.offer(peer, header).await?;
    if is_last_word(&reply) {
        shared.partials.unwanted(peer, header);
    }
    Some(reply)
}

fn is_last_word(reply: &UpdateReply) -> bool {
    match reply {
        UpdateReply::Accepted | UpdateReply::Refused { .. } => true,
        UpdateReply::Retry { .. } => false,
    }
}

/// `PUT updates`: a small update, or the rest of a large one.
pub(super) async fn update(shared: &Arc<Shared>, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let header = header(&request)?;
    let claimed = header.payload;
    if let Some(reply) = before(shared, peer, &header).await {
        // A small body is on its way already: reading it keeps the connection.
        if claimed.bytes <= INLINE_MAX as u64 {
            let _ = body::read(request.into_body(), INLINE_MAX, shared.config.body_pause).await;
        }
        return Ok(body::json(&reply));
    }
    let received = if claimed.bytes <= INLINE_MAX as u64 {
        inline(request.into_body(), claimed, shared.config.body_pause).await
    } else {
        let from = offset(&request)?;
        let receiving = Receiving { shared: Arc::clone(shared), peer: peer.clone(), header: header.clone() };
        // A task of its own: a connection that breaks must not stop a write half-way, which would lose what has arrived.
        let task = tokio::spawn(receiving.run(from, request.into_body()));
        task.await.unwrap_or_else(|error| Err(Failure::Broken(error.to_string())))
    };
    let payload = match received {
        Ok(payload) => payload,
        Err(Failure::Mismatch(detail)) => return Ok(body::json(&refused("digest_mismatch", detail))),
        Err(Failure::Broken(why)) => return Err(Refusal::new(Reason::Malformed, why)),
        Err(Failure::Elsewhere(why)) => return Err(Refusal::new(Reason::Conflict, why)),
        Err(Failure::Reply(reply)) => return Ok(body::json(&reply)),
        Err(Failure::Store(error)) => {
            tracing::warn!(%error, node = %peer.name, update = %header.key, "update not stored");
            return Ok(body::json(&UpdateReply::Retry { after_ms: STORE_RETRY_MS }));
        }
    };
    // A long upload may have outlived its sender's right to send it.
    shared.deps.registry.admit(&peer.id).map_err(|e| routes::registry_refusal(&e))?;
    let reply = shared.deps.inbox.update(peer, header, payload).await;
    Ok(body::json(&reply))
}

fn refused(reason: &str, detail: String) -> UpdateReply {
    UpdateReply::Refused { reason: reason.to_owned(), detail }
}

fn header(request: &Request<Incoming>) -> Result<UpdateHeader, Refusal> {
    let wrong = |why: String| Refusal::new(Reason::Malformed, format!("the header {UPDATE_HEADER} is wrong: {why}"));
    let value = request.headers().get(UPDATE_HEADER).ok_or_else(|| wrong("missing".to_owned()))?;
    serde_json::from_slice(value.as_bytes()).map_err(|e| wrong(e.to_string()))
}

fn offset(request: &Request<Incoming>) -> Result<u64, Refusal> {
    let value = request.headers().get(UPDATE_OFFSET).and_then(|v| v.to_str().ok()?.parse().ok());
    let wrong = "a large update goes on where the gateway says: ask by GET, and repeat the offset in this header";
    value.ok_or_else(|| Refusal::new(Reason::Malformed, format!("{UPDATE_OFFSET}: {wrong}")))
}

#[derive(Debug)]
enum Failure {
    /// The bytes are not what the header claims.
    Mismatch(String),
    /// The connection broke; what came is kept.
    Broken(String),
    /// The update goes on at another byte, or over another connection: ask again.
    Elsewhere(String),
    /// The coordinator or the link has answered meanwhile.
    Reply(UpdateReply),
    Store(StoreError),
}

fn mismatch(claimed: BlobRef, got: BlobRef) -> Failure {
    Failure::Mismatch(format!(
        "the header claims {} bytes with digest {}, {} bytes with digest {} came: send it again",
        claimed.bytes,
        claimed.digest.short(),
        got.bytes,
        got.digest.short()
    ))
}

fn longer(claimed: BlobRef) -> Failure {
    Failure::Mismatch(format!("more than the {} bytes came that the header claims", claimed.bytes))
}

async fn inline(body: Incoming, claimed: BlobRef, pause: Duration) -> Result<Payload, Failure> {
    let bytes = match body::read(body, INLINE_MAX, pause).await {
        Ok(bytes) => bytes,
        Err(ReadError::TooLarge) => return Err(longer(claimed)),
        Err(ReadError::Broken(why)) => return Err(Failure::Broken(why)),
    };
    let got = BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    if got != claimed {
        return Err(mismatch(claimed, got));
    }
    Ok(Payload::Inline(bytes))
}

/// The rest of a large update under way to the blob store.
struct Receiving {
    shared: Arc<Shared>,
    peer: Peer,
    header: UpdateHeader,
}

impl Receiving {
    async fn run(self, from: u64, body: Incoming) -> Result<Payload, Failure> {
        let partials = &self.shared.partials;
        let mut turn = partials.turn(&self.peer, &self.header).await;
        if turn.intake.received != from {
            let here = turn.intake.received;
            return Err(Failure::Elsewhere(format!("{here} bytes of the update are here, it cannot go on at {from}")));
        }
        let Some(_place) = partials.place().await else {
            return Err(Failure::Reply(UpdateReply::Retry { after_ms: PLACE_RETRY_MS }));
        };
        turn.receives();
        let received = self.receive(&mut turn, body).await;
        match &received {
            Err(Failure::Broken(_) | Failure::Elsewhere(_)) => {}
            Err(Failure::Reply(reply)) if !is_last_word(reply) => {}
            Ok(_) | Err(Failure::Mismatch(_) | Failure::Store(_) | Failure::Reply(_)) => partials.forget(&turn),
        }
        received
    }

    async fn receive(&self, turn: &mut Turn, mut body: Incoming) -> Result<Payload, Failure> {
        let claimed = self.header.payload;
        if turn.intake.writer.is_none() {
            turn.intake.writer = Some(self.shared.deps.blobs.writer(claimed.bytes).await.map_err(Failure::Store)?);
        }
        let (mut asked, mut told) = (Instant::now(), None);
        while let Some(piece) = self.next(&mut body, &turn.give_way).await? {
            let received = turn.intake.received + piece.len() as u64;
            if received > claimed.bytes {
                return Err(longer(claimed));
            }
            let writer = turn.intake.writer.as_mut().ok_or_else(no_writer)?;
            writer.write(piece).await.map_err(Failure::Store)?;
            turn.intake.received = received;
            if turn.give_way.is_cancelled() && told.get_or_insert_with(Instant::now).elapsed() >= LAST_BYTES {
                return Err(gives_way());
            }
            if asked.elapsed() >= self.shared.config.upload_check {
                asked = Instant::now();
                if let Some(reply) = self.shared.deps.inbox.offer(&self.peer, &self.header).await {
                    return Err(Failure::Reply(reply));
                }
            }
        }
        let writer = turn.intake.writer.take().ok_or_else(no_writer)?;
        let got = writer.written().map_err(Failure::Store)?;
        if got != claimed {
            return Err(mismatch(claimed, got));
        }
        writer.finish().await.map(Payload::Stored).map_err(Failure::Store)
    }

    /// The next bytes. Who has to give way still takes what is on its way already.
    async fn next(&self, body: &mut Incoming, give_way: &CancellationToken) -> Result<Option<Bytes>, Failure> {
        let pause = self.shared.config.body_pause;
        let told = async {
            give_way.cancelled().await;
            tokio::time::sleep(SILENCE).await;
        };
        tokio::select! {
            biased;
            piece = body::next(body, pause) => piece.map_err(|e| match e {
                ReadError::TooLarge => longer(self.header.payload),
                ReadError::Broken(why) => Failure::Broken(why),
            }),
            () = told => Err(gives_way()),
        }
    }
}

fn gives_way() -> Failure {
    Failure::Elsewhere("the update goes on over another connection, or later: ask from where".to_owned())
}

fn no_writer() -> Failure {
    Failure::Store(StoreError::Unavailable("what had arrived of the update is gone".to_owned()))
}

/// Forgets updates under way that are not wanted any more, whose node may not send, or that nobody goes on with.
pub(super) async fn sweep(shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(shared.config.upload_check) => {}
        }
        for (peer, header) in shared.partials.idle(shared.config.upload_kept) {
            let may_send = shared.deps.registry.admit(&peer.id).is_ok();
            if !may_send || shared.deps.inbox.offer(&peer, &header).await.is_some_and(|reply| is_last_word(&reply)) {
                tracing::debug!(node = %peer.name, update = %header.key, "part of an update is not wanted any more");
                shared.partials.unwanted(&peer, &header);
            }
        }
    }
}
