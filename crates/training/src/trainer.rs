//! What training needs from a tensor library, as traits; `engine` implements them.

use std::fmt::Debug;

use aivillage_base::Architecture;
use aivillage_base::wire::{DataSummary, Invitation, LocalMetrics};

/// Why local training gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// None of the node's data sets fits the job.
    #[error("no data set of this node fits the job: {0}")]
    NoData(String),
    /// Loss or weights stopped being finite.
    #[error("training diverged in epoch {epoch}: try a smaller learning rate")]
    Diverged {
        /// Counts from 1.
        epoch: u32,
    },
    /// The model does not hold together.
    #[error("the model cannot be trained here: {0}")]
    Model(String),
}

/// Makes the weights that a job starts from.
///
/// # Behavior
/// - The same architecture and seed give the same values on every machine.
pub trait Initialiser: Send + Sync + Debug {
    /// Values in layout order.
    fn initial_values(&self, architecture: &Architecture, seed: u64) -> Vec<f32>;
}

/// What came out of training on a node's own data.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalOutcome {
    /// New values in layout order.
    pub values: Vec<f32>,
    /// Rows trained on, at least 1.
    pub examples: u32,
    /// What was measured.
    pub metrics: LocalMetrics,
}

/// Trains on the data of one node.
///
/// # Behavior
/// - Blocking: called on a blocking thread.
/// - The same invitation, node name, values and data give the same bits on every run and thread count.
pub trait Trainer: Send + Sync + Debug {
    /// What the node has, by shape.
    fn data(&self) -> Vec<DataSummary>;
    /// Trains from `values` (layout order) as the invitation says; randomness derives from the invitation's seed, its
    /// round and `node`, the node's enrolled name.
    ///
    /// # Errors
    /// [`TrainError`]
    fn train(&self, invitation: &Invitation, node: &str, values: &[f32]) -> Result<LocalOutcome, TrainError>;
}
