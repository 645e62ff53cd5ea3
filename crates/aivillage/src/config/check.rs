//! Checks a tree against a table of keys and gives plain JSON that holds only known, valid values.
//!
//! Promise: every fault of the tree is found in one go, in the order of the text. Must not know: files,
//! environment, or what the keys mean.

use std::collections::BTreeMap;

use aivillage_base::suggest;
use serde_json::{Map, Value as Json};

use super::error::{Fault, Place};
use super::kind::{Kind, Wrong};
use super::tree::{At, Name, Node, Value};

/// What the checker needs to know of a key; a table of them describes a text.
pub(crate) trait Rule {
    /// Dotted path.
    fn path(&self) -> &'static str;
    /// What may stand there; `None` = the caller checks it himself.
    fn kind(&self) -> Option<Kind>;
    /// Unit for messages, or "".
    fn unit(&self) -> &'static str;
    /// May it be empty?
    fn optional(&self) -> bool;
}

/// A text under check: its faults, and where each value was found.
#[derive(Debug)]
pub(crate) struct Checked<'t> {
    file: &'t str,
    text: &'t str,
    pub(crate) faults: Vec<(At, Fault)>,
    /// Place of every value, by dotted path.
    pub(crate) places: BTreeMap<String, At>,
}

impl<'t> Checked<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, faults: Vec::new(), places: BTreeMap::new() }
    }

    /// Notes a fault.
    pub(crate) fn fault(&mut self, at: At, what: impl Into<String>, help: Option<String>) {
        let fault = Fault { place: Place::in_text(self.file, self.text, at), what: what.into(), help };
        self.faults.push((at, fault));
    }

    /// All faults in the order of the text.
    pub(crate) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|(at, _)| *at);
        self.faults.into_iter().map(|(_, fault)| fault).collect()
    }

    /// Checks the section `node` whose keys are those of `rules` below `prefix` ("" or a dotted path).
    /// Keys without a [`Kind`] are left out and come back beside the JSON, for the caller to check.
    pub(crate) fn section<'n, R: Rule>(
        &mut self,
        node: &'n Node,
        prefix: &str,
        rules: &[R],
    ) -> (Map<String, Json>, Vec<(&'n Name, &'n Node)>) {
        let mut out = Map::new();
        let mut own = Vec::new();
        let entries = match &node.value {
            Value::Map(entries) => entries,
            // `training:` with nothing under it: every key keeps its default.
            Value::Null => return (out, own),
            Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::Text(_) | Value::List(_) => {
                let what = if prefix.is_empty() { "the file" } else { prefix };
                let help = format!("write keys below it: {}", children(rules, prefix).join(", "));
                self.fault(
                    node.at,
                    format!("`{what}` is {}, but must be a section of keys", node.value.describe()),
                    Some(help),
                );
                return (out, own);
            }
        };
        for (index, (name, value)) in entries.iter().enumerate() {
            if let Some((first, _)) = entries[..index].iter().find(|(other, _)| other.text == name.text) {
                let what = format!("key `{}` is given twice", join(prefix, &name.text));
                self.fault(
                    name.at,
                    what,
                    Some(format!("it is already given on line {}: leave one of them", first.at.line)),
                );
                continue;
            }
            let path = join(prefix, &name.text);
            self.places.insert(path.clone(), value.at);
            if let Some(rule) = rules.iter().find(|rule| rule.path() == path) {
                match rule.kind() {
                    None => own.push((name, value)),
                    Some(kind) => self.leaf(name, value, rule, kind, &mut out),
                }
            } else if rules.iter().any(|rule| is_below(rule.path(), &path)) {
                let (section, _) = self.section(value, &path, rules);
                out.insert(name.text.clone(), Json::Object(section));
            } else {
                self.unknown(name, prefix, rules);
            }
        }
        (out, own)
    }

    fn leaf<R: Rule>(&mut self, name: &Name, node: &Node, rule: &R, kind: Kind, out: &mut Map<String, Json>) {
        let path = rule.path();
        if node.value == Value::Null {
            if rule.optional() {
                out.insert(name.text.clone(), Json::Null);
            } else {
                let help = format!("give {}, or delete the line to keep the default", kind.expects());
                self.fault(name.at, format!("`{path}` has no value"), Some(help));
            }
            return;
        }
        match kind.check(node) {
            Ok(value) => {
                out.insert(name.text.clone(), value);
            }
            Err(wrong) => {
                let whole = if matches!(node.value, Value::List(_) | Value::Map(_)) { name.at } else { node.at };
                let at = wrong.at.unwrap_or(whole);
                let (what, help) = sentence(path, rule.unit(), wrong);
                self.fault(at, what, help);
            }
        }
    }

    fn unknown<R: Rule>(&mut self, name: &Name, prefix: &str, rules: &[R]) {
        let valid = children(rules, prefix);
        let near = suggest::nearest(&name.text, valid.iter().copied());
        let elsewhere: Vec<_> =
            rules.iter().map(Rule::path).filter(|path| path.rsplit('.').next() == Some(&name.text)).collect();
        let help = match (near, elsewhere.as_slice()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, []) => format!("valid here: {}", valid.join(", ")),
            (None, [one]) => format!("`{}` belongs at `{one}`", name.text),
            (None, many) => format!("`{}` belongs at one of: {}", name.text, many.join(", ")),
        };
        self.fault(name.at, format!("unknown key `{}`", join(prefix, &name.text)), Some(help));
    }
}

/// "`path` is …, but must be … (unit)".
pub(crate) fn sentence(path: &str, unit: &str, wrong: Wrong) -> (String, Option<String>) {
    let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
    (format!("`{path}` {}{unit}", wrong.what), wrong.help)
}

/// The path `name` below `prefix`.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn is_below(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// Names of keys and sections directly below `prefix`, in table order.
fn children<R: Rule>(rules: &[R], prefix: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for rule in rules {
        let rest = if prefix.is_empty() {
            rule.path()
        } else {
            match rule.path().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
                Some(rest) => rest,
                None => continue,
            }
        };
        let name = rest.split('.').next().unwrap_or(rest);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
