//! Models of the catalogue: the guide's `ModelInfo` and what the catalogue found out.

use aivillage_base::time::rfc3339;
use aivillage_base::wire::NodeType;
use aivillage_base::{Architecture, ModelId};
use aivillage_inference::{ModelInfo, ModelRecord, PrivacyLevel};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::body::{Fields, FromFields};

/// A model to register: metadata alone makes it `declared`; `PUT models/{id}/content` makes it `ready`.
#[derive(Debug, ToSchema)]
pub(crate) struct RegisterModel {
    /// 1 to 64 characters of a-z A-Z 0-9 . _ -
    #[schema(value_type = String, example = "test_model")]
    model_id: ModelId,
    /// For people; absent = the id.
    model_name: Option<String>,
    #[schema(required = false, default = "1.0")]
    model_version: String,
    /// What it does.
    #[schema(required = false, default = "classification")]
    model_type: String,
    /// Where it comes from.
    #[schema(required = false, default = "aivillage")]
    framework: String,
    /// 10^6 bytes; measured once its bytes are here.
    #[schema(required = false, default = 0.0, minimum = 0.0)]
    model_size_mb: f64,
    /// Memory a node must have, in 2^30 bytes.
    #[schema(required = false, default = 0.0, minimum = 0.0)]
    memory_requirements_gb: f64,
    /// Speed a node should have, in 10^9 operations a second.
    #[schema(required = false, default = 0.0, minimum = 0.0)]
    compute_requirements_gflops: f64,
    /// `mobile`, `edge`, `cloud`, `gpu`; empty = all.
    #[schema(required = false, value_type = Vec<String>)]
    supported_node_types: Vec<NodeType>,
    /// Least privacy level of a request that may use it.
    #[schema(required = false, value_type = String, default = "medium")]
    privacy_requirements: PrivacyLevel,
    /// `{input, layers, task}`: needed to use a model without bytes as an architecture.
    #[schema(value_type = Option<Object>)]
    architecture: Option<Architecture>,
}

impl FromFields for RegisterModel {
    fn read(fields: &mut Fields) -> Option<Self> {
        let model_id = fields.required("model_id");
        let model = Self {
            model_name: fields.optional("model_name"),
            model_version: fields.or("model_version", "1.0".into()),
            model_type: fields.or("model_type", "classification".into()),
            framework: fields.or("framework", "aivillage".into()),
            model_size_mb: fields.or("model_size_mb", 0.0),
            memory_requirements_gb: fields.or("memory_requirements_gb", 0.0),
            compute_requirements_gflops: fields.or("compute_requirements_gflops", 0.0),
            supported_node_types: fields.or("supported_node_types", Vec::new()),
            privacy_requirements: fields.or("privacy_requirements", PrivacyLevel::Medium),
            architecture: fields.optional("architecture"),
            model_id: model_id?,
        };
        Some(model)
    }
}

impl From<RegisterModel> for ModelInfo {
    fn from(m: RegisterModel) -> Self {
        Self {
            model_name: m.model_name.unwrap_or_else(|| m.model_id.to_string()),
            model_id: m.model_id,
            model_version: m.model_version,
            model_type: m.model_type,
            framework: m.framework,
            model_size_mb: m.model_size_mb,
            memory_requirements_gb: m.memory_requirements_gb,
            compute_requirements_gflops: m.compute_requirements_gflops,
            supported_node_types: m.supported_node_types,
            privacy_requirements: m.privacy_requirements,
            architecture: m.architecture,
        }
    }
}

/// A model of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelAnswer {
    model_id: String,
    model_name: String,
    model_version: String,
    model_type: String,
    framework: String,
    model_size_mb: f64,
    memory_requirements_gb: f64,
    compute_requirements_gflops: f64,
    #[schema(value_type = Vec<String>)]
    supported_node_types: Vec<NodeType>,
    #[schema(value_type = String)]
    privacy_requirements: PrivacyLevel,
    /// `declared`, `uploading`, `verifying`, `ready`, `retired` or `refused`.
    state: &'static str,
    /// Why it is refused or retired.
    reason: Option<String>,
    /// Number of trainable values, once known.
    parameters: Option<u64>,
    /// BLAKE3 of its bundle, once it has one.
    blake3: Option<String>,
    /// Length of its bundle.
    bytes: Option<u64>,
    /// `{input, layers, task}`, once known.
    #[schema(value_type = Option<Object>)]
    architecture: Option<Value>,
    /// All versions with bytes, oldest first; the last one is served.
    versions: Vec<Version>,
    created_at: String,
    updated_at: String,
}

/// One version with bytes.
#[derive(Debug, Serialize, ToSchema)]
struct Version {
    version: String,
    blake3: String,
    bytes: u64,
    published_at: String,
}

impl From<ModelRecord> for ModelAnswer {
    fn from(record: ModelRecord) -> Self {
        let info = record.info;
        let version = |v: aivillage_inference::model::ModelVersion| Version {
            version: v.version,
            blake3: v.bundle.digest.to_string(),
            bytes: v.bundle.bytes,
            published_at: rfc3339(v.published_ms),
        };
        Self {
            model_id: info.model_id.to_string(),
            model_name: info.model_name,
            model_version: info.model_version,
            model_type: info.model_type,
            framework: info.framework,
            model_size_mb: info.model_size_mb,
            memory_requirements_gb: info.memory_requirements_gb,
            compute_requirements_gflops: info.compute_requirements_gflops,
            supported_node_types: info.supported_node_types,
            privacy_requirements: info.privacy_requirements,
            state: record.state.name(),
            reason: record.reason,
            parameters: record.parameters,
            blake3: record.bundle.map(|b| b.digest.to_string()),
            bytes: record.bundle.map(|b| b.bytes),
            architecture: info.architecture.map(|a| serde_json::to_value(a).unwrap_or(Value::Null)),
            versions: record.versions.into_iter().map(version).collect(),
            created_at: rfc3339(record.created_ms),
            updated_at: rfc3339(record.updated_ms),
        }
    }
}

/// The catalogue in id order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    pub(crate) models: Vec<ModelAnswer>,
}
