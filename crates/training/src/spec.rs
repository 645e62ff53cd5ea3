//! From what a caller asks to what a coordinator runs: [`JobRequest`] -> [`resolve`] -> [`JobSpec`].
//!
//! Promise: a [`JobSpec`] is complete and consistent; every fault of a request is found and reported together, names
//! before privacy; what is asked and cannot be given is refused, never dropped.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use aivillage_base::arch::Norm;
use aivillage_base::wire::secure::Withstands;
use aivillage_base::wire::{BlobRef, DataRequirements, LocalTraining};
use aivillage_base::{Architecture, ErrorKind, JobId, LayerSpec, ModelId, NodeName, Recipe, suggest};

use crate::config::TrainingConfig;
use crate::error::Fault;
use crate::secure;
use crate::strategy::Strategy;

mod choice;
mod helped;
mod privacy;
mod shape;
mod start;

/// Known privacy techniques; `secure_aggregation` is built.
pub const TECHNIQUES: [&str; 5] = [
    "secure_aggregation",
    "differential_privacy",
    "local_differential_privacy",
    "betanet_routing",
    "homomorphic_encryption",
];

/// The job type that is built: nodes train one model.
pub const STANDARD: &str = "standard";

/// Known job types.
pub const JOB_TYPES: [&str; 4] = [STANDARD, "evaluation", "statistics", "privacy_audit"];

/// What `model_architecture` may be.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelChoice {
    /// A recipe or a catalogue model's id.
    Named(String),
    /// Layers as given.
    Layers(Vec<LayerSpec>),
}

/// A job as it was asked for: the guide's fields and ours; absent fields take the operator's defaults.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// Id; random if absent.
    pub job_id: Option<JobId>,
    /// For people; 1 to 200 characters.
    pub job_name: String,
    /// Who asks, as the gateway knows them.
    pub publisher: String,
    /// Recipe, catalogue model or layers.
    pub model_architecture: ModelChoice,
    /// Rounds to publish, 1 to 100,000.
    pub total_rounds: Option<u32>,
    /// Fewest members of a round, 1 to 100,000.
    pub min_participants: Option<u32>,
    /// Most members of a round; at least `min_participants`.
    pub max_participants: Option<u32>,
    /// None = what the operator promises by default; empty = none.
    pub privacy_techniques: Option<Vec<String>>,
    /// May mobile nodes take part?
    pub mobile_friendly: bool,
    /// One of [`JOB_TYPES`].
    pub job_type: Option<String>,
    /// Which data.
    pub dataset_requirements: DataRequirements,
    /// Aggregation strategy and its settings.
    pub strategy: Option<StrategyChoice>,
    /// Keep updates after their round, for auditors, where their node allows it?
    pub retain_updates: bool,
    /// `local_epochs`, `batch_size`, `learning_rate`, `optimizer`, `momentum`, `weight_decay`, `hidden`, `norm`,
    /// `max_examples`, `round_timeout_s`.
    pub hyperparameters: Map<String, Value>,
    /// Parameters of privacy techniques.
    pub privacy: Map<String, Value>,
    /// Seed of all training randomness; drawn if absent.
    pub seed: Option<u64>,
}

/// A strategy by name.
#[derive(Debug, Clone, PartialEq)]
pub struct StrategyChoice {
    /// Name.
    pub name: String,
    /// Settings.
    pub config: Map<String, Value>,
}

/// A model of the catalogue, as far as training needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogueModel {
    /// Its id.
    pub id: ModelId,
    /// Its shape.
    pub architecture: Architecture,
    /// Its bytes, if it has any: training starts from them.
    pub bundle: Option<BlobRef>,
}

/// Where a job's first model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Seeded weights in the recipe's shape for the data that the nodes have.
    Recipe(Recipe),
    /// The shape, and the weights if there are any, of a catalogue model.
    Model(CatalogueModel),
}

/// A job as it runs: complete, checked, persisted with the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its id.
    pub job_id: JobId,
    /// Its name.
    pub job_name: String,
    /// Who created it, as the gateway knew them; empty in records of versions that did not ask.
    #[serde(default)]
    pub publisher: String,
    /// First model.
    pub start: Start,
    /// Rounds to publish.
    pub total_rounds: u32,
    /// Fewest members of a round.
    pub min_participants: u32,
    /// Most members of a round.
    pub max_participants: u32,
    /// May mobile nodes take part?
    pub mobile_friendly: bool,
    /// Which data.
    pub data: DataRequirements,
    /// Aggregation strategy with its settings.
    pub strategy: Strategy,
    /// Names of tensors that stay on the nodes; `*` at the end stands for any rest.
    #[serde(default)]
    pub personal_tensors: Vec<String>,
    /// Are updates kept after their round, where their node allows it?
    #[serde(default)]
    pub retain_updates: bool,
    /// Secure aggregation, with what it has to withstand; None = the coordinator sees each update.
    #[serde(default)]
    pub secure: Option<Withstands>,
    /// Who takes the masks away, in place of the cohort's secret sharing; None = the cohort itself.
    #[serde(default)]
    pub helper: Option<NodeName>,
    /// Largest L2 norm of an update, kept by every honest node on the integers it sends; None = no bound but the grid's.
    #[serde(default)]
    pub clip: Option<f64>,
    /// How nodes train.
    pub training: LocalTraining,
    /// Largest weight of one update.
    pub max_examples: u32,
    /// Longest time of one attempt, in milliseconds.
    pub round_timeout_ms: u64,
    /// Seed of all training randomness.
    pub seed: u64,
}

impl JobSpec {
    /// Names of the tensors of this model that stay on the nodes, in layout order.
    #[must_use]
    pub fn personal(&self, architecture: &Architecture) -> Vec<String> {
        personal(&self.personal_tensors, architecture)
    }

    /// Names of the privacy techniques that it uses.
    #[must_use]
    pub fn privacy_techniques(&self) -> Vec<String> {
        self.secure.iter().map(|_| secure::TECHNIQUE.to_owned()).collect()
    }

    /// Name of the recipe, for policies and statuses.
    #[must_use]
    pub fn recipe_name(&self) -> &str {
        match &self.start {
            Start::Recipe(recipe) => recipe.name(),
            Start::Model(model) => model.id.as_str(),
        }
    }
}

/// Names of the tensors that `patterns` keep on the nodes, in layout order.
#[must_use]
pub fn personal(patterns: &[String], architecture: &Architecture) -> Vec<String> {
    let stays = |name: &str| patterns.iter().any(|pattern| matches(pattern, name));
    let layout = architecture.layout().unwrap_or_default();
    layout.into_iter().map(|t| t.name).filter(|name| stays(name)).collect()
}

/// Is `name` meant by `pattern`? `*` at the pattern's end stands for any rest.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |front| name.starts_with(front))
}

/// Largest `max_examples` a job may ask for.
pub const MAX_EXAMPLES: u32 = 1 << 24;
const HYPERPARAMETERS: [&str; 10] = [
    "local_epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "momentum",
    "weight_decay",
    "hidden",
    "norm",
    "max_examples",
    "round_timeout_s",
];

/// Checks a request against what this build and configuration can do.
///
/// `catalogue` finds a model that `model_architecture` names when it is no recipe.
///
/// # Errors
/// All faults, names before privacy.
pub fn resolve(
    request: &JobRequest,
    config: &TrainingConfig,
    catalogue: impl FnOnce(&ModelId) -> Option<CatalogueModel>,
    job_id: JobId,
    seed: u64,
) -> Result<JobSpec, Vec<Fault>> {
    let mut faults = Faults::default();
    let hyper = Hyper::read(&request.hyperparameters, &mut faults);
    let start = start::resolve(request, &hyper, catalogue, &mut faults);
    let name = request.job_name.trim();
    if name.is_empty() || name.chars().count() > 200 {
        faults.invalid("/job_name", "1 to 200 characters are needed");
    }
    let total_rounds = request.total_rounds.unwrap_or(config.default_rounds);
    faults.range("/total_rounds", u64::from(total_rounds), 1, 100_000);
    let wished = privacy::wished(request, config, &mut faults);
    let chosen = choice::resolve(request.strategy.as_ref(), config, wished.is_some(), &mut faults);
    let min = choice::min_participants(&chosen.strategy, request.min_participants, config, &mut faults);
    faults.range("/min_participants", u64::from(min), 1, 100_000);
    let max = request.max_participants.unwrap_or(config.max_participants.max(min));
    faults.range("/max_participants", u64::from(max), 1, 100_000);
    if max < min {
        faults.invalid("/max_participants", &format!("{max} is less than min_participants, {min}"));
    }
    if let Some(job_type) = &request.job_type {
        check_job_type(job_type, &mut faults);
    }
    let mut training = hyper.training;
    training.proximal_mu = chosen.strategy.rule().local().proximal_mu;
    choice::check(&chosen.strategy, (min, max), &training, &mut faults);
    shape::check_sums(max, hyper.max_examples, &mut faults);
    let clip = wished.as_ref().and_then(|wished| wished.clip(request, config));
    let secure = wished.as_ref().map(|wished| wished.withstands);
    let spec = JobSpec {
        secure,
        helper: wished.and_then(|wished| wished.helper),
        clip,
        job_id,
        job_name: name.to_owned(),
        publisher: request.publisher.clone(),
        start: start.unwrap_or(Start::Recipe(Recipe::LogisticRegression)),
        total_rounds,
        min_participants: min,
        max_participants: max,
        mobile_friendly: request.mobile_friendly,
        data: request.dataset_requirements.clone(),
        strategy: chosen.strategy,
        personal_tensors: chosen.personal_tensors,
        retain_updates: request.retain_updates,
        training,
        max_examples: hyper.max_examples,
        round_timeout_ms: hyper
            .round_timeout_ms
            .unwrap_or(u64::try_from(config.round_timeout.as_millis()).unwrap_or(u64::MAX)),
        seed,
    };
    shape::check(&spec, &mut faults);
    privacy::check(&spec, &mut faults);
    faults.finish(spec)
}

/// Collects faults; names first, privacy last.
#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn push(&mut self, pointer: &str, detail: &str, kind: ErrorKind) {
        self.0.push(Fault { pointer: pointer.to_owned(), detail: detail.to_owned(), kind });
    }

    fn invalid(&mut self, pointer: &str, detail: &str) {
        self.push(pointer, detail, ErrorKind::Invalid);
    }

    fn privacy(&mut self, pointer: &str, detail: &str) {
        self.push(pointer, detail, ErrorKind::PrivacyUnsupported);
    }

    fn range(&mut self, pointer: &str, value: u64, low: u64, high: u64) {
        if !(low..=high).contains(&value) {
            self.invalid(pointer, &format!("{value} is outside {low} to {high}"));
        }
    }

    fn finish<T>(mut self, value: T) -> Result<T, Vec<Fault>> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort_by_key(|f| f.kind == ErrorKind::PrivacyUnsupported);
        Err(self.0)
    }
}

fn check_job_type(job_type: &str, faults: &mut Faults) {
    match job_type {
        STANDARD => {}
        known if JOB_TYPES.contains(&known) => {
            faults.invalid(
                "/job_type",
                &format!("job type `{known}` is known, but this version does not build it yet: use `standard`"),
            );
        }
        other => faults.invalid("/job_type", &suggest::unknown("job type", other, &JOB_TYPES)),
    }
}

/// Hyperparameters after reading, with the defaults of this version.
struct Hyper {
    training: LocalTraining,
    hidden: Vec<usize>,
    norm: Norm,
    max_examples: u32,
    round_timeout_ms: Option<u64>,
}

impl Hyper {
    fn read(map: &Map<String, Value>, faults: &mut Faults) -> Self {
        for key in map.keys().filter(|k| !HYPERPARAMETERS.contains(&k.as_str())) {
            faults.invalid(
                &format!("/hyperparameters/{key}"),
                &suggest::unknown("hyperparameter", key, &HYPERPARAMETERS),
            );
        }
        let mut reader = Reader { map, faults };
        reader.optimizer();
        Self {
            training: LocalTraining {
                epochs: reader.integer("local_epochs", 1, 10_000).unwrap_or(1),
                batch_size: reader.integer("batch_size", 1, 1 << 20).unwrap_or(32),
                learning_rate: reader.number("learning_rate", 1e-9, 1e3).unwrap_or(0.1),
                momentum: reader.number("momentum", 0.0, 0.999_999).unwrap_or(0.0),
                weight_decay: reader.number("weight_decay", 0.0, 1e3).unwrap_or(0.0),
                proximal_mu: 0.0,
            },
            hidden: reader.hidden().unwrap_or_else(|| vec![128]),
            norm: reader.norm().unwrap_or_default(),
            max_examples: reader.integer("max_examples", 1, MAX_EXAMPLES).unwrap_or(1 << 20),
            round_timeout_ms: reader.number("round_timeout_s", 0.1, 86_400.0).map(seconds_to_ms),
        }
    }
}

fn seconds_to_ms(seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0.1 to 86,400 was checked")]
    let ms = (seconds * 1000.0) as u64;
    ms
}

struct Reader<'a> {
    map: &'a Map<String, Value>,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn integer(&mut self, key: &str, low: u32, high: u32) -> Option<u32> {
        let value = self.map.get(key)?;
        let found = value.as_u64().and_then(|v| u32::try_from(v).ok()).filter(|v| (low..=high).contains(v));
        if found.is_none() {
            self.wrong(key, value, &format!("a whole number from {low} to {high}"));
        }
        found
    }

    fn number(&mut self, key: &str, low: f64, high: f64) -> Option<f64> {
        let value = self.map.get(key)?;
        let found = value.as_f64().filter(|v| (low..=high).contains(v));
        if found.is_none() {
            self.wrong(key, value, &format!("a number from {low} to {high}"));
        }
        found
    }

    fn hidden(&mut self) -> Option<Vec<usize>> {
        let value = self.map.get("hidden")?;
        let width = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=65_536).contains(v));
        let found = value.as_array().filter(|a| a.len() <= 32).and_then(|a| a.iter().map(width).collect());
        if found.is_none() {
            self.wrong("hidden", value, "a list of at most 32 widths from 1 to 65536");
        }
        found
    }

    fn norm(&mut self) -> Option<Norm> {
        let value = self.map.get("norm")?;
        match value.as_str() {
            Some("none") => return Some(Norm::None),
            Some("batch") => return Some(Norm::Batch),
            Some(other) => {
                let detail = suggest::unknown("normalisation", other, &["none", "batch"]);
                self.faults.invalid("/hyperparameters/norm", &detail);
            }
            None => self.wrong("norm", value, "`none` or `batch`"),
        }
        None
    }

    fn optimizer(&mut self) {
        if let Some(value) = self.map.get("optimizer")
            && value != "sgd"
        {
            self.wrong("optimizer", value, "`sgd` (with `momentum`), the only optimizer of this version");
        }
    }

    fn wrong(&mut self, key: &str, value: &Value, want: &str) {
        self.faults.invalid(&format!("/hyperparameters/{key}"), &format!("{value} was given; {want} is needed"));
    }
}

#[cfg(test)]
mod tests;
