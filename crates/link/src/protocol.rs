//! What travels over the link besides the rooms' messages: paths, limits, bodies of join and renewal, refusals.
//!
//! Promise: a refusal names its reason in a closed vocabulary, so the other side decides by it and not by text.

use aivillage_base::ErrorKind;
use aivillage_base::wire::UpdateReply;
use serde::{Deserialize, Serialize};

use crate::registry::Entry;

pub(crate) const JOIN: &str = "/link/v1/join";
pub(crate) const RENEW: &str = "/link/v1/renew";
pub(crate) const EVENTS: &str = "/link/v1/events";
pub(crate) const MESSAGES: &str = "/link/v1/messages";
pub(crate) const UPDATES: &str = "/link/v1/updates";
pub(crate) const REGISTRY: &str = "/link/v1/registry";
pub(crate) const BLOBS: &str = "/link/v1/blobs/";

/// The front of an update travels in this HTTP header, as JSON: so that the coordinator can refuse before a byte of
/// the body is sent.
pub(crate) const UPDATE_HEADER: &str = "aivillage-update";

/// First byte of an update that the body of a `PUT` holds, in this HTTP header; the body goes on to the update's end.
pub(crate) const UPDATE_OFFSET: &str = "upload-offset";

/// Largest body of join and renew, in bytes: all that is ever read of a body before authentication.
pub(crate) const JOIN_MAX: usize = 8 * 1024;

/// Largest message from a node, in bytes. Most are a few hundred; predictions of many rows are the large ones (4 MiB
/// hold about 300,000 output values as JSON).
pub const MESSAGE_MAX: usize = 4 * 1024 * 1024;

/// Largest message to a node, in bytes: an inference request's rows are the large ones.
pub(crate) const DOWN_MAX: usize = 16 * 1024 * 1024;

/// Largest small answer (JSON) that a node reads, in bytes.
pub(crate) const ANSWER_MAX: usize = 64 * 1024;

/// Entries of the registry in one answer: some 300 bytes each, so that they stay within [`ANSWER_MAX`].
pub(crate) const ENTRIES_MAX: usize = 100;

/// Answer to `GET /link/v1/registry?after=N`: the entries that follow the N-th, at most [`ENTRIES_MAX`]; none = that is all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entries {
    pub(crate) entries: Vec<Entry>,
}

/// Body of `POST /link/v1/join`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    pub(crate) token: String,
    pub(crate) csr_pem: String,
}

/// Body of `POST /link/v1/renew`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewRequest {
    pub(crate) csr_pem: String,
}

/// Answer to join and renew.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Certified {
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
    /// Validity by the gateway's clock, milliseconds since 1970.
    pub(crate) issued_at_ms: u64,
    pub(crate) not_after_ms: u64,
}

/// Answer to `GET /link/v1/updates`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Standing {
    /// Bytes from this offset on are wanted; those before it are here.
    Send { offset: u64 },
    /// It needs no bytes, or not now.
    Reply(UpdateReply),
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request cannot be read.
    Malformed,
    /// The body exceeds its bound.
    TooLarge,
    /// No such path, or no such blob.
    NotFound,
    /// The path exists, not with this method.
    MethodNotAllowed,
    /// A client certificate is needed.
    NotAuthenticated,
    /// The client certificate has run out: renew.
    CertificateExpired,
    /// The key is not enrolled (any more): join.
    NotEnrolled,
    /// The key was revoked: it will not be served again.
    Revoked,
    /// No such token.
    TokenUnknown,
    /// The token's time is over.
    TokenExpired,
    /// Another key has used the token.
    TokenUsed,
    /// The token was withdrawn.
    TokenRevoked,
    /// The key is enrolled for another owner.
    KeyTaken,
    /// Known, but not allowed.
    Forbidden,
    /// The state of what is asked about forbids it.
    Conflict,
    /// Come back later.
    Busy,
    /// The fault is the gateway's.
    Internal,
    /// A newer gateway said something that this program does not know.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// The HTTP status that carries it.
    pub(crate) fn status(self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::Malformed => S::BAD_REQUEST,
            Self::TooLarge => S::PAYLOAD_TOO_LARGE,
            Self::NotFound => S::NOT_FOUND,
            Self::MethodNotAllowed => S::METHOD_NOT_ALLOWED,
            Self::NotAuthenticated | Self::CertificateExpired => S::UNAUTHORIZED,
            Self::NotEnrolled
            | Self::Revoked
            | Self::TokenUnknown
            | Self::TokenExpired
            | Self::TokenUsed
            | Self::TokenRevoked
            | Self::Forbidden => S::FORBIDDEN,
            Self::KeyTaken | Self::Conflict => S::CONFLICT,
            Self::Busy => S::SERVICE_UNAVAILABLE,
            Self::Internal | Self::Unknown => S::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<ErrorKind> for Reason {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::Malformed,
            ErrorKind::Unauthenticated => Self::NotAuthenticated,
            ErrorKind::PrivacyUnsupported | ErrorKind::Forbidden => Self::Forbidden,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::Overloaded | ErrorKind::Unavailable => Self::Busy,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// Body of every answer that is not a success.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// One sentence: what, why, what to do.
    pub(crate) detail: String,
    /// With [`Reason::Busy`]: milliseconds to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), retry_after_ms: None }
    }

    pub(crate) fn busy(detail: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { reason: Reason::Busy, detail: detail.into(), retry_after_ms: Some(retry_after_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_answer_to_the_question_for_the_offset_reads_back_as_it_was(number: u64, text in ".{0,20}") {
            let replies = [
                UpdateReply::Accepted,
                UpdateReply::Retry { after_ms: number },
                UpdateReply::Refused { reason: text.clone(), detail: text },
            ];
            for reply in replies {
                let json = serde_json::to_vec(&Standing::Reply(reply.clone())).unwrap();
                prop_assert_eq!(&json, &serde_json::to_vec(&reply).unwrap(), "as the answer to a PUT");
                let read = serde_json::from_slice(&json).unwrap();
                prop_assert!(matches!(read, Standing::Reply(got) if got == reply));
            }
            let json = serde_json::to_string(&Standing::Send { offset: number }).unwrap();
            prop_assert_eq!(&json, &format!("{{\"offset\":{number}}}"));
            let read = serde_json::from_str(&json).unwrap();
            let same = matches!(read, Standing::Send { offset } if offset == number);
            prop_assert!(same, "the offset reads back");
        }
    }
}
