//! Local training: a round's epochs of stochastic gradient descent on a node's own rows.
//!
//! Promise: the order of rows derives from the job's seed, the round and the node's enrolled name only, and every sum has a
//! fixed order, so the same inputs give the same bits on every run. Runs on one thread: splitting small batches costs more
//! than it gains, and a machine with many cores runs many nodes.

use aivillage_base::Architecture;
use aivillage_base::rng::SeededRng;
use aivillage_base::time::Clock;
use aivillage_base::wire::{LocalMetrics, LocalTraining};
use aivillage_training::trainer::{LocalOutcome, LocalTerms, PersonalModel, TrainError};

use crate::data::{Batch, Dataset};
use crate::eval::{BLOCK_ROWS, fitting, run};
use crate::layers::Statistics;
use crate::loss::{as_f64, differentiate};
use crate::network::{Network, Workspace};
use crate::pull::Pull;
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

/// What a strategy asks for beyond the recipe; by default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Correction of gradients, and the personal model as it was.
    pub terms: LocalTerms<'a>,
    /// Ditto's lambda, > 0: how strongly a personal model, trained beside, is drawn to the received one. None = no such
    /// model.
    pub personal_lambda: Option<f64>,
    /// Measure the mean loss of the received model?
    pub initial_loss: bool,
    /// Scale each row's gradient to a norm of at most this, above 0, before a batch's are averaged; None = as they are. No job
    /// asks for it yet: it is half of differential privacy, and nothing without noise.
    pub clip: Option<f64>,
}

/// Trains from `received` (layout order) on `data`, as the recipe says.
///
/// # Errors
/// As [`local_with`].
pub fn local(
    job: LocalJob<'_>,
    received: &[f32],
    data: &Dataset,
    clock: &dyn Clock,
) -> Result<LocalOutcome, TrainError> {
    local_with(job, received.to_vec(), &Extras::default(), data, clock)
}

/// Trains from `received` (layout order) on `data`, as recipe and strategy say.
///
/// The metrics are: mean loss over the last epoch; share of `data` that the *received* model classifies right; time by
/// `clock`. A personal model takes as many steps as the other, in an order of its own, and shares nothing with it but where
/// it is drawn to.
///
/// # Errors
/// [`TrainError::Model`] if model, recipe, strategy and data do not fit; [`TrainError::Diverged`] as soon as an epoch's loss
/// or the values are not finite: nothing of such an update may leave.
pub fn local_with(
    job: LocalJob<'_>,
    received: Vec<f32>,
    extras: &Extras<'_>,
    data: &Dataset,
    clock: &dyn Clock,
) -> Result<LocalOutcome, TrainError> {
    let started = clock.now().monotonic_ms;
    check(job.training)?;
    let network = fitting(job.architecture, &received, data)?;
    check_extras(extras, received.len())?;
    if extras.clip.is_some() {
        job.architecture.examples_apart().map_err(|e| TrainError::Model(e.to_string()))?;
    }
    let examples = u32::try_from(data.rows()).map_err(|_| TrainError::Model("more than 2^32 rows".into()))?;
    let (accuracy, initial_loss) = measured(&network, &received, data, extras.initial_loss);
    #[expect(clippy::cast_possible_truncation, reason = "training is in f32: its constants are rounded once, here")]
    let (mu, lambda) = (job.training.proximal_mu as f32, extras.personal_lambda.map(|lambda| lambda as f32));
    // Both terms are drawn to the received model: only then is a copy of it needed.
    let anchor = if mu != 0.0 || lambda.is_some() { received.clone() } else { Vec::new() };
    let pull = Pull { anchor: &anchor, strength: mu, correction: extras.terms.correction };
    let mut run = Run::new(&network, job, "batch order", received, data);
    run.clip = extras.clip;
    let (values, loss, steps) = run.train(job.training, pull, data)?;
    let metrics = LocalMetrics { loss, accuracy, train_ms: clock.now().monotonic_ms.saturating_sub(started) };
    let personal = match lambda {
        Some(lambda) => Some(personal(&network, job, extras.terms.personal, (&anchor, lambda), data, clock)?),
        None => None,
    };
    Ok(LocalOutcome { values, examples, steps, initial_loss, personal, metrics })
}

/// Ditto (Li et al. 2021, algorithm 1): v <- v - rate (gradient of the loss at v + lambda (v - w received)).
fn personal(
    network: &Network,
    job: LocalJob<'_>,
    kept: &[f32],
    (anchor, strength): (&[f32], f32),
    data: &Dataset,
    clock: &dyn Clock,
) -> Result<PersonalModel, TrainError> {
    let started = clock.now().monotonic_ms;
    let start = if kept.is_empty() { anchor } else { kept };
    let (accuracy, _) = measured(network, start, data, false);
    let pull = Pull { anchor, strength, correction: &[] };
    let run = Run::new(network, job, "personal batch order", start.to_vec(), data);
    let (values, loss, _) = run.train(job.training, pull, data)?;
    let train_ms = clock.now().monotonic_ms.saturating_sub(started);
    Ok(PersonalModel { values, metrics: LocalMetrics { loss, accuracy, train_ms } })
}

fn check(training: &LocalTraining) -> Result<(), TrainError> {
    let LocalTraining { epochs, batch_size, learning_rate, momentum, weight_decay, proximal_mu } = *training;
    let ok = epochs >= 1
        && batch_size >= 1
        && learning_rate.is_finite()
        && learning_rate > 0.0
        && (0.0..1.0).contains(&momentum)
        && weight_decay.is_finite()
        && weight_decay >= 0.0
        && proximal_mu.is_finite()
        && proximal_mu >= 0.0;
    if ok {
        return Ok(());
    }
    Err(TrainError::Model(format!(
        "cannot train as asked ({training:?}): epochs and batch_size from 1, learning_rate above 0, momentum in [0, 1), \
         weight_decay and proximal_mu from 0"
    )))
}

fn check_extras(extras: &Extras<'_>, parameters: usize) -> Result<(), TrainError> {
    let LocalTerms { correction, personal } = extras.terms;
    if [correction, personal].iter().any(|v| !v.is_empty() && v.len() != parameters) {
        return Err(TrainError::Model("a correction or personal model has another shape than the model".into()));
    }
    if extras.personal_lambda.is_some_and(|lambda| !lambda.is_finite() || lambda <= 0.0) {
        return Err(TrainError::Model("the pull of a personal model (lambda) must be above 0".into()));
    }
    if extras.clip.is_some_and(|bound| !bound.is_finite() || bound <= 0.0) {
        return Err(TrainError::Model("the bound of a row's gradient must be above 0".into()));
    }
    Ok(())
}

/// Accuracy for classification; the mean loss where it is asked for.
fn measured(network: &Network, values: &[f32], data: &Dataset, loss: bool) -> (Option<f64>, Option<f64>) {
    if data.labels().is_none() && !loss {
        return (None, None);
    }
    let mut work = network.workspace(BLOCK_ROWS.min(data.rows()));
    let (sums, rows) = (run(network, values, data, &mut work), as_f64(data.rows()));
    (data.labels().map(|_| as_f64(sums.right) / rows), loss.then_some(sums.loss / rows))
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
    clip: Option<f64>,
}

impl<'a> Run<'a> {
    /// At the start; `purpose` keeps the orders of two trainings of one round apart.
    fn new(network: &'a Network, job: LocalJob<'_>, purpose: &str, values: Vec<f32>, data: &Dataset) -> Self {
        let batch_rows = usize::try_from(job.training.batch_size).map_or(data.rows(), |b| b.min(data.rows()));
        Self {
            network,
            gradient: vec![0.0; values.len()],
            optimiser: Sgd::new(job.training, values.len()),
            values,
            work: network.workspace(batch_rows),
            batch: Batch::new(),
            order: (0..data.rows()).collect(),
            batch_rows,
            rng: SeededRng::new(purpose, job.seed, &[&job.round.to_le_bytes(), job.node.as_bytes()]),
            clip: None,
        }
    }

    /// All epochs; returns the new values, the mean loss over the last epoch and the number of steps.
    fn train(
        mut self,
        training: &LocalTraining,
        pull: Pull<'_>,
        data: &Dataset,
    ) -> Result<(Vec<f32>, f64, u32), TrainError> {
        let mut loss = 0.0;
        for epoch in 1..=training.epochs {
            loss = self.epoch(data, pull) / as_f64(data.rows());
            if !loss.is_finite() || !self.values.iter().all(|v| v.is_finite()) {
                return Err(TrainError::Diverged { epoch });
            }
        }
        let batches = u32::try_from(data.rows().div_ceil(self.batch_rows)).unwrap_or(u32::MAX);
        Ok((self.values, loss, batches.saturating_mul(training.epochs)))
    }

    /// One pass over the rows; returns the sum of their losses, each seen just before its step.
    fn epoch(&mut self, data: &Dataset, pull: Pull<'_>) -> f64 {
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
                pull,
                self.clip,
            );
        }
        loss
    }
}

/// One optimiser step on one batch, whose rows' gradients are clipped to a norm of `clip`; returns the sum of its rows' losses before the step.
#[expect(clippy::too_many_arguments, reason = "all that a step reads and writes; its buffers outlive it")]
pub(crate) fn step(
    network: &Network,
    values: &mut [f32],
    gradient: &mut [f32],
    batch: &Batch,
    work: &mut Workspace<f32>,
    optimiser: &mut Sgd,
    pull: Pull<'_>,
    clip: Option<f64>,
) -> f64 {
    network.forward(values, batch.x(), batch.rows(), Statistics::Block, work);
    let loss = |outputs: &[f32], gradient: &mut [f32]| differentiate(outputs, batch.wanted(), gradient).loss;
    let (x, rows) = (batch.x(), batch.rows());
    let loss = match clip {
        None => network.backward(values, x, rows, work, gradient, loss),
        Some(bound) => network.backward_clipped(values, x, rows, work, gradient, bound, loss),
    };
    pull.add(values, gradient);
    optimiser.step(values, gradient, network.trained());
    network.follow(values, work);
    loss
}
