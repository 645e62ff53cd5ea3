//! How a command ends: its exit code, one message, and what to do next.

use std::fmt;

use aivillage_base::ErrorKind;

/// Exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// It did not work.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong.
    Configuration = 3,
    /// No or wrong credentials.
    Authentication = 4,
    /// No such thing.
    NotFound = 5,
    /// The state of the thing forbids it.
    Conflict = 6,
    /// Out of reach, full or stopping.
    Unavailable = 7,
    /// Refused by a policy or for privacy.
    Refused = 8,
    /// A bug.
    Bug = 70,
}

impl From<ErrorKind> for ExitCode {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid | ErrorKind::TooLarge | ErrorKind::Internal => Self::Failed,
            ErrorKind::PrivacyUnsupported => Self::Refused,
            ErrorKind::Unauthenticated | ErrorKind::Forbidden => Self::Authentication,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Overloaded | ErrorKind::Unavailable => Self::Unavailable,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// Exit code.
    pub code: ExitCode,
    /// What, where, why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl CliError {
    /// An error without a hint.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  -> {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}
