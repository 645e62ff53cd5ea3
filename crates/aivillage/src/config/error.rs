//! What can be wrong with a configuration, told so that nobody has to open the source: the place with a caret,
//! the rule, and what to do.
//!
//! Promise: all faults of a text are reported together; the value of a secret never appears.

use std::fmt;
use std::path::PathBuf;

use super::tree::At;

/// A configuration that cannot be used. The binary ends with exit code 3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file named on the command line is not there.
    #[error("configuration file {}: not found; check `--config`, or leave it out to use the built-in values", path.display())]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// The file is there and cannot be read as text.
    #[error("configuration file {}: cannot be read: {why}", path.display())]
    Unreadable {
        /// As found.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// One or more faults, each with its place.
    #[error("{}", render(.0))]
    Invalid(Vec<Fault>),
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong, one sentence without a full stop.
    pub what: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Where a fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a text.
    Text {
        /// Name of the file.
        file: String,
        /// Line from 1; 0 = unknown.
        line: usize,
        /// Column from 1.
        column: usize,
        /// Characters to underline.
        width: usize,
        /// The line itself.
        excerpt: String,
    },
    /// In an environment variable.
    Variable(String),
}

impl Place {
    /// The place `at` in `text`, with the line it stands on.
    pub(crate) fn in_text(file: &str, text: &str, at: At) -> Self {
        let line = at.line.checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
        // One tab counts as one column for the parser: shown as one blank, so that the caret stays under it.
        let excerpt: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        let left = excerpt.trim_end().chars().count().saturating_sub(at.column.saturating_sub(1));
        Self::Text {
            file: file.to_owned(),
            line: at.line,
            column: at.column.max(1),
            width: at.width.min(left).max(1),
            excerpt: excerpt.trim_end().to_owned(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        let margin = match &self.place {
            Place::Text { file, line: 0, .. } => {
                writeln!(f, " --> {file}")?;
                1
            }
            Place::Text { file, line, column, width, excerpt } => {
                let margin = line.to_string().len();
                writeln!(f, "{:margin$}--> {file}:{line}:{column}", "")?;
                writeln!(f, "{:margin$} |", "")?;
                writeln!(f, "{line} | {excerpt}")?;
                writeln!(f, "{:margin$} | {:skip$}{}", "", "", "^".repeat(*width), skip = column - 1)?;
                margin
            }
            Place::Variable(name) => {
                writeln!(f, " --> environment variable {name}")?;
                1
            }
        };
        if let Some(help) = &self.help {
            writeln!(f, "{:margin$} = {help}", "")?;
        }
        Ok(())
    }
}

fn render(faults: &[Fault]) -> String {
    let mut text: Vec<String> = faults.iter().map(Fault::to_string).collect();
    let count = faults.len();
    let noun = if count == 1 { "fault" } else { "faults" };
    text.push(format!("configuration: {count} {noun}; nothing was started"));
    text.join("\n")
}
