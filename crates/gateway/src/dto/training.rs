//! Training jobs: what may be asked for.

use aivillage_base::wire::DataRequirements;
use aivillage_base::{JobId, LayerSpec};
use aivillage_training::refusals::Warning;
use aivillage_training::{JobRequest, ModelChoice, StrategyChoice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::body::{Fields, FromFields};

mod view;

pub(crate) use view::{EventBody, JobAnswer, JobList};

/// A job to create: the guide's fields and ours.
#[derive(Debug, ToSchema)]
pub(crate) struct CreateJob {
    /// For people; 1 to 200 characters.
    #[schema(example = "Digits together")]
    pub(crate) job_name: String,
    /// A recipe (`logistic_regression`, `linear_regression`, `mlp`, `simple_cnn`), a catalogue model's id, or
    /// `{"layers": […]}` (`dense`, `relu`, `conv2d`, `max_pool2d`, `flatten`, `batch_norm`).
    #[schema(value_type = Object, example = json!("mlp"))]
    pub(crate) model_architecture: Value,
    /// Rounds to publish; absent = `training.default_rounds`.
    #[schema(default = 100, minimum = 1, maximum = 100_000)]
    pub(crate) total_rounds: Option<u32>,
    /// Fewest members of a round; absent = the configured minimum.
    #[schema(default = 3, minimum = 1, maximum = 100_000)]
    pub(crate) min_participants: Option<u32>,
    /// Most members of a round; absent = the configured maximum.
    pub(crate) max_participants: Option<u32>,
    /// Absent = `[secure_aggregation]` if the configuration promises it; `[]` = none. What cannot be given is refused.
    #[schema(example = json!([]))]
    pub(crate) privacy_techniques: Option<Vec<String>>,
    /// May mobile nodes take part?
    #[schema(default = true)]
    pub(crate) mobile_friendly: Option<bool>,
    /// `job_` and 8 hex characters if absent; taken = 409.
    #[schema(value_type = Option<String>)]
    pub(crate) job_id: Option<JobId>,
    /// `standard`; `evaluation`, `statistics`, `privacy_audit` are known and not built.
    #[schema(default = "standard")]
    pub(crate) job_type: Option<String>,
    /// `{dataset, input, classes, min_rows}`: which data nodes must have.
    #[schema(value_type = Option<Object>)]
    pub(crate) dataset_requirements: Option<DataRequirements>,
    /// `{name, config}`; absent = the configured one.
    pub(crate) strategy: Option<Strategy>,
    /// Keep updates after their round, for auditors, where their node allows it; default false.
    pub(crate) retain_updates: Option<bool>,
    /// `local_epochs`, `batch_size`, `learning_rate`, `optimizer`, `momentum`, `weight_decay`, `hidden`, `norm` (`none`,
    /// `batch`), `max_examples`, `round_timeout_s`.
    #[schema(value_type = Option<Object>, example = json!({"local_epochs": 3, "learning_rate": 0.3}))]
    pub(crate) hyperparameters: Option<Map<String, Value>>,
    /// Parameters of privacy techniques.
    #[schema(value_type = Option<Object>)]
    pub(crate) privacy: Option<Map<String, Value>>,
    /// Seed of all training randomness; drawn if absent.
    pub(crate) seed: Option<u64>,
}

/// An aggregation strategy.
#[derive(Debug, ToSchema)]
pub(crate) struct Strategy {
    /// Its name.
    #[schema(example = "fedavg")]
    pub(crate) name: String,
    /// Its settings.
    #[schema(value_type = Option<Object>)]
    pub(crate) config: Option<Map<String, Value>>,
}

impl FromFields for Strategy {
    fn read(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name");
        let config = fields.optional("config");
        Some(Self { name: name?, config })
    }
}

impl FromFields for CreateJob {
    /// Reads on past faults: what stands in for a faulty field lets the room look for more of them.
    fn read(fields: &mut Fields) -> Option<Self> {
        Some(Self {
            job_name: fields.required("job_name").unwrap_or_else(|| "faulty".into()),
            model_architecture: fields.required("model_architecture").unwrap_or_else(|| "logistic_regression".into()),
            total_rounds: fields.optional("total_rounds"),
            min_participants: fields.optional("min_participants"),
            max_participants: fields.optional("max_participants"),
            privacy_techniques: fields.optional("privacy_techniques"),
            mobile_friendly: fields.optional("mobile_friendly"),
            job_id: fields.optional("job_id"),
            job_type: fields.optional("job_type"),
            dataset_requirements: fields.optional("dataset_requirements"),
            strategy: fields.object("strategy"),
            retain_updates: fields.optional("retain_updates"),
            hyperparameters: fields.optional("hyperparameters"),
            privacy: fields.optional("privacy"),
            seed: fields.optional("seed"),
        })
    }
}

impl CreateJob {
    /// The room's request, by this caller; faults of the architecture's layers go to `fields`.
    pub(crate) fn into_room(self, publisher: String, fields: &mut Fields) -> JobRequest {
        JobRequest {
            job_id: self.job_id,
            job_name: self.job_name,
            publisher,
            model_architecture: model_choice(self.model_architecture, fields),
            total_rounds: self.total_rounds,
            min_participants: self.min_participants,
            max_participants: self.max_participants,
            privacy_techniques: self.privacy_techniques,
            mobile_friendly: self.mobile_friendly.unwrap_or(true),
            job_type: self.job_type,
            dataset_requirements: self.dataset_requirements.unwrap_or_default(),
            strategy: self.strategy.map(|s| StrategyChoice { name: s.name, config: s.config.unwrap_or_default() }),
            retain_updates: self.retain_updates.unwrap_or(false),
            hyperparameters: self.hyperparameters.unwrap_or_default(),
            privacy: self.privacy.unwrap_or_default(),
            seed: self.seed,
        }
    }
}

fn model_choice(value: Value, fields: &mut Fields) -> ModelChoice {
    let stand_in = || ModelChoice::Named("logistic_regression".into());
    match value {
        Value::String(name) => ModelChoice::Named(name),
        Value::Object(map) => {
            let mut inner = Fields::new(fields.pointer("model_architecture"), map);
            let layers = inner.required::<Vec<LayerSpec>>("layers");
            for fault in inner.finish() {
                fields.fault(fault.pointer, fault.detail);
            }
            layers.map_or_else(stand_in, ModelChoice::Layers)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            let pointer = fields.pointer("model_architecture");
            fields.fault(pointer, "a recipe's name, a catalogue model's id, or {\"layers\": […]} is needed");
            stand_in()
        }
    }
}

/// A job that was accepted: it is durable.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreateAnswer {
    /// Ask `training/status/{job_id}` with it.
    #[schema(example = "job_1f2e3d4c")]
    pub(crate) job_id: String,
    /// `created`.
    pub(crate) status: &'static str,
    /// Rules of nodes by which fewer of those known would accept the job than it needs. The job waits
    /// for others, or for nodes whose owners change their rules. Left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<WarningBody>,
}

/// A rule by which too many nodes would refuse a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WarningBody {
    /// Its name in node.yaml.
    #[schema(example = "require_secure_aggregation")]
    rule: &'static str,
    /// How many nodes would refuse by it.
    nodes: usize,
    /// Why, how many would accept, how many are needed.
    detail: String,
}

impl From<Warning> for WarningBody {
    fn from(warning: Warning) -> Self {
        Self { rule: warning.rule.name(), nodes: warning.nodes, detail: warning.detail }
    }
}

/// A job that was cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CancelAnswer {
    pub(crate) job_id: String,
    /// `cancelled`.
    pub(crate) status: &'static str,
}

/// Query of a job's status.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatusQuery {
    /// Show only the newest so many ended attempts (default 1000).
    pub(crate) rounds: Option<usize>,
}

/// Query of a job's model.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ModelQuery {
    /// The round whose model is wanted, while it is kept; absent = the newest.
    pub(crate) round: Option<u32>,
}
