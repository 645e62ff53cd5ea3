//! Exact weighted sums of updates: one pass over the values, in tiles that stay in the core's cache.
//!
//! Threads take pieces of the wave's positions. A thread walks groups of updates, within a group blocks of [`BLOCK`]
//! positions, within a block four updates at a time: a block's sums stay in the second-level cache for a whole group, and an
//! opened update is read from start to end of the piece before the next group is opened.
//!
//! Overflow: |sum| <= (sum of weights) x (largest bound), checked once against 64 bits before anything is added.

use std::ops::Range;

use super::layout::Layout;
use super::parallel::{Threads, each, piece, stripe};
use super::{Partial, RowError, Rows, WorkError, simd};

/// Positions a block: 64 KiB of each update, 128 KiB of sums.
pub(super) const BLOCK: usize = 16 * 1024;
/// Updates read together before the next are opened.
const GROUP: usize = 128;
/// Updates added at once.
const TOGETHER: usize = 4;

/// A thread's place for values of a few updates.
type Buffers = [Vec<i32>; TOGETHER];

/// Which updates are added, each with its weight as a factor that fits the kernel.
#[derive(Debug)]
pub(super) struct Weighted {
    /// (row, factor): a weight beyond 31 bits stands here in parts.
    factors: Vec<(usize, i32)>,
    /// Sum of weights.
    weight: u64,
    /// Updates of weight > 0.
    rows: Vec<usize>,
}

impl Weighted {
    /// Updates with these weights, one a row; 0 leaves an update out.
    ///
    /// # Errors
    /// [`WorkError::Unusable`] with the numbers if the sum could leave 64 bits.
    pub(super) fn new(weights: &[u32], layout: &Layout) -> Result<Self, WorkError> {
        let weight: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let bound = layout.travelling().map(|t| t.grid.bound.unsigned_abs()).max().unwrap_or(0);
        if u128::from(weight) * u128::from(bound) > i64::MAX as u128 {
            return Err(WorkError::Unusable(format!(
                "a sum of weights of {weight} times values up to {bound} leaves 64 bits: lower max_examples or \
                 max_participants"
            )));
        }
        let mut factors = Vec::with_capacity(weights.len());
        for (row, weight) in weights.iter().enumerate() {
            let mut left = *weight;
            while left > 0 {
                let part = left.min(i32::MAX.unsigned_abs());
                factors.push((row, part.cast_signed()));
                left -= part;
            }
        }
        let rows = (0..weights.len()).filter(|row| weights[*row] > 0).collect();
        Ok(Self { factors, weight, rows })
    }

    /// The sum over `len` positions from `start` of the updates; `bounds` are those of the positions.
    pub(super) fn sum(
        &self,
        rows: &dyn Rows,
        (start, len): (usize, usize),
        bounds: &[(usize, i32)],
        threads: Threads,
    ) -> Result<Partial, WorkError> {
        let mut sum = vec![0; len];
        let threads = threads.for_values(len.saturating_mul(self.factors.len()));
        // Each piece opens the updates of every group anew if there are several groups.
        let width = if self.factors.len() > GROUP { stripe(len, threads, 16) } else { piece(len, threads, 16) };
        let pieces: Vec<_> = sum.chunks_mut(width).enumerate().map(|(i, sums)| (i * width, sums)).collect();
        each(threads, pieces, Buffers::default, |buffers, (from, sums)| {
            self.piece(rows, buffers, (start, from), sums, bounds)
        })?;
        Ok(Partial::of(sum, self.weight, self.rows.iter().map(|row| rows.digest(*row))))
    }

    /// The sums from `start + from`.
    fn piece(
        &self,
        rows: &dyn Rows,
        buffers: &mut Buffers,
        (start, from): (usize, usize),
        sums: &mut [i64],
        bounds: &[(usize, i32)],
    ) -> Result<(), WorkError> {
        let block = BLOCK.min(sums.len());
        buffers.iter_mut().for_each(|buffer| buffer.resize(block.max(buffer.len()), 0));
        for group in self.factors.chunks(GROUP) {
            let mut at = from;
            for sums in sums.chunks_mut(block) {
                for few in group.chunks(TOGETHER) {
                    for ((row, _), buffer) in few.iter().zip(&mut *buffers) {
                        read(rows, *row, start + at, &mut buffer[..sums.len()])?;
                    }
                    add(few, buffers, at, sums, bounds)?;
                }
                at += sums.len();
            }
        }
        Ok(())
    }
}

/// Adds what was read of a few updates at `at` of the positions that `bounds` covers, and checks it.
fn add(
    few: &[(usize, i32)],
    buffers: &Buffers,
    at: usize,
    sums: &mut [i64],
    bounds: &[(usize, i32)],
) -> Result<(), WorkError> {
    // Of fewer than four the first stands in, times nothing.
    let factors = std::array::from_fn(|k| few.get(k).map_or(0, |(_, factor)| *factor));
    for (run, bound) in runs(bounds, at, sums.len()) {
        let values = std::array::from_fn(|k| &buffers[if k < few.len() { k } else { 0 }][run.clone()]);
        if !simd::add(&mut sums[run.clone()], values, factors, bound) {
            few.iter()
                .zip(buffers)
                .try_for_each(|((row, _), buffer)| check(*row, &buffer[..sums.len()], at, bounds).map(|_| ()))?;
        }
    }
    Ok(())
}

/// The runs of equal bound in `len` values at `at` of the positions that `bounds` covers, counted from `at`.
fn runs(bounds: &[(usize, i32)], at: usize, len: usize) -> impl Iterator<Item = (Range<usize>, i32)> {
    let mut from = 0;
    bounds.iter().filter_map(move |(width, bound)| {
        let (start, end) = (from.max(at), (from + width).min(at + len));
        from += width;
        (start < end).then(|| (start - at..end - at, *bound))
    })
}

/// Reads values of an update; says which one if it cannot be read.
pub(super) fn read(rows: &dyn Rows, row: usize, start: usize, out: &mut [i32]) -> Result<(), WorkError> {
    rows.read(row, start, out).map_err(|e| match e {
        RowError::Damaged(detail) => WorkError::Update { row, reason: "damaged", detail },
        RowError::Store(detail) => WorkError::Read(detail),
    })
}

/// Checks values at `at` of the positions that `bounds` covers; returns their largest magnitude.
pub(super) fn check(row: usize, values: &[i32], at: usize, bounds: &[(usize, i32)]) -> Result<u32, WorkError> {
    let mut largest = 0;
    for (run, bound) in runs(bounds, at, values.len()) {
        let (low, high) = simd::ends(&values[run]);
        let found = low.unsigned_abs().max(high.unsigned_abs());
        if found > bound.unsigned_abs() {
            let detail = format!("a value is beyond the bound {bound} of the round's grid");
            return Err(WorkError::Update { row, reason: "out_of_range", detail });
        }
        largest = largest.max(found);
    }
    Ok(largest)
}
