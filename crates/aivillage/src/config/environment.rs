//! The environment: read here, once, and nowhere else.
//!
//! Promise: every `AIVILLAGE_*` variable is understood or refused with the nearest name; a secret is never
//! shown, neither by `Debug` nor in an error. [`Environment::from_pairs`] is pure, for tests.

use std::ffi::OsString;
use std::fmt;

use aivillage_base::suggest;
use aivillage_link::Seal;
use serde_json::Value as Json;

use super::check::sentence;
use super::error::{ConfigError, Fault, Place};
use super::kind::boolean;
use super::table::KEYS;

const PREFIX: &str = "AIVILLAGE_";
const URL: &str = "AIVILLAGE_URL";
/// Shorter keys can be guessed.
const KEY_CHARS_MIN: usize = 8;

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the environment says.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// `AIVILLAGE_URL`: the gateway that client commands talk to.
    pub url: Option<String>,
    /// `API_KEY`: an admin key the gateway accepts from the start.
    pub api_key: Option<Secret>,
    /// `SECRET_KEY`: seals secrets at rest (see [`Environment::seal`]).
    pub secret_key: Option<Secret>,
    /// `ENVIRONMENT` = `production`: no anonymous access, logs as JSON.
    pub production: bool,
    /// `ENABLE_FEDERATED`: false = a gateway without coordinators, whose routes answer 503.
    pub enable_federated: bool,
    /// Configuration keys set by `AIVILLAGE_<SECTION>__<KEY>`, in the order of their names.
    pub overrides: Vec<Override>,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            url: None,
            api_key: None,
            secret_key: None,
            production: false,
            enable_federated: true,
            overrides: Vec::new(),
        }
    }
}

/// One configuration key set by the environment; its value passed the table's check.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The variable's name.
    pub variable: String,
    /// Dotted path below `federated_systems`.
    pub path: &'static str,
    /// The value.
    pub value: Json,
}

impl Environment {
    /// Reads the process environment.
    ///
    /// # Errors
    /// As [`Environment::from_pairs`].
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn read() -> Result<Self, ConfigError> {
        Self::from_pairs(std::env::vars_os())
    }

    /// Understands `pairs` of name and value; names that are not ours are passed over.
    ///
    /// # Errors
    /// Every unknown `AIVILLAGE_*` name and every value that does not fit, together.
    pub fn from_pairs<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, ConfigError>
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let mut ours: Vec<(String, OsString)> = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value.into())))
            .filter(|(name, _)| is_ours(name))
            .collect();
        ours.sort();
        let mut environment = Self::default();
        let mut faults = Vec::new();
        for (name, value) in ours {
            let taken = match value.into_string() {
                Ok(text) => environment.take(&name, text),
                Err(_) => Err(("the value is not UTF-8 text".into(), None)),
            };
            if let Err((what, help)) = taken {
                faults.push(Fault { place: Place::Variable(name), what, help });
            }
        }
        if faults.is_empty() { Ok(environment) } else { Err(ConfigError::Invalid(faults)) }
    }

    /// What `SECRET_KEY` seals secrets at rest with.
    #[must_use]
    pub fn seal(&self) -> Option<Seal> {
        self.secret_key.as_ref().map(|key| Seal::new(key.expose()))
    }

    fn take(&mut self, name: &str, text: String) -> Result<(), (String, Option<String>)> {
        // Compose files hand down variables that nobody set as empty text: empty means unset.
        if text.is_empty() && name != URL && !name.starts_with(PREFIX) {
            return Ok(());
        }
        match name {
            "API_KEY" => self.api_key = Some(secret(name, text)?),
            "SECRET_KEY" => self.secret_key = Some(secret(name, text)?),
            "ENVIRONMENT" => self.production = is_production(&text)?,
            "ENABLE_FEDERATED" => {
                self.enable_federated = boolean(&text).ok_or_else(|| {
                    (format!("`{text}` is neither true nor false"), Some("write true or false".into()))
                })?;
            }
            URL => self.url = url(text)?,
            _ => self.overrides.push(overridden(name, &text)?),
        }
        Ok(())
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || matches!(name, "API_KEY" | "SECRET_KEY" | "ENVIRONMENT" | "ENABLE_FEDERATED")
}

fn secret(name: &str, text: String) -> Result<Secret, (String, Option<String>)> {
    if text.chars().count() < KEY_CHARS_MIN || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let what = format!("{name} must be at least {KEY_CHARS_MIN} characters without blanks");
        return Err((what, Some("make one with: openssl rand -hex 32".into())));
    }
    Ok(Secret(text))
}

/// `production` closes doors: a misspelt one must not leave them open.
fn is_production(text: &str) -> Result<bool, (String, Option<String>)> {
    const WORDS: [&str; 4] = ["production", "staging", "development", "test"];
    match text.to_ascii_lowercase().as_str() {
        "production" => Ok(true),
        "staging" | "development" | "test" => Ok(false),
        other => Err((suggest::unknown("ENVIRONMENT", other, &WORDS), None)),
    }
}

fn url(text: String) -> Result<Option<String>, (String, Option<String>)> {
    if text.is_empty() {
        return Ok(None);
    }
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(char::is_whitespace) => Ok(Some(text)),
        Some(_) | None => {
            Err((format!("`{text}` is no address of a gateway"), Some("write it like http://127.0.0.1:8000".into())))
        }
    }
}

/// The variable that sets the key at `path`.
#[must_use]
pub fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

fn overridden(name: &str, text: &str) -> Result<Override, (String, Option<String>)> {
    let Some(key) = KEYS.iter().find(|key| variable(key.path) == name) else {
        return Err((format!("unknown variable `{name}`"), Some(advice(name))));
    };
    if text.trim().is_empty() {
        if key.kind == super::kind::Kind::Path {
            return Ok(Override { variable: name.to_owned(), path: key.path, value: Json::Null });
        }
        let help = format!("give {}, or unset the variable", key.kind.expects());
        return Err((format!("`{}` has no value", key.path), Some(help)));
    }
    let value = key.kind.check_text(text).map_err(|wrong| sentence(key.path, key.unit, wrong))?;
    Ok(Override { variable: name.to_owned(), path: key.path, value })
}

fn advice(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("AIVILLAGE_FEDERATED_SYSTEMS__") {
        return format!("the section `federated_systems` is implied: write {PREFIX}{rest}");
    }
    let valid: Vec<String> = KEYS.iter().map(|key| variable(key.path)).chain([URL.to_owned()]).collect();
    // A right key whose section is wrong or forgotten.
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    let key = bare.rsplit("__").next().unwrap_or(bare).to_ascii_lowercase();
    let same_key = KEYS.iter().map(|k| k.path).find(|path| path.rsplit('.').next() == Some(key.as_str()));
    let near = suggest_variable(name, &valid);
    match (near, same_key) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, Some(path)) => format!("did you mean {}?", variable(path)),
        (None, None) => {
            format!("{URL}, or {PREFIX}<SECTION>__<KEY> for a key of `aivillage config show`")
        }
    }
}

/// Variables share long beginnings, which flatters every name: they are compared without them.
fn suggest_variable(name: &str, valid: &[String]) -> Option<String> {
    let bare = |text: &str| text.trim_start_matches(PREFIX).to_ascii_lowercase();
    let given = bare(name);
    valid
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&given, &bare(candidate)), candidate))
        .min()
        .filter(|(distance, _)| *distance <= 3.max(given.len() / 5))
        .map(|(_, candidate)| candidate.clone())
}
