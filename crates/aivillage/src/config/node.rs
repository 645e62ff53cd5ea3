//! `node.yaml`: what one node offers (data, serving, threads) and what its owner refuses (policy).
//!
//! Promise: as for `federated.yaml`, a [`NodeConfig`] is valid, and a text at fault gives all its faults with
//! their places. Must not know: how data is read, or how a policy is enforced.

mod keys;
mod source;

use std::path::{Path, PathBuf};

use aivillage_base::wire::NodeType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::check::Checked;
use super::error::ConfigError;
use super::federated::words;
use super::tree;

/// The annotated example, for `node join` to leave in a new folder.
pub const EXAMPLE: &str = include_str!("../../../../config/node.yaml");

/// Recipes that a policy may name; `layers` = architectures that a job spells out.
pub const RECIPES: &[&str] = &[
    "logistic_regression",
    "linear_regression",
    "mlp",
    "simple_cnn",
    "residual_cnn",
    "text_classifier",
    "layers",
];

/// The words of [`NodeType`].
const NODE_TYPES: &[&str] = &["mobile", "edge", "cloud", "gpu"];

words! {
    /// A data set bundled with the program.
    Bundled { Digits = "digits", BreastCancer = "breast_cancer", }
}

words! {
    /// What the label is.
    DataTask { Classification = "classification", Regression = "regression", }
}

/// One node's settings. Keys and defaults: `config/node.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Label; `None` = the enrolled name.
    pub name: Option<String>,
    /// Data to train on; empty = never trains.
    pub data: Vec<DataSource>,
    /// Narrows the detected types; `None` = as detected.
    pub node_types: Option<Vec<NodeType>>,
    /// What the owner refuses.
    pub policy: NodePolicy,
    /// Disk for served models, GB.
    pub model_cache_gb: f64,
    /// Does it answer inference requests?
    pub serve: bool,
    /// Threads; 0 = one per core.
    pub threads: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: None,
            data: Vec::new(),
            node_types: None,
            policy: NodePolicy::default(),
            model_cache_gb: 1.0,
            serve: true,
            threads: 0,
        }
    }
}

/// The node's last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodePolicy {
    /// May updates leave that the gateway sees one by one?
    pub allow_plain_updates: bool,
    /// Recipes it trains; `None` = all, empty = none.
    pub allowed_recipes: Option<Vec<String>>,
    /// Most rounds of a job; `None` = no bound.
    pub max_rounds: Option<u32>,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            allow_plain_updates: true,
            allowed_recipes: None,
            max_rounds: None,
        }
    }
}

/// One source of training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSource {
    /// Name by which a job asks for it.
    pub name: String,
    /// What the label is.
    pub task: DataTask,
    /// Labels in the whole village; `None` = largest label + 1.
    pub classes: Option<usize>,
    /// Share of rows never trained on, 0 to 0.9.
    pub test_fraction: f64,
    /// Where the rows come from.
    pub origin: Origin,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A NumPy archive.
    Npz {
        /// The file.
        path: PathBuf,
        /// Array of examples, first axis = rows.
        #[serde(default = "array_x")]
        features: String,
        /// Array of labels.
        #[serde(default = "array_y")]
        label: String,
    },
    /// A CSV file with a header line.
    Csv {
        /// The file.
        path: PathBuf,
        /// Column to predict; `None` = the last.
        #[serde(default)]
        label: Option<Column>,
        /// Columns to predict from; `None` = all others.
        #[serde(default)]
        features: Option<Vec<Column>>,
    },
    /// A part of a bundled data set.
    Shard {
        /// Which.
        dataset: Bundled,
        /// Part, from 0, below `of`.
        index: u32,
        /// Parts in all.
        of: u32,
        /// Dirichlet alpha of the deal.
        #[serde(default = "alpha")]
        alpha: f64,
        /// Seed of the deal.
        #[serde(default = "seed")]
        seed: u64,
    },
}

/// A column of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// By its name in the header.
    Name(String),
    /// By its index from 0.
    Index(u32),
}

fn array_x() -> String {
    "x".into()
}
fn array_y() -> String {
    "y".into()
}
fn alpha() -> f64 {
    0.3
}
fn seed() -> u64 {
    1
}

/// Reads `node.yaml` at `path`; `None` if there is none. Relative data paths are taken from its folder.
///
/// # Errors
/// A file that cannot be read or is at fault.
pub fn load(path: &Path) -> Result<Option<NodeConfig>, ConfigError> {
    let Some(text) = super::read_text(path)? else {
        return Ok(None);
    };
    let mut config = parse(&path.display().to_string(), &text)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for source in &mut config.data {
        match &mut source.origin {
            Origin::Npz { path, .. } | Origin::Csv { path, .. } => *path = folder.join(&*path),
            Origin::Shard { .. } => {}
        }
    }
    Ok(Some(config))
}

/// Parses the text of a `node.yaml` called `file` in messages. Pure.
///
/// # Errors
/// Every fault of the text, with its place.
pub fn parse(file: &str, text: &str) -> Result<NodeConfig, ConfigError> {
    let mut checked = Checked::new(file, text);
    let mut values = Map::new();
    match tree::parse(text) {
        Ok(root) => {
            let (map, own) = checked.section(&root, "", keys::KEYS);
            values = map;
            for (name, node) in own {
                let sources = source::sources(name, node, &mut checked);
                values.insert("data".into(), Json::Array(sources));
            }
        }
        Err((at, why)) => checked.fault(at, format!("cannot be read as YAML: {why}"), None),
    }
    if !checked.faults.is_empty() {
        return Err(ConfigError::Invalid(checked.into_faults()));
    }
    Ok(serde_json::from_value(Json::Object(values))
        .expect("invariant: what the table lets pass fits the structs"))
}
