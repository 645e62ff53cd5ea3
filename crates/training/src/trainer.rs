//! What training needs from a tensor library, as traits; `engine` implements them.

use std::fmt::{self, Debug};

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

/// Takes values piece by piece; an error ends the making.
pub type Pieces<'p> = &'p mut dyn FnMut(&[f32]) -> Result<(), String>;

/// Makes the weights that a job starts from.
///
/// # Behavior
/// - The same architecture and seed give the same values on every machine.
pub trait Initialiser: Send + Sync + Debug {
    /// Values in layout order.
    fn initial_values(&self, architecture: &Architecture, seed: u64) -> Vec<f32>;

    /// The same values in pieces, for who stores a model without holding it in memory.
    ///
    /// # Errors
    /// That of `out`.
    fn initial_pieces(&self, architecture: &Architecture, seed: u64, out: Pieces<'_>) -> Result<(), String> {
        out(&self.initial_values(architecture, seed))
    }
}

/// What a strategy brings into local training beside the recipe; vectors in layout order, empty = none.
#[derive(Clone, Copy, Default)]
pub struct LocalTerms<'a> {
    /// Added to every gradient: SCAFFOLD's `c - c_i`.
    pub correction: &'a [f32],
    /// Ditto's personal model as it was; none = it starts as the received model.
    pub personal: &'a [f32],
}

impl Debug for LocalTerms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalTerms({} and {} values)", self.correction.len(), self.personal.len())
    }
}

/// A model that stays on the node.
#[derive(Clone, PartialEq)]
pub struct PersonalModel {
    /// Values in layout order.
    pub values: Vec<f32>,
    /// Mean loss over its last epoch, and the share of the node's rows that it classified right before this training.
    pub metrics: LocalMetrics,
}

impl Debug for PersonalModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PersonalModel({} values, {:?})", self.values.len(), self.metrics)
    }
}

/// What came out of training on a node's own data.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalOutcome {
    /// New values in layout order.
    pub values: Vec<f32>,
    /// Rows trained on, at least 1.
    pub examples: u32,
    /// Optimiser steps, at least 1.
    pub steps: u32,
    /// Mean loss of the values that training started from, if the invitation asked for it.
    pub initial_loss: Option<f64>,
    /// The personal model, if the invitation asked for one.
    pub personal: Option<PersonalModel>,
    /// What was measured.
    pub metrics: LocalMetrics,
}

impl LocalOutcome {
    /// The outcome of training that no strategy asked anything of.
    #[must_use]
    pub fn plain(values: Vec<f32>, examples: u32, steps: u32, metrics: LocalMetrics) -> Self {
        Self { values, examples, steps, initial_loss: None, personal: None, metrics }
    }
}

/// Trains on the data of one node.
///
/// # Behavior
/// - Blocking: called on a blocking thread.
/// - The same invitation, node name, values, terms and data give the same bits on every run and thread count.
/// - `invitation.training.proximal_mu`, `invitation.initial_loss` and [`LocalRule::Ditto`] are met, or refused.
///
/// [`LocalRule::Ditto`]: aivillage_base::wire::LocalRule::Ditto
pub trait Trainer: Send + Sync + Debug {
    /// What the node has, by shape.
    fn data(&self) -> Vec<DataSummary>;
    /// Trains from `values` (layout order) as the invitation says; randomness derives from the invitation's seed, its
    /// round and `node`, the node's enrolled name.
    ///
    /// # Errors
    /// [`TrainError`]
    fn train(
        &self,
        invitation: &Invitation,
        node: &str,
        values: Vec<f32>,
        terms: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError>;
}
