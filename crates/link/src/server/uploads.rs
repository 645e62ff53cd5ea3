//! Updates on their way in: asked for first, hashed while they arrive, handed over only if they are what they claim.
//!
//! Promise: the coordinator is asked before the body is read; at most one block of a large update is in memory; bytes
//! that do not match the header reach nobody. Must not know what an update is.

use std::time::Duration;

use aivillage_base::Digest;
use aivillage_base::ports::{Blobs, INLINE_MAX, Payload, StoreError};
use aivillage_base::wire::{BlobRef, Peer, UpdateHeader, UpdateReply};
use bytes::BytesMut;
use http::Request;
use hyper::body::Incoming;

use super::body::{self, Answer, ReadError};
use super::{Shared, routes};
use crate::protocol::{Reason, Refusal, UPDATE_HEADER};

/// Bytes gathered before they go to the blob store: fewer, larger writes.
const BLOCK: usize = 256 * 1024;
/// What a node waits when the store has no room or does not answer.
const STORE_RETRY_MS: u64 = 10_000;

pub(super) async fn update(shared: &Shared, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let header = header(&request)?;
    let claimed = header.payload;
    if claimed.bytes > shared.config.update_max {
        let detail = format!("the update has {} bytes, at most {} are taken", claimed.bytes, shared.config.update_max);
        return Ok(body::json(&refused("too_large", detail)));
    }
    if let Some(reply) = shared.deps.inbox.offer(peer, &header).await {
        // A small body is on its way already: reading it keeps the connection.
        if claimed.bytes <= INLINE_MAX as u64 {
            let _ = body::read(request.into_body(), INLINE_MAX, shared.config.body_pause).await;
        }
        return Ok(body::json(&reply));
    }
    let received = if claimed.bytes <= INLINE_MAX as u64 {
        inline(request.into_body(), claimed, shared.config.body_pause).await
    } else {
        stored(&*shared.deps.blobs, request.into_body(), claimed, shared.config.body_pause).await
    };
    let payload = match received {
        Ok(payload) => payload,
        Err(Failure::Mismatch(detail)) => {
            return Ok(body::json(&refused("digest_mismatch", detail)));
        }
        Err(Failure::Broken(why)) => return Err(Refusal::new(Reason::Malformed, why)),
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

enum Failure {
    Mismatch(String),
    Broken(String),
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

fn longer(claimed: BlobRef) -> Failure {
    Failure::Mismatch(format!("more than the {} bytes came that the header claims", claimed.bytes))
}

async fn stored(blobs: &dyn Blobs, mut body: Incoming, claimed: BlobRef, pause: Duration) -> Result<Payload, Failure> {
    let mut writer = blobs.writer(claimed.bytes).await.map_err(Failure::Store)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0u64;
    let mut block = BytesMut::with_capacity(BLOCK);
    while let Some(piece) = body::next(&mut body, pause).await.map_err(|e| match e {
        ReadError::TooLarge => longer(claimed),
        ReadError::Broken(why) => Failure::Broken(why),
    })? {
        bytes += piece.len() as u64;
        if bytes > claimed.bytes {
            return Err(longer(claimed));
        }
        hasher.update(&piece);
        block.extend_from_slice(&piece);
        if block.len() >= BLOCK {
            writer.write(block.split().freeze()).await.map_err(Failure::Store)?;
        }
    }
    let got = BlobRef { digest: hasher.finalize().into(), bytes };
    if got != claimed {
        return Err(mismatch(claimed, got));
    }
    if !block.is_empty() {
        writer.write(block.freeze()).await.map_err(Failure::Store)?;
    }
    let stored = writer.finish().await.map_err(Failure::Store)?;
    if stored != claimed {
        return Err(mismatch(claimed, stored));
    }
    Ok(Payload::Stored(stored))
}
