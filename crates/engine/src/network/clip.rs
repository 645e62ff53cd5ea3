//! The backward pass with each row's gradient clipped: what differential privacy asks of training (Abadi et al. 2016, "Deep
//! learning with differential privacy", algorithm 1, lines "compute gradient" and "clip gradient").
//!
//! ```text
//! back through the stages -> each row's norm over the whole model -> factor = min(1, bound / norm)
//! dense: rows of dy times their factor, one product      convolution: sum of kept gradients times their factor
//! ```
//! A row's gradient is linear in its row of dy, so scaling dy scales it. Norms of dense layers need no gradient at all; those
//! of convolutions need each row's own, which is kept: a bound's factor is known only when all layers have been seen.
//! A batch normalisation mixes the rows, so there is no such thing as a row's gradient: who asks for clipping refuses such
//! models first ([`aivillage_base::Architecture::examples_apart`]).

use super::{Network, Operation, Workspace};
use crate::float::Float;
use crate::layers::relu_backward;
use crate::loss::as_f64;

const MIXES_ROWS: &str = "invariant: models that mix rows are refused before they are clipped";

impl Network {
    /// As [`Self::backward`] of a *mean* loss over the rows, with each row's gradient scaled to a norm of at most `bound`
    /// before they are summed and divided by the number of rows. `bound` is above 0.
    ///
    /// # Panics
    /// If the model has a batch normalisation.
    #[expect(clippy::too_many_arguments, reason = "a backward pass and its bound")]
    pub(crate) fn backward_clipped<F: Float, R>(
        &self,
        values: &[F],
        x: &[F],
        rows: usize,
        work: &mut Workspace<F>,
        gradient: &mut [F],
        bound: f64,
        loss: impl FnOnce(&[F], &mut [F]) -> R,
    ) -> R {
        let result = self.outputs_gradient(rows, work, loss);
        let norms = self.norms(values, x, rows, work);
        // The loss is a mean: a row's own gradient is `rows` times what came back.
        let factor = |square: &f64| F::of(f64::min(1.0, bound / (square.sqrt() * as_f64(rows))));
        let factors: Vec<F> = norms.iter().map(factor).collect();
        for (i, stage) in self.stages.iter().enumerate() {
            let slot = &mut gradient[stage.offset..stage.offset + stage.operation.parameters()];
            match stage.operation {
                Operation::Dense(layer) => {
                    let dy = &mut work.gradients[i][..rows * stage.output];
                    for (row, factor) in dy.chunks_exact_mut(stage.output).zip(&factors) {
                        row.iter_mut().for_each(|g| *g *= *factor);
                    }
                    let input = if i == 0 { x } else { work.outputs[i - 1].as_slice() };
                    layer.gradient(input, rows, dy, slot);
                }
                Operation::Conv2d(layer) => layer.combine(&work.samples[i], &factors, &mut work.scratch, slot),
                Operation::BatchNorm(_) => unreachable!("{MIXES_ROWS}"),
                Operation::MaxPool2d(_) | Operation::Transpose(_) | Operation::Copy => {}
            }
        }
        result
    }

    /// Goes back through the stages; returns the squared norm of each row's gradient of all tensors.
    fn norms<F: Float>(&self, values: &[F], x: &[F], rows: usize, work: &mut Workspace<F>) -> Vec<f64> {
        if work.samples.is_empty() {
            let kept = |operation: Operation| match operation {
                Operation::Conv2d(layer) => work.rows * layer.own(),
                Operation::BatchNorm(_) => unreachable!("{MIXES_ROWS}"),
                Operation::Dense(_) | Operation::MaxPool2d(_) | Operation::Transpose(_) | Operation::Copy => 0,
            };
            work.samples = self.stages.iter().map(|s| vec![F::zero(); kept(s.operation)]).collect();
        }
        let mut norms = vec![0.0; rows];
        for (i, stage) in self.stages.iter().enumerate().rev() {
            let (before, rest) = work.gradients.split_at_mut(i);
            let dy = &mut rest[0][..rows * stage.output];
            if stage.relu {
                relu_backward(&work.outputs[i], dy);
            }
            let input = if i == 0 { x } else { work.outputs[i - 1].as_slice() };
            let dx = before.last_mut().map(Vec::as_mut_slice);
            let tensors = stage.tensors(values);
            match stage.operation {
                Operation::Dense(layer) => {
                    layer.add_norms(input, dy, &mut norms);
                    if let Some(dx) = dx {
                        layer.input_gradient(tensors, rows, dy, dx);
                    }
                }
                Operation::Conv2d(layer) => {
                    let samples = &mut work.samples[i];
                    layer.backward_samples(tensors, input, dy, &mut work.scratch, samples, &mut norms, dx);
                }
                Operation::BatchNorm(_) => unreachable!("{MIXES_ROWS}"),
                Operation::MaxPool2d(_) | Operation::Transpose(_) | Operation::Copy => {
                    stage.operation.pass_back(dy, &work.chosen[i], rows, dx);
                }
            }
        }
        norms
    }
}
