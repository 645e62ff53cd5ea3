//! Fully connected: `y = x W + b`, x `[rows, inputs]`, W `[inputs, units]`, b `[units]`.

use crate::float::{Float, Matrix, product};
use crate::kernel::{Left, Product};

/// A dense layer's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) units: usize,
}

impl Dense {
    /// Number of values of its tensors.
    pub(crate) fn parameters(self) -> usize {
        self.units + self.inputs * self.units
    }

    /// Writes `y` `[rows, units]`.
    pub(crate) fn forward<F: Float>(self, values: &[F], x: &[F], rows: usize, y: &mut [F]) {
        let (bias, weight) = values.split_at(self.units);
        let product = Product {
            left: x,
            how: Left::Pieces { row: self.inputs, run: self.inputs, line: 0 },
            rows,
            inner: self.inputs,
            right: weight,
            right_row: self.units,
            start: bias,
            columns: self.units,
            result_row: self.units,
        };
        F::product(&product, y);
    }

    /// From the gradient `dy` of the output: overwrites `gradient` of the tensors, and `dx` if somebody needs it.
    pub(crate) fn backward<F: Float>(
        self,
        values: &[F],
        x: &[F],
        rows: usize,
        dy: &[F],
        gradient: &mut [F],
        dx: Option<&mut [F]>,
    ) {
        let (bias, weight) = gradient.split_at_mut(self.units);
        bias.fill(F::zero());
        for row in dy[..rows * self.units].chunks_exact(self.units) {
            for (b, g) in bias.iter_mut().zip(row) {
                *b += *g;
            }
        }
        let outer = Product {
            left: x,
            how: Left::Transposed { line: self.inputs },
            rows: self.inputs,
            inner: rows,
            right: dy,
            right_row: self.units,
            start: &[],
            columns: self.units,
            result_row: self.units,
        };
        F::product(&outer, weight);
        if let Some(dx) = dx {
            let dy = Matrix::new(rows, self.units, dy);
            let weight = Matrix::new(self.inputs, self.units, &values[self.units..]);
            product(dy, weight.transposed(), F::zero(), dx);
        }
    }
}
