//! From a closed round to its model: exact, in blocks, on all cores, in bounded memory.
//!
//! ```text
//! Work (strategy, facts, tensors, model, state)
//!   |- distances, where the rule needs them ---- gram: exact integer products, rounded once
//!   |- rule.choose(facts) = Choice
//!   '- wave by wave over the model's coordinates
//!        sum | ranks : updates  -> exact integer sums (one `Partial` a plane)
//!        finish      : sums     -> direction -> rule.apply -> bytes of the next model and server state
//! ```
//! [`run`] is the coordinator's door: a plan and its stores. [`Work`] is the same without stores, for whoever has updates
//! elsewhere ([`Rows`]): files of an auditor, random buffers of a measurement.
//!
//! Integers are summed, so neither the order of updates, nor the cut into waves and blocks, nor the number of threads changes
//! a bit. Memory: at most 64 MiB of updates at a time, one wave of sums and results (about 24 bytes a coordinate of
//! [`WAVE`]), and for distances 8 to 16 bytes a pair of updates.
//!
//! Must not know: jobs, sockets, files. Everything but [`run`] blocks.

mod finish;
mod gram;
mod layout;
mod masked;
mod network;
mod parallel;
mod partial;
mod ranks;
mod run;
mod simd;
mod sum;
mod table;

use std::fmt::Debug;
use std::ops::Range;

use aivillage_base::Digest;
use aivillage_base::wire::LocalTraining;

use crate::strategy::{Contribution, Facts, Geometry, Needs, Strategy};

pub use layout::Tensor;
pub use masked::{StepTotals, Totals};
pub use partial::{Partial, PartialError};
pub use run::{Options, run, run_with};

use finish::Making;
use gram::Measuring;
use layout::Layout;
use parallel::Threads;

/// Coordinates of the model that are made at a time, at most: 8 MiB of sums a plane, 4 MiB of results a vector. Tests of this
/// room meet the borders of waves in smaller models.
pub const WAVE: usize = if cfg!(test) { 1 << 16 } else { 1 << 20 };

/// The updates of a round: vectors of integers on the grids of the round, all of the same length.
///
/// An update holds the tensors of the model that travel, in layout order; where the rule has two planes, the same tensors
/// follow once more.
pub trait Rows: Sync + Debug {
    /// Fills `out` with the values of update `row` from position `start`; called from several threads at once.
    ///
    /// # Errors
    /// [`RowError`]
    fn read(&self, row: usize, start: usize, out: &mut [i32]) -> Result<(), RowError>;

    /// What names the update among the contributors of a partial sum.
    fn digest(&self, row: usize) -> Digest;
}

/// Why values of an update cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// It is cut, missing or not what was sent: it will not become better.
    #[error("{0}")]
    Damaged(String),
    /// The store failed; trying again may help.
    #[error("{0}")]
    Store(String),
}

/// A vector of f32 in the model's shape: the model, or a vector of server state.
pub trait Floats: Sync + Debug {
    /// Fills `out` from coordinate `start`; called from several threads at once.
    ///
    /// # Errors
    /// One sentence: why it cannot be read.
    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), String>;
}

/// The sum of all updates, each times its factor, where nobody sees the updates themselves.
pub trait Sums: Sync + Debug {
    /// Number of summands.
    fn count(&self) -> u32;

    /// Sum of their factors, at least 1.
    fn factors(&self) -> u64;

    /// What the rule divides the sum by; positive.
    fn divisor(&self) -> f64;

    /// Fills `out` with the sums from position `start`; called from several threads at once.
    ///
    /// # Errors
    /// [`WorkError`]
    fn read(&self, start: usize, out: &mut [i64]) -> Result<(), WorkError>;
}

/// Everything that makes a model, but the updates.
#[derive(Debug, Clone)]
pub struct Work<'a> {
    /// The rule.
    pub strategy: &'a Strategy,
    /// Round, from 1.
    pub round: u32,
    /// How the nodes trained.
    pub training: &'a LocalTraining,
    /// Number of nodes invited, or that scaffold's control variates are averaged over.
    pub population: u32,
    /// Most examples that an update was expected to have; None = the most that one has.
    pub examples_max: Option<u32>,
    /// One a row, in name order; empty where there is a sum.
    pub contributions: &'a [Contribution],
    /// The sum of the updates, where they are not seen one by one.
    pub sums: Option<&'a dyn Sums>,
    /// The tensors of the model, in layout order.
    pub tensors: &'a [Tensor],
    /// The model that the round started from.
    pub model: &'a dyn Floats,
    /// The server state that the round started from, in the order of the rule's slots; None = zero.
    pub state: Vec<Option<&'a dyn Floats>>,
    /// Threads to use, at most; 0 = as many as there are cores.
    pub threads: usize,
}

/// Why there is no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// One update cannot be used.
    #[error("update {row}: {detail}")]
    Update {
        /// Which.
        row: usize,
        /// `damaged` or `out_of_range`.
        reason: &'static str,
        /// A sentence.
        detail: String,
    },
    /// The strategy cannot use this set of updates; says why.
    #[error("{0}")]
    Unusable(String),
    /// The model, the state or the store of updates cannot be read; trying again may help.
    #[error("{0}")]
    Read(String),
}

/// A run of coordinates of the next model and the next server state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// First coordinate; waves follow each other without gaps.
    pub start: usize,
    /// Weights: f32, little endian.
    pub model: Vec<u8>,
    /// The same coordinates of each slot of the rule's state, in its order.
    pub state: Vec<Vec<u8>>,
}

/// A model under way; each call of [`Self::advance`] reads a part of the updates and makes a part of the model.
///
/// ```text
/// let mut aggregation = work.begin()?;
/// while aggregation.wanted().is_some() {
///     if let Some(wave) = aggregation.advance(&rows)? { /* write wave.model behind the last one */ }
/// }
/// ```
#[derive(Debug)]
pub struct Aggregation<'a> {
    work: Work<'a>,
    layout: Layout,
    threads: Threads,
    wave: usize,
    geometry: Geometry,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Measuring(Measuring),
    Making(Making),
}

impl<'a> Work<'a> {
    /// Begins; nothing is read yet.
    ///
    /// # Errors
    /// [`WorkError::Unusable`]: the rule refuses, or its state does not fit.
    pub fn begin(self) -> Result<Aggregation<'a>, WorkError> {
        self.begin_in_waves(WAVE)
    }

    /// Begins, to make at most `wave` coordinates at a time (1 to [`WAVE`]): where updates are brought from afar wave by wave.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_in_waves(self, wave: usize) -> Result<Aggregation<'a>, WorkError> {
        let wave = wave.clamp(1, WAVE);
        let rule = self.strategy.rule();
        if self.contributions.is_empty() && self.sums.is_none() {
            return Err(WorkError::Unusable("there is no update".to_owned()));
        }
        if self.sums.is_some() && rule.weighting().is_none() {
            let why = "the rule has to see single updates, and only their sum is there";
            return Err(WorkError::Unusable(why.to_owned()));
        }
        if self.state.len() != rule.slots().len() {
            let (given, want) = (self.state.len(), rule.slots().len());
            return Err(WorkError::Unusable(format!("{given} vectors of server state are given, {want} needed")));
        }
        let layout = Layout::new(self.tensors);
        let threads = Threads::new(self.threads);
        let points = self.contributions.len();
        let stage = match rule.needs() {
            Needs::Nothing => None,
            Needs::Norms => Some(Measuring::norms(&layout, points, wave)),
            Needs::Distances => Some(Measuring::distances(&layout, points, None, wave)),
            Needs::DistancesAndCentre => Some(Measuring::distances(&layout, points, Some(self.centre()?), wave)),
        };
        let mut aggregation = Aggregation {
            stage: Stage::Measuring(stage.unwrap_or_default()),
            geometry: Geometry::default(),
            work: self,
            layout,
            threads,
            wave,
        };
        aggregation.choose_if_measured()?;
        Ok(aggregation)
    }

    /// Place of the state that distances are measured to.
    fn centre(&self) -> Result<usize, WorkError> {
        let slots = self.strategy.rule().slots();
        let found = slots.iter().position(|slot| *slot == crate::strategy::CENTRE);
        found.ok_or_else(|| {
            WorkError::Unusable("the rule measures distances to a state that it does not keep".to_owned())
        })
    }
}

impl Aggregation<'_> {
    /// Positions of the updates' values that [`Self::advance`] reads next; None when the model is complete.
    ///
    /// For whoever brings values from afar; rows that can read all positions at any time need not ask.
    #[must_use]
    pub fn wanted(&self) -> Option<Vec<Range<usize>>> {
        match &self.stage {
            Stage::Measuring(measuring) => measuring.wanted(),
            Stage::Making(making) => making.wanted(&self.layout),
        }
    }

    /// Goes on with the next part; returns coordinates of the model if some are made.
    ///
    /// # Errors
    /// [`WorkError`]; the aggregation is then at its end.
    pub fn advance(&mut self, rows: &dyn Rows) -> Result<Option<Wave>, WorkError> {
        match &mut self.stage {
            Stage::Measuring(measuring) => {
                measuring.advance(rows, &self.work.state, self.threads)?;
                self.choose_if_measured()?;
                Ok(None)
            }
            Stage::Making(making) => {
                let facts = facts(&self.work, &self.geometry);
                making.advance(&self.work, &facts, &self.layout, rows, self.threads)
            }
        }
    }

    fn choose_if_measured(&mut self) -> Result<(), WorkError> {
        let Stage::Measuring(measuring) = &mut self.stage else { return Ok(()) };
        if measuring.wanted().is_some() {
            return Ok(());
        }
        self.geometry = measuring.take_geometry();
        let making = match self.work.sums {
            Some(sums) => Making::of_sums(sums, self.wave, &self.work),
            None => {
                let rule = self.work.strategy.rule();
                let choice = rule.choose(&facts(&self.work, &self.geometry)).map_err(WorkError::Unusable)?;
                Making::new(choice, self.wave, &self.work, &self.layout)?
            }
        };
        self.stage = Stage::Making(making);
        Ok(())
    }
}

fn facts<'f>(work: &'f Work<'_>, geometry: &'f Geometry) -> Facts<'f> {
    let seen = || u32::try_from(work.contributions.len()).unwrap_or(u32::MAX);
    Facts {
        accepted: work.sums.map_or_else(seen, Sums::count),
        round: work.round,
        training: work.training,
        population: work.population,
        examples_max: work.examples_max,
        contributions: work.contributions,
        geometry,
    }
}

#[cfg(test)]
mod tests;
