//! A node's calls: messages, updates, blobs (the large ones in [`super::transfers`]).
//!
//! Each call is one try as its caller sees it; a kept connection that the gateway had closed meanwhile, and a certificate
//! that ran out, are mended once inside it (every message is safe to receive twice).

use std::time::Duration;

use aivillage_base::ports::{INLINE_MAX, Uplink, UplinkError};
use aivillage_base::wire::{BlobRef, Up, UpdateHeader, UpdateReply};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;

use super::dial::{self, ANSWER, RequestBody, Stage};
use super::error::LinkError;
use super::link::{Inner, Line, LinkClient};
use super::transfers;
use crate::protocol::{Entries, MESSAGE_MAX, MESSAGES, REGISTRY};
use crate::registry::Entry;

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
            .small(Over::Any, within, || {
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
        if payload.len() > INLINE_MAX {
            return Ok(self.inner.upload_large(&front, &payload).await?);
        }
        Ok(self.inner.put(&front, &payload, None).await?)
    }

    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError> {
        Ok(transfers::fetch(&self.inner, blob).await?)
    }
}

impl LinkClient {
    /// What the gateway's registry of enrolments says after this entry: a part of it, or nothing more. Whether the entries
    /// follow each other is for the caller to check.
    ///
    /// # Errors
    /// The call failed. A gateway from before there was a chain knows no such path: `Reason::NotFound`.
    pub async fn registry(&self, after: u64) -> Result<Vec<Entry>, LinkError> {
        let path = format!("{REGISTRY}?after={after}");
        let bytes =
            self.inner.small(Over::Any, ANSWER, || dial::request("GET", &path, dial::full(Bytes::new()))).await?;
        let answer: Entries =
            serde_json::from_slice(&bytes).map_err(|e| LinkError::BadAnswer(format!("the registry's entries: {e}")))?;
        Ok(answer.entries)
    }
}

/// Which connection carries a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// One that was kept warm, if there is one.
    Any,
    /// The same, but a request that fails on it is not sent again: it is a long one.
    AnyOnce,
    /// One of its own.
    Fresh,
}

/// Time for a transfer of this size.
pub(super) fn transfer(bytes: u64) -> Duration {
    ANSWER + Duration::from_secs(bytes / SLOWEST)
}

impl Inner {
    pub(super) async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.calls.acquire().await.expect("invariant: the semaphore is never closed")
    }

    pub(super) async fn within<T>(
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
    pub(super) async fn small(
        &self,
        over: Over,
        within: Duration,
        make: impl Fn() -> Request<RequestBody>,
    ) -> Result<Bytes, LinkError> {
        let call = async {
            let _place = self.place().await;
            let (line, answer) = self.ask(over, make).await?;
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
                Over::Any | Over::AnyOnce => self.line().await?,
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
                Err(_) if line.reused && over != Over::AnyOnce => continue,
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
}
