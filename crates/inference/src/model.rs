//! What the catalogue knows of a model.
//!
//! [`ModelInfo`] is what its owner says (the guide's fields); [`ModelRecord`] adds what the catalogue found out. A record
//! is persisted; nothing here does anything.

use aivillage_base::wire::{BlobRef, NodeType};
use aivillage_base::{Architecture, ModelId};
use serde::{Deserialize, Serialize};

use crate::request::PrivacyLevel;

/// A model as its owner describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Its id, unique in the catalogue.
    pub model_id: ModelId,
    /// Its name, for people; 1 to 200 characters.
    pub model_name: String,
    /// Its version, 1 to 64 characters; other bytes need another version.
    pub model_version: String,
    /// What it does, e.g. `classification`; for people.
    pub model_type: String,
    /// Where it comes from, e.g. `aivillage`; for people.
    pub framework: String,
    /// Size in 10^6 bytes; measured once its bytes are here.
    pub model_size_mb: f64,
    /// Memory a node must have, in 2^30 bytes; 0 = any.
    pub memory_requirements_gb: f64,
    /// Speed a node should have, in 10^9 operations a second; 0 = any. Slower nodes serve when no faster one is free.
    pub compute_requirements_gflops: f64,
    /// Kinds of node that may serve it; empty = all.
    pub supported_node_types: Vec<NodeType>,
    /// Least privacy level of a request that may use it.
    pub privacy_requirements: PrivacyLevel,
    /// Its shape; needed to use a model without bytes as an architecture. Bytes bring their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
}

/// Where a model is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Metadata only: counts as registered, cannot be served.
    Declared,
    /// Its bytes are on their way.
    Uploading,
    /// Its bytes are being checked.
    Verifying,
    /// Can be served.
    Ready,
    /// Is no longer served.
    Retired,
    /// Its bytes were not what they should be; `reason` says why.
    Refused,
}

impl ModelState {
    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Uploading => "uploading",
            Self::Verifying => "verifying",
            Self::Ready => "ready",
            Self::Retired => "retired",
            Self::Refused => "refused",
        }
    }
}

/// One version of a model whose bytes are in the blob store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelVersion {
    /// Its version, as its owner calls it.
    pub version: String,
    /// Its bundle.
    pub bundle: BlobRef,
    /// Number of trainable values.
    pub parameters: u64,
    /// Wall clock of its publication, in milliseconds since 1970.
    pub published_ms: u64,
}

/// A model in the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What its owner says of the current version.
    pub info: ModelInfo,
    /// Where it is in its life.
    pub state: ModelState,
    /// The bundle of the current version, once there is one.
    pub bundle: Option<BlobRef>,
    /// Number of trainable values, once its bytes or its shape are known.
    pub parameters: Option<u64>,
    /// Why it is refused or retired.
    pub reason: Option<String>,
    /// Wall clock of its first registration, in milliseconds since 1970.
    pub created_ms: u64,
    /// Wall clock of the last change.
    pub updated_ms: u64,
    /// All versions with bytes, oldest first; the last one is served.
    pub versions: Vec<ModelVersion>,
}
