//! Aggregation strategies, found by name: one file each.
//!
//! A strategy is data (a name and its settings) with a [`Rule`]: pure functions that the round asks at its close.
//!
//! ```text
//! updates --(what the rule needs: nothing, norms, all distances)--> choose(facts) = Choice
//!         --(one pass in blocks: exact weighted sum, or ranks)----> direction
//!         --(apply, block by block)-------------------------------> next weights, next server state
//! ```
//! `choose` sees counts and distances, never a weight of the model; `apply` sees one block at a time. Sums are exact
//! integers ([`Choice::Mean`] has integer weights), so a model does not depend on the order in which updates came.

mod affine;
pub mod bulyan;
pub mod centered_clipping;
pub mod ditto;
mod exact;
pub mod fedadagrad;
pub mod fedadam;
pub mod fedavg;
pub mod fedavgm;
pub mod fedbuff;
pub mod fednova;
mod fedopt;
pub mod fedprox;
pub mod fedyogi;
pub mod geometric_median;
pub mod krum;
pub mod median;
pub mod multi_krum;
pub mod norm_clipping;
pub mod qfedavg;
pub mod scaffold;
pub mod settings;
pub mod trimmed_mean;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use aivillage_base::fixed::Grid;
use aivillage_base::suggest;
use aivillage_base::wire::LocalTraining;

pub use aivillage_base::wire::secure::Weighting;

use settings::{SettingFault, Settings};

/// One accepted update as a rule sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contribution {
    /// Number of examples, 1 to the job's `max_examples`; declared by the node.
    pub weight: u32,
    /// Optimiser steps of the local training, at least 1.
    pub steps: u32,
    /// Loss of the received model on the node's rows before training, where the strategy asks for it.
    pub initial_loss: Option<f64>,
    /// Rounds published since the model that this update starts from; 0 in synchronous jobs.
    pub staleness: u32,
}

/// Squared Euclidean distances between updates (and the centre, if the rule has one), computed exactly and rounded once.
///
/// Points `0..n` are the updates in the order of the contributions; with a centre, point `n` is the centre.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Geometry {
    /// Squared distance of each point from the received model (squared norm of each update).
    pub norms_squared: Vec<f64>,
    /// Squared distances between points, row-major; empty if only norms were asked for.
    pub distances_squared: Vec<f64>,
}

impl Geometry {
    /// Squared distance between two points.
    ///
    /// # Panics
    /// If only norms were asked for.
    #[must_use]
    pub fn distance_squared(&self, a: usize, b: usize) -> f64 {
        self.distances_squared[a * self.norms_squared.len() + b]
    }
}

/// What a rule knows of a round at its close.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Round, from 1.
    pub round: u32,
    /// How the nodes trained.
    pub training: &'a LocalTraining,
    /// Number of nodes invited, which scaffold averages its control variates over; at least the number of contributions.
    pub population: u32,
    /// Most examples that an update was expected to have; None = the most that one has.
    pub examples_max: Option<u32>,
    /// Number of accepted updates, at least 1.
    pub accepted: u32,
    /// The accepted set, in name order; empty where only the sum of the updates is seen.
    pub contributions: &'a [Contribution],
    /// Distances, as far as [`Rule::needs`] asks.
    pub geometry: &'a Geometry,
}

/// What a rule must know of distances before it can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The norm of each update.
    Norms,
    /// All distances between updates.
    Distances,
    /// All distances, also to the server state `centre` ([`CENTRE`]), which lies on the grid.
    DistancesAndCentre,
}

/// Name of the server state that [`Needs::DistancesAndCentre`] and [`Choice::Mean::centre`] speak of.
pub const CENTRE: &str = "centre";

/// How the accepted updates become one direction, coordinate by coordinate.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// (sum of `weights[i]` * update i) / `divisor` + `centre` * state `centre`.
    Mean {
        /// One integer an update; 0 leaves it out.
        weights: Vec<u32>,
        /// What the sum is divided by; positive.
        divisor: f64,
        /// Coefficient of the server state [`CENTRE`]; 0 without one.
        centre: f64,
    },
    /// Mean of what is left of `rows` when the `cut` smallest and largest values of each coordinate are dropped.
    Middle {
        /// Updates that take part.
        rows: Vec<usize>,
        /// Values dropped at each end; less than half of the rows.
        cut: usize,
    },
    /// Mean of the `keep` values nearest to the median of `rows`, coordinate by coordinate (of two equally near, the
    /// smaller value).
    NearMedian {
        /// Updates that take part.
        rows: Vec<usize>,
        /// Values kept, at least 1.
        keep: usize,
    },
}

/// Largest integer weight: 31 bits, so that a product with a value on the grid fits 64 bits with room for the sum.
const WEIGHT_MAX: f64 = 1_073_741_824.0;
/// Largest sum of integer weights: with values of 24 bits the sum stays below 2^62.
const WEIGHTS_SUM_MAX: f64 = 549_755_813_888.0;

impl Choice {
    /// The plain mean of `count` updates.
    #[must_use]
    pub fn unweighted(count: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 updates")]
        Self::Mean { weights: vec![1; count], divisor: count as f64, centre: 0.0 }
    }

    /// The mean weighted by numbers of examples.
    #[must_use]
    pub fn by_examples(contributions: &[Contribution]) -> Self {
        let weights: Vec<u32> = contributions.iter().map(|c| c.weight).collect();
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 examples")]
        Self::Mean { weights, divisor: total as f64, centre: 0.0 }
    }

    /// sum of `coefficients[i]` * update i: real coefficients as integers over one divisor.
    ///
    /// Coefficients are >= 0 and finite; each is met within 2^-30 of the largest (or 2^-39 of the sum).
    #[must_use]
    pub fn combination(coefficients: &[f64], centre: f64) -> Self {
        let largest = coefficients.iter().copied().fold(0.0, f64::max);
        let sum = exact::sum(coefficients.iter().copied());
        if largest <= 0.0 {
            return Self::Mean { weights: vec![0; coefficients.len()], divisor: 1.0, centre };
        }
        let scale = (WEIGHT_MAX / largest).min(WEIGHTS_SUM_MAX / sum);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^30")]
        let weights = coefficients.iter().map(|c| (c * scale).round_ties_even() as u32).collect();
        Self::Mean { weights, divisor: scale, centre }
    }
}

/// One block of coordinates on its way to the next model.
#[derive(Debug)]
pub struct Block<'a, 'b> {
    /// Weights of the model: received, then next.
    pub weights: &'a mut [f32],
    /// What the [`Choice`] made of the updates, in units of the weights.
    pub direction: &'a [f64],
    /// The same of the updates' second plane; empty unless [`Rule::planes`] is 2.
    pub second: &'a [f64],
    /// Server state, one block a slot in the order of [`Rule::slots`]: before, then after. Zero in the first round.
    pub state: &'a mut [&'b mut [f32]],
    /// Grid of the block's coordinates; they belong to one tensor.
    pub grid: Grid,
}

impl Block<'_, '_> {
    /// weights += `rate` * direction, rounded once.
    pub fn advance(&mut self, rate: f64) {
        for (w, d) in self.weights.iter_mut().zip(self.direction) {
            *w = narrow(f64::from(*w) + rate * d);
        }
    }
}

/// f64 to f32, rounded to nearest even.
#[must_use]
pub fn narrow(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32: rounded once")]
    let narrowed = value as f32;
    narrowed
}

/// What the strategy asks of the nodes beside plain training.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LocalDemands {
    /// mu of the proximal term, >= 0 (FedProx).
    pub proximal_mu: f64,
    /// The node corrects its gradients by control variates and sends their change as a second plane (SCAFFOLD).
    pub control_variates: bool,
    /// lambda of a personal model that stays on the node, > 0 (Ditto).
    pub personal_lambda: Option<f64>,
    /// The loss of the received model on the node's rows travels with the update (q-FedAvg).
    pub initial_loss: bool,
}

/// How an asynchronous strategy takes updates in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Updates that make a new model.
    pub size: u32,
    /// Oldest update that counts, in rounds.
    pub max_staleness: u32,
}

/// The behaviour behind a name: pure functions of settings and facts.
pub trait Rule {
    /// Smallest accepted set for which the rule is defined, with the paper's condition in words.
    fn cohort_min(&self) -> (u32, String) {
        (1, "at least one update".to_owned())
    }

    /// What `choose` must know of distances.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Values an update holds per coordinate: 1, or 2 where a second vector travels with it.
    fn planes(&self) -> usize {
        1
    }

    /// Names of the vectors that the server keeps from round to round, each as large as the model.
    fn slots(&self) -> &'static [&'static str] {
        &[]
    }

    /// What the nodes have to do.
    fn local(&self) -> LocalDemands {
        LocalDemands::default()
    }

    /// How updates are taken in, if not round by round.
    fn buffer(&self) -> Option<Buffer> {
        None
    }

    /// How each update counts if only their sum is seen: what secure aggregation needs. None = the rule has to see single
    /// updates.
    ///
    /// Where it is given, [`Self::choose`] makes the same mean of the same updates.
    fn weighting(&self) -> Option<Weighting> {
        None
    }

    /// Does it bound what dishonest nodes can do to the model?
    fn robust(&self) -> bool {
        false
    }

    /// Can it be used with this local training? Asked when a job is submitted.
    ///
    /// # Errors
    /// One sentence: what does not go together, and what to do.
    fn trains_with(&self, _training: &LocalTraining) -> Result<(), String> {
        Ok(())
    }

    /// Can this update be used at all? Asked when it arrives, so that one bad declaration does not cost a round.
    ///
    /// # Errors
    /// One sentence: why not.
    fn accepts(&self, _contribution: &Contribution) -> Result<(), String> {
        Ok(())
    }

    /// How the updates become one direction.
    ///
    /// Does not depend on the order of the updates, but for ties: of two equals the first by name counts.
    ///
    /// # Errors
    /// One sentence: why this accepted set cannot be used.
    fn choose(&self, facts: &Facts<'_>) -> Result<Choice, String>;

    /// Makes the next weights and the next server state of one block.
    fn apply(&self, _facts: &Facts<'_>, block: &mut Block<'_, '_>) {
        block.advance(1.0);
    }
}

macro_rules! strategies {
    ($($name:literal $variant:ident $settings:ty;)*) => {
        /// A strategy with its settings, as a job's record keeps it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", content = "config", deny_unknown_fields)]
        pub enum Strategy {
            $(#[doc = concat!("`", $name, "`")] #[serde(rename = $name)] $variant($settings),)*
        }

        /// Strategies of this version, by name.
        pub const BUILT: &[&str] = &[$($name),*];

        impl Strategy {
            /// Its name.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// Its behaviour.
            #[must_use]
            pub fn rule(&self) -> &dyn Rule {
                match self { $(Self::$variant(settings) => settings,)* }
            }

            fn read(name: &str, settings: &mut Settings<'_>) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant(<$settings>::read(settings))),)*
                    _ => None,
                }
            }
        }
    };
}

strategies! {
    "fedavg" FedAvg fedavg::FedAvg;
    "fedavgm" FedAvgM fedavgm::FedAvgM;
    "fedprox" FedProx fedprox::FedProx;
    "fedadam" FedAdam fedadam::FedAdam;
    "fedyogi" FedYogi fedyogi::FedYogi;
    "fedadagrad" FedAdagrad fedadagrad::FedAdagrad;
    "qfedavg" QFedAvg qfedavg::QFedAvg;
    "scaffold" Scaffold scaffold::Scaffold;
    "fednova" FedNova fednova::FedNova;
    "fedbuff" FedBuff fedbuff::FedBuff;
    "median" Median median::Median;
    "trimmed_mean" TrimmedMean trimmed_mean::TrimmedMean;
    "krum" Krum krum::Krum;
    "multi_krum" MultiKrum multi_krum::MultiKrum;
    "bulyan" Bulyan bulyan::Bulyan;
    "geometric_median" GeometricMedian geometric_median::GeometricMedian;
    "norm_clipping" NormClipping norm_clipping::NormClipping;
    "centered_clipping" CenteredClipping centered_clipping::CenteredClipping;
    "ditto" Ditto ditto::Ditto;
}

/// Strategies that need no settings: what an operator may name as the default.
pub const WITHOUT_SETTINGS: &[&str] = &[
    "fedavg",
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "qfedavg",
    "scaffold",
    "fednova",
    "fedbuff",
    "median",
    "trimmed_mean",
    "geometric_median",
    "norm_clipping",
    "centered_clipping",
    "ditto",
];

/// The robust rule of jobs that name no strategy, where the operator asks for one: breakdown point 1/2 without a setting
/// that only the owner of a job could know.
pub const ROBUST_DEFAULT: &str = "geometric_median";

/// Largest cohort of a rule that needs all distances: 32 MB of them, and as much again while it chooses.
pub const DISTANCES_COHORT_MAX: u32 = 2_000;

/// Key of a strategy's settings that every strategy has: patterns of names of tensors that stay on the nodes.
const PERSONAL_TENSORS: &str = "personal_tensors";

/// A strategy and what belongs to every strategy.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The strategy.
    pub strategy: Strategy,
    /// Names of tensors that stay on the nodes; `*` at the end of a name stands for any rest.
    pub personal_tensors: Vec<String>,
}

/// Why there is no such strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StrategyFault {
    /// Unknown name: a sentence with the nearest one.
    Name(String),
    /// Settings that are unknown or out of range.
    Settings(Vec<SettingFault>),
}

/// The strategy called `name` (`federated_averaging`, the guide's word, is `fedavg`) with these settings.
///
/// # Errors
/// [`StrategyFault`]
pub fn named(name: &str, config: &Map<String, Value>) -> Result<Chosen, StrategyFault> {
    let name = if name == "federated_averaging" { "fedavg" } else { name };
    let mut settings = Settings::new(config);
    let Some(strategy) = Strategy::read(name, &mut settings) else {
        return Err(StrategyFault::Name(suggest::unknown("strategy", name, BUILT)));
    };
    let personal_tensors = settings.texts(PERSONAL_TENSORS);
    let faults = settings.finish(name);
    if faults.is_empty() { Ok(Chosen { strategy, personal_tensors }) } else { Err(StrategyFault::Settings(faults)) }
}

#[cfg(test)]
mod tests;
