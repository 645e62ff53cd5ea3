//! YAML as a tree in which every key and value knows its place.
//!
//! Promise: what the parser accepts comes out unchanged, in file order, repeated keys included, so that the
//! check behind it can point at each. Must not know: which keys exist, or what they mean.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DefaultMessageFormatter, DuplicateKeyPolicy, Location, MessageFormatter, Spanned};

/// Largest configuration text in bytes: a hundred times the shipped file; anything larger is a wrong path.
pub(crate) const TEXT_BYTES_MAX: usize = 1 << 20;

/// A place in a text: line and column from 1, width in characters (0 = unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct At {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) width: usize,
}

impl From<Location> for At {
    fn from(location: Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { line: number(location.line()), column: number(location.column()), width: number(location.span().len()) }
    }
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

/// A key of a mapping with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) at: At,
    pub(crate) text: String,
}

/// What YAML can say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Whole(i128),
    Real(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Name, Node)>),
}

impl Value {
    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// How a message calls this value.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(b) => format!("`{b}`"),
            Self::Whole(n) => format!("the number {n}"),
            Self::Real(x) => format!("the number {x}"),
            Self::Text(t) => format!("the text `{}`", t.chars().take(60).collect::<String>()),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a section of keys".into(),
        }
    }
}

/// Parses one YAML document; an empty one is [`Value::Null`].
///
/// # Errors
/// The place and the parser's own words.
pub(crate) fn parse(text: &str) -> Result<Node, (At, String)> {
    if text.len() > TEXT_BYTES_MAX {
        let size = text.len();
        return Err((At::default(), format!("{size} bytes are no configuration: at most {TEXT_BYTES_MAX} are read")));
    }
    // Booleans of YAML 1.1 (`on`, `yes`) stay text, so that no word of ours is taken for one.
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
        let error = error.without_snippet();
        // The parser's own advice here names functions of its library.
        let why = if matches!(error, serde_saphyr::Error::MultipleDocuments { .. }) {
            "a second document begins here, and only one is read".to_owned()
        } else {
            DefaultMessageFormatter.format_message(error).into_owned()
        };
        let at = error.location().map(At::from).unwrap_or_default();
        (at, why)
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: spanned.referenced.into(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { at: spanned.referenced.into(), text: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Whole(n.into()))
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Whole(n.into()))
    }

    fn visit_i128<E: de::Error>(self, n: i128) -> Result<Value, E> {
        Ok(Value::Whole(n))
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> Result<Value, E> {
        Ok(Value::Real(x))
    }

    fn visit_str<E: de::Error>(self, t: &str) -> Result<Value, E> {
        Ok(Value::Text(t.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
