//! Truth about promises: which configured values ask for what this version does not do.
//!
//! Promise: every key that the table does not call in effect is named here whenever its value asks for
//! something. Must not know: how it is shown.

use std::fmt;

use serde::Serialize;
use serde_json::Value as Json;

use super::federated::Config;
use super::table::{self, Key, Status};

/// A configured value that promises what this version does not keep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotInEffect {
    /// Dotted path below `federated_systems`.
    pub key: &'static str,
    /// The value configured.
    pub value: Json,
    /// What is missing.
    pub why: String,
    /// What to do about it.
    pub way_out: String,
}

impl fmt::Display for NotInEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {} ({})", self.key, self.value, self.why, self.way_out)
    }
}

/// Every key whose value promises what is not built, in the order of the table.
#[must_use]
pub fn not_in_effect(config: &Config) -> Vec<NotInEffect> {
    let values = super::to_json(config);
    table::KEYS.iter().filter_map(|key| judge(key, &values)).collect()
}

/// The keys of `named` gathered by section, for a start line that fits on a screen: `("network.p2p", ["enabled", ..])`.
#[must_use]
pub fn by_section(named: &[NotInEffect]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut sections: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for one in named {
        let (section, key) = one.key.rsplit_once('.').unwrap_or(("", one.key));
        match sections.iter_mut().find(|(name, _)| *name == section) {
            Some((_, keys)) => keys.push(key),
            None => sections.push((section, vec![key])),
        }
    }
    sections
}

/// The value at a dotted path.
pub(crate) fn at<'v>(values: &'v Json, path: &str) -> &'v Json {
    path.split('.').fold(values, |section, name| &section[name])
}

fn judge(key: &Key, values: &Json) -> Option<NotInEffect> {
    let value = at(values, key.path);
    let (why, way_out) = match key.status {
        Status::InEffect => return None,
        Status::Words(built) => {
            let word = value.as_str().unwrap_or_default();
            if built.contains(&word) {
                return None;
            }
            (format!("`{word}` is known, but not built yet"), format!("use {}", built.join(" or ")))
        }
        Status::NotYet { missing, switch, instead } => {
            let off = !switch.is_empty() && at(values, switch) == &Json::Bool(false);
            if off || asks_nothing(value) {
                return None;
            }
            (missing.to_owned(), way_out(key, value, switch, instead))
        }
    };
    Some(NotInEffect { key: key.path, value: value.clone(), why, way_out })
}

fn asks_nothing(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(b) => !b,
        Json::Number(n) => n.as_f64() == Some(0.0),
        Json::String(_) => false,
        Json::Array(items) => items.is_empty(),
        Json::Object(_) => false,
    }
}

fn way_out(key: &Key, value: &Json, switch: &str, instead: &str) -> String {
    let name = key.path.rsplit('.').next().unwrap_or(key.path);
    if !instead.is_empty() {
        instead.to_owned()
    } else if value.is_boolean() {
        format!("set `{name}: false`")
    } else if switch.is_empty() {
        format!("set `{name}: 0`")
    } else {
        format!("set `{switch}: false`")
    }
}
