//! Local training: a round's epochs of stochastic gradient descent on a node's own rows.
//!
//! Promise: the order of rows derives from the job's seed, the round and the node's enrolled name only, and every sum has a
//! fixed order, so the same inputs give the same bits on every run. Runs on one thread: splitting small batches costs more
//! than it gains, and a machine with many cores runs many nodes.

use aivillage_base::Architecture;
use aivillage_base::rng::SeededRng;
use aivillage_base::time::Clock;
use aivillage_base::wire::{LocalMetrics, LocalTraining};
use aivillage_training::trainer::{LocalOutcome, TrainError};

use crate::data::{Batch, Dataset};
use crate::eval::{BLOCK_ROWS, fitting, run};
use crate::loss::{as_f64, differentiate};
use crate::network::{Network, Workspace};
use crate::sgd::Sgd;

/// What to train, and whose randomness to use.
#[derive(Debug, Clone, Copy)]
pub struct LocalJob<'a> {
    /// The model's shape.
    pub architecture: &'a Architecture,
    /// Epochs, batch size, step size.
    pub training: &'a LocalTraining,
    /// The job's seed.
    pub seed: u64,
    /// The round, from 1.
    pub round: u32,
    /// The node's enrolled name.
    pub node: &'a str,
}

/// Trains from `received` (layout order) on `data`.
///
/// The metrics are: mean loss over the last epoch; share of `data` that the *received* model classifies right; time by
/// `clock`.
///
/// # Errors
/// [`TrainError::Model`] if model, recipe and data do not fit; [`TrainError::Diverged`] as soon as an epoch's loss or the
/// final values are not finite: nothing of such an update may leave.
pub fn local(
    job: LocalJob<'_>,
    received: &[f32],
    data: &Dataset,
    clock: &dyn Clock,
) -> Result<LocalOutcome, TrainError> {
    let started = clock.now().monotonic_ms;
    check(job.training)?;
    let network = fitting(job.architecture, received, data)?;
    let examples = u32::try_from(data.rows()).map_err(|_| TrainError::Model("more than 2^32 rows".into()))?;
    let accuracy = accuracy(&network, received, data);
    let mut run = Run::new(&network, job, received, data);
    let mut loss = 0.0;
    for epoch in 1..=job.training.epochs {
        loss = run.epoch(data) / f64::from(examples);
        if !loss.is_finite() || !run.values.iter().all(|v| v.is_finite()) {
            return Err(TrainError::Diverged { epoch });
        }
    }
    let train_ms = clock.now().monotonic_ms.saturating_sub(started);
    Ok(LocalOutcome { values: run.values, examples, metrics: LocalMetrics { loss, accuracy, train_ms } })
}

fn check(training: &LocalTraining) -> Result<(), TrainError> {
    let LocalTraining { epochs, batch_size, learning_rate, momentum, weight_decay, proximal_mu: _ } = *training;
    let ok = epochs >= 1
        && batch_size >= 1
        && learning_rate.is_finite()
        && learning_rate > 0.0
        && (0.0..1.0).contains(&momentum)
        && weight_decay.is_finite()
        && weight_decay >= 0.0;
    if ok {
        return Ok(());
    }
    Err(TrainError::Model(format!(
        "cannot train as asked ({training:?}): epochs and batch_size from 1, learning_rate above 0, momentum in [0, 1), \
         weight_decay from 0"
    )))
}

fn accuracy(network: &Network, values: &[f32], data: &Dataset) -> Option<f64> {
    data.labels()?;
    let mut work = network.workspace(BLOCK_ROWS.min(data.rows()));
    let right = run(network, values, data, &mut work).right;
    Some(as_f64(right) / as_f64(data.rows()))
}

/// The state of one round's local training.
struct Run<'a> {
    network: &'a Network,
    values: Vec<f32>,
    gradient: Vec<f32>,
    optimiser: Sgd,
    work: Workspace<f32>,
    batch: Batch,
    /// Row numbers, reshuffled each epoch.
    order: Vec<usize>,
    batch_rows: usize,
    rng: SeededRng,
}

impl<'a> Run<'a> {
    fn new(network: &'a Network, job: LocalJob<'_>, received: &[f32], data: &Dataset) -> Self {
        let batch_rows = usize::try_from(job.training.batch_size).map_or(data.rows(), |b| b.min(data.rows()));
        Self {
            network,
            values: received.to_vec(),
            gradient: vec![0.0; received.len()],
            optimiser: Sgd::new(job.training, received.len()),
            work: network.workspace(batch_rows),
            batch: Batch::new(),
            order: (0..data.rows()).collect(),
            batch_rows,
            rng: SeededRng::new("batch order", job.seed, &[&job.round.to_le_bytes(), job.node.as_bytes()]),
        }
    }

    /// One pass over the rows; returns the sum of their losses, each seen just before its step.
    fn epoch(&mut self, data: &Dataset) -> f64 {
        self.rng.shuffle(&mut self.order);
        let mut loss = 0.0;
        for rows in self.order.chunks(self.batch_rows) {
            self.batch.gather(data, rows);
            loss += step(
                self.network,
                &mut self.values,
                &mut self.gradient,
                &self.batch,
                &mut self.work,
                &mut self.optimiser,
            );
        }
        loss
    }
}

/// One optimiser step on one batch; returns the sum of its rows' losses before the step.
pub(crate) fn step(
    network: &Network,
    values: &mut [f32],
    gradient: &mut [f32],
    batch: &Batch,
    work: &mut Workspace<f32>,
    optimiser: &mut Sgd,
) -> f64 {
    network.forward(values, batch.x(), batch.rows(), work);
    let loss = |outputs: &[f32], gradient: &mut [f32]| differentiate(outputs, batch.wanted(), gradient).loss;
    let loss = network.backward(values, batch.x(), batch.rows(), work, gradient, loss);
    optimiser.step(values, gradient);
    loss
}
