//! Checks the `data` of a `node.yaml`: which keys a source may have depends on its kind.
//!
//! Promise: every fault is noted with its place; a source that comes out is complete.
//! Must not know: whether the file exists, or what is in it.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::keys::{CSV, KIND, Key, NPZ, SHARD};
use crate::config::check::Checked;
use crate::config::tree::{At, Name, Node, Value};

/// One source or a list of them.
pub(super) fn sources(name: &Name, node: &Node, checked: &mut Checked<'_>) -> Vec<Json> {
    let items = match &node.value {
        Value::Null => return Vec::new(),
        Value::List(items) => items.as_slice(),
        Value::Map(_) => std::slice::from_ref(node),
        Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::Text(_) => {
            let what = format!("`data` is {}, but must be a source or a list of sources", node.value.describe());
            checked.fault(node.at, what, Some("a source begins with `kind: csv`, `npz` or `shard`".into()));
            return Vec::new();
        }
    };
    let found: Vec<Json> = items.iter().filter_map(|item| source(name, item, checked)).collect();
    for (index, source) in found.iter().enumerate() {
        if found[..index].iter().any(|other| other["name"] == source["name"]) {
            let what = format!("two data sources are called {}", source["name"]);
            checked.fault(
                items.get(index).map_or(name.at, |item| item.at),
                what,
                Some("give each its own `name`".into()),
            );
        }
    }
    found
}

fn source(data: &Name, node: &Node, checked: &mut Checked<'_>) -> Option<Json> {
    let Value::Map(entries) = &node.value else {
        let what = format!("a data source is {}, but must be a section of keys", node.value.describe());
        checked.fault(
            if node.at.line == 0 { data.at } else { node.at },
            what,
            Some("begin it with `kind: csv`, `npz` or `shard`".into()),
        );
        return None;
    };
    let start = entries.first().map_or(node.at, |(name, _)| name.at);
    let kind = entries.iter().find(|(name, _)| name.text == "kind");
    let rules = match kind.map(|(_, node)| &node.value) {
        Some(Value::Text(t)) if t == "npz" => NPZ,
        Some(Value::Text(t)) if t == "csv" => CSV,
        Some(Value::Text(t)) if t == "shard" => SHARD,
        Some(_) => &[KIND],
        None => {
            checked.fault(
                start,
                "this data source lacks `kind`",
                Some("say `kind: csv`, `kind: npz` or `kind: shard`".into()),
            );
            return None;
        }
    };
    if rules.len() == 1 {
        // Of an unknown kind, the other keys cannot be judged.
        let only_kind = Node {
            at: node.at,
            value: Value::Map(entries.iter().filter(|(n, _)| n.text == "kind").cloned().collect()),
        };
        checked.section(&only_kind, "data", rules);
        return None;
    }
    let before = checked.faults.len();
    let (values, _) = checked.section(node, "data", rules);
    require(&values, entries, rules, start, checked);
    (checked.faults.len() == before).then(|| complete(values))
}

/// Notes what is missing, and an index beyond the last part.
fn require(values: &Map<String, Json>, entries: &[(Name, Node)], rules: &[Key], start: At, checked: &mut Checked<'_>) {
    for rule in rules.iter().filter(|rule| rule.required) {
        let name = rule.path.rsplit('.').next().unwrap_or(rule.path);
        if !entries.iter().any(|(given, _)| given.text == name) {
            let expects = rule.kind.map(|kind| kind.expects()).unwrap_or_default();
            checked.fault(start, format!("this data source lacks `{name}`"), Some(format!("give {expects}")));
        }
    }
    if let (Some(index), Some(of)) =
        (values.get("index").and_then(Json::as_u64), values.get("of").and_then(Json::as_u64))
        && index >= of
    {
        let at = entries.iter().find(|(name, _)| name.text == "index").map_or(start, |(_, node)| node.at);
        checked.fault(
            at,
            format!("`index` is {index}, but of {of} parts the last is {}", of - 1),
            Some("parts are counted from 0".into()),
        );
    }
}

/// Fills in defaults and the name, and parts what all sources share from what is the origin's.
fn complete(mut values: Map<String, Json>) -> Json {
    // What the loader takes as given, a text may leave out.
    let defaults = match values.get("kind").and_then(Json::as_str) {
        Some("shard") => vec![("alpha", json!(0.3)), ("seed", json!(1))],
        Some("npz") => vec![("features", json!("x")), ("label", json!("y"))],
        Some(_) | None => Vec::new(),
    };
    for (key, value) in defaults {
        values.entry(key).or_insert(value);
    }
    let name = values.remove("name").or_else(|| default_name(&values)).unwrap_or_else(|| json!("data"));
    let task = values.remove("task").unwrap_or_else(|| json!("classification"));
    let classes = values.remove("classes").unwrap_or(Json::Null);
    let test_fraction = values.remove("test_fraction").unwrap_or_else(|| json!(0.0));
    json!({"name": name, "task": task, "classes": classes, "test_fraction": test_fraction, "origin": values})
}

/// The data set's name, or the file's without its ending where that is a valid name.
fn default_name(values: &Map<String, Json>) -> Option<Json> {
    if let Some(dataset) = values.get("dataset") {
        return Some(dataset.clone());
    }
    let stem = Path::new(values.get("path")?.as_str()?).file_stem()?.to_str()?;
    aivillage_base::NodeName::new(stem).ok().map(|name| json!(name))
}
