//! Runs models: local training steps and predictions. The only crate with a tensor library.
//!
//! ```text
//!            data::load / split            initial_values
//!                   |                            |
//!   Dataset --> train::local(values) --> new values --> eval::evaluate
//!                   |                            |
//!              Network (f32)               bundle --> Engine::load --> predict(rows)
//!         forward, loss, backward
//! ```
//!
//! - [`data`]: a node's files, the bundled data sets, and how these are dealt to nodes;
//! - [`train`]: one round's local training; [`eval`]: loss and accuracy over a data set; [`initial`]: first weights;
//! - [`node`]: [`Engine`] and [`NodeTrainer`], which implement what `training` and `inference` ask for;
//! - [`mod@bench`]: training speed.
//!
//! Promises: the same inputs and seed give the same bits on every run and thread count; exp and log come from `libm`,
//! randomness from `base::rng`, products and sums from loops whose order depends on shapes only (`kernel`, and `matrixmultiply`
//! by way of `ndarray`). Processors with and without fused multiply-add differ in the last bit. Each gradient is checked
//! against central differences in f64.
//!
//! It must not know: sockets, stores, rounds, clocks other than the one it is given.

pub mod bench;
pub mod data;
pub mod eval;
pub mod initial;
pub mod node;
pub mod train;

mod float;
mod kernel;
mod layers;
mod loss;
mod network;
mod predict;
mod pull;
mod sgd;

pub use bench::{TrainBench, TrainSpeed, bench_recipes, bench_train};
pub use eval::{Evaluation, evaluate};
pub use initial::{initial_pieces, initial_values};
pub use node::{Engine, NodeTrainer};
pub use train::{Extras, LocalJob, local, local_with};

#[cfg(test)]
mod tests;
