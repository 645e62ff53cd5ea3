//! Fully connected: `y = x W + b`, x `[rows, inputs]`, W `[inputs, units]`, b `[units]`.

use crate::float::{Float, Matrix, product};

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
        for row in y[..rows * self.units].chunks_exact_mut(self.units) {
            row.copy_from_slice(bias);
        }
        let weight = Matrix::new(self.inputs, self.units, weight);
        product(Matrix::new(rows, self.inputs, x), weight, F::one(), y);
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
        let dy = Matrix::new(rows, self.units, dy);
        product(Matrix::new(rows, self.inputs, x).transposed(), dy, F::zero(), weight);
        if let Some(dx) = dx {
            let weight = Matrix::new(self.inputs, self.units, &values[self.units..]);
            product(dy, weight.transposed(), F::zero(), dx);
        }
    }
}
