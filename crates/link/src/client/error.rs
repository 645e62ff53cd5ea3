//! Why the link does not work, in the words of the person who has to mend it.

use std::time::Duration;

use aivillage_base::ErrorKind;
use aivillage_base::ports::UplinkError;
use rustls::{AlertDescription, CertificateError};

use super::dial::Stage;
use crate::address::Address;
use crate::protocol::{Reason, Refusal};
use crate::token::TokenError;

/// A failure of joining, renewing, calling or listening.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The token's text is wrong.
    #[error(transparent)]
    BadToken(#[from] TokenError),
    /// The address is wrong.
    #[error("{0}")]
    BadAddress(String),
    /// What is kept of the enrolment cannot be used.
    #[error("the enrolment cannot be used ({0}): join again")]
    BadEnrolment(String),
    /// No connection, or no answer in time.
    #[error(
        "{address} cannot be reached: {cause}; check the address, the gateway (`aivillage status`) and the firewall"
    )]
    Unreachable {
        /// What was dialled.
        address: String,
        /// What happened.
        cause: String,
    },
    /// Something else than TLS answers there.
    #[error(
        "{address} is not a node link: it does not answer in TLS; the link has its own port (by default 8001), the HTTP API another (8000)"
    )]
    NotALinkPort {
        /// What was dialled.
        address: String,
    },
    /// The server's certificate is not from the pinned CA.
    #[error(
        "{address} is not the gateway that issued the token (or that this node joined): its certificate is from another authority; nothing was sent to it"
    )]
    NotTheIssuer {
        /// What was dialled.
        address: String,
    },
    /// Certificates do not fit this machine's clock.
    #[error(
        "the gateway's certificate is not valid at this machine's time ({at}): set the clock (certificates allow a day), then try again"
    )]
    ClockSkew {
        /// RFC 3339, this machine's clock.
        at: String,
    },
    /// The gateway will not have it.
    #[error("the gateway refuses: {detail}")]
    Refused {
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        detail: String,
    },
    /// The gateway asks to come back later.
    #[error("the gateway is busy: {detail}; it asks to wait {after_ms} ms")]
    Busy {
        /// Milliseconds.
        after_ms: u64,
        /// Why.
        detail: String,
    },
    /// The certificate has run out by the gateway's clock.
    #[error("the gateway says that this node's certificate has run out")]
    CertificateExpired,
    /// The gateway does not know the authority of this node's certificate.
    #[error(
        "the gateway does not accept this node's certificate ({0}): its authority was replaced; join again with a new token"
    )]
    CertificateRejected(String),
    /// The answer is not what the protocol says.
    #[error("the gateway's answer cannot be understood: {0}; are both of the same version?")]
    BadAnswer(String),
    /// The renewed certificate could not be kept.
    #[error("the renewed certificate could not be saved: {0}")]
    NotKept(String),
    /// Nobody takes the messages any more.
    #[error("the node's own queue of messages is closed")]
    QueueClosed,
}

impl LinkError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadToken(_) | Self::BadAddress(_) | Self::BadEnrolment(_) => ErrorKind::Invalid,
            Self::Unreachable { .. } | Self::NotALinkPort { .. } | Self::ClockSkew { .. } | Self::Busy { .. } => {
                ErrorKind::Unavailable
            }
            Self::NotTheIssuer { .. } | Self::CertificateExpired | Self::CertificateRejected(_) => {
                ErrorKind::Unauthenticated
            }
            Self::Refused { reason, .. } => match reason {
                Reason::KeyTaken | Reason::Conflict => ErrorKind::Conflict,
                Reason::NotFound => ErrorKind::NotFound,
                Reason::TooLarge => ErrorKind::TooLarge,
                Reason::Malformed | Reason::MethodNotAllowed => ErrorKind::Invalid,
                Reason::NotAuthenticated | Reason::CertificateExpired | Reason::TokenUnknown => {
                    ErrorKind::Unauthenticated
                }
                Reason::NotEnrolled
                | Reason::Revoked
                | Reason::TokenExpired
                | Reason::TokenUsed
                | Reason::TokenRevoked
                | Reason::Forbidden => ErrorKind::Forbidden,
                Reason::Busy | Reason::Internal | Reason::Unknown => ErrorKind::Unavailable,
            },
            Self::BadAnswer(_) | Self::NotKept(_) | Self::QueueClosed => ErrorKind::Internal,
        }
    }

    /// True if trying again cannot help: a person has to act.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::BadToken(_)
            | Self::BadAddress(_)
            | Self::BadEnrolment(_)
            | Self::CertificateRejected(_)
            | Self::QueueClosed => true,
            Self::Refused { reason, .. } => match reason {
                Reason::Busy | Reason::Internal | Reason::Unknown | Reason::CertificateExpired => false,
                Reason::Malformed
                | Reason::TooLarge
                | Reason::NotFound
                | Reason::MethodNotAllowed
                | Reason::NotAuthenticated
                | Reason::NotEnrolled
                | Reason::Revoked
                | Reason::TokenUnknown
                | Reason::TokenExpired
                | Reason::TokenUsed
                | Reason::TokenRevoked
                | Reason::KeyTaken
                | Reason::Forbidden
                | Reason::Conflict => true,
            },
            // An impostor at the address, a wrong clock, a wrong port: all may pass while a laptop travels.
            Self::Unreachable { .. }
            | Self::NotALinkPort { .. }
            | Self::NotTheIssuer { .. }
            | Self::ClockSkew { .. }
            | Self::Busy { .. }
            | Self::CertificateExpired
            | Self::BadAnswer(_)
            | Self::NotKept(_) => false,
        }
    }

    /// What the gateway asks to wait.
    pub(crate) fn asked(&self) -> Option<Duration> {
        if let Self::Busy { after_ms, .. } = self { Some(Duration::from_millis(*after_ms)) } else { None }
    }

    pub(crate) fn unreachable(address: &Address, cause: impl ToString) -> Self {
        Self::Unreachable { address: address.to_string(), cause: cause.to_string() }
    }

    /// A refusal as the caller sees it.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let Refusal { reason, detail, retry_after_ms } = refusal;
        if reason == Reason::Busy {
            return Self::Busy { after_ms: retry_after_ms.unwrap_or(1_000), detail };
        }
        if reason == Reason::CertificateExpired {
            return Self::CertificateExpired;
        }
        Self::Refused { reason, detail }
    }

    /// What a failed connection means.
    pub(crate) fn connection(
        address: &Address,
        stage: Stage,
        wall_ms: u64,
        error: &(dyn std::error::Error + 'static),
    ) -> Self {
        let Some(tls) = tls_cause(error) else {
            return Self::unreachable(address, root_cause(error));
        };
        if stage == Stage::Handshake && matches!(tls, rustls::Error::InvalidMessage(_)) {
            return Self::NotALinkPort { address: address.to_string() };
        }
        if let rustls::Error::InvalidCertificate(why) = tls {
            return certificate(address, wall_ms, why);
        }
        if let rustls::Error::AlertReceived(alert) = tls {
            if *alert == AlertDescription::CertificateExpired {
                return Self::CertificateExpired;
            }
            if REJECTIONS.contains(alert) {
                return Self::CertificateRejected(format!("{alert:?}"));
            }
        }
        Self::unreachable(address, tls)
    }
}

/// Alerts by which a gateway says that it does not know the authority of our certificate.
const REJECTIONS: [AlertDescription; 4] = [
    AlertDescription::UnknownCA,
    AlertDescription::BadCertificate,
    AlertDescription::CertificateUnknown,
    AlertDescription::DecryptError,
];

fn certificate(address: &Address, wall_ms: u64, why: &CertificateError) -> LinkError {
    let out_of_time = matches!(
        why,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    );
    if out_of_time {
        LinkError::ClockSkew { at: aivillage_base::time::rfc3339(wall_ms) }
    } else {
        // Another CA's, another name's, no pinned CA behind it: whatever is wrong, it is not our gateway's.
        LinkError::NotTheIssuer { address: address.to_string() }
    }
}

/// The TLS error inside an error of hyper or of a socket.
fn tls_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(tls);
        }
        next = error.source();
    }
    None
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

impl From<LinkError> for UplinkError {
    fn from(error: LinkError) -> Self {
        if let LinkError::Busy { after_ms, .. } = error {
            return Self::Busy { after_ms };
        }
        if let LinkError::Unreachable { cause, .. } = error {
            return Self::Unreachable(cause);
        }
        if !error.is_final() {
            return Self::Unreachable(error.to_string());
        }
        if let LinkError::Refused { detail, .. } = error {
            return Self::Refused(detail);
        }
        Self::Refused(error.to_string())
    }
}
