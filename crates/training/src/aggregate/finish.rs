//! The second half: choose what to sum, sum it wave by wave, and let the rule make weights of it.

use std::ops::Range;

use crate::strategy::{Block, Choice, Facts};

use super::layout::Layout;
use super::parallel::{Threads, each, piece};
use super::ranks::Ranks;
use super::sum::{BLOCK, Weighted};
use super::{Rows, Sums, Wave, Work, WorkError};

/// A model under way.
#[derive(Debug)]
pub(super) struct Making {
    how: How,
    /// What sums are divided by.
    divisor: f64,
    /// Coefficient of the server state `centre`, and its place among the slots.
    centre: Option<(f64, usize)>,
    planes: usize,
    /// Coordinate of the model that is made next.
    next: usize,
    /// Coordinates a wave.
    width: usize,
}

#[derive(Debug)]
enum How {
    Sum(Weighted),
    Ranks(Ranks),
    /// The sum is there already.
    Given,
}

impl Making {
    /// Carries out this choice.
    pub(super) fn new(choice: Choice, width: usize, work: &Work<'_>, layout: &Layout) -> Result<Self, WorkError> {
        let rows = work.contributions.len();
        let known = |chosen: &[usize]| match chosen.iter().find(|row| **row >= rows) {
            Some(row) => Err(WorkError::Unusable(format!("the rule chose update {row} of {rows}"))),
            None => Ok(()),
        };
        let mut centre = None;
        let (how, divisor) = match choice {
            Choice::Mean { weights, divisor, centre: coefficient } => {
                if weights.len() != rows || divisor.is_nan() || divisor <= 0.0 {
                    return Err(WorkError::Unusable(format!(
                        "the rule gave {} weights over {divisor} to {rows} updates",
                        weights.len()
                    )));
                }
                if coefficient != 0.0 {
                    centre = Some((coefficient, work.centre()?));
                }
                (How::Sum(Weighted::new(&weights, layout)?), divisor)
            }
            Choice::Middle { rows, cut } => {
                known(&rows)?;
                How::ranks(Ranks::middle(rows, cut)?)
            }
            Choice::NearMedian { rows, keep } => {
                known(&rows)?;
                How::ranks(Ranks::near_median(rows, keep)?)
            }
        };
        Ok(Self { how, divisor, centre, planes: work.strategy.rule().planes(), next: 0, width })
    }

    /// Divides sums that somebody else made.
    pub(super) fn of_sums(sums: &dyn Sums, width: usize, work: &Work<'_>) -> Self {
        let divisor = sums.divisor();
        let planes = work.strategy.rule().planes();
        Self { how: How::Given, divisor, centre: None, planes, next: 0, width }
    }

    /// Positions that are read next; None when the model is complete.
    pub(super) fn wanted(&self, layout: &Layout) -> Option<Vec<Range<usize>>> {
        let coordinates = self.coordinates(layout)?;
        let positions = layout.positions(coordinates);
        let plane = |p: usize| positions.start + p * layout.shared..positions.end + p * layout.shared;
        Some((0..self.planes).map(plane).collect())
    }

    fn coordinates(&self, layout: &Layout) -> Option<Range<usize>> {
        (self.next < layout.parameters).then(|| self.next..(self.next + self.width).min(layout.parameters))
    }

    /// Makes the next wave.
    pub(super) fn advance(
        &mut self,
        work: &Work<'_>,
        facts: &Facts<'_>,
        layout: &Layout,
        rows: &dyn Rows,
        threads: Threads,
    ) -> Result<Option<Wave>, WorkError> {
        let Some(coordinates) = self.coordinates(layout) else { return Ok(None) };
        let positions = layout.positions(coordinates.clone());
        let bounds = layout.bounds(positions.clone());
        let mut sums = Vec::with_capacity(self.planes);
        for plane in 0..self.planes {
            let start = positions.start + plane * layout.shared;
            sums.push(match &self.how {
                How::Sum(weighted) => weighted.sum(rows, (start, positions.len()), &bounds, threads)?.sum,
                How::Ranks(ranks) => ranks.sum(rows, (start, positions.len()), &bounds, threads)?,
                How::Given => given(work, (start, positions.len()), &bounds, threads)?,
            });
        }
        self.next = coordinates.end;
        let finish = Finish { work, facts, layout, first: positions.start, sums: &sums, making: self };
        finish.wave(coordinates, threads).map(Some)
    }
}

/// The sums over `len` positions from `start`, each within what its grid's bound allows.
fn given(
    work: &Work<'_>,
    (start, len): (usize, usize),
    bounds: &[(usize, i32)],
    threads: Threads,
) -> Result<Vec<i64>, WorkError> {
    let Some(sums) = work.sums else { return Err(WorkError::Unusable("there is no sum".to_owned())) };
    let mut out = vec![0; len];
    let threads = threads.for_values(len.saturating_mul(sums.count() as usize));
    let width = piece(len, threads, BLOCK.min(len.max(1)));
    let pieces: Vec<_> = out.chunks_mut(width).enumerate().map(|(i, sums)| (i * width, sums)).collect();
    each(
        threads,
        pieces,
        || (),
        |(), (from, out)| {
            for (i, block) in out.chunks_mut(BLOCK).enumerate() {
                sums.read(start + from + i * BLOCK, block)?;
            }
            Ok(())
        },
    )?;
    let mut at = 0;
    for (run, bound) in bounds {
        let most = u128::from(sums.factors()) * u128::from(bound.unsigned_abs());
        if out[at..at + run].iter().any(|sum| u128::from(sum.unsigned_abs()) > most) {
            return Err(WorkError::Unusable(format!(
                "the opened sum has a value beyond ±{most}, which honest nodes cannot pass: a node sent values beyond the \
                 round's bound"
            )));
        }
        at += run;
    }
    Ok(out)
}

impl How {
    #[expect(clippy::cast_precision_loss, reason = "at most 100,000 updates")]
    fn ranks(ranks: Ranks) -> (Self, f64) {
        let kept = ranks.kept() as f64;
        (Self::Ranks(ranks), kept)
    }
}

/// What makes weights of sums.
struct Finish<'f> {
    work: &'f Work<'f>,
    facts: &'f Facts<'f>,
    layout: &'f Layout,
    /// Position of the first sum.
    first: usize,
    /// One vector a plane.
    sums: &'f [Vec<i64>],
    making: &'f Making,
}

impl Finish<'_> {
    fn wave(&self, coordinates: Range<usize>, threads: Threads) -> Result<Wave, WorkError> {
        let (start, len) = (coordinates.start, coordinates.len());
        // The model, then the slots of the state.
        let mut vectors = vec![vec![0; len * 4]; 1 + self.work.state.len()];
        let threads = threads.for_values(len * vectors.len());
        let width = piece(len, threads, BLOCK.min(len));
        let mut stripes: Vec<(Range<usize>, Vec<&mut [u8]>)> = (start..coordinates.end)
            .step_by(width)
            .map(|from| (from..(from + width).min(coordinates.end), Vec::new()))
            .collect();
        for vector in &mut vectors {
            for ((_, parts), part) in stripes.iter_mut().zip(vector.chunks_mut(width * 4)) {
                parts.push(part);
            }
        }
        each(
            threads,
            stripes,
            || (),
            |(), (coordinates, mut out)| {
                for from in coordinates.clone().step_by(BLOCK) {
                    let block = from..(from + BLOCK).min(coordinates.end);
                    let at = (from - coordinates.start) * 4..(block.end - coordinates.start) * 4;
                    self.block(block, out.iter_mut().map(|part| &mut part[at.clone()]))?;
                }
                Ok(())
            },
        )?;
        let model = vectors.remove(0);
        Ok(Wave { start, model, state: vectors })
    }

    fn block<'o>(&self, coordinates: Range<usize>, out: impl Iterator<Item = &'o mut [u8]>) -> Result<(), WorkError> {
        let sources = std::iter::once(Some(self.work.model)).chain(self.work.state.iter().copied());
        let mut vectors = Vec::with_capacity(1 + self.work.state.len());
        for source in sources {
            let mut values = vec![0.0; coordinates.len()];
            if let Some(source) = source {
                source.read(coordinates.start, &mut values).map_err(WorkError::Read)?;
            }
            vectors.push(values);
        }
        for segment in self.layout.segments(coordinates.clone()).filter(|s| !s.personal) {
            let from = segment.start - coordinates.start;
            let mut parts = vectors.iter_mut().map(|values| &mut values[from..from + segment.len]);
            let Some(weights) = parts.next() else { continue };
            let mut state: Vec<&mut [f32]> = parts.collect();
            let at = segment.position - self.first;
            let sums = |plane: usize| &self.sums[plane][at..at + segment.len];
            let step = segment.grid.step();
            let mut direction = self.direction(sums(0), step);
            if let Some((coefficient, slot)) = self.making.centre {
                for (d, centre) in direction.iter_mut().zip(&*state[slot]) {
                    *d += coefficient * f64::from(*centre);
                }
            }
            let second = if self.making.planes > 1 { self.direction(sums(1), step) } else { Vec::new() };
            let mut block =
                Block { weights, direction: &direction, second: &second, state: &mut state, grid: segment.grid };
            self.work.strategy.rule().apply(self.facts, &mut block);
            if segment.variances {
                // Rounding on the grid, stale updates and steps of a server's optimiser can pass zero; no variance can.
                block.weights.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
            }
        }
        for (values, bytes) in vectors.iter().zip(out) {
            for (value, place) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                *place = value.to_le_bytes();
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "rounded once, the same way everywhere")]
    fn direction(&self, sums: &[i64], step: f64) -> Vec<f64> {
        sums.iter().map(|sum| *sum as f64 / self.making.divisor * step).collect()
    }
}
