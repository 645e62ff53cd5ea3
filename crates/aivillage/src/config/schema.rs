//! JSON Schema of `federated.yaml`, for editors and for `aivillage config schema`: made from the table, so that
//! it cannot disagree with the check.

use serde_json::{Map, Value as Json, json};

use super::effect::at;
use super::federated::Config;
use super::table::{self, Key, Status};

/// JSON Schema (2020-12) of `federated.yaml`, with descriptions, units, ranges and defaults.
#[must_use]
pub fn schema() -> Json {
    let defaults = super::to_json(&Config::default());
    let mut root = section("Everything AIVillage reads from this file; what is left out keeps its default.");
    for key in table::KEYS {
        insert(&mut root, key, &defaults);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "AIVillage federated.yaml",
        "type": "object",
        "properties": {"federated_systems": root},
        "additionalProperties": false,
    })
}

fn section(description: &str) -> Json {
    json!({"type": ["object", "null"], "description": description, "properties": {}, "additionalProperties": false})
}

fn insert(root: &mut Json, key: &Key, defaults: &Json) {
    let mut parts: Vec<&str> = key.path.split('.').collect();
    let name = parts.pop().unwrap_or(key.path);
    let mut place = root;
    for part in parts {
        let properties = &mut place["properties"];
        if properties[part].is_null() {
            properties[part] = section(&format!("Section `{part}`."));
        }
        place = &mut properties[part];
    }
    place["properties"][name] = property(key, at(defaults, key.path));
}

fn property(key: &Key, default: &Json) -> Json {
    let mut property: Map<String, Json> = key.kind.schema().as_object().cloned().unwrap_or_default();
    if default.is_null() {
        property.insert("type".into(), json!(["string", "null"]));
    }
    let unit = if key.unit.is_empty() { String::new() } else { format!(" Unit: {}.", key.unit) };
    let status = match key.status {
        Status::InEffect => String::new(),
        Status::Words(built) => format!(" Built in this version: {}.", built.join(", ")),
        Status::NotYet { missing, .. } => format!(" Not in effect in this version: {missing}."),
    };
    property.insert("description".into(), json!(format!("{}{unit}{status}", key.effect)));
    property.insert("default".into(), default.clone());
    Json::Object(property)
}
