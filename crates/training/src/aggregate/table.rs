//! A table of updates: all rows of a run of positions at once, for what needs to see them side by side.

use std::ops::Range;

use super::parallel::{Threads, each};
use super::sum::{BLOCK, check, read};
use super::{Rows, WorkError};

/// Bytes of a table at most.
const BYTES_MAX: usize = 64 << 20;

/// Columns of a table of `rows` rows: as wide as a block, if memory allows.
pub(super) fn columns(rows: usize) -> usize {
    (BYTES_MAX / 4 / rows.max(1)).clamp(16, BLOCK) / 16 * 16
}

/// Values of several updates at the same positions.
#[derive(Debug, Default)]
pub(super) struct Table {
    values: Vec<i32>,
    width: usize,
}

impl Table {
    /// An empty table with room for `more` rows below those of updates.
    ///
    /// Reads the values of `chosen` updates at `ranges` of positions, one row each, side by side; `bounds` are those of all
    /// these positions in turn.
    pub(super) fn fill(
        &mut self,
        rows: &dyn Rows,
        chosen: &[usize],
        ranges: &[Range<usize>],
        bounds: &[(usize, i32)],
        (more, threads): (usize, Threads),
    ) -> Result<(), WorkError> {
        self.width = ranges.iter().map(Range::len).sum();
        self.values.resize((chosen.len() + more) * self.width, 0);
        let count = threads.for_values(chosen.len() * self.width);
        let each_thread = chosen.len().div_ceil(count);
        let width = self.width.max(1);
        let parts: Vec<_> = chosen.chunks(each_thread).zip(self.values.chunks_mut(each_thread * width)).collect();
        each(parts, |(chosen, values)| {
            for (row, values) in chosen.iter().zip(values.chunks_mut(width)) {
                let mut at = 0;
                for range in ranges {
                    read(rows, *row, range.start, &mut values[at..at + range.len()])?;
                    at += range.len();
                }
                check(*row, values, 0, bounds)?;
            }
            Ok(())
        })
    }

    /// Columns.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[i32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    /// One row, to be written.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [i32] {
        &mut self.values[row * self.width..(row + 1) * self.width]
    }
}
