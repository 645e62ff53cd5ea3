//! Predictions: a bundle becomes a model in memory that several threads may ask at once.
//!
//! Promise: a row's prediction does not depend on the rows that come with it, to the bit.

use std::sync::{Mutex, PoisonError};

use aivillage_base::arch::Task;
use aivillage_base::bundle;
use aivillage_inference::predictor::{LoadedModel, PredictError};

use crate::layers::Statistics;
use crate::loss::softmax;
use crate::network::{Network, Workspace};

/// Rows computed at once.
const BLOCK_ROWS: usize = 64;
/// Work buffers kept between calls: as many threads as may predict at once without allocating anew.
const SPARE_MAX: usize = 8;

/// Parses and checks a whole bundle.
///
/// # Errors
/// [`PredictError::Unfit`] if the bytes are no bundle of ours.
pub(crate) fn load(bytes: &[u8]) -> Result<Box<dyn LoadedModel>, PredictError> {
    let (architecture, values) = bundle::read(bytes).map_err(|e| PredictError::Unfit(e.to_string()))?;
    let network = Network::new(&architecture).map_err(|e| PredictError::Unfit(e.to_string()))?;
    network.check(&values).map_err(PredictError::Unfit)?;
    Ok(Box::new(Model { network, values, spare: Mutex::new(Vec::new()) }))
}

/// A model in memory.
struct Model {
    network: Network,
    values: Vec<f32>,
    /// Work buffers that no call is using.
    spare: Mutex<Vec<Scratch>>,
}

/// Buffers of one call.
struct Scratch {
    work: Workspace<f32>,
    x: Vec<f32>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model of {} parameters", self.values.len())
    }
}

impl Model {
    fn check(&self, rows: &[Vec<f32>]) -> Result<(), PredictError> {
        for (i, row) in rows.iter().enumerate() {
            if row.len() != self.network.input() {
                let (given, want) = (row.len(), self.network.input());
                return Err(PredictError::Unfit(format!("row {i} has {given} numbers, the model takes {want}")));
            }
            if row.iter().any(|v| !v.is_finite()) {
                return Err(PredictError::Unfit(format!("row {i} holds a number that is not finite")));
            }
        }
        Ok(())
    }

    fn block(&self, rows: &[Vec<f32>], scratch: &mut Scratch, out: &mut Vec<Vec<f32>>) -> Result<(), PredictError> {
        scratch.x.clear();
        for row in rows {
            scratch.x.extend_from_slice(row);
        }
        let outputs =
            self.network.forward(&self.values, &scratch.x, rows.len(), Statistics::Running, &mut scratch.work);
        for row in outputs.chunks_exact(self.network.task().outputs()) {
            let mut row = row.to_vec();
            match self.network.task() {
                Task::Classification { classes } => softmax(&mut row, classes),
                Task::Regression => {}
            }
            if !row.iter().all(|v| v.is_finite()) {
                return Err(PredictError::Unfit("the model's output for this input is not finite".into()));
            }
            out.push(row);
        }
        Ok(())
    }
}

impl LoadedModel for Model {
    fn predict(&self, rows: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, PredictError> {
        self.check(rows)?;
        // A panic while the lock was held leaves a list of whole buffers: nothing in it can be half written.
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = spare().pop();
        let mut scratch = taken.unwrap_or_else(|| Scratch { work: self.network.workspace(BLOCK_ROWS), x: Vec::new() });
        let mut out = Vec::with_capacity(rows.len());
        let result = rows.chunks(BLOCK_ROWS).try_for_each(|block| self.block(block, &mut scratch, &mut out));
        let mut spare = spare();
        if spare.len() < SPARE_MAX {
            spare.push(scratch);
        }
        drop(spare);
        result.map(|()| out)
    }
}
