//! Inference: a catalogue of models, requests for predictions, and the nodes that answer them; both halves.
//!
//! ```text
//! client ──submit──> admission ──> plan ──PredictTask──> node: worker ──> engine
//!                     (429)        ^  └── a node that fails, is lost or too slow ──┐        │
//!                                  └────────────── planned again <─────────────────┘        │
//! client <──result── stored, if its id was given away <──────────── Prediction ─────────────┘
//! ```
//!
//! Coordinator's half: [`Inference`] (handle) over the pure [`core`] and [`plan`]; node's half: [`worker`]. Both know a
//! model by its BLAKE3 only.
//!
//! Promises: a request whose id was given away survives a restart until its deadline (I1); its outcome is stored before it
//! can be read; the books balance: requests = ok + failed + shed + expired + active (I8); a request is answered once; a
//! privacy level that cannot be given is refused, never lowered.
//! Must not know: HTTP, sockets, databases, tensor libraries, training.
#![warn(missing_docs)]

mod answer;
mod catalogue;
pub mod config;
mod coordinator;
pub mod core;
pub mod error;
pub mod handle;
pub mod input;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod predictor;
pub mod request;
mod store;
pub mod worker;

pub use config::{InferenceConfig, LoadBalancingStrategy};
pub use error::{Fault, InferenceError};
pub use handle::{Deps, Inference, Uploading};
pub use metrics::Metrics;
pub use model::{ModelInfo, ModelRecord, ModelState};
pub use predictor::{LoadedModel, PredictError, Predictor};
pub use request::{PrivacyLevel, RequestStatus, RequestView, Submit, Submitted};
pub use worker::{Worker, WorkerConfig, WorkerDeps};
