//! Order statistics coordinate by coordinate: exact, on integers, many columns at once.
//!
//! A sorting network orders [`LANES`] columns side by side. Of many updates the middle is found faster by halving the range
//! of values and counting, which is linear in their number; and for even more than a network is made for, columns are sorted
//! one by one.

use super::network::{Chain, network};
use super::parallel::{Threads, each, piece};
use super::simd::{self, LANES};
use super::table::{Table, columns};
use super::{Rows, WorkError};

/// Updates up to which a network finds the middle faster than counting does.
const COUNTING_MIN: usize = 400;
/// Updates up to which a network is made: 58,000 pairs.
const NETWORK_MAX: usize = 2_048;

/// Which updates take part, and which of their sorted values count.
#[derive(Debug)]
pub(super) struct Ranks {
    /// Rows.
    rows: Vec<usize>,
    kind: Kind,
    chains: Option<Vec<Chain>>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// All but `cut` at each end.
    Middle { cut: usize },
    /// The `keep` nearest to the median.
    NearMedian { keep: usize },
}

impl Ranks {
    /// Without the `cut` smallest and largest values of `rows`.
    ///
    /// # Errors
    /// [`WorkError::Unusable`] if nothing is left.
    pub(super) fn middle(rows: Vec<usize>, cut: usize) -> Result<Self, WorkError> {
        let count = rows.len();
        if 2 * cut >= count {
            return Err(WorkError::Unusable(format!("of {count} values none is left without {cut} at each end")));
        }
        let chains = (count < COUNTING_MIN).then(|| network(count, |r| usize::from((cut..count - cut).contains(&r))));
        Ok(Self { rows, kind: Kind::Middle { cut }, chains })
    }

    /// The `keep` values of `rows` nearest to their median; of two equally near the smaller one.
    ///
    /// # Errors
    /// [`WorkError::Unusable`] if there are not as many.
    pub(super) fn near_median(rows: Vec<usize>, keep: usize) -> Result<Self, WorkError> {
        let count = rows.len();
        if keep == 0 || keep > count {
            return Err(WorkError::Unusable(format!("of {count} values {keep} cannot be kept")));
        }
        // Ranks that every window holds count together, but for the two of the median.
        let inner = (count - keep).min(keep)..keep;
        let median = [(count - 1) / 2, count / 2];
        let class = |r: usize| if inner.contains(&r) && !median.contains(&r) { count } else { r };
        let chains = (count <= NETWORK_MAX).then(|| network(count, class));
        Ok(Self { rows, kind: Kind::NearMedian { keep }, chains })
    }

    /// How many values are summed a coordinate.
    pub(super) fn kept(&self) -> usize {
        match self.kind {
            Kind::Middle { cut } => self.rows.len() - 2 * cut,
            Kind::NearMedian { keep } => keep,
        }
    }

    /// The sums of what counts over `len` positions from `start`; `bounds` are those of the positions.
    pub(super) fn sum(
        &self,
        rows: &dyn Rows,
        (start, len): (usize, usize),
        bounds: &[(usize, i32)],
        threads: Threads,
    ) -> Result<Vec<i64>, WorkError> {
        let mut sums = vec![0; len];
        let threads = threads.for_values(len.saturating_mul(self.rows.len()));
        let columns = columns(self.rows.len(), threads);
        let width = piece(len, threads, columns.next_multiple_of(LANES));
        let stripes: Vec<_> = sums.chunks_mut(width).enumerate().map(|(i, sums)| (i * width, sums)).collect();
        let begin = || (Table::default(), vec![[0; LANES]; self.rows.len()]);
        each(threads, stripes, begin, |(table, tile), (mut at, sums)| {
            for sums in sums.chunks_mut(columns) {
                let range = start + at..start + at + sums.len();
                table.fill(rows, &self.rows, &[range], (at, bounds), 0)?;
                self.columns(table, tile, sums);
                at += sums.len();
            }
            Ok(())
        })?;
        Ok(sums)
    }

    /// The sums of each column of a table.
    fn columns(&self, table: &Table, tile: &mut [[i32; LANES]], sums: &mut [i64]) {
        let mut out = [0; LANES];
        for (at, sums) in (0..).step_by(LANES).zip(sums.chunks_mut(LANES)) {
            for (row, lanes) in tile.iter_mut().enumerate() {
                lanes[..sums.len()].copy_from_slice(&table.row(row)[at..at + sums.len()]);
            }
            match (&self.chains, self.kind) {
                (Some(chains), Kind::Middle { cut }) => {
                    simd::sort(tile, chains);
                    simd::total(&tile[cut..tile.len() - cut], &mut out);
                }
                (Some(chains), Kind::NearMedian { keep }) => {
                    simd::sort(tile, chains);
                    simd::nearest(tile, keep, &mut out);
                }
                (None, Kind::Middle { cut }) => simd::middle(tile, cut, &mut out),
                (None, Kind::NearMedian { keep }) => {
                    sort_columns(tile);
                    simd::nearest(tile, keep, &mut out);
                }
            }
            sums.copy_from_slice(&out[..sums.len()]);
        }
    }
}

/// Sorts each column on its own.
fn sort_columns(tile: &mut [[i32; LANES]]) {
    let mut column = vec![0; tile.len()];
    for lane in 0..LANES {
        for (value, row) in column.iter_mut().zip(&*tile) {
            *value = row[lane];
        }
        column.sort_unstable();
        for (value, row) in column.iter().zip(&mut *tile) {
            row[lane] = *value;
        }
    }
}
