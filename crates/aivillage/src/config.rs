//! Configuration: `federated.yaml` and the environment for a gateway, `node.yaml` for a node.
//!
//! ```text
//! config/federated.yaml ─► tree (every value knows its place) ─► check against the table ─┐
//! (compiled in: defaults) ─────────────────────────────────────────────────────────────────┼─► Config
//! AIVILLAGE_<SECTION>__<KEY> ─► check against the table ───────────────────────────────────┘
//! ```
//!
//! - [`load`] finds the file, [`resolve`] (pure) makes the [`Config`]: built-in values, above them the file,
//!   above it the environment;
//! - [`table`] says of each key what it does, in which range, and whether this version does it;
//!   [`not_in_effect`] names the configured values that promise more;
//! - [`node`] is the same for `node.yaml`;
//! - [`Environment::read`] is the only place of the program that reads the environment.
//!
//! Promise: a [`Config`] is valid; an invalid text gives all its faults at once, each with its place, and starts
//! nothing. Must not know: what the rooms do with it.

mod check;
mod effect;
mod environment;
mod error;
mod federated;
mod kind;
pub mod node;
mod rooms;
mod schema;
pub mod table;
mod tree;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value as Json;

pub use effect::{NotInEffect, by_section, not_in_effect};
pub use environment::{Environment, Override, Secret, variable};
pub use error::{ConfigError, Fault, Place};
pub use federated::*;
pub use kind::Kind;
pub use node::NodeConfig;
pub use rooms::{gateway_room, inference_room, training_room};
pub use schema::schema;

use check::Checked;

/// The shipped file, which also holds the defaults.
pub const SHIPPED: &str = include_str!("../../../config/federated.yaml");

/// Where a file is looked for when the command line names none, as in the guide.
pub const SEARCH: [&str; 3] = ["config/federated.yaml", "../config/federated.yaml", "/etc/aivillage/federated.yaml"];

const ROOT: &str = "federated_systems";

/// A configuration, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file, if any.
    pub source: Source,
    /// Keys that the environment set.
    pub overrides: Vec<Override>,
}

/// Where the values below the environment came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This file, over the built-in values.
    File(PathBuf),
    /// The built-in values alone.
    Defaults,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Defaults => f.write_str("built-in values"),
        }
    }
}

impl Loaded {
    /// One line for the start and for status: "config/federated.yaml, with AIVILLAGE_… from the environment".
    #[must_use]
    pub fn describe(&self) -> String {
        if self.overrides.is_empty() {
            return self.source.to_string();
        }
        let names: Vec<&str> = self.overrides.iter().map(|o| o.variable.as_str()).collect();
        format!("{}, with {} from the environment", self.source, names.join(", "))
    }
}

/// Finds the file (`flag`, else [`SEARCH`]), reads it and resolves it with the environment's overrides.
///
/// # Errors
/// A file that is named and absent, or unreadable, or at fault.
pub fn load(flag: Option<&Path>, environment: &Environment) -> Result<Loaded, ConfigError> {
    load_from(flag, &SEARCH.map(Path::new), environment)
}

/// [`load`] with the places to search as an argument.
///
/// # Errors
/// As [`load`].
pub fn load_from(flag: Option<&Path>, search: &[&Path], environment: &Environment) -> Result<Loaded, ConfigError> {
    let candidates = flag.as_ref().map_or(search, std::slice::from_ref);
    for path in candidates {
        match read_text(path)? {
            Some(text) => return resolve(Some((path, &text)), &environment.overrides),
            None if flag.is_some() => {
                return Err(ConfigError::NotFound { path: path.to_path_buf() });
            }
            None => {}
        }
    }
    resolve(None, &environment.overrides)
}

/// The text of a file; `None` if there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_path_buf(), why };
    match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(unreadable(format!("byte {} is not UTF-8 text", error.utf8_error().valid_up_to()))),
        },
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// Makes the configuration from a file's name and text (or the built-in values) and overrides. Pure.
///
/// # Errors
/// Every fault of the text, with its place.
pub fn resolve(file: Option<(&Path, &str)>, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    let mut values = DEFAULTS.clone();
    let (name, text) = file.map_or_else(Default::default, |(path, text)| (path.display().to_string(), text));
    let mut checked = Checked::new(&name, text);
    if file.is_some() {
        overlay(&mut values, check_text(text, &mut checked));
    }
    if !checked.faults.is_empty() {
        return Err(ConfigError::Invalid(checked.into_faults()));
    }
    for set in overrides {
        set_at(&mut values, set.path, set.value.clone());
    }
    // The table's check and the structs agree (a test compares them), so this cannot fail on user input.
    let config: Config = serde_json::from_value(values).expect("invariant: what the table lets pass fits the structs");
    let faults = contradictions(&config, &checked, overrides, (&name, text));
    if !faults.is_empty() {
        return Err(ConfigError::Invalid(faults));
    }
    let source = file.map_or(Source::Defaults, |(path, _)| Source::File(path.to_path_buf()));
    Ok(Loaded { config, source, overrides: overrides.to_vec() })
}

/// The known, valid values of `text`; faults go to `checked`.
fn check_text(text: &str, checked: &mut Checked<'_>) -> Json {
    let tree = match tree::parse(text) {
        Ok(tree) => tree,
        Err((at, why)) => {
            checked.fault(at, format!("cannot be read as YAML: {why}"), None);
            return Json::Null;
        }
    };
    let entries = match &tree.value {
        tree::Value::Null => return Json::Null,
        tree::Value::Map(entries) => entries,
        tree::Value::Bool(_)
        | tree::Value::Whole(_)
        | tree::Value::Real(_)
        | tree::Value::Text(_)
        | tree::Value::List(_) => {
            let what = format!("the file is {}, but must begin with `{ROOT}:`", tree.value.describe());
            checked.fault(tree.at, what, None);
            return Json::Null;
        }
    };
    let mut values = Json::Null;
    let mut seen = None;
    for (name, node) in entries {
        if name.text != ROOT {
            let help = format!("every key stands below `{ROOT}:`");
            checked.fault(name.at, format!("unknown key `{}`", name.text), Some(help));
        } else if let Some(line) = seen.replace(name.at.line) {
            let help = format!("it is already given on line {line}: put the keys under one");
            checked.fault(name.at, format!("key `{ROOT}` is given twice"), Some(help));
        } else {
            values = Json::Object(checked.section(node, "", table::KEYS).0);
        }
    }
    values
}

/// Faults between keys that are each valid alone.
fn contradictions(
    config: &Config,
    checked: &Checked<'_>,
    overrides: &[Override],
    (name, text): (&str, &str),
) -> Vec<Fault> {
    // The fault is shown at the key that somebody wrote, the environment before the file.
    let place = |paths: [&str; 2]| {
        let variable = paths.iter().find_map(|path| overrides.iter().find(|o| o.path == *path));
        match variable {
            Some(set) => Place::Variable(set.variable.clone()),
            None => {
                let at = paths.iter().find_map(|path| checked.places.get(*path)).copied().unwrap_or_default();
                Place::in_text(name, text, at)
            }
        }
    };
    let mut faults = Vec::new();
    let selection = &config.training.participant_selection;
    if selection.min_participants > selection.max_participants {
        let (min, max) = (selection.min_participants, selection.max_participants);
        faults.push(Fault {
            place: place([
                "training.participant_selection.min_participants",
                "training.participant_selection.max_participants",
            ]),
            what: format!("`min_participants` ({min}) is above `max_participants` ({max}): no round could ever count"),
            help: Some("raise the one or lower the other".into()),
        });
    }
    let gateway = &config.gateway;
    if gateway.tls.cert.is_some() != gateway.tls.key.is_some() {
        let (given, missing) = if gateway.tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        faults.push(Fault {
            place: place(["gateway.tls.cert", "gateway.tls.key"]),
            what: format!("`gateway.tls.{given}` is given without `gateway.tls.{missing}`"),
            help: Some(format!("give both, or leave `{given}` empty for plain HTTP")),
        });
    }
    if gateway.http_listen == gateway.link_listen && gateway.http_listen.port() != 0 {
        faults.push(Fault {
            place: place(["gateway.http_listen", "gateway.link_listen"]),
            what: format!("`http_listen` and `link_listen` are both {}", gateway.http_listen),
            help: Some("give each its own port".into()),
        });
    }
    faults
}

/// The configuration as YAML in the form of the file, without comments.
#[must_use]
pub fn show(config: &Config) -> String {
    let mut root = std::collections::BTreeMap::new();
    root.insert(ROOT, config);
    serde_saphyr::to_string(&root).expect("invariant: a configuration is plain data")
}

/// The values as JSON, in the structure of the file below `federated_systems`.
pub(crate) fn to_json(config: &Config) -> Json {
    serde_json::to_value(config).expect("invariant: a configuration is plain data")
}

/// The built-in values, from the shipped file.
static DEFAULTS: LazyLock<Json> = LazyLock::new(|| {
    let mut checked = Checked::new("built-in federated.yaml", SHIPPED);
    let values = check_text(SHIPPED, &mut checked);
    assert!(checked.faults.is_empty(), "the shipped file is valid: {}", ConfigError::Invalid(checked.into_faults()));
    values
});

impl Default for Config {
    /// The shipped `config/federated.yaml`.
    fn default() -> Self {
        serde_json::from_value(DEFAULTS.clone()).expect("invariant: the shipped file holds every key")
    }
}

fn overlay(below: &mut Json, above: Json) {
    match (below, above) {
        (Json::Object(below), Json::Object(above)) => {
            for (name, value) in above {
                overlay(below.entry(name).or_insert(Json::Null), value);
            }
        }
        // An empty file.
        (Json::Object(_), Json::Null) => {}
        (below, above) => *below = above,
    }
}

fn set_at(values: &mut Json, path: &str, value: Json) {
    let place = path.split('.').fold(values, |section, name| &mut section[name]);
    *place = value;
}
