//! Between the two orders of an image: `[channels, h, w]`, in which data sets and dense layers know it, and
//! `[h, w, channels]`, in which convolutions and pools compute.

use crate::float::Float;

/// Each row is a matrix `[lines, columns]`; the output is its transpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transpose {
    pub(crate) lines: usize,
    pub(crate) columns: usize,
}

impl Transpose {
    /// Writes `y`, `[rows, columns, lines]`; backward is the same with lines and columns exchanged.
    pub(crate) fn forward<F: Float>(self, x: &[F], rows: usize, y: &mut [F]) {
        let size = self.lines * self.columns;
        for (x, y) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)).take(rows) {
            for (column, to) in y.chunks_exact_mut(self.lines).enumerate() {
                for (v, from) in to.iter_mut().zip(x[column..].iter().step_by(self.columns)) {
                    *v = *from;
                }
            }
        }
    }

    /// Overwrites `dx` with the gradient of the input.
    pub(crate) fn backward<F: Float>(self, dy: &[F], rows: usize, dx: &mut [F]) {
        Self { lines: self.columns, columns: self.lines }.forward(dy, rows, dx);
    }
}
