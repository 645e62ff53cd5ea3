//! The two number types that layers are computed in: f32 to train and predict, f64 to check gradients.
//!
//! Promises: exp and ln come from `libm` and give the same bits on every machine; a matrix product sums each element in
//! an order that depends on the inner dimension only, never on how many rows are computed at once.

use crate::kernel::Kernels;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar};

/// f32 or f64.
pub(crate) trait Float:
    LinalgScalar + Kernels + PartialOrd + std::ops::AddAssign + std::ops::MulAssign + std::ops::SubAssign
{
    /// The nearest value of this type.
    fn of(value: f64) -> Self;
    /// Exact for both types.
    fn to_f64(self) -> f64;
    /// e^self.
    fn exp(self) -> Self;
}

impl Float for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is what is asked for")]
    fn of(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn exp(self) -> Self {
        libm::expf(self)
    }
}

impl Float for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn exp(self) -> Self {
        libm::exp(self)
    }
}

/// A row-major matrix in a slice, or its transpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, F> {
    view: ArrayView2<'a, F>,
}

impl<'a, F: Float> Matrix<'a, F> {
    /// The first `rows * columns` values of `values`, row-major.
    pub(crate) fn new(rows: usize, columns: usize, values: &'a [F]) -> Self {
        let view = ArrayView2::from_shape((rows, columns), &values[..rows * columns]);
        Self { view: view.expect("invariant: the slice has rows * columns values") }
    }

    /// Rows become columns; no value moves.
    pub(crate) fn transposed(self) -> Self {
        Self { view: self.view.reversed_axes() }
    }
}

/// `c <- a b + beta c`, with `c` row-major in the front of its slice.
///
/// # Panics
/// If the shapes do not fit: the callers are layers whose shapes were checked when the network was built.
pub(crate) fn product<F: Float>(a: Matrix<'_, F>, b: Matrix<'_, F>, beta: F, c: &mut [F]) {
    let (rows, columns) = (a.view.nrows(), b.view.ncols());
    let mut c = ArrayViewMut2::from_shape((rows, columns), &mut c[..rows * columns])
        .expect("invariant: the slice has rows * columns values");
    general_mat_mul(F::one(), &a.view, &b.view, beta, &mut c);
}

/// Sum of squares; eight sums side by side in the type of the values, so that the compiler uses wide registers.
pub(crate) fn squares<F: Float>(values: &[F]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [F::zero(); 8];
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += *v * *v;
        }
    }
    sums.iter().map(|s| s.to_f64()).sum::<f64>() + rest.iter().map(|v| v.to_f64().powi(2)).sum::<f64>()
}
