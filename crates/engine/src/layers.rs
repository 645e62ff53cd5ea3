//! The layers: forward, and backward to their input and their tensors, for a block of rows.
//!
//! A layer owns no memory: values, gradients and scratch are slices of a [`crate::network::Workspace`], and its tensors
//! are slices of the model's values in layout order (by name: bias before weight). Every gradient is checked against central
//! differences in f64. Must not know: losses, optimisers, data.

mod batch_norm;
mod conv;
mod dense;
mod pool;
mod transpose;

pub(crate) use batch_norm::{BatchNorm, Moments, Statistics};
pub(crate) use conv::{Conv2d, Scratch};
pub(crate) use dense::Dense;
pub(crate) use pool::MaxPool2d;
pub(crate) use transpose::Transpose;

use crate::float::Float;

/// x <- max(0, x). NaN stays NaN, so that a diverged model is seen.
pub(crate) fn relu<F: Float>(values: &mut [F]) {
    for v in values {
        *v = if *v < F::zero() { F::zero() } else { *v };
    }
}

/// The gradient passes where the output of [`relu`] is positive.
pub(crate) fn relu_backward<F: Float>(output: &[F], gradient: &mut [F]) {
    for (g, y) in gradient.iter_mut().zip(output) {
        *g = if *y > F::zero() { *g } else { F::zero() };
    }
}
