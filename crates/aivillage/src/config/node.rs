//! `node.yaml`: what one node offers (data, serving, threads) and what its owner refuses (privacy).
//!
//! Promise: as for `federated.yaml`, a [`NodeConfig`] is valid, and a text at fault gives all its faults with
//! their places. Must not know: how data is read, or how a policy is enforced.

mod keys;
mod source;

use std::path::{Path, PathBuf};

use aivillage_base::NodeId;
use aivillage_base::arch;
use aivillage_base::wire::NodeType;
use aivillage_engine::data::Source;
use aivillage_training::participant::NodePolicy;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::check::Checked;
use super::error::ConfigError;
use super::table::join;
use super::tree::{self, Node, Value};

/// The annotated example, for `node join` to leave in a new folder.
pub const EXAMPLE: &str = include_str!("../../../../config/node.yaml");

/// Recipes that a policy may name; `layers` = architectures that a job spells out.
pub const RECIPES: [&str; arch::RECIPES.len() + arch::RECIPES_NOT_BUILT.len() + 1] = join(
    &join::<{ arch::RECIPES.len() + arch::RECIPES_NOT_BUILT.len() }>(&arch::RECIPES, &arch::RECIPES_NOT_BUILT),
    &["layers"],
);

/// The words of [`NodeType`].
const NODE_TYPES: &[&str] = &["mobile", "edge", "cloud", "gpu"];

/// One node's settings. Keys and defaults: `config/node.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Label; `None` = the enrolled name.
    pub name: Option<String>,
    /// Data to train on; empty = never trains.
    pub data: Vec<Source>,
    /// Narrows the detected types; `None` = as detected.
    pub node_types: Option<Vec<NodeType>>,
    /// Who may be in a secure round with this node; `None` = trust on first use.
    pub roster: Option<RosterSource>,
    /// What the owner refuses.
    pub privacy: NodePolicy,
    /// Disk for served models, GB.
    pub model_cache_gb: f64,
    /// Does it answer inference requests?
    pub serve: bool,
    /// Threads; 0 = one per core.
    pub threads: usize,
}

/// A roster, and whose word for it the owner takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterSource {
    /// The file; a relative path is taken from the node's folder.
    pub file: PathBuf,
    /// Keys whose signatures it must bear, every one of them.
    pub signers: Vec<NodeId>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: None,
            data: Vec::new(),
            node_types: None,
            roster: None,
            privacy: NodePolicy::default(),
            model_cache_gb: 1.0,
            serve: true,
            threads: 0,
        }
    }
}

/// Reads `node.yaml` at `path`; `None` if there is none. Data paths stay as written: `engine` takes them from
/// the folder it is given.
///
/// # Errors
/// A file that cannot be read or is at fault.
pub fn load(path: &Path) -> Result<Option<NodeConfig>, ConfigError> {
    super::read_text(path)?.map(|text| parse(&path.display().to_string(), &text)).transpose()
}

/// Parses the text of a `node.yaml` called `file` in messages. Pure.
///
/// # Errors
/// Every fault of the text, with its place.
pub fn parse(file: &str, text: &str) -> Result<NodeConfig, ConfigError> {
    let mut checked = Checked::new(file, text);
    let mut values = Map::new();
    match tree::parse(text) {
        Ok(mut root) => {
            moved(&mut root, &mut checked);
            let (map, own) = checked.section(&root, "", keys::KEYS);
            values = map;
            for (name, node) in own {
                let sources = source::sources(name, node, &mut checked);
                values.insert("data".into(), Json::Array(sources));
            }
            whole_roster(&values, &mut checked);
        }
        Err((at, why)) => checked.fault(at, format!("cannot be read as YAML: {why}"), None),
    }
    if !checked.faults.is_empty() {
        return Err(ConfigError::Invalid(checked.into_faults()));
    }
    Ok(serde_json::from_value(Json::Object(values)).expect("invariant: what the table lets pass fits the structs"))
}

/// A roster needs its file and its signers: half of one would protect nobody.
fn whole_roster(values: &Map<String, Json>, checked: &mut Checked<'_>) {
    let Some(roster) = values.get("roster") else { return };
    for rule in keys::KEYS.iter().filter(|rule| rule.required) {
        // A value at fault is told already.
        let name = rule.path.trim_start_matches("roster.");
        if roster.get(name).is_none() && !checked.places.contains_key(rule.path) {
            let at = checked.places.get("roster").copied().unwrap_or_default();
            let expects = rule.kind.map(|kind| kind.expects()).unwrap_or_default();
            checked.fault(at, format!("`roster` lacks `{name}`"), Some(format!("give {expects}")));
        }
    }
}

/// Takes out the section that `privacy` has replaced: each of its keys is a fault that names the new one.
fn moved(root: &mut Node, checked: &mut Checked<'_>) {
    let Value::Map(entries) = &mut root.value else { return };
    let Some(at) = entries.iter().position(|(name, _)| name.text == "policy") else { return };
    let (name, section) = entries.remove(at);
    let keys = match section.value {
        Value::Map(keys) => keys,
        Value::Null | Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::Text(_) | Value::List(_) => Vec::new(),
    };
    let mut help: Vec<String> = keys
        .iter()
        .map(|(key, _)| match key.text.as_str() {
            "allow_plain_updates" => {
                "`allow_plain_updates: false` is `privacy.require_secure_aggregation: true`".into()
            }
            "allow_retained_updates" => "`allow_retained_updates: true` is `privacy.retain_updates: if_asked`".into(),
            other => format!("`{other}` is `privacy.{other}`"),
        })
        .collect();
    if help.is_empty() {
        help.push("write the node's rules below `privacy`".into());
    }
    checked.fault(name.at, "the section `policy` is called `privacy` now", Some(help.join("; ")));
}
