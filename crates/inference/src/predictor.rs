//! What a worker needs from an engine: load a bundle, run rows through it.
//!
//! Implemented by `engine`; called on blocking threads only.

use std::fmt::Debug;

/// Why an engine could not load or predict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The bundle or the rows are wrong: no node can do better.
    #[error("{0}")]
    Unfit(String),
    /// It did not work here: another node may do better.
    #[error("{0}")]
    Failed(String),
}

/// Makes models ready to predict.
///
/// # Behavior
/// - `load` refuses bytes that are no bundle of ours; it never runs anything the bundle says.
pub trait Predictor: Send + Sync + Debug {
    /// Parses and checks a whole bundle.
    ///
    /// # Errors
    /// [`PredictError`] with one sentence.
    fn load(&self, bundle: &[u8]) -> Result<Box<dyn LoadedModel>, PredictError>;
}

/// A model in memory.
///
/// # Behavior
/// - `predict` gives one output row for each input row, in order: class probabilities (they sum to one) for a
///   classification, one value for a regression. The same rows give the same bits.
/// - Several threads may predict at the same time.
pub trait LoadedModel: Send + Sync + Debug {
    /// Runs `rows`, each as long as the model's flattened input.
    ///
    /// # Errors
    /// [`PredictError`] with one sentence that holds no input values.
    fn predict(&self, rows: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, PredictError>;
}
