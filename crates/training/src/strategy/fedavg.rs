//! Federated averaging: model + weighted mean of the changes.
//!
//! McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1, with
//! server step size 1: w(r+1) = w(r) + sum_k n_k * d_k / sum_k n_k, where d_k is node k's change of the weights on the
//! round's grid and n_k its number of examples. Assumes nothing of the cohort; one update can move the model as far as
//! the grid's range reaches.

use aivillage_base::fixed::Grid;
use aivillage_base::partial::Partial;

/// Applies the mean of `partial` to one block of weights of one tensor, in place.
///
/// The sum is exact; the division and the addition are done in f64 and rounded once to f32, so the result depends on
/// nothing but the sum. A block whose weights all stay as they are (no contributor) is left untouched.
///
/// # Panics
/// If block and sum differ in length.
pub fn apply(weights: &mut [f32], partial: &Partial, sum: &[i64], grid: Grid) {
    assert_eq!(weights.len(), sum.len(), "a block and its sum cover the same coordinates");
    if partial.weight == 0 {
        return;
    }
    #[expect(clippy::cast_precision_loss, reason = "rounded once, the same way everywhere")]
    let total = partial.weight as f64;
    let step = grid.step();
    for (w, s) in weights.iter_mut().zip(sum) {
        #[expect(clippy::cast_precision_loss, reason = "rounded once, the same way everywhere")]
        let mean = *s as f64 / total * step;
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32; the grid keeps them in range")]
        let next = (f64::from(*w) + mean) as f32;
        *w = next;
    }
}
