//! The kinds of failure that a caller can act on, one vocabulary for all rooms.
//!
//! Every room's error has `fn kind(&self) -> ErrorKind`; the gateway maps kinds to HTTP statuses and the
//! command line maps them to exit codes, each in one exhaustive match.

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The input is wrong: mend it and call again (400).
    Invalid,
    /// This build or village cannot give the privacy that was asked for (400 `privacy-unsupported`).
    PrivacyUnsupported,
    /// No or unknown credentials (401).
    Unauthenticated,
    /// Known, but not allowed (403).
    Forbidden,
    /// No such thing (404).
    NotFound,
    /// The state of the thing forbids it: taken, ended, not servable (409).
    Conflict,
    /// More bytes than the stated limit (413).
    TooLarge,
    /// Full for now: call again after a while (429).
    Overloaded,
    /// A part is off, stopped or out of reach for now (503).
    Unavailable,
    /// Storage, disk or a bug: the cause is in the log (500).
    Internal,
}
