//! What can go wrong when a job is created, asked for or ended.

use aivillage_base::ErrorKind;
use aivillage_base::ports::StoreError;

/// One fault of a job's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON pointer (RFC 6901) to the field, e.g. `/hyperparameters/learning_rate`.
    pub pointer: String,
    /// What is wrong, the range or nearest valid name, what to do.
    pub detail: String,
    /// [`ErrorKind::Invalid`] or [`ErrorKind::PrivacyUnsupported`].
    pub kind: ErrorKind,
}

/// Why the training coordinator did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The job's description is refused; all faults together, names before privacy.
    #[error("{}", .0.iter().map(|f| format!("{}: {}", f.pointer, f.detail)).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Fault>),
    /// No job of this id.
    #[error("Job not found")]
    NotFound,
    /// A job of this id exists.
    #[error("job `{0}` exists already: choose another job_id, or leave it out")]
    Taken(String),
    /// The job has ended; its status is terminal.
    #[error("job `{job}` is {status}: it cannot be {wanted} any more")]
    Ended {
        /// The job.
        job: String,
        /// Its terminal status.
        status: &'static str,
        /// What was asked.
        wanted: &'static str,
    },
    /// The round asked for was not published, or its model is no longer kept.
    #[error("{0}")]
    NoModel(String),
    /// No kept update has this digest, of which the first characters are given.
    #[error(
        "no update {0} is kept: updates stay after their round where the job says `retain_updates: true` and their node \
             allows it"
    )]
    NoUpdate(String),
    /// Too many unfinished jobs are queued.
    #[error("{0} jobs are unfinished, as many as are accepted: wait for one to end or cancel one")]
    Full(usize),
    /// The coordinator is stopping.
    #[error("Training coordinator not available")]
    Stopped,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TrainingError {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(faults) => {
                let privacy = faults.iter().all(|f| f.kind == ErrorKind::PrivacyUnsupported);
                if privacy { ErrorKind::PrivacyUnsupported } else { ErrorKind::Invalid }
            }
            Self::NotFound | Self::NoModel(_) | Self::NoUpdate(_) => ErrorKind::NotFound,
            Self::Taken(_) | Self::Ended { .. } => ErrorKind::Conflict,
            Self::Full(_) => ErrorKind::Overloaded,
            Self::Stopped => ErrorKind::Unavailable,
            Self::Store(e) => e.kind(),
        }
    }
}
