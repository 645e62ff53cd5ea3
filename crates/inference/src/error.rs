//! What can go wrong with a model or a request, by what the caller can do about it.

use aivillage_base::ports::StoreError;
use aivillage_base::{ErrorKind, ModelId, RequestId};

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    /// JSON pointer (RFC 6901) from the root of the request's body, e.g. `/input_data/inputs/3`.
    pub pointer: String,
    /// What is wrong, what would be right.
    pub detail: String,
}

/// Why inference did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InferenceError {
    /// The input is wrong; all faults found are listed.
    #[error("{}", faults.iter().map(|f| format!("{}: {}", f.pointer, f.detail)).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// What and where; never empty.
        faults: Vec<Fault>,
    },
    /// This build cannot give the privacy level asked for.
    #[error("{detail}")]
    PrivacyUnsupported {
        /// Which level, why not, and the way out.
        detail: String,
    },
    /// No model of this id.
    #[error("Model not found: `{0}` is not in the catalogue")]
    ModelNotFound(ModelId),
    /// No request of this id, or its result has expired.
    #[error("Request not found")]
    RequestNotFound(RequestId),
    /// The model's state forbids it.
    #[error("{detail}")]
    Conflict {
        /// What stands in the way and what to do.
        detail: String,
    },
    /// As many requests as configured are in work, or as many results are kept.
    #[error("{detail}")]
    Overloaded {
        /// What is full.
        detail: String,
        /// When to try again, in seconds, at least 1.
        retry_after_s: u64,
    },
    /// The part is stopped or cannot start as configured.
    #[error("{detail}")]
    Unavailable {
        /// Why, and what to do.
        detail: String,
    },
    /// The store did not take or give it.
    #[error("inference's store: {0}")]
    Store(#[from] StoreError),
}

impl InferenceError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::PrivacyUnsupported { .. } => ErrorKind::PrivacyUnsupported,
            Self::ModelNotFound(_) | Self::RequestNotFound(_) => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Store(e) => e.kind(),
        }
    }

    /// The faults of an invalid input, else none.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Invalid { faults } => faults,
            Self::PrivacyUnsupported { .. }
            | Self::ModelNotFound(_)
            | Self::RequestNotFound(_)
            | Self::Conflict { .. }
            | Self::Overloaded { .. }
            | Self::Unavailable { .. }
            | Self::Store(_) => &[],
        }
    }

    /// One fault at one place.
    pub(crate) fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Invalid { faults: vec![Fault { pointer: pointer.into(), detail: detail.into() }] }
    }
}
