//! A request for predictions: what is submitted, and what its owner can see of it.
//!
//! These are views and arguments. The state that decides lives in `core`, the persisted form in `store`.

use std::time::Duration;

use aivillage_base::wire::NodeType;
use aivillage_base::{Digest, ModelId, NodeName, RequestId};
use serde::{Deserialize, Serialize};

/// How private a request is treated; ordered, `low` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrivacyLevel {
    /// Any compatible node.
    Low,
    /// Authenticated nodes over encrypted links.
    Medium,
    /// Through the mix network: the node does not learn the client. Not built yet.
    High,
    /// Sealed to keys of nodes the client chose: the gateway never sees the input. Not built yet.
    Ultra,
}

impl PrivacyLevel {
    /// All levels with their names.
    pub const ALL: [(&'static str, Self); 4] =
        [("low", Self::Low), ("medium", Self::Medium), ("high", Self::High), ("ultra", Self::Ultra)];

    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Ultra => "ultra",
        }
    }
}

/// `max_latency_ms` of a request that names none, as in the guide.
pub const MAX_LATENCY_MS_DEFAULT: u64 = 5_000;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Submit {
    /// The model.
    pub model_id: ModelId,
    /// `{"inputs": row or list of rows}`; see [`crate::input`].
    pub input_data: serde_json::Map<String, serde_json::Value>,
    /// None = the configured default.
    pub privacy_level: Option<PrivacyLevel>,
    /// Time until the answer is of no use, in milliseconds, >= 1; None = 5000. Cut to `request_timeout_ms`.
    pub max_latency_ms: Option<u64>,
    /// Kinds of node to prefer; others serve when none of these is free. Empty = no preference.
    pub preferred_node_types: Vec<NodeType>,
    /// A label for statistics, never an identity; cut to 64 characters.
    pub client: String,
    /// Wait this long for the answer. None or passed: the request is made durable and its id returned.
    pub wait: Option<Duration>,
}

/// An accepted request.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// Its id. Durable unless `finished` is set: what was answered within `wait` is not kept.
    pub request_id: RequestId,
    /// The outcome, if it was there within `wait`.
    pub finished: Option<RequestView>,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestStatus {
    /// Waits for a node.
    Queued,
    /// A node works on it.
    Processing,
    /// Answered.
    Completed,
    /// Cannot be answered; `error` says why.
    Failed,
    /// Not answered in time; `error` says what was missing.
    Expired,
}

impl RequestStatus {
    /// Will it never change again?
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Expired => true,
            Self::Queued | Self::Processing => false,
        }
    }
}

/// What a client sees of its request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestView {
    /// The request.
    pub request_id: RequestId,
    /// Where it is.
    pub status: RequestStatus,
    /// The predictions, once completed.
    pub result: Option<Predictions>,
    /// The model that answers.
    pub model: ModelRef,
    /// How it went so far.
    pub metadata: RequestMetadata,
    /// Why it failed or expired; while it is queued, what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Exactly which model answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Its id.
    pub id: ModelId,
    /// Its version.
    pub version: String,
    /// BLAKE3 of its bundle.
    pub blake3: Digest,
}

/// How a request went so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestMetadata {
    /// From submission to the outcome (or to now), in milliseconds.
    pub processing_time_ms: u64,
    /// From submission to the first message to a node (or to the outcome, or to now), in milliseconds.
    pub queue_ms: u64,
    /// The node whose answer this is; before that the node that works on it; empty if there is none.
    pub nodes_used: Vec<NodeName>,
    /// Times it was handed to a node.
    pub attempts: u32,
    /// The level that was kept.
    pub privacy_level_achieved: PrivacyLevel,
    /// Did it come from a cache? This version has none.
    pub cached: bool,
}

/// One prediction for each row, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predictions {
    /// As many as rows.
    pub predictions: Vec<Prediction>,
}

/// What the model says of one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prediction {
    /// Of a classification.
    Class {
        /// The likeliest label, 0 to classes - 1; the lowest of equals.
        label: usize,
        /// Its probability, 0 to 1.
        probability: f32,
        /// Of every label, in order.
        probabilities: Vec<f32>,
    },
    /// Of a regression.
    Value {
        /// The predicted number.
        value: f32,
    },
}

/// Counts and figures for `GET status`; total = ok + failed + shed + expired + active.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct InferenceStats {
    /// Models in the catalogue, in any state.
    pub registered_models: usize,
    /// Mean time from submission to answer of completed requests, in milliseconds; 0 before the first.
    pub avg_response_time_ms: f64,
    /// Well-formed requests since the process started (and unfinished ones taken over from before).
    pub total_requests: u64,
    /// Answered.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Refused because full.
    pub shed: u64,
    /// Not answered in time.
    pub expired: u64,
    /// In work or waiting.
    pub active: u64,
    /// Of these, waiting for a node.
    pub queued: u64,
    /// Connected nodes that take requests.
    pub serving_nodes: usize,
}
