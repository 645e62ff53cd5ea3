//! Large bodies over lines that break: updates go up and blobs come down in ranges, each byte once.
//!
//! ```text
//!  upload: ask for the offset ──> send the rest ──┬─ answered
//!             ^───────────────────────────────────┴─ broken, and the offset grows
//!  fetch:  ask from what is here ──> receive ─────┬─ whole, verified
//!             ^───────────────────────────────────┴─ broken, and more is here
//! ```
//! A call ends with the line's error as soon as a try brings nothing new: when to try again is its caller's business, and
//! the gateway keeps what has arrived. Must not know what the bytes are.

use std::convert::Infallible;

use aivillage_base::Digest;
use aivillage_base::wire::{BlobRef, UpdateReply};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

use super::calls::{Over, transfer};
use super::dial::{self, RequestBody, Stage};
use super::error::LinkError;
use super::link::Inner;
use crate::protocol::{BLOBS, Reason, Standing, UPDATE_HEADER, UPDATE_OFFSET, UPDATES};

/// Large bodies are written in pieces of this size.
const PIECE: usize = 64 * 1024;
/// Most memory that is reserved for a download before its bytes come.
const RESERVED: usize = 16 * 1024 * 1024;

impl Inner {
    /// A large update: from where the gateway has it, as often as that brings it on.
    pub(super) async fn upload_large(&self, front: &HeaderValue, payload: &Bytes) -> Result<UpdateReply, LinkError> {
        let mut best: Option<(u64, LinkError)> = None;
        loop {
            let offset = match self.standing(front).await? {
                Standing::Send { offset } => offset,
                Standing::Reply(reply) => return Ok(reply),
            };
            match best {
                Some((before, error)) if offset <= before => return Err(error),
                Some(_) => tracing::debug!(offset, "an update goes on"),
                None => {}
            }
            match self.put(front, payload, Some(offset)).await {
                Err(error) if interrupted(&error) => best = Some((offset, error)),
                answered => return answered,
            }
        }
    }

    async fn standing(&self, front: &HeaderValue) -> Result<Standing, LinkError> {
        let make = || {
            let mut request = dial::request("GET", UPDATES, dial::full(Bytes::new()));
            request.headers_mut().insert(UPDATE_HEADER, front.clone());
            request
        };
        let bytes = self.small(Over::Any, transfer(0), make).await?;
        serde_json::from_slice(&bytes).map_err(|e| LinkError::BadAnswer(e.to_string()))
    }

    /// Sends an update, or its rest from `offset` on.
    pub(super) async fn put(
        &self,
        front: &HeaderValue,
        payload: &Bytes,
        offset: Option<u64>,
    ) -> Result<UpdateReply, LinkError> {
        let from = usize::try_from(offset.unwrap_or(0)).unwrap_or(usize::MAX).min(payload.len());
        let rest = payload.slice(from..);
        let make = || {
            let mut request = match offset {
                None => dial::request("PUT", UPDATES, dial::full(rest.clone())),
                Some(offset) => {
                    let mut request = in_pieces(rest.clone());
                    request.headers_mut().insert(UPDATE_OFFSET, HeaderValue::from(offset));
                    request
                }
            };
            request.headers_mut().insert(UPDATE_HEADER, front.clone());
            request
        };
        let over = if offset.is_some() { Over::AnyOnce } else { Over::Any };
        let bytes = self.small(over, transfer(rest.len() as u64), make).await?;
        serde_json::from_slice(&bytes).map_err(|e| LinkError::BadAnswer(e.to_string()))
    }
}

/// Did the line fail, or has the update moved on meanwhile?
fn interrupted(error: &LinkError) -> bool {
    matches!(
        error,
        LinkError::Unreachable { .. } | LinkError::Refused { reason: Reason::Conflict | Reason::Malformed, .. }
    )
}

fn in_pieces(rest: Bytes) -> Request<RequestBody> {
    let length = HeaderValue::from(rest.len());
    let body = stream::unfold(rest, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(PIECE.min(rest.len()));
        Some((Ok::<_, Infallible>(Frame::data(piece)), rest))
    });
    let mut request = dial::request("PUT", UPDATES, StreamBody::new(body).boxed_unsync());
    request.headers_mut().insert(CONTENT_LENGTH, length);
    request
}

/// A blob, whole and verified.
pub(super) async fn fetch(inner: &Inner, blob: &BlobRef) -> Result<Bytes, LinkError> {
    let mut download = Download::new(*blob)?;
    loop {
        let before = download.bytes.len();
        let left = blob.bytes - before as u64;
        match inner.within(transfer(left), download.go_on(inner)).await {
            Ok(()) => return download.verified(),
            Err(LinkError::Unreachable { .. }) if download.bytes.len() > before => {
                tracing::debug!(at = download.bytes.len(), "a download goes on");
            }
            Err(error) => return Err(error),
        }
    }
}

/// A blob on its way down.
struct Download {
    blob: BlobRef,
    length: usize,
    bytes: BytesMut,
    hasher: blake3::Hasher,
}

impl Download {
    fn new(blob: BlobRef) -> Result<Self, LinkError> {
        let length = usize::try_from(blob.bytes).map_err(|e| wrong(&blob, &e.to_string()))?;
        // A length is a claim: what is reserved ahead of the bytes is bounded.
        let bytes = BytesMut::with_capacity(length.min(RESERVED));
        Ok(Self { blob, length, bytes, hasher: blake3::Hasher::new() })
    }

    /// Asks for what is missing and takes it in until it is whole.
    async fn go_on(&mut self, inner: &Inner) -> Result<(), LinkError> {
        let _place = inner.place().await;
        let path = format!("{BLOBS}{}", self.blob.digest);
        let range = (!self.bytes.is_empty()).then(|| format!("bytes={}-", self.bytes.len()));
        let make = || {
            let mut request = dial::request("GET", &path, dial::full(Bytes::new()));
            if let Some(range) = &range {
                let range = HeaderValue::from_str(range).expect("invariant: digits are a header value");
                request.headers_mut().insert(RANGE, range);
            }
            request
        };
        let (line, answer) = inner.ask(Over::Any, make).await?;
        self.check(&answer)?;
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| inner.dialer.failed(Stage::Request, &e))?;
            let Ok(piece) = frame.into_data() else { continue };
            if self.bytes.len() + piece.len() > self.length {
                return Err(wrong(&self.blob, "more bytes than expected"));
            }
            self.hasher.update(&piece);
            self.bytes.extend_from_slice(&piece);
        }
        inner.keep(line);
        Ok(())
    }

    /// Is the answer what is missing, and no more?
    fn check(&self, answer: &Response<Incoming>) -> Result<(), LinkError> {
        let from = self.bytes.len() as u64;
        if from > 0 {
            let start = format!("bytes {from}-");
            let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&start)) {
                return Err(wrong(&self.blob, &format!("byte {from} asked, range {range:?} offered")));
            }
        }
        let (missing, declared) = (self.blob.bytes - from, http_body::Body::size_hint(answer.body()).exact());
        if declared.is_some_and(|bytes| bytes != missing) {
            return Err(wrong(&self.blob, &format!("{missing} bytes expected, {declared:?} offered")));
        }
        Ok(())
    }

    fn verified(self) -> Result<Bytes, LinkError> {
        let got = BlobRef { digest: Digest::from(self.hasher.finalize()), bytes: self.bytes.len() as u64 };
        if got != self.blob {
            return Err(wrong(&self.blob, &format!("{} bytes with digest {} came", got.bytes, got.digest.short())));
        }
        Ok(self.bytes.freeze())
    }
}

fn wrong(blob: &BlobRef, why: &str) -> LinkError {
    LinkError::BadAnswer(format!("blob {}: {why}", blob.digest.short()))
}
