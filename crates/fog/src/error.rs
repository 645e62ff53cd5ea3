//! What can go wrong in the inventory, by what the caller can do about it.

use aivillage_base::ErrorKind;
use aivillage_base::ports::StoreError;

/// Why the inventory did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FogError {
    /// A value is not possible.
    #[error("{detail}")]
    Invalid {
        /// Name of the field, e.g. `memory_gb`.
        field: &'static str,
        /// What is wrong and what is possible.
        detail: String,
    },
    /// As many entries as the inventory takes.
    #[error("the inventory is full: {limit} participants are declared; remove some before declaring more")]
    Full {
        /// The bound.
        limit: usize,
    },
    /// The store did not take or give it.
    #[error("the inventory's store: {0}")]
    Store(#[from] StoreError),
}

impl FogError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Full { .. } => ErrorKind::Overloaded,
            Self::Store(e) => e.kind(),
        }
    }
}
