//! Inference requests and their results.

use aivillage_base::ModelId;
use aivillage_base::wire::NodeType;
use aivillage_inference::request::{RequestMetadata, RequestStatus, RequestView};
use aivillage_inference::{PrivacyLevel, Submit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::body::{Fields, FromFields};

/// What a client asks for.
#[derive(Debug, ToSchema)]
pub(crate) struct SubmitRequest {
    /// A model of the catalogue.
    #[schema(value_type = String, example = "job_1f2e3d4c")]
    pub(crate) model_id: ModelId,
    /// `{"inputs": row}` or `{"inputs": [row, …]}`; a row is a list of numbers in the model's shape.
    #[schema(value_type = Object, example = json!({"inputs": [[0.0, 0.5, 1.0]]}))]
    pub(crate) input_data: Map<String, Value>,
    /// `low`, `medium`, `high` or `ultra`; absent = the configured default (`medium`).
    #[schema(value_type = Option<String>, example = "medium")]
    pub(crate) privacy_level: Option<PrivacyLevel>,
    /// Milliseconds after which the answer is of no use; cut to the configured request timeout.
    #[schema(default = 5000, minimum = 1)]
    pub(crate) max_latency_ms: Option<u64>,
    /// `mobile`, `edge`, `cloud`, `gpu`: nodes to prefer.
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) preferred_node_types: Option<Vec<NodeType>>,
}

/// Fields of the vocabulary that this version does not build.
const NOT_BUILT: [&str; 4] = ["aggregation", "k", "priority", "parameters"];

impl FromFields for SubmitRequest {
    fn read(fields: &mut Fields) -> Option<Self> {
        let model_id = fields.required("model_id");
        let input_data = fields.required("input_data");
        let privacy_level = fields.optional("privacy_level");
        let max_latency_ms = fields.optional::<u64>("max_latency_ms");
        if max_latency_ms == Some(0) {
            fields.fault(fields.pointer("max_latency_ms"), "0 is too short: at least 1 ms is needed");
        }
        let preferred_node_types = fields.optional("preferred_node_types");
        for name in NOT_BUILT {
            if fields.optional::<Value>(name).is_some() {
                fields.fault(
                    fields.pointer(name),
                    format!("`{name}` is known, but this version does not build it yet: leave it out"),
                );
            }
        }
        Some(Self { model_id: model_id?, input_data: input_data?, privacy_level, max_latency_ms, preferred_node_types })
    }
}

/// Query of a submission.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SubmitQuery {
    /// Answer with the result if it is there within this many milliseconds.
    pub(crate) wait: Option<u64>,
    /// A label for statistics, never an identity.
    pub(crate) client_id: Option<String>,
}

impl SubmitRequest {
    pub(crate) fn into_room(self, client: String, wait: Option<std::time::Duration>) -> Submit {
        Submit {
            model_id: self.model_id,
            input_data: self.input_data,
            privacy_level: self.privacy_level,
            max_latency_ms: self.max_latency_ms,
            preferred_node_types: self.preferred_node_types.unwrap_or_default(),
            client,
            wait,
        }
    }
}

/// A request that was accepted and is not finished: its id is durable.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SubmitAnswer {
    /// Ask `inference/result/{request_id}` with it.
    pub(crate) request_id: String,
    /// `submitted`.
    pub(crate) status: &'static str,
}

/// A request and, once there is one, its result.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResultAnswer {
    /// The request.
    request_id: String,
    /// `queued`, `processing`, `completed`, `failed` or `expired`.
    #[schema(value_type = String)]
    status: RequestStatus,
    /// `{"predictions": [{label, probability, probabilities}]}`, or `[{value}]` for a regression; null before.
    #[schema(value_type = Option<Object>)]
    result: Option<Value>,
    /// Exactly which model answers.
    model: ModelRef,
    /// How it went so far.
    metadata: Metadata,
    /// Why it failed or expired, or what it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Exactly which model answers.
#[derive(Debug, Serialize, ToSchema)]
struct ModelRef {
    id: String,
    version: String,
    /// BLAKE3 of its bundle.
    blake3: String,
}

/// How a request went so far.
#[derive(Debug, Serialize, ToSchema)]
struct Metadata {
    /// From submission to the outcome, or to now.
    processing_time_ms: u64,
    /// Of these, before a node had it.
    queue_ms: u64,
    nodes_used: Vec<String>,
    /// Times it was handed to a node.
    attempts: u32,
    /// The level that was kept.
    #[schema(value_type = String)]
    privacy_level_achieved: PrivacyLevel,
    cached: bool,
}

impl From<RequestMetadata> for Metadata {
    fn from(m: RequestMetadata) -> Self {
        Self {
            processing_time_ms: m.processing_time_ms,
            queue_ms: m.queue_ms,
            nodes_used: m.nodes_used.iter().map(ToString::to_string).collect(),
            attempts: m.attempts,
            privacy_level_achieved: m.privacy_level_achieved,
            cached: m.cached,
        }
    }
}

impl From<RequestView> for ResultAnswer {
    fn from(view: RequestView) -> Self {
        Self {
            request_id: view.request_id.to_string(),
            status: view.status,
            result: view.result.map(|r| serde_json::to_value(r).unwrap_or(Value::Null)),
            model: ModelRef {
                id: view.model.id.to_string(),
                version: view.model.version,
                blake3: view.model.blake3.to_string(),
            },
            metadata: view.metadata.into(),
            error: view.error,
        }
    }
}

/// A request without its result.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatusAnswer {
    request_id: String,
    /// `queued`, `processing`, `completed`, `failed` or `expired`.
    #[schema(value_type = String)]
    status: RequestStatus,
    metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<RequestView> for StatusAnswer {
    fn from(view: RequestView) -> Self {
        Self {
            request_id: view.request_id.to_string(),
            status: view.status,
            metadata: view.metadata.into(),
            error: view.error,
        }
    }
}
