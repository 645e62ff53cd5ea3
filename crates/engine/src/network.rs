//! A model as a chain of stages over preallocated buffers: forward, loss gradient, backward.
//!
//! Promises: a row's output depends on that row and the values only, to the bit, however many rows share its block; the
//! same block gives the same gradients, to the bit. Must not know: optimisers, data sets, files.

use aivillage_base::arch::{ArchError, Architecture, LayerSpec, Task};

use crate::float::Float;
use crate::layers::{Columns, Conv2d, Dense, MaxPool2d, relu, relu_backward};

/// Largest number of values that one row has in any layer (bounds the buffers, and indices to 32 bits).
const ROW_VALUES_MAX: usize = 1 << 26;

/// What a stage computes before its ReLU.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Dense(Dense),
    Conv2d(Conv2d),
    MaxPool2d(MaxPool2d),
    /// The input as it is: a model that starts with ReLU.
    Copy,
}

impl Operation {
    fn parameters(self) -> usize {
        match self {
            Self::Dense(layer) => layer.parameters(),
            Self::Conv2d(layer) => layer.parameters(),
            Self::MaxPool2d(_) | Self::Copy => 0,
        }
    }
}

/// One operation with the ReLU that follows it, if any. Flattening moves no value and is no stage.
#[derive(Debug, Clone, Copy)]
struct Stage {
    operation: Operation,
    relu: bool,
    /// Where its tensors start among the model's values.
    offset: usize,
    input: usize,
    output: usize,
}

impl Stage {
    fn tensors<'a, F>(&self, values: &'a [F]) -> &'a [F] {
        &values[self.offset..self.offset + self.operation.parameters()]
    }
}

/// A model's computation, ready to run on values in layout order.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    stages: Vec<Stage>,
    parameters: usize,
    input: usize,
    task: Task,
}

/// Buffers for blocks of up to `rows` rows; reused from block to block.
#[derive(Debug)]
pub(crate) struct Workspace<F> {
    rows: usize,
    outputs: Vec<Vec<F>>,
    /// Gradients of the outputs; empty until the first backward pass.
    gradients: Vec<Vec<F>>,
    chosen: Vec<Vec<u32>>,
    columns: Columns<F>,
}

impl<F> Workspace<F> {
    /// Most rows of a block.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

impl Network {
    /// Checks the architecture and lays out its stages.
    ///
    /// # Errors
    /// If the architecture does not hold together, or one row needs more than 2^26 values in a layer.
    pub(crate) fn new(architecture: &Architecture) -> Result<Self, ArchError> {
        let parameters = architecture.parameters()?;
        let shapes = architecture.shapes()?;
        let mut stages: Vec<Stage> = Vec::new();
        let mut shape = architecture.input.clone();
        let mut offset = 0;
        for (layer, next) in architecture.layers.iter().zip(shapes) {
            let operation = match (layer, shape.as_slice()) {
                (LayerSpec::Dense { units }, _) => Operation::Dense(Dense { inputs: shape[0], units: *units }),
                (LayerSpec::Conv2d { filters, kernel }, [channels, height, width]) => Operation::Conv2d(Conv2d {
                    channels: *channels,
                    height: *height,
                    width: *width,
                    filters: *filters,
                    kernel: *kernel,
                }),
                (LayerSpec::MaxPool2d { size }, [channels, height, width]) => {
                    Operation::MaxPool2d(MaxPool2d { channels: *channels, height: *height, width: *width, size: *size })
                }
                (LayerSpec::Conv2d { .. } | LayerSpec::MaxPool2d { .. }, _) => {
                    unreachable!("invariant: shapes() refuses images of other than three dimensions")
                }
                (LayerSpec::Relu, _) => {
                    if let Some(stage) = stages.last_mut() {
                        stage.relu = true;
                        continue;
                    }
                    Operation::Copy
                }
                (LayerSpec::Flatten, _) => {
                    shape = next;
                    continue;
                }
            };
            let (input, output) = (row_values(&shape)?, row_values(&next)?);
            stages.push(Stage { operation, relu: matches!(layer, LayerSpec::Relu), offset, input, output });
            offset += operation.parameters();
            shape = next;
        }
        if stages.is_empty() {
            return Err(ArchError("a model needs at least one layer that computes something".into()));
        }
        Ok(Self { stages, parameters, input: row_values(&architecture.input)?, task: architecture.task })
    }

    /// Number of values of the model.
    pub(crate) fn parameters(&self) -> usize {
        self.parameters
    }

    /// Values of one row of input.
    pub(crate) fn input(&self) -> usize {
        self.input
    }

    /// What the output means.
    pub(crate) fn task(&self) -> Task {
        self.task
    }

    /// Buffers for blocks of up to `rows` rows.
    pub(crate) fn workspace<F: Float>(&self, rows: usize) -> Workspace<F> {
        let buffer = |stage: &Stage| vec![F::zero(); rows * stage.output];
        let chosen = |stage: &Stage| match stage.operation {
            Operation::MaxPool2d(_) => vec![0; rows * stage.output],
            Operation::Dense(_) | Operation::Conv2d(_) | Operation::Copy => Vec::new(),
        };
        let convolutions = self.stages.iter().filter_map(|stage| match stage.operation {
            Operation::Conv2d(layer) => Some(layer),
            Operation::Dense(_) | Operation::MaxPool2d(_) | Operation::Copy => None,
        });
        let columns = Columns::for_layers(convolutions);
        Workspace {
            rows,
            outputs: self.stages.iter().map(buffer).collect(),
            gradients: Vec::new(),
            chosen: self.stages.iter().map(chosen).collect(),
            columns,
        }
    }

    /// Computes the outputs of `rows` rows of `x` and returns them, `[rows, outputs]`: logits, or values.
    pub(crate) fn forward<'w, F: Float>(
        &self,
        values: &[F],
        x: &[F],
        rows: usize,
        work: &'w mut Workspace<F>,
    ) -> &'w [F] {
        assert!(rows <= work.rows, "a block is never larger than its workspace");
        for (i, stage) in self.stages.iter().enumerate() {
            let (before, rest) = work.outputs.split_at_mut(i);
            let input = before.last().map_or(x, Vec::as_slice);
            let output = rest[0].as_mut_slice();
            let tensors = stage.tensors(values);
            match stage.operation {
                Operation::Dense(layer) => layer.forward(tensors, input, rows, output),
                Operation::Conv2d(layer) => layer.forward(tensors, input, rows, &mut work.columns, output),
                Operation::MaxPool2d(layer) => layer.forward(input, rows, output, &mut work.chosen[i]),
                Operation::Copy => {
                    output[..rows * stage.output].copy_from_slice(&input[..rows * stage.input]);
                }
            }
            if stage.relu {
                relu(&mut output[..rows * stage.output]);
            }
        }
        let width = self.task.outputs();
        work.outputs.last().map_or(&[], |out| &out[..rows * width])
    }

    /// After [`Self::forward`] of the same block: lets `loss` write the gradient of the outputs (given outputs, gradient),
    /// goes back through the stages and overwrites `gradient`, in layout order.
    pub(crate) fn backward<F: Float, R>(
        &self,
        values: &[F],
        x: &[F],
        rows: usize,
        work: &mut Workspace<F>,
        gradient: &mut [F],
        loss: impl FnOnce(&[F], &mut [F]) -> R,
    ) -> R {
        if work.gradients.is_empty() {
            work.gradients = self.stages.iter().map(|s| vec![F::zero(); work.rows * s.output]).collect();
        }
        let last = self.stages.len() - 1;
        let size = rows * self.task.outputs();
        let result = loss(&work.outputs[last][..size], &mut work.gradients[last][..size]);
        for (i, stage) in self.stages.iter().enumerate().rev() {
            let (before, rest) = work.gradients.split_at_mut(i);
            let dy = &mut rest[0][..rows * stage.output];
            if stage.relu {
                relu_backward(&work.outputs[i], dy);
            }
            let input = if i == 0 { x } else { work.outputs[i - 1].as_slice() };
            let dx = before.last_mut().map(Vec::as_mut_slice);
            let tensors = stage.tensors(values);
            let slot = &mut gradient[stage.offset..stage.offset + stage.operation.parameters()];
            match stage.operation {
                Operation::Dense(layer) => layer.backward(tensors, input, rows, dy, slot, dx),
                Operation::Conv2d(layer) => {
                    layer.backward(tensors, input, rows, dy, &mut work.columns, slot, dx);
                }
                Operation::MaxPool2d(layer) => {
                    if let Some(dx) = dx {
                        layer.backward(dy, &work.chosen[i], rows, dx);
                    }
                }
                // Only ever the first stage: nobody needs the gradient of the data.
                Operation::Copy => {}
            }
        }
        result
    }
}

fn row_values(shape: &[usize]) -> Result<usize, ArchError> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| *n <= ROW_VALUES_MAX)
        .ok_or_else(|| ArchError(format!("a layer of shape {shape:?} is too large: at most {ROW_VALUES_MAX} values")))
}
