//! The link's requests: who may ask what, and the answer.
//!
//! Promise: without a certificate only join and renew exist; with one, the registry is asked again at every request.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::Digest;
use aivillage_base::ports::{BlobReader, StoreError};
use aivillage_base::wire::{Peer, Up};
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::body::{self, Answer, BodyError};
use super::connection::Shown;
use super::{Shared, uploads};
use crate::ca::{CaError, Csr};
use crate::protocol::{
    BLOBS, Certified, ENTRIES_MAX, EVENTS, Entries, JOIN, JOIN_MAX, JoinRequest, MESSAGE_MAX, MESSAGES, REGISTRY,
    RENEW, Reason, Refusal, RenewRequest, UPDATES,
};
use crate::registry::{EnrolledNode, RegistryError};
use crate::token::Token;

/// Blobs are read and sent in blocks of this size: one block a download is in memory.
const BLOCK: usize = 256 * 1024;
/// Messages beyond this take one of the places for large ones.
const LARGE: u64 = 64 * 1024;
/// What a busy gateway asks callers to wait.
const BUSY_MS: u64 = 1_000;

/// The answer to any request.
pub(super) async fn answer(shared: &Arc<Shared>, shown: Option<Shown>, request: Request<Incoming>) -> Answer {
    let route = (request.method().clone(), request.uri().path().to_owned());
    let answered = match (&route.0, route.1.as_str()) {
        (&Method::POST, JOIN) => join(shared, request).await,
        (&Method::POST, RENEW) => renew(shared, request).await,
        (_, JOIN | RENEW) => Err(wrong_method("POST")),
        (method, path) => match admit(shared, shown) {
            Err(refusal) => Err(refusal),
            Ok((peer, shown)) => match (method, path) {
                (&Method::GET, EVENTS) => events(shared, peer, shown).await,
                (&Method::POST, MESSAGES) => message(shared, &peer, request).await,
                (&Method::GET, UPDATES) => uploads::ask(shared, &peer, &request).await,
                (&Method::PUT, UPDATES) => uploads::update(shared, &peer, request).await,
                (&Method::GET, REGISTRY) => entries(shared, request.uri().query().unwrap_or_default()),
                (&Method::GET, path) if path.starts_with(BLOBS) => {
                    blob(shared, &peer, &path[BLOBS.len()..], request.headers()).await
                }
                (_, EVENTS | REGISTRY) => Err(wrong_method("GET")),
                (_, MESSAGES) => Err(wrong_method("POST")),
                (_, UPDATES) => Err(wrong_method("GET and PUT")),
                _ => Err(Refusal::new(Reason::NotFound, "there is nothing at this path")),
            },
        },
    };
    answered.unwrap_or_else(|refusal| {
        tracing::debug!(path = route.1, reason = ?refusal.reason, "link request refused");
        body::refuse(&refusal)
    })
}

fn wrong_method(right: &str) -> Refusal {
    Refusal::new(Reason::MethodNotAllowed, format!("this path takes {right}"))
}

/// Who asks, if it may ask anything.
fn admit(shared: &Shared, shown: Option<Shown>) -> Result<(Peer, Shown), Refusal> {
    let shown = shown.ok_or_else(|| {
        Refusal::new(
            Reason::NotAuthenticated,
            "a client certificate of this gateway is needed: join with a token first",
        )
    })?;
    if shared.deps.clock.now().wall_ms >= shown.not_after_ms {
        let detail = "this certificate has run out: renew it with the node's key";
        return Err(Refusal::new(Reason::CertificateExpired, detail));
    }
    let peer = shared.deps.registry.peer(&shown.id).map_err(|e| registry_refusal(&e))?;
    Ok((peer, shown))
}

pub(super) fn registry_refusal(error: &RegistryError) -> Refusal {
    let reason = match error {
        RegistryError::TokenUnknown => Reason::TokenUnknown,
        RegistryError::TokenExpired { .. } => Reason::TokenExpired,
        RegistryError::TokenUsed { .. } => Reason::TokenUsed,
        RegistryError::TokenRevoked => Reason::TokenRevoked,
        RegistryError::KeyTaken { .. } => Reason::KeyTaken,
        RegistryError::Revoked { .. } => Reason::Revoked,
        RegistryError::NotEnrolled => Reason::NotEnrolled,
        RegistryError::NotFound { .. } => Reason::NotFound,
        RegistryError::Store(error) => {
            tracing::error!(%error, "link registry");
            return Refusal::busy("the gateway's store cannot be used now", BUSY_MS);
        }
    };
    Refusal::new(reason, error.to_string())
}

async fn small<T: DeserializeOwned>(shared: &Shared, request: Request<Incoming>) -> Result<T, Refusal> {
    let bytes =
        body::read(request.into_body(), JOIN_MAX, shared.config.header).await.map_err(|e| e.refusal(JOIN_MAX))?;
    serde_json::from_slice(&bytes).map_err(|e| Refusal::new(Reason::Malformed, e.to_string()))
}

fn csr(pem: &str) -> Result<Csr, Refusal> {
    Csr::parse(pem).map_err(|e| Refusal::new(Reason::Malformed, e.to_string()))
}

async fn join(shared: &Shared, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let join: JoinRequest = small(shared, request).await?;
    let token: Token =
        join.token.parse().map_err(|e: crate::TokenError| Refusal::new(Reason::Malformed, e.to_string()))?;
    let csr = csr(&join.csr_pem)?;
    let redeemed = shared.deps.registry.redeem(&token, csr.id).await;
    let node = redeemed.map_err(|e| registry_refusal(&e))?;
    tracing::info!(node = %node.name, id = node.id.short(), "node joined");
    certify(shared, &csr, node)
}

async fn renew(shared: &Shared, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let renew: RenewRequest = small(shared, request).await?;
    let csr = csr(&renew.csr_pem)?;
    let node = shared.deps.registry.admit(&csr.id).map_err(|e| registry_refusal(&e))?;
    certify(shared, &csr, node)
}

fn certify(shared: &Shared, csr: &Csr, node: EnrolledNode) -> Result<Answer, Refusal> {
    let authority = &shared.deps.authority;
    let signed = authority.sign_node(csr, &node.name, shared.config.certificate_life);
    let signed = signed.map_err(|error: CaError| {
        tracing::error!(%error, "link certificate");
        Refusal::new(Reason::Internal, "the gateway could not sign the certificate")
    })?;
    Ok(body::json(&Certified {
        name: node.name.to_string(),
        owner: node.owner.to_string(),
        certificate_pem: signed.pem,
        ca_pem: authority.ca_pem().to_owned(),
        issued_at_ms: signed.issued_at_ms,
        not_after_ms: signed.not_after_ms,
    }))
}

async fn events(shared: &Shared, peer: Peer, shown: Shown) -> Result<Answer, Refusal> {
    let left_ms = shown.not_after_ms.saturating_sub(shared.deps.clock.now().wall_ms);
    let life = Duration::from_millis(left_ms);
    let opened = shared.streams.open(peer, life, &shared.deps.inbox).await;
    let feed = opened.ok_or_else(|| Refusal::busy("the gateway is stopping", BUSY_MS))?;
    // Revoked between the question and the stream: the revocation found no stream to end.
    if let Err(error) = shared.deps.registry.admit(&shown.id) {
        return Err(registry_refusal(&error));
    }
    let mut answer = Response::new(StreamBody::new(feed).boxed_unsync());
    let kind = HeaderValue::from_static("application/x-ndjson");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(answer)
}

/// What the registry's chain says after the entry that the node has.
fn entries(shared: &Shared, query: &str) -> Result<Answer, Refusal> {
    let after = query.strip_prefix("after=").and_then(|number| number.parse().ok());
    let after = after.ok_or_else(|| Refusal::new(Reason::Malformed, "ask for the entries `?after=` a number"))?;
    Ok(body::json(&Entries { entries: shared.deps.registry.entries(after, ENTRIES_MAX) }))
}

async fn message(shared: &Shared, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let length = body::declared_length(request.headers());
    let _place = if length.is_none_or(|bytes| bytes > LARGE) {
        let place = shared.large.try_acquire();
        Some(place.map_err(|_| Refusal::busy("too many large messages at once", BUSY_MS))?)
    } else {
        None
    };
    let bytes = body::read(request.into_body(), MESSAGE_MAX, shared.config.body_pause)
        .await
        .map_err(|e| e.refusal(MESSAGE_MAX))?;
    let up: Up = serde_json::from_slice(&bytes)
        .map_err(|e| Refusal::new(Reason::Malformed, format!("this is no message: {e}")))?;
    let leaves = matches!(up, Up::Leave);
    let taken = shared.deps.inbox.message(peer, up).await;
    taken.map_err(|e| {
        let reason = Reason::from(e.kind);
        let retry_after_ms = (reason == Reason::Busy).then_some(BUSY_MS);
        Refusal { reason, detail: e.detail, retry_after_ms }
    })?;
    if leaves {
        let revoked = shared.deps.registry.revoke(&peer.id).await;
        revoked.map_err(|e| registry_refusal(&e))?;
        tracing::info!(node = %peer.name, "node left");
    }
    Ok(body::no_content())
}

async fn blob(shared: &Arc<Shared>, peer: &Peer, digest: &str, headers: &http::HeaderMap) -> Result<Answer, Refusal> {
    let digest: Digest = digest
        .parse()
        .map_err(|e: aivillage_base::digest::DigestError| Refusal::new(Reason::Malformed, e.to_string()))?;
    if !shared.deps.inbox.may_fetch(peer, &digest).await {
        let detail = format!("this node has no use for blob {}", digest.short());
        return Err(Refusal::new(Reason::Forbidden, detail));
    }
    let (bytes, reader) = open(shared, digest)
        .await
        .map_err(|error| {
            tracing::error!(%error, "blob store");
            Refusal::busy("the gateway's blob store cannot be used now", BUSY_MS)
        })?
        .ok_or_else(|| Refusal::new(Reason::NotFound, format!("blob {} is not here (any more)", digest.short())))?;
    let from = headers.get(RANGE).and_then(|range| first_byte(range, bytes));
    let start = from.unwrap_or(0);
    let body = StreamBody::new(blocks(reader, bytes, start)).boxed_unsync();
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes - start));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if from.is_some() {
        let range = format!("bytes {start}-{}/{bytes}", bytes - 1);
        let range = HeaderValue::from_str(&range).expect("invariant: digits are a header value");
        headers.insert(CONTENT_RANGE, range);
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(answer)
}

/// Length and reader of a blob; it stays readable when the blob is deleted meanwhile.
async fn open(shared: &Arc<Shared>, digest: Digest) -> Result<Option<(u64, Arc<dyn BlobReader>)>, StoreError> {
    let Some(bytes) = shared.deps.blobs.len(&digest).await? else { return Ok(None) };
    let blobs = Arc::clone(&shared.deps.blobs);
    let opened = tokio::task::spawn_blocking(move || blobs.open(&digest)).await;
    let opened = opened.map_err(|e| StoreError::Unavailable(e.to_string()))??;
    Ok(opened.map(|reader| (bytes, reader)))
}

/// Start of an open range `bytes=N-` inside a blob; other ranges are answered with the whole (RFC 9110 allows it).
fn first_byte(range: &HeaderValue, length: u64) -> Option<u64> {
    let from = range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?;
    from.parse().ok().filter(|start| *start < length)
}

/// A blob from `start` on, block by block.
fn blocks(
    reader: Arc<dyn BlobReader>,
    bytes: u64,
    start: u64,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, BodyError>> + Send {
    stream::try_unfold(start, move |at| {
        let reader = reader.clone();
        async move {
            if at >= bytes {
                return Ok(None);
            }
            let length = usize::try_from(bytes - at).unwrap_or(BLOCK).min(BLOCK);
            let read = move || {
                let mut block = vec![0; length];
                reader.read_at(at, &mut block).map(|()| block)
            };
            let block = tokio::task::spawn_blocking(read).await??;
            Ok(Some((Frame::data(block.into()), at + length as u64)))
        }
    })
}
