//! What a village is made of and asked to do: another one for each seed.

use std::sync::Arc;

use aivillage_base::JobId;
use aivillage_base::arch::Recipe;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{DataRequirements, LocalTraining};
use aivillage_training::secure::WITHSTANDS;
use aivillage_training::spec::{JobSpec, Start};
use aivillage_training::strategy::{self, Chosen};
use aivillage_training::{Initialiser, Trainer};
use serde_json::json;

use crate::conduct::{Conduct, Faithful};
use crate::faults::Faults;
use crate::trainer::{Linear, Seeded};

/// What a village is made of and asked to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Coordinators over one store.
    pub coordinators: usize,
    /// Jobs, created one after the other.
    pub jobs: usize,
    /// Rounds of each job.
    pub rounds: u32,
    /// Fewest members of a round; `nodes` = everybody, and then the models must be the undisturbed run's.
    pub min_participants: usize,
    /// How updates become models.
    pub strategy: Chosen,
    /// Does somebody lie? Then a job may fail, by name.
    pub hostile: bool,
    /// Are updates summed under masks?
    pub secure: bool,
    /// Is it drawn who masks with whom, as in large cohorts?
    pub drawn: bool,
    /// Are updates kept as blobs, however small?
    pub store_updates: bool,
    /// Are updates kept after their round, where their node allows it (every second one does)?
    pub retain_updates: bool,
    /// Requests for predictions.
    pub requests: usize,
    /// Is the last job cancelled under way?
    pub cancel_last: bool,
    /// What goes wrong.
    pub faults: Faults,
    /// How coordinators behave.
    pub conduct: Arc<dyn Conduct>,
    /// First weights.
    pub initialiser: Arc<dyn Initialiser>,
    /// Training on node number n.
    pub trainer: fn(u64) -> Arc<dyn Trainer>,
}

/// Every strategy in turn, with settings that small villages can meet; two more with tensors that stay on the nodes.
fn strategy_of(seed: u64, min_participants: usize) -> Chosen {
    let others = strategy::BUILT.len() as u64;
    let turn = seed % (others + 2);
    let personal = json!({"personal_tensors": ["layer000.bias"]});
    let (name, config) = match usize::try_from(turn).ok().and_then(|turn| strategy::BUILT.get(turn)) {
        Some(name @ &("krum" | "multi_krum" | "bulyan")) => (*name, json!({"byzantine": 1})),
        Some(name @ &"fedbuff") => (*name, json!({"buffer_size": min_participants, "max_staleness": 2})),
        Some(name @ &"ditto") => (*name, json!({"lambda": 0.5})),
        Some(name) => (*name, json!({})),
        None if turn == others => ("fedavg", personal),
        None => ("scaffold", personal),
    };
    let config = config.as_object().expect("invariant: settings are a map");
    strategy::named(name, config).expect("invariant: valid settings")
}

impl Plan {
    /// Another village for each seed: with one coordinator or two that fight, with everybody needed or not.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SeededRng::new("plan", seed, &[]);
        let mut nodes = 3 + usize::try_from(rng.below(3)).expect("invariant: below 3");
        let everybody = rng.below(2) == 0;
        let buffer = strategy_of(seed, 2).strategy.rule().buffer().is_some();
        let needed = strategy_of(seed, 2).strategy.rule().cohort_min().0 as usize;
        // Somebody is always on the way where updates are buffered: that is what a buffer is for.
        let spare = usize::from(buffer || !everybody);
        nodes = nodes.max(needed + spare);
        // Every second village that can.
        let sums = strategy_of(seed, 2).strategy.rule().weighting().is_some();
        let secure = SeededRng::new("secure", seed, &[]).below(2) == 0 && sums && nodes - spare >= 3;
        let min_participants = if buffer { nodes.div_ceil(2) } else { nodes - spare };
        Self {
            nodes,
            coordinators: if rng.below(2) == 0 { 2 } else { 1 },
            jobs: 1 + usize::from(rng.below(3) == 0),
            rounds: if buffer { 6 } else { 3 },
            min_participants,
            strategy: strategy_of(seed, min_participants),
            hostile: false,
            secure,
            drawn: SeededRng::new("drawn", seed, &[]).below(2) == 0,
            store_updates: rng.below(2) == 0,
            requests: 12,
            cancel_last: rng.below(6) == 0,
            retain_updates: rng.below(3) == 0 && !secure,
            faults: Faults::drawn(seed),
            conduct: Arc::new(Faithful),
            initialiser: Arc::new(Seeded),
            trainer: |node| Arc::new(Linear::of_node(node)),
        }
    }

    /// Must a disturbed run end in the undisturbed run's models? If everybody's update makes every model.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.min_participants == self.nodes && self.strategy.strategy.rule().buffer().is_none()
    }

    pub(crate) fn spec(&self, job: usize) -> JobSpec {
        let count = |n: usize| u32::try_from(n).expect("invariant: villages are small");
        let Chosen { strategy, personal_tensors } = self.strategy.clone();
        JobSpec {
            secure: self.secure.then_some(WITHSTANDS),
            helper: None,
            clip: None,
            job_id: JobId::new(format!("job-{job}")).expect("invariant: a valid id"),
            job_name: format!("job {job}"),
            publisher: "simulation".into(),
            start: Start::Recipe(Recipe::LinearRegression),
            total_rounds: self.rounds,
            min_participants: count(self.min_participants),
            max_participants: count(self.nodes),
            mobile_friendly: true,
            data: DataRequirements::default(),
            personal_tensors,
            retain_updates: self.retain_updates,
            training: LocalTraining {
                epochs: 2,
                batch_size: 1,
                learning_rate: 0.05,
                momentum: 0.0,
                weight_decay: 0.0,
                proximal_mu: strategy.rule().local().proximal_mu,
            },
            strategy,
            max_examples: 1_000,
            round_timeout_ms: 15_000,
            seed: job as u64 + 1,
        }
    }
}
