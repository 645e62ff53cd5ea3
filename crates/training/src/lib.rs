//! Federated training: jobs and rounds, both halves of the protocol.
//!
//! One job is a row of rounds; one round is a row of attempts. Each arrow is one persisted step:
//!
//! ```text
//! job:    created -> running -> completed | failed | cancelled
//! round:  recruiting -> [keying ->] collecting -> [unmasking ->] publishing -> done
//!              ^            |             |              |             |
//!              +------------+-- abandoned (too few, too late) : next attempt, same model
//! ```
//!
//! - [`spec`]: what may be asked for; every fault of a request is reported together.
//! - [`round`], [`job`], [`step`]: the pure machines and their words. `step(now, input)` returns changes to persist and
//!   effects to carry out; no clock, no I/O, no weights inside.
//! - [`secure`]: what secure aggregation, whose protocol is in the crate `privacy`, is applied to.
//! - [`strategy`], [`aggregate`]: from stored updates to the next model, block by block.
//! - [`store`]: records of jobs, rounds and members over the one records port.
//! - [`coordinator`], [`handle`]: the async shell, one task a job; persist, then send.
//! - [`participant`]: the node's half: policy, training, quantising, sending until receipt.
//!
//! Invariants: round numbers are gap-free and model(r+1) is a function of model(r) and the accepted set; an update counts
//! once; nothing is sent before it is stored; a model is the same whatever was killed on the way (k = n).
//!
//! Must not know: HTTP, sockets, databases, tensor libraries, inference.

mod actor;
pub mod aggregate;
pub mod audit;
pub mod config;
pub mod coordinator;
pub mod error;
pub mod handle;
pub mod helper;
pub mod job;
pub mod kept;
pub mod metrics;
pub mod participant;
pub mod record;
pub mod recruit;
pub mod refusals;
pub mod round;
pub mod secure;
mod shared;
pub mod spec;
mod status;
pub mod step;
pub mod store;
pub mod strategy;
#[cfg(test)]
mod testing;
pub mod trainer;
pub mod view;

pub use config::{Selection, TrainingConfig};
pub use error::{Fault, TrainingError};
pub use handle::{Deps, Training};
pub use spec::{CatalogueModel, JobRequest, JobSpec, ModelChoice, StrategyChoice};
pub use trainer::{Initialiser, LocalOutcome, LocalTerms, PersonalModel, TrainError, Trainer};
