//! Inference: a catalogue of models, requests for predictions, and the nodes that answer them.
#![warn(missing_docs)]

pub mod config;
pub mod core;
pub mod error;
pub mod handle;
pub mod input;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod predictor;
pub mod request;

pub use config::{InferenceConfig, LoadBalancingStrategy};
pub use error::{Fault, InferenceError};
pub use handle::{Deps, Inference};
pub use metrics::Metrics;
pub use model::{ModelInfo, ModelRecord, ModelState};
pub use predictor::{LoadedModel, PredictError, Predictor};
pub use request::{PrivacyLevel, RequestStatus, RequestView, Submit, Submitted};
