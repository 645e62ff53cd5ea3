//! What every handler can reach: the rooms, the stores, the limits, and the facts of the process.

use std::sync::Arc;

use aivillage_base::ErrorKind;
use aivillage_base::ports::{Blobs, Records};
use aivillage_base::time::Clock;
use aivillage_fog::Inventory;
use aivillage_inference::Inference;
use aivillage_training::Training;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::auth::ApiKeys;
use crate::body::Bodies;
use crate::config::GatewayConfig;
use crate::feeds::Feeds;
use crate::idempotency::Idempotency;
use crate::limits::Limits;
use crate::metrics::HttpMetrics;
use crate::ports::{Enrolment, StatusSource};
use crate::problem::Problem;

/// A part of the house that may be off or may have failed to start.
#[derive(Debug, Clone)]
pub enum Part<T> {
    /// It runs.
    On(T),
    /// It does not, and its routes answer 503 with the reason.
    Off {
        /// Why, e.g. "training.enabled is false".
        reason: String,
    },
}

impl<T> Part<T> {
    /// Why it is off, if it is.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::On(_) => None,
            Self::Off { reason } => Some(reason),
        }
    }
}

/// What the gateway is built from.
#[derive(Debug)]
pub struct GatewayDeps {
    /// The training coordinator.
    pub training: Part<Training>,
    /// The inference coordinator.
    pub inference: Part<Inference>,
    /// Who is there.
    pub inventory: Inventory,
    /// Who may call.
    pub keys: ApiKeys,
    /// Who may join.
    pub enrolment: Arc<dyn Enrolment>,
    /// Models.
    pub blobs: Arc<dyn Blobs>,
    /// The gateway's own tables: stored answers, owners of jobs.
    pub records: Arc<dyn Records>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Limits and rules.
    pub config: GatewayConfig,
    /// Facts about the process.
    pub status: Arc<dyn StatusSource>,
    /// All metric families of the process; the gateway adds its own.
    pub registry: Registry,
}

/// Shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) training: Part<Training>,
    pub(crate) inference: Part<Inference>,
    pub(crate) inventory: Inventory,
    pub(crate) keys: ApiKeys,
    pub(crate) enrolment: Arc<dyn Enrolment>,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: GatewayConfig,
    pub(crate) status: Arc<dyn StatusSource>,
    pub(crate) registry: Registry,
    pub(crate) metrics: HttpMetrics,
    pub(crate) limits: Limits,
    pub(crate) bodies: Bodies,
    pub(crate) idempotency: Arc<Idempotency>,
    pub(crate) feeds: Feeds,
    pub(crate) openapi: bytes::Bytes,
    pub(crate) cancel: CancellationToken,
    pub(crate) started_ms: u64,
}

/// The guide's words for a training part that is off; the reason follows in `errors`-free prose.
const TRAINING_OFF: &str = "Training coordinator not available";
/// The guide's words for an inference part that is off.
const INFERENCE_OFF: &str = "Inference coordinator not available";

/// 503 with the guide's words; the reason is a fault of its own, because the guide's `detail` is exact.
fn off(words: &str, reason: &str) -> Problem {
    Problem::new(ErrorKind::Unavailable, words)
        .with_errors(vec![crate::problem::Fault::new("", reason)])
        .retry_after(30)
}

impl App {
    /// The training coordinator.
    ///
    /// # Errors
    /// 503 with the guide's words and the reason.
    pub(crate) fn training(&self) -> Result<&Training, Problem> {
        match &self.training {
            Part::On(training) => Ok(training),
            Part::Off { reason } => Err(off(TRAINING_OFF, reason)),
        }
    }

    /// The inference coordinator.
    ///
    /// # Errors
    /// 503 with the guide's words and the reason.
    pub(crate) fn inference(&self) -> Result<&Inference, Problem> {
        match &self.inference {
            Part::On(inference) => Ok(inference),
            Part::Off { reason } => Err(off(INFERENCE_OFF, reason)),
        }
    }
}
