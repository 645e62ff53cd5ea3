//! A node's calls: messages, updates, blobs.
//!
//! Each call is one try as its caller sees it; a kept connection that the gateway had closed meanwhile, and a certificate
//! that ran out, are mended once inside it (every message is safe to receive twice).

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aivillage_base::Digest;
use aivillage_base::ports::{INLINE_MAX, Uplink, UplinkError};
use aivillage_base::wire::{BlobRef, Up, UpdateHeader, UpdateReply};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::dial::{self, ANSWER, RequestBody, Stage};
use super::error::LinkError;
use super::link::{Inner, Line, LinkClient};
use crate::protocol::{BLOBS, MESSAGE_MAX, MESSAGES, UPDATE_HEADER, UPDATES};

/// How long a large update waits for the coordinator's `100 Continue` before it is sent anyway (RFC 9110 §10.1.1).
const CONTINUE: Duration = Duration::from_secs(5);
/// Large bodies are written in pieces of this size.
const PIECE: usize = 64 * 1024;
/// Most memory that is reserved for a download before its bytes come.
const RESERVED: usize = 16 * 1024 * 1024;
/// Slowest line that a transfer is planned for, in bytes a second: a bad mobile connection.
const SLOWEST: u64 = 16 * 1024;

#[async_trait]
impl Uplink for LinkClient {
    async fn send(&self, message: &Up) -> Result<(), UplinkError> {
        let bytes: Bytes = serde_json::to_vec(message).expect("invariant: messages serialise to JSON").into();
        if bytes.len() > MESSAGE_MAX {
            let detail = format!("a message of {} bytes; at most {MESSAGE_MAX} travel", bytes.len());
            return Err(UplinkError::Refused(detail));
        }
        let within = transfer(bytes.len() as u64);
        self.inner
            .small(within, || {
                let mut request = dial::request("POST", MESSAGES, dial::full(bytes.clone()));
                let json = HeaderValue::from_static("application/json");
                request.headers_mut().insert(CONTENT_TYPE, json);
                request
            })
            .await?;
        Ok(())
    }

    async fn upload(&self, header: &UpdateHeader, payload: Bytes) -> Result<UpdateReply, UplinkError> {
        let front = serde_json::to_string(header).expect("invariant: headers serialise to JSON");
        let front =
            HeaderValue::from_str(&front).map_err(|e| UplinkError::Refused(format!("the update's header: {e}")))?;
        let within = transfer(payload.len() as u64);
        let make = || {
            let mut request = if payload.len() <= INLINE_MAX {
                dial::request("PUT", UPDATES, dial::full(payload.clone()))
            } else {
                asking_first(&payload)
            };
            request.headers_mut().insert(UPDATE_HEADER, front.clone());
            request
        };
        let bytes = self.inner.small(within, make).await?;
        let reply = serde_json::from_slice(&bytes);
        Ok(reply.map_err(|e| LinkError::BadAnswer(e.to_string()))?)
    }

    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError> {
        let path = format!("{BLOBS}{}", blob.digest);
        let inner = &self.inner;
        let within = transfer(blob.bytes);
        let fetching = async {
            let _place = inner.place().await;
            let make = || dial::request("GET", &path, dial::full(Bytes::new()));
            let (line, answer) = inner.ask(Over::Any, make).await?;
            let bytes = inner.download(answer, blob).await?;
            inner.keep(line);
            Ok::<_, LinkError>(bytes)
        };
        Ok(inner.within(within, fetching).await?)
    }
}

/// Which connection carries a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// One that was kept warm, if there is one.
    Any,
    /// One of its own.
    Fresh,
}

/// Time for a transfer of this size.
fn transfer(bytes: u64) -> Duration {
    ANSWER + Duration::from_secs(bytes / SLOWEST)
}

/// A request whose body waits until the coordinator says that it wants it.
fn asking_first(payload: &Bytes) -> Request<RequestBody> {
    let (wanted, waiting) = oneshot::channel::<()>();
    let length = HeaderValue::from(payload.len());
    let body = stream::unfold((Some(waiting), payload.clone()), |(waiting, mut rest)| async move {
        if let Some(waiting) = waiting {
            let _ = tokio::time::timeout(CONTINUE, waiting).await;
        }
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(PIECE.min(rest.len()));
        Some((Ok::<_, Infallible>(Frame::data(piece)), (None, rest)))
    });
    let mut request = dial::request("PUT", UPDATES, StreamBody::new(body).boxed_unsync());
    request.headers_mut().insert(CONTENT_LENGTH, length);
    request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    let wanted = Arc::new(Mutex::new(Some(wanted)));
    hyper::ext::on_informational(&mut request, move |_| {
        let wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wanted) = wanted {
            let _ = wanted.send(());
        }
    });
    request
}

impl Inner {
    async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.calls.acquire().await.expect("invariant: the semaphore is never closed")
    }

    async fn within<T>(
        &self,
        time: Duration,
        work: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
            let cause = format!("no answer within {} s", time.as_secs());
            Err(LinkError::unreachable(&self.dialer.address, cause))
        })
    }

    /// A call with a small answer.
    async fn small(&self, within: Duration, make: impl Fn() -> Request<RequestBody>) -> Result<Bytes, LinkError> {
        let call = async {
            let _place = self.place().await;
            let (line, answer) = self.ask(Over::Any, make).await?;
            let bytes = dial::whole(answer.into_body()).await?;
            self.keep(line);
            Ok(bytes)
        };
        self.within(within, call).await
    }

    /// Sends a request; the answer is a success whose body is still to be read.
    pub(super) async fn ask(
        &self,
        over: Over,
        make: impl Fn() -> Request<RequestBody>,
    ) -> Result<(Line, Response<Incoming>), LinkError> {
        let mut renewed = false;
        loop {
            let mut line = match over {
                Over::Any => self.line().await?,
                Over::Fresh => self.dial().await?,
            };
            let failure = match line.sender.send_request(make()).await {
                Ok(answer) if answer.status().is_success() => return Ok((line, answer)),
                Ok(answer) => {
                    let status = answer.status();
                    let bytes = dial::whole(answer.into_body()).await?;
                    LinkError::refused(dial::refusal(status, &bytes))
                }
                // The gateway closed a connection that was kept warm: it has not seen this request, or it is
                // safe to see it twice. The next one is another, in the end a fresh one.
                Err(_) if line.reused => continue,
                Err(error) => self.dialer.failed(Stage::Request, &error),
            };
            if failure == LinkError::CertificateExpired && !renewed {
                renewed = true;
                self.renew(line.generation()).await?;
                continue;
            }
            return Err(failure);
        }
    }

    async fn download(&self, answer: Response<Incoming>, blob: &BlobRef) -> Result<Bytes, LinkError> {
        let wrong = |why: String| LinkError::BadAnswer(format!("blob {}: {why}", blob.digest.short()));
        let length = usize::try_from(blob.bytes).map_err(|e| wrong(e.to_string()))?;
        let mut body = answer.into_body();
        let declared = http_body::Body::size_hint(&body).exact();
        if declared.is_some_and(|bytes| bytes != blob.bytes) {
            return Err(wrong(format!("{} bytes expected, {declared:?} offered", blob.bytes)));
        }
        // A length is a claim: what is reserved ahead of the bytes is bounded.
        let mut bytes = BytesMut::with_capacity(length.min(RESERVED));
        let mut hasher = blake3::Hasher::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.dialer.failed(Stage::Request, &e))?;
            let Ok(piece) = frame.into_data() else { continue };
            if bytes.len() + piece.len() > length {
                return Err(wrong("more bytes than expected".to_owned()));
            }
            hasher.update(&piece);
            bytes.extend_from_slice(&piece);
        }
        let got = BlobRef { digest: Digest::from(hasher.finalize()), bytes: bytes.len() as u64 };
        if got != *blob {
            return Err(wrong(format!("{} bytes with digest {} came", got.bytes, got.digest.short())));
        }
        Ok(bytes.freeze())
    }
}
