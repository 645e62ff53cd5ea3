//! Bodies of the link's HTTP messages: bounded reading, typed answers.
//!
//! Promise: no body is kept beyond the bound of its route, and a sender that pauses too long is cut.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::Serialize;

use crate::protocol::{Reason, Refusal};

/// Why a streamed answer broke off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, BodyError>>;

/// 200 with JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).expect("invariant: answers serialise to JSON");
    respond(StatusCode::OK, "application/json", bytes.into())
}

pub(crate) fn no_content() -> Answer {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(crate) fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, BodyError> {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The answer to a refused request. What ends a peer's right to talk also ends the connection.
pub(crate) fn refuse(refusal: &Refusal) -> Answer {
    let bytes = serde_json::to_vec(refusal).expect("invariant: refusals serialise to JSON");
    let mut answer = respond(refusal.reason.status(), "application/json", bytes.into());
    let headers = answer.headers_mut();
    if let Some(ms) = refusal.retry_after_ms {
        headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    let last = match refusal.reason {
        Reason::NotAuthenticated
        | Reason::CertificateExpired
        | Reason::NotEnrolled
        | Reason::Revoked
        | Reason::TooLarge
        | Reason::Malformed => true,
        Reason::NotFound
        | Reason::MethodNotAllowed
        | Reason::TokenUnknown
        | Reason::TokenExpired
        | Reason::TokenUsed
        | Reason::TokenRevoked
        | Reason::KeyTaken
        | Reason::Forbidden
        | Reason::Conflict
        | Reason::Busy
        | Reason::Internal
        | Reason::Unknown => false,
    };
    if last {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn respond(status: StatusCode, kind: &'static str, bytes: Bytes) -> Answer {
    let mut answer = Response::new(full(bytes));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The declared length of a body, if there is one.
pub(crate) fn declared_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why a body could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    TooLarge,
    Broken(String),
}

impl ReadError {
    pub(crate) fn refusal(&self, max: usize) -> Refusal {
        match self {
            Self::TooLarge => Refusal::new(Reason::TooLarge, format!("the body exceeds {max} bytes")),
            Self::Broken(why) => Refusal::new(Reason::Malformed, why.clone()),
        }
    }
}

/// Reads a whole body of at most `max` bytes; a declared length beyond it is refused before reading.
pub(crate) async fn read(mut body: Incoming, max: usize, pause: Duration) -> Result<Bytes, ReadError> {
    let hint = body.size_hint();
    if hint.lower() > max as u64 {
        return Err(ReadError::TooLarge);
    }
    // What a sender declares is not reserved before it comes, beyond a page.
    let mut bytes = BytesMut::with_capacity(usize::try_from(hint.lower()).unwrap_or(0).min(4096));
    while let Some(piece) = next(&mut body, pause).await? {
        if bytes.is_empty() && body.is_end_stream() && piece.len() <= max {
            return Ok(piece);
        }
        if bytes.len() + piece.len() > max {
            return Err(ReadError::TooLarge);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// The next piece of a body; None at its end.
pub(crate) async fn next(body: &mut Incoming, pause: Duration) -> Result<Option<Bytes>, ReadError> {
    loop {
        let frame = tokio::time::timeout(pause, body.frame())
            .await
            .map_err(|_| ReadError::Broken(format!("no byte of the body came for {} s", pause.as_secs())))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(ReadError::Broken(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}
