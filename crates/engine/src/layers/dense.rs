//! Fully connected: `y = x W + b`, x `[rows, inputs]`, W `[inputs, units]`, b `[units]`.

use crate::float::{Float, Matrix, product, squares};
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

    /// From the gradient `dy` of the output: overwrites `gradient` of the tensors.
    pub(crate) fn gradient<F: Float>(self, x: &[F], rows: usize, dy: &[F], gradient: &mut [F]) {
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
    }

    /// From the gradient `dy` of the output: overwrites that of the input.
    pub(crate) fn input_gradient<F: Float>(self, values: &[F], rows: usize, dy: &[F], dx: &mut [F]) {
        let dy = Matrix::new(rows, self.units, dy);
        let weight = Matrix::new(self.inputs, self.units, &values[self.units..]);
        product(dy, weight.transposed(), F::zero(), dx);
    }

    /// Adds the squared norm of each row's own gradient of the tensors to `norms`.
    ///
    /// The gradient of W is the outer product of x and dy, so its norm is the product of theirs ("ghost norm", Goodfellow
    /// 2015, "Efficient per-example gradient computations"): nothing of its size is made.
    pub(crate) fn add_norms<F: Float>(self, x: &[F], dy: &[F], norms: &mut [f64]) {
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.units));
        for (norm, (x, dy)) in norms.iter_mut().zip(rows) {
            *norm += squares(dy) * (1.0 + squares(x));
        }
    }
}
