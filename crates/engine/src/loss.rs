//! Losses: mean over the rows of a block, with the gradient of the outputs; and what a prediction is right about.
//!
//! Softmax cross-entropy for classification (labels `0..classes`), half squared error for regression. Logs and sums of
//! losses are taken in f64, in row order.

use crate::float::Float;

/// What the rows of a block should give.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// One label a row, each below the model's number of classes.
    Labels(&'a [u32]),
    /// One value a row.
    Values(&'a [f32]),
}

/// Sums over the rows of a block.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    /// Sum of the rows' losses.
    pub(crate) loss: f64,
    /// Rows whose largest output is the label; 0 for regression.
    pub(crate) right: usize,
}

/// Turns each row of logits into probabilities: positive, summing to 1 up to rounding.
pub(crate) fn softmax<F: Float>(rows: &mut [F], classes: usize) {
    for row in rows.chunks_exact_mut(classes) {
        let (_, sum) = exponentials(row);
        for v in row {
            *v = *v / sum;
        }
    }
}

/// Turns a row of logits into e^(logit - largest); returns the largest and the sum.
fn exponentials<F: Float>(row: &mut [F]) -> (F, F) {
    let max = row[winner(row)];
    let mut sum = F::zero();
    for v in row {
        *v = (*v - max).exp();
        sum += *v;
    }
    (max, sum)
}

/// Sums of losses and right answers of a block's `outputs`.
pub(crate) fn measure<F: Float>(outputs: &[F], wanted: Wanted<'_>) -> Sums {
    let mut sums = Sums::default();
    match wanted {
        Wanted::Labels(labels) => {
            let classes = outputs.len() / labels.len().max(1);
            for (row, label) in outputs.chunks_exact(classes).zip(labels) {
                sums.loss += cross_entropy(row, *label as usize);
                sums.right += usize::from(winner(row) == *label as usize);
            }
        }
        Wanted::Values(values) => {
            for (y, t) in outputs.iter().zip(values) {
                let error = y.to_f64() - f64::from(*t);
                sums.loss += 0.5 * error * error;
            }
        }
    }
    sums
}

/// As [`measure`] (with exponentials in `F`), and writes the gradient of the *mean* loss over the block with respect to
/// each output.
pub(crate) fn differentiate<F: Float>(outputs: &[F], wanted: Wanted<'_>, gradient: &mut [F]) -> Sums {
    match wanted {
        Wanted::Labels(labels) => {
            let mut sums = Sums::default();
            let classes = outputs.len() / labels.len().max(1);
            let scale = F::of(1.0 / as_f64(labels.len()));
            gradient.copy_from_slice(outputs);
            let rows = gradient.chunks_exact_mut(classes).zip(outputs.chunks_exact(classes));
            for ((row, logits), label) in rows.zip(labels) {
                let label = *label as usize;
                let (max, sum) = exponentials(row);
                sums.loss += libm::log(sum.to_f64()) + max.to_f64() - logits[label].to_f64();
                sums.right += usize::from(winner(logits) == label);
                let factor = scale / sum;
                for g in row.iter_mut() {
                    *g *= factor;
                }
                row[label] -= scale;
            }
            sums
        }
        Wanted::Values(values) => {
            let scale = F::of(1.0 / as_f64(values.len()));
            for ((g, y), t) in gradient.iter_mut().zip(outputs).zip(values) {
                *g = (*y - F::of(f64::from(*t))) * scale;
            }
            measure(outputs, wanted)
        }
    }
}

/// Index of the largest value; of equal ones the first.
pub(crate) fn winner<F: Float>(row: &[F]) -> usize {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[best] {
            best = i;
        }
    }
    best
}

/// ln(sum of e^row) - row\[label\], in f64.
fn cross_entropy<F: Float>(row: &[F], label: usize) -> f64 {
    let max = row[winner(row)].to_f64();
    let sum: f64 = row.iter().map(|v| libm::exp(v.to_f64() - max)).sum();
    libm::log(sum) + max - row[label].to_f64()
}

#[expect(clippy::cast_precision_loss, reason = "numbers of rows stay far below 2^53")]
pub(crate) fn as_f64(n: usize) -> f64 {
    n as f64
}
