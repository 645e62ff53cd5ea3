//! What a key may hold: type and range in one value, from which come the check, the words of its error and its
//! JSON Schema.
//!
//! Promise: a value that passes [`Kind::check`] fits the typed struct behind it. Must not know: any single key.

use std::net::SocketAddr;

use aivillage_base::{NodeId, suggest};
use aivillage_training::participant::hours;
use serde_json::{Value as Json, json};

use super::tree::{At, Node, Value};

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number in `min..=max`.
    Whole {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A real number in `min..=max`.
    Real {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// A real number above `min`, at most `max`.
    Above {
        /// Not reached.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// A probability that is neither 0 nor 1.
    Chance,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of these words, each once.
    Words(&'static [&'static str]),
    /// 1 to 64 characters of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
    Id,
    /// IP address and port.
    Address,
    /// A path of a file or folder.
    Path,
    /// A column: its name in the header, or its index from 0.
    Column,
    /// A list of columns.
    Columns,
    /// A list of public keys of nodes, at least one.
    Keys,
    /// A list of host names.
    Hosts,
    /// A list of web origins, `scheme://host[:port]`.
    Origins,
    /// A list of texts of 1 to 200 characters.
    Texts,
    /// A list of parts of the day.
    Hours,
}

/// What is wrong with a value: what, and perhaps what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) help: Option<String>,
    /// The item of a list that is meant, where it is not the whole value.
    pub(crate) at: Option<At>,
}

impl Kind {
    /// What may stand here, in words: "a whole number from 1 to 50".
    #[must_use]
    pub fn expects(&self) -> String {
        match self {
            Self::Bool => "`true` or `false`".into(),
            Self::Whole { min, max } => format!("a whole number from {min} to {max}"),
            Self::Real { min, max } => format!("a number from {min} to {max}"),
            Self::Above { min, max } => format!("a number above {min}, at most {max}"),
            Self::Chance => "a number above 0 and below 1".into(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Words(words) => format!("a list of {}", words.join(", ")),
            Self::Id => "a name of 1 to 64 characters a-z A-Z 0-9 . _ -, the first a letter or digit".into(),
            Self::Address => "an IP address and port such as 127.0.0.1:8000 (port 0 = any free)".into(),
            Self::Path => "a path".into(),
            Self::Column => "a column: its name, or its index from 0".into(),
            Self::Columns => "a list of columns (names, or indices from 0)".into(),
            Self::Keys => "a list of node keys of 64 hexadecimal characters, at least one".into(),
            Self::Hosts => "a list of host names such as village.example.org".into(),
            Self::Origins => "a list of web origins such as https://example.org or http://localhost:5173".into(),
            Self::Texts => "a list of names of 1 to 200 characters".into(),
            Self::Hours => "a list of hours such as 22:00-06:00 (UTC) or 22:00-06:00+02:00".into(),
        }
    }

    /// Checks `node` and gives it in the form the typed struct reads.
    pub(crate) fn check(&self, node: &Node) -> Result<Json, Wrong> {
        match (self, &node.value) {
            (Self::Bool, Value::Bool(b)) => Ok(json!(b)),
            (Self::Bool, Value::Text(t)) if matches!(t.as_str(), "true" | "false") => {
                Err(self.wrong(&node.value, Some("take the quotes off".into())))
            }
            (Self::Whole { min, max }, Value::Whole(n)) => match u64::try_from(*n) {
                Ok(n) if (*min..=*max).contains(&n) => Ok(json!(n)),
                Ok(_) | Err(_) => Err(self.wrong(&node.value, None)),
            },
            (Self::Real { .. } | Self::Above { .. } | Self::Chance, Value::Whole(n)) => {
                #[expect(clippy::cast_precision_loss, reason = "every allowed range lies far below 2^53")]
                let x = *n as f64;
                self.real(x, node)
            }
            (Self::Real { .. } | Self::Above { .. } | Self::Chance, Value::Real(x)) => self.real(*x, node),
            (Self::Word(words), Value::Text(t)) => word(words, t),
            (Self::Words(words), Value::List(items)) => list(items, |item| match item.value.text() {
                Some(t) => word(words, t),
                None => Err(self.item(&item.value)),
            }),
            (Self::Id, Value::Text(t)) => match aivillage_base::NodeName::new(t.as_str()) {
                Ok(_) => Ok(json!(t)),
                Err(_) => Err(self.wrong(&node.value, None)),
            },
            (Self::Address, Value::Text(t)) => {
                match t.parse::<SocketAddr>() {
                    Ok(_) => Ok(json!(t)),
                    Err(_) => Err(self
                        .wrong(&node.value, t.contains("localhost").then(|| "for localhost write 127.0.0.1".into()))),
                }
            }
            (Self::Path, Value::Text(t)) if !t.is_empty() => Ok(json!(t)),
            (Self::Column, value) => column(value).ok_or_else(|| self.wrong(value, None)),
            (Self::Columns, Value::List(items)) => list(items, |i| column(&i.value).ok_or_else(|| self.item(&i.value))),
            (Self::Keys, Value::List(items)) if !items.is_empty() => list(items, |item| {
                let key = item.value.text().and_then(|text| text.parse::<NodeId>().ok());
                key.map(|key| json!(key)).ok_or_else(|| self.item(&item.value))
            }),
            (Self::Hosts, Value::List(items)) => list(items, |item| match item.value.text().filter(|t| is_host(t)) {
                Some(t) => Ok(json!(t)),
                None => Err(self.item(&item.value)),
            }),
            (Self::Origins, Value::List(items)) => {
                list(items, |item| match item.value.text().filter(|t| is_origin(t)) {
                    Some(t) => Ok(json!(t)),
                    None => Err(self.item(&item.value)),
                })
            }
            (Self::Texts, Value::List(items)) => list(items, |item| match item.value.text().filter(|t| is_name(t)) {
                Some(t) => Ok(json!(t)),
                None => Err(self.item(&item.value)),
            }),
            (Self::Hours, Value::List(items)) => list(items, |item| match item.value.text().and_then(hours::parse) {
                Some(hours) => Ok(json!(hours)),
                None => Err(self.item(&item.value)),
            }),
            (Self::Id | Self::Path, Value::Whole(_) | Value::Real(_) | Value::Bool(_)) => {
                Err(self.wrong(&node.value, Some("put it in quotes to make it text".into())))
            }
            (Self::Whole { .. } | Self::Real { .. } | Self::Above { .. } | Self::Chance, Value::Text(t))
                if t.trim().parse::<f64>().is_ok() =>
            {
                Err(self.wrong(&node.value, Some("take the quotes off".into())))
            }
            (_, value) => Err(self.wrong(value, None)),
        }
    }

    /// Checks text from the environment, where nothing is quoted: kinds that are text take it as it stands.
    pub(crate) fn check_text(&self, text: &str) -> Result<Json, Wrong> {
        let as_text = Node { at: At::default(), value: Value::Text(text.to_owned()) };
        match self {
            Self::Word(_) | Self::Id | Self::Address | Self::Path => self.check(&as_text),
            Self::Bool => match boolean(text) {
                Some(b) => Ok(json!(b)),
                None => Err(self.wrong(&as_text.value, None)),
            },
            Self::Whole { .. }
            | Self::Real { .. }
            | Self::Above { .. }
            | Self::Chance
            | Self::Words(_)
            | Self::Column
            | Self::Columns
            | Self::Keys
            | Self::Hosts
            | Self::Origins
            | Self::Texts
            | Self::Hours => match super::tree::parse(text) {
                Ok(node) => self.check(&node),
                Err((_, why)) => Err(Wrong { what: format!("is no YAML value: {why}"), help: None, at: None }),
            },
        }
    }

    fn real(&self, x: f64, node: &Node) -> Result<Json, Wrong> {
        let fits = match self {
            Self::Real { min, max } => x >= *min && x <= *max,
            Self::Above { min, max } => x > *min && x <= *max,
            Self::Chance => x > 0.0 && x < 1.0,
            Self::Bool
            | Self::Whole { .. }
            | Self::Word(_)
            | Self::Words(_)
            | Self::Id
            | Self::Address
            | Self::Path
            | Self::Column
            | Self::Columns
            | Self::Keys
            | Self::Hosts
            | Self::Origins
            | Self::Texts
            | Self::Hours => false,
        };
        if fits { Ok(json!(x)) } else { Err(self.wrong(&node.value, None)) }
    }

    fn wrong(&self, given: &Value, help: Option<String>) -> Wrong {
        Wrong { what: format!("is {}, but must be {}", given.describe(), self.expects()), help, at: None }
    }

    /// What is wrong with one item of a list.
    fn item(&self, given: &Value) -> Wrong {
        let one = match self {
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Columns => Self::Column.expects(),
            Self::Keys => "a node's key of 64 hexadecimal characters, in quotes".into(),
            Self::Hosts => "a host name such as village.example.org, without scheme and port".into(),
            Self::Origins => "a web origin such as https://example.org, without path and `*`".into(),
            Self::Texts => "a name of 1 to 200 characters".into(),
            Self::Hours => "hours such as 22:00-06:00 (UTC) or 22:00-06:00+02:00".into(),
            Self::Bool
            | Self::Whole { .. }
            | Self::Real { .. }
            | Self::Above { .. }
            | Self::Chance
            | Self::Word(_)
            | Self::Id
            | Self::Address
            | Self::Path
            | Self::Column => self.expects(),
        };
        Wrong { what: format!("is {}, but must be {one}", given.describe()), help: None, at: None }
    }

    /// JSON Schema of the value.
    pub(crate) fn schema(&self) -> Json {
        match self {
            Self::Bool => json!({"type": "boolean"}),
            Self::Whole { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
            Self::Real { min, max } => json!({"type": "number", "minimum": min, "maximum": max}),
            Self::Above { min, max } => {
                json!({"type": "number", "exclusiveMinimum": min, "maximum": max})
            }
            Self::Chance => json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
            Self::Word(words) => json!({"type": "string", "enum": words}),
            Self::Words(words) => {
                json!({"type": "array", "items": {"type": "string", "enum": words}, "uniqueItems": true})
            }
            Self::Id => json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
            Self::Address => json!({"type": "string", "pattern": "^.+:[0-9]{1,5}$"}),
            Self::Path => json!({"type": "string", "minLength": 1}),
            Self::Column => column_schema(),
            Self::Columns => json!({"type": "array", "items": column_schema()}),
            Self::Keys => {
                let key = json!({"type": "string", "pattern": "^[0-9a-fA-F]{64}$"});
                json!({"type": "array", "items": key, "minItems": 1, "uniqueItems": true})
            }
            Self::Hosts => json!({"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9.-]+$"}}),
            Self::Origins => {
                json!({"type": "array", "items": {"type": "string", "pattern": "^https?://[^/]+$"}})
            }
            Self::Texts => json!({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 200}}),
            Self::Hours => json!({"type": "array", "items": {"type": "string", "pattern": HOURS}}),
        }
    }
}

/// JSON Schema's pattern of hours.
const HOURS: &str = "^[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}([+-][0-9]{2}:[0-9]{2})?$";

/// The words people use for yes and no in an environment.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn word(words: &'static [&'static str], given: &str) -> Result<Json, Wrong> {
    if words.contains(&given) {
        return Ok(json!(given));
    }
    let help = suggest::nearest(given, words.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    Err(Wrong { what: format!("is the text `{given}`, but must be one of {}", words.join(", ")), help, at: None })
}

fn list(items: &[Node], check: impl Fn(&Node) -> Result<Json, Wrong>) -> Result<Json, Wrong> {
    let mut out: Vec<Json> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let at = (item.at.line > 0).then_some(item.at);
        let value =
            check(item).map_err(|wrong| Wrong { what: format!("item {} {}", index + 1, wrong.what), at, ..wrong })?;
        if out.contains(&value) {
            return Err(Wrong { what: format!("names {value} twice"), help: Some("leave one of them".into()), at });
        }
        out.push(value);
    }
    Ok(Json::Array(out))
}

fn column(value: &Value) -> Option<Json> {
    match value {
        Value::Text(t) if !t.is_empty() => Some(json!(t)),
        Value::Whole(n) => u32::try_from(*n).ok().map(|n| json!(n)),
        Value::Text(_) | Value::Null | Value::Bool(_) | Value::Real(_) | Value::List(_) | Value::Map(_) => None,
    }
}

fn column_schema() -> Json {
    json!({"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}]})
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 200
}

fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}

/// `http://host` or `https://host`, with a port if need be, without path: what a browser sends as `Origin`.
fn is_origin(text: &str) -> bool {
    let Some(host) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    !host.is_empty() && !host.contains(['/', '*', ' ', '?', '#', '@'])
}
