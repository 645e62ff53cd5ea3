//! A table of updates: all rows of a run of positions at once, for what needs to see them side by side.

use std::ops::Range;

use super::sum::{check, read};
use super::{Rows, WorkError};

/// Bytes of the tables of all threads at most.
const BYTES_MAX: usize = 64 << 20;

/// Columns of a table at most: 16 KiB of each update, the shortest read that costs little more than its bytes.
const COLUMNS_MAX: usize = 4096;

/// Columns of each of `threads` tables of `rows` rows: as many as memory allows, with what [`stride`] adds to them.
pub(super) fn columns(rows: usize, threads: usize) -> usize {
    let room = BYTES_MAX / 4 / rows.max(1) / threads.max(1);
    match room / PAGE {
        0 | 1 => (room / 16 * 16).max(16),
        pages if pages > COLUMNS_MAX / PAGE => COLUMNS_MAX,
        // The odd number of pages, so nothing is added.
        pages => (pages - 1) / 2 * 2 * PAGE + PAGE,
    }
}

/// Values of several updates at the same positions. One thread's own; its memory is used again and again.
#[derive(Debug, Default)]
pub(super) struct Table {
    values: Vec<i32>,
    width: usize,
    /// Values from one row to the next.
    stride: usize,
    largest: u32,
}

/// Columns whose bytes are a page, the unit in which long rows are shifted against each other.
const PAGE: usize = 1024;

/// Values from one long row to the next: an odd number of pages, so that the same columns of all rows spread over all sets
/// of the second-level cache. With a power of two they share a few and push each other out.
fn stride(width: usize) -> usize {
    if width < 2 * PAGE { width } else { (width.div_ceil(PAGE) | 1) * PAGE }
}

impl Table {
    /// Reads the values of `chosen` updates at `ranges` of positions, one row each, side by side, and checks them against
    /// `bounds`, which cover these positions from `at`; `more` empty rows follow.
    pub(super) fn fill(
        &mut self,
        rows: &dyn Rows,
        chosen: &[usize],
        ranges: &[Range<usize>],
        (at, bounds): (usize, &[(usize, i32)]),
        more: usize,
    ) -> Result<(), WorkError> {
        self.width = ranges.iter().map(Range::len).sum();
        (self.stride, self.largest) = (stride(self.width), 0);
        self.values.resize((chosen.len() + more) * self.stride, 0);
        for (row, values) in chosen.iter().zip(self.values.chunks_mut(self.stride.max(1))) {
            let values = &mut values[..self.width];
            let mut from = 0;
            for range in ranges {
                read(rows, *row, range.start, &mut values[from..from + range.len()])?;
                from += range.len();
            }
            self.largest = self.largest.max(check(*row, values, at, bounds)?);
        }
        Ok(())
    }

    /// Rows.
    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.stride.max(1)
    }

    /// The largest magnitude of the updates' values.
    pub(super) fn largest(&self) -> u32 {
        self.largest
    }

    /// Columns.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[i32] {
        &self.values[row * self.stride..][..self.width]
    }

    /// One row, to be written.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [i32] {
        &mut self.values[row * self.stride..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_all_threads_fit_the_memory_they_may_have() {
        for rows in [1, 3, 100, 1_000, 1_638, 2_000, 3_000, 10_000, 100_000] {
            for threads in [1, 2, 3, 64] {
                let columns = columns(rows, threads);
                assert!((16..=COLUMNS_MAX).contains(&columns) && columns.is_multiple_of(16));
                let bytes = stride(columns) * rows * threads * 4;
                assert!(bytes <= BYTES_MAX || columns == 16, "{rows} rows, {threads} threads: {columns} columns");
                assert!(stride(columns) < 2 * PAGE || (stride(columns) / PAGE) % 2 == 1);
            }
        }
    }
}
