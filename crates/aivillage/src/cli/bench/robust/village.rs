//! A village in one process: real training, the real aggregation, nodes of which some are not honest.
//!
//! Promise: the accuracy of a case depends on its fields and the seed only. What crosses from node to coordinator are
//! integers on the round's grid, as on the wire; there are no sockets. Must not know: what is printed.

use aivillage_base::arch::Recipe;
use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::ports::put_blob;
use aivillage_base::rng::SeededRng;
use aivillage_base::time::SystemClock;
use aivillage_base::wire::{BlobRef, LocalTraining, RoundKey, UpdateHeader};
use aivillage_base::{Architecture, JobId, NodeName, bundle};
use aivillage_engine::data::{Bundled, Dataset, split};
use aivillage_engine::{LocalJob, evaluate, initial_values, local};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use aivillage_training::aggregate;
use aivillage_training::record::{Counted, StateSlot};
use aivillage_training::step::{ComputePlan, Made};
use aivillage_training::strategy::Strategy;
use clap::ValueEnum;
use futures_util::FutureExt as _;
use serde::Serialize;
use std::sync::Arc;

use super::attacks::Attack;

/// How rows are dealt to the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(super) enum Deal {
    /// Shuffled, in equal parts
    Even,
    /// Sorted by label and cut in twice as many parts as nodes, two for each (McMahan et al. 2017): most nodes see one or
    /// two labels
    ByLabel,
}

impl Deal {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Even => "even",
            Self::ByLabel => "by_label",
        }
    }
}

/// One data set, dealt.
#[derive(Debug, Clone)]
pub(super) struct Village {
    architecture: Architecture,
    test: Dataset,
    shards: Vec<Dataset>,
    seed: u64,
}

/// Who is not honest, and how the nodes train.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Nodes that are not honest.
    pub(super) dishonest: usize,
    /// Rounds.
    pub(super) rounds: u32,
}

/// Rounds at the end whose accuracy is averaged.
const MEASURED: u32 = 3;

impl Village {
    /// Deals a bundled data set to `nodes` nodes.
    ///
    /// # Errors
    /// One sentence: the data set has too few rows.
    pub(super) fn new(which: Bundled, deal: Deal, nodes: usize, seed: u64) -> Result<Self, String> {
        let one = split(which, 1, 1.0, seed).map_err(|e| e.to_string())?;
        let rest = &one.shards[0];
        let recipe = match which {
            Bundled::Digits => Recipe::Mlp { hidden: vec![64] },
            Bundled::BreastCancer => Recipe::LogisticRegression,
        };
        let architecture = recipe.build(rest.input(), rest.task()).map_err(|e| e.to_string())?;
        let labels = rest.labels().unwrap_or_default();
        let mut order: Vec<usize> = (0..rest.rows()).collect();
        let mut rng = SeededRng::new("rows of a bench of robustness", seed, &[which.name().as_bytes()]);
        rng.shuffle(&mut order);
        if deal == Deal::ByLabel {
            order.sort_by_key(|row| labels[*row]);
        }
        let mut parts: Vec<Vec<usize>> = (0..2 * nodes)
            .map(|i| order[i * order.len() / (2 * nodes)..(i + 1) * order.len() / (2 * nodes)].to_vec())
            .collect();
        if parts.iter().any(Vec::is_empty) {
            return Err(format!("{} rows are too few for {nodes} nodes", order.len()));
        }
        rng.shuffle(&mut parts);
        let shards = parts.chunks(2).map(|pair| rest.select(&pair.concat())).collect();
        Ok(Self { architecture, test: one.test, shards, seed })
    }

    /// Trains and returns the accuracy on the common test set, 0 to 1: the mean of the last three rounds.
    ///
    /// # Errors
    /// One sentence: training or aggregation that cannot be done. A diverged model is no error: what it still gets right
    /// counts.
    pub(super) fn accuracy(&self, strategy: &Strategy, attack: Attack, setting: Setting) -> Result<f64, String> {
        let nodes = self.shards.len();
        let mut who: Vec<usize> = (0..nodes).collect();
        SeededRng::new("who is not honest", self.seed, &[]).shuffle(&mut who);
        let dishonest = &who[..if attack == Attack::None { 0 } else { setting.dishonest }];
        let shards: Vec<Dataset> = (0..nodes)
            .map(|i| {
                let flip = attack == Attack::LabelFlip && dishonest.contains(&i);
                if flip { flipped(&self.shards[i]) } else { Ok(self.shards[i].clone()) }
            })
            .collect::<Result<_, _>>()?;
        let mut coordinator = Coordinator::new(self, strategy.clone())?;
        let mut sum = 0.0;
        for round in 1..=setting.rounds {
            let mut changes = Vec::with_capacity(nodes);
            for (i, shard) in shards.iter().enumerate() {
                changes.push(self.change(&coordinator.values, round, i, shard)?);
            }
            let mut rng = SeededRng::new("noise of an attack", self.seed, &[&round.to_le_bytes()]);
            attack.forge(&mut changes, dishonest, &mut rng);
            coordinator.close(round, &changes, &shards)?;
            if round + MEASURED > setting.rounds {
                let found = evaluate(&self.architecture, &coordinator.values, &self.test).map_err(|e| e.to_string())?;
                sum += found.accuracy.unwrap_or_default();
            }
        }
        Ok(sum / f64::from(MEASURED.min(setting.rounds)))
    }

    /// What a node learns in a round. Training that diverges from a ruined model changes nothing.
    fn change(&self, model: &[f32], round: u32, node: usize, shard: &Dataset) -> Result<Vec<f32>, String> {
        use aivillage_training::TrainError;
        let name = format!("node-{node}");
        let training = training();
        let job =
            LocalJob { architecture: &self.architecture, training: &training, seed: self.seed, round, node: &name };
        match local(job, model, shard, &SystemClock::new()) {
            Ok(outcome) => Ok(outcome.values.iter().zip(model).map(|(new, old)| new - old).collect()),
            Err(TrainError::Diverged { .. }) => Ok(vec![0.0; model.len()]),
            Err(e @ (TrainError::NoData(_) | TrainError::Model(_))) => Err(e.to_string()),
        }
    }
}

/// How the nodes train.
pub(super) fn training() -> LocalTraining {
    LocalTraining { epochs: 2, batch_size: 16, learning_rate: 0.5, momentum: 0.0, weight_decay: 0.0, proximal_mu: 0.0 }
}

/// The rows with their labels in reverse order.
fn flipped(data: &Dataset) -> Result<Dataset, String> {
    let classes = data.task().outputs();
    let last = u32::try_from(classes).unwrap_or(u32::MAX) - 1;
    let labels = data.labels().unwrap_or_default().iter().map(|l| last - l).collect();
    let x = data.x(0..data.rows()).to_vec();
    Dataset::classification(data.name(), data.input().to_vec(), classes, x, labels).map_err(|e| e.to_string())
}

/// The coordinator's half of a round: the very code that closes a round of a gateway, on stores in memory.
struct Coordinator<'a> {
    village: &'a Village,
    strategy: Strategy,
    job: JobId,
    blobs: MemoryBlobs,
    records: MemoryRecords,
    model: BlobRef,
    state: Vec<StateSlot>,
    values: Vec<f32>,
}

/// Futures over stores in memory are ready at once.
fn now<T>(future: impl Future<Output = T>) -> Result<T, String> {
    future.now_or_never().ok_or_else(|| "a store in memory made somebody wait".to_owned())
}

impl<'a> Coordinator<'a> {
    fn new(village: &'a Village, strategy: Strategy) -> Result<Self, String> {
        let values = initial_values(&village.architecture, village.seed).map_err(|e| e.to_string())?;
        let blobs = MemoryBlobs::new();
        let bundle = bundle::write(&village.architecture, &values).map_err(|e| e.to_string())?;
        let model = now(put_blob(&blobs, bundle.into()))?.map_err(|e| e.to_string())?;
        let records = MemoryRecords::new(Arc::new(SystemClock::new()));
        let job = JobId::new("bench-robust").map_err(|e| e.to_string())?;
        Ok(Self { village, strategy, job, blobs, records, model, state: Vec::new(), values })
    }

    /// Quantises what the nodes send and makes the next model.
    fn close(&mut self, round: u32, changes: &[Vec<f32>], shards: &[Dataset]) -> Result<(), String> {
        let key = RoundKey { job: self.job.clone(), round, attempt: 1 };
        let mut accepted = Vec::with_capacity(changes.len());
        for (i, (change, shard)) in changes.iter().zip(shards).enumerate() {
            let mut integers = Vec::new();
            if Grid::default().quantise(change, &mut integers).is_err() {
                // The coordinator takes integers only: what is not finite cannot be sent.
                continue;
            }
            let payload = now(put_blob(&self.blobs, to_bytes(&integers).into()))?.map_err(|e| e.to_string())?;
            let weight = u32::try_from(shard.rows()).unwrap_or(u32::MAX);
            let header = UpdateHeader::new(key.clone(), payload, weight, Default::default());
            let name = NodeName::new(format!("node-{i:03}")).map_err(|e| e.to_string())?;
            accepted.push((name, Counted::new(&header, false)));
        }
        let layout = self.village.architecture.layout().map_err(|e| e.to_string())?;
        let plan = ComputePlan {
            key,
            architecture: self.village.architecture.clone(),
            model_in: self.model,
            opened: None,
            state_in: self.state.clone(),
            grids: vec![Grid::default(); layout.len()],
            strategy: self.strategy.clone(),
            training: training(),
            personal: Vec::new(),
            invited: u32::try_from(changes.len()).unwrap_or(u32::MAX),
            examples_max: None,
            accepted,
        };
        let made: Made = now(aggregate::run(&plan, &self.records, &self.blobs))?
            .map_err(|e| format!("{}: {e:?}", plan.strategy.name()))?;
        self.keep(made)
    }

    /// Goes on from what was made, in a store that holds nothing else.
    fn keep(&mut self, made: Made) -> Result<(), String> {
        let next = MemoryBlobs::new();
        for digest in std::iter::once(made.model.digest).chain(made.state.iter().map(|s| s.blob.digest)) {
            use aivillage_base::ports::Blobs as _;
            let bytes =
                now(self.blobs.read(&digest))?.map_err(|e| e.to_string())?.ok_or("a blob that was made is gone")?;
            if digest == made.model.digest {
                (_, self.values) = bundle::read(&bytes).map_err(|e| e.to_string())?;
            }
            now(put_blob(&next, bytes))?.map_err(|e| e.to_string())?;
        }
        (self.blobs, self.model, self.state) = (next, made.model, made.state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_goes_to_one_node_and_sorted_deals_have_few_labels() {
        for which in [Bundled::Digits, Bundled::BreastCancer] {
            let (even, sorted) =
                (Village::new(which, Deal::Even, 20, 1).unwrap(), Village::new(which, Deal::ByLabel, 20, 1).unwrap());
            let rows = |v: &Village| v.shards.iter().map(Dataset::rows).sum::<usize>();
            assert_eq!(rows(&even), rows(&sorted));
            let labels = |v: &Village| -> usize {
                v.shards
                    .iter()
                    .map(|s| s.labels().unwrap().iter().collect::<std::collections::BTreeSet<_>>().len())
                    .sum()
            };
            assert!(labels(&sorted) < labels(&even), "{}", which.name());
        }
        assert!(Village::new(Bundled::BreastCancer, Deal::Even, 400, 1).is_err());
    }

    #[test]
    fn flipping_labels_twice_gives_them_back() {
        let village = Village::new(Bundled::Digits, Deal::Even, 20, 1).unwrap();
        let once = flipped(&village.shards[0]).unwrap();
        assert_ne!(once, village.shards[0]);
        assert_eq!(flipped(&once).unwrap(), village.shards[0]);
    }
}
