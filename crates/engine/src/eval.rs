//! How good a model is on a data set.

use aivillage_base::Architecture;
use aivillage_training::trainer::TrainError;
use serde::Serialize;

use crate::data::Dataset;
use crate::layers::Statistics;
use crate::loss::{Sums, as_f64, measure};
use crate::network::{Network, Workspace};

/// Rows computed at once: large enough for the matrix product to be fast, small enough to stay in cache. Fixed, because it
/// groups the sum of the losses.
pub(crate) const BLOCK_ROWS: usize = 256;

/// What was measured over all rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss: cross-entropy in nats, or half squared error.
    pub loss: f64,
    /// Share of rows classified right, 0 to 1; None for regression.
    pub accuracy: Option<f64>,
    /// Rows.
    pub rows: u64,
}

/// Measures the model `values` (layout order) on every row of `data`.
///
/// # Errors
/// [`TrainError::Model`] if architecture, values and data do not fit each other.
pub fn evaluate(architecture: &Architecture, values: &[f32], data: &Dataset) -> Result<Evaluation, TrainError> {
    let network = fitting(architecture, values, data)?;
    let mut work = network.workspace(BLOCK_ROWS.min(data.rows()));
    let sums = run(&network, values, data, &mut work);
    let rows = as_f64(data.rows());
    let accuracy = data.labels().map(|_| as_f64(sums.right) / rows);
    Ok(Evaluation { loss: sums.loss / rows, accuracy, rows: data.rows() as u64 })
}

/// The network of `architecture`, after checking that values and data fit it.
pub(crate) fn fitting(architecture: &Architecture, values: &[f32], data: &Dataset) -> Result<Network, TrainError> {
    let network = Network::new(architecture).map_err(|e| TrainError::Model(e.to_string()))?;
    if values.len() != network.parameters() {
        let (given, want) = (values.len(), network.parameters());
        return Err(TrainError::Model(format!("{given} values given, the architecture has {want}")));
    }
    network.check(values).map_err(TrainError::Model)?;
    if data.width() != network.input() || data.task() != network.task() {
        return Err(TrainError::Model(format!(
            "the model takes {:?} for {:?}, but data set `{}` has {:?} for {:?}",
            architecture.input,
            architecture.task,
            data.name(),
            data.input(),
            data.task(),
        )));
    }
    Ok(network)
}

/// Sums over all rows; `work` gives the size of a block.
pub(crate) fn run(network: &Network, values: &[f32], data: &Dataset, work: &mut Workspace<f32>) -> Sums {
    let mut total = Sums::default();
    let mut start = 0;
    while start < data.rows() {
        let end = (start + work.rows()).min(data.rows());
        let outputs = network.forward(values, data.x(start..end), end - start, Statistics::Running, work);
        let sums = measure(outputs, data.wanted(start..end));
        total.loss += sums.loss;
        total.right += sums.right;
        start = end;
    }
    total
}
