//! The engine as the rooms see it: [`Engine`] makes first weights and loads models, [`NodeTrainer`] trains on a node's data.

use std::sync::Arc;

use aivillage_base::Architecture;
use aivillage_base::time::Clock;
use aivillage_base::wire::{DataRequirements, DataSummary, Invitation, LocalRule};
use aivillage_inference::predictor::{LoadedModel, PredictError, Predictor};
use aivillage_training::trainer::{Initialiser, LocalOutcome, LocalTerms, Pieces, TrainError, Trainer};

use crate::data::Dataset;
use crate::initial::{initial_pieces, initial_values};
use crate::predict;
use crate::train::{Extras, LocalJob, local_with};

/// The engine without data: initial values for coordinators, predictions for workers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Engine;

impl Initialiser for Engine {
    /// # Panics
    /// If the architecture does not hold together: a job's architecture is checked before it is accepted.
    fn initial_values(&self, architecture: &Architecture, seed: u64) -> Vec<f32> {
        initial_values(architecture, seed).expect("invariant: a job's architecture was checked when it was created")
    }

    fn initial_pieces(&self, architecture: &Architecture, seed: u64, out: Pieces<'_>) -> Result<(), String> {
        initial_pieces(architecture, seed, out).map_err(|e| e.to_string())?
    }
}

impl Predictor for Engine {
    fn load(&self, bundle: &[u8]) -> Result<Box<dyn LoadedModel>, PredictError> {
        predict::load(bundle)
    }
}

/// Trains on the data sets of one node.
#[derive(Debug)]
pub struct NodeTrainer {
    datasets: Vec<Dataset>,
    clock: Arc<dyn Clock>,
}

impl NodeTrainer {
    /// A trainer on `datasets`; where several fit a job, the first is taken.
    #[must_use]
    pub fn new(datasets: Vec<Dataset>, clock: Arc<dyn Clock>) -> Self {
        Self { datasets, clock }
    }

    /// The first data set that meets the requirements and fits the model.
    fn choose(&self, needs: &DataRequirements, architecture: &Architecture) -> Result<&Dataset, TrainError> {
        let mut reasons = Vec::new();
        for data in &self.datasets {
            match misfit(needs, architecture, data) {
                None => return Ok(data),
                Some(reason) => reasons.push(format!("`{}` {reason}", data.name())),
            }
        }
        let reasons = if reasons.is_empty() { "it has none".to_owned() } else { reasons.join("; ") };
        Err(TrainError::NoData(reasons))
    }
}

/// Why `data` does not do, or None.
fn misfit(needs: &DataRequirements, architecture: &Architecture, data: &Dataset) -> Option<String> {
    let width: usize = architecture.input.iter().product();
    if let Some(name) = needs.dataset.as_deref().filter(|n| *n != data.name()) {
        return Some(format!("is not `{name}`"));
    }
    if let Some(input) = needs.input.as_ref().filter(|i| i.as_slice() != data.input()) {
        return Some(format!("has rows of shape {:?}, the job asks for {input:?}", data.input()));
    }
    if let Some(classes) = needs.classes.filter(|c| data.labels().is_none() || *c != data.task().outputs()) {
        return Some(format!("is for {:?}, the job asks for {classes} classes", data.task()));
    }
    if let Some(rows) = needs.min_rows.filter(|r| *r > data.rows() as u64) {
        return Some(format!("has fewer rows than the {rows} that the job asks for"));
    }
    if width != data.width() || architecture.task != data.task() {
        return Some(format!(
            "has rows of shape {:?} for {:?}, the model takes {:?} for {:?}",
            data.input(),
            data.task(),
            architecture.input,
            architecture.task
        ));
    }
    None
}

impl Trainer for NodeTrainer {
    fn data(&self) -> Vec<DataSummary> {
        self.datasets.iter().map(Dataset::summary).collect()
    }

    fn train(
        &self,
        invitation: &Invitation,
        node: &str,
        values: Vec<f32>,
        terms: LocalTerms<'_>,
    ) -> Result<LocalOutcome, TrainError> {
        let personal_lambda = match invitation.local {
            LocalRule::Ditto { lambda } => Some(lambda),
            // What SCAFFOLD asks of training is in the terms.
            LocalRule::Plain | LocalRule::Scaffold { .. } => None,
            LocalRule::Unknown => return Err(TrainError::Model("the strategy asks for something unknown".into())),
        };
        let data = self.choose(&invitation.data, &invitation.architecture)?;
        let job = LocalJob {
            architecture: &invitation.architecture,
            training: &invitation.training,
            seed: invitation.seed,
            round: invitation.key.round,
            node,
        };
        let extras = Extras { terms, personal_lambda, initial_loss: invitation.initial_loss, clip: None };
        local_with(job, values, &extras, data, self.clock.as_ref())
    }
}
