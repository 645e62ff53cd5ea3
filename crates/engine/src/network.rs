//! A model as a chain of stages over preallocated buffers: forward, loss gradient, backward.
//!
//! Promises: outside training a row's output depends on that row and the values only, to the bit, however many rows share
//! its block; the same block gives the same gradients, to the bit. Must not know: optimisers, data sets, files.

mod clip;

use std::ops::Range;

use aivillage_base::arch::{ArchError, Architecture, LayerSpec, Task};

use crate::float::Float;
use crate::layers::{
    BatchNorm, Conv2d, Dense, MaxPool2d, Moments, Scratch, Statistics, Transpose, relu, relu_backward,
};

/// Largest number of values that one row has in any layer (bounds the buffers, and indices to 32 bits).
const ROW_VALUES_MAX: usize = 1 << 26;

/// What a stage computes before its ReLU.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Dense(Dense),
    Conv2d(Conv2d),
    MaxPool2d(MaxPool2d),
    BatchNorm(BatchNorm),
    Transpose(Transpose),
    /// The input as it is: a model that starts with ReLU.
    Copy,
}

impl Operation {
    /// Overwrites the gradient of the input, if somebody needs it, of an operation without tensors.
    fn pass_back<F: Float>(self, dy: &[F], chosen: &[u32], rows: usize, dx: Option<&mut [F]>) {
        let Some(dx) = dx else { return };
        match self {
            Self::MaxPool2d(layer) => layer.backward(dy, chosen, rows, dx),
            Self::Transpose(layer) => layer.backward(dy, rows, dx),
            // A copy is only ever the first stage: nobody needs the gradient of the data.
            Self::Dense(_) | Self::Conv2d(_) | Self::BatchNorm(_) | Self::Copy => {}
        }
    }

    fn parameters(self) -> usize {
        match self {
            Self::Dense(layer) => layer.parameters(),
            Self::Conv2d(layer) => layer.parameters(),
            Self::BatchNorm(layer) => layer.parameters(),
            Self::MaxPool2d(_) | Self::Transpose(_) | Self::Copy => 0,
        }
    }

    /// How many of them, at the front, are no business of gradients.
    fn running(self) -> usize {
        match self {
            Self::BatchNorm(layer) => layer.running(),
            Self::Dense(_) | Self::Conv2d(_) | Self::MaxPool2d(_) | Self::Transpose(_) | Self::Copy => 0,
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
    /// Runs of values that gradients train: all but running statistics.
    trained: Vec<Range<usize>>,
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
    /// What each normalisation computed with; without channels for other stages.
    moments: Vec<Moments<F>>,
    scratch: Scratch<F>,
    /// Each row's own gradient of the convolutions; empty until a clipped backward pass.
    samples: Vec<Vec<F>>,
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
        let mut builder =
            Builder { stages: Vec::new(), shape: architecture.input.clone(), channels_last: false, offset: 0 };
        for (layer, next) in architecture.layers.iter().zip(architecture.shapes()?) {
            builder.layer(layer, next)?;
        }
        if builder.stages.is_empty() {
            return Err(ArchError("a model needs at least one layer that computes something".into()));
        }
        let input = row_values(&architecture.input)?;
        let trained = trained(&builder.stages);
        Ok(Self { stages: builder.stages, parameters, trained, input, task: architecture.task })
    }

    /// Runs of values that gradients train, in order: all but running statistics.
    pub(crate) fn trained(&self) -> &[Range<usize>] {
        &self.trained
    }

    /// Checks what the layers ask of values.
    ///
    /// # Errors
    /// A running variance below zero.
    pub(crate) fn check(&self, values: &[f32]) -> Result<(), String> {
        for (i, stage) in self.stages.iter().enumerate() {
            let Operation::BatchNorm(layer) = stage.operation else { continue };
            if let Some(v) = layer.variances(stage.tensors(values)).iter().find(|v| **v < 0.0) {
                return Err(format!("stage {i}, a batch_norm, has a running variance below zero: {v}"));
            }
        }
        Ok(())
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
            Operation::Dense(_)
            | Operation::Conv2d(_)
            | Operation::BatchNorm(_)
            | Operation::Transpose(_)
            | Operation::Copy => Vec::new(),
        };
        let moments = |stage: &Stage| match stage.operation {
            Operation::BatchNorm(layer) => Moments::new(layer.channels),
            Operation::Dense(_)
            | Operation::Conv2d(_)
            | Operation::MaxPool2d(_)
            | Operation::Transpose(_)
            | Operation::Copy => Moments::new(0),
        };
        let convolutions = self.stages.iter().filter_map(|stage| match stage.operation {
            Operation::Conv2d(layer) => Some(layer),
            Operation::Dense(_)
            | Operation::MaxPool2d(_)
            | Operation::BatchNorm(_)
            | Operation::Transpose(_)
            | Operation::Copy => None,
        });
        let scratch = Scratch::for_layers(convolutions);
        Workspace {
            rows,
            outputs: self.stages.iter().map(buffer).collect(),
            gradients: Vec::new(),
            chosen: self.stages.iter().map(chosen).collect(),
            moments: self.stages.iter().map(moments).collect(),
            scratch,
            samples: Vec::new(),
        }
    }

    /// Computes the outputs of `rows` rows of `x` and returns them, `[rows, outputs]`: logits, or values. `whose` mean and
    /// variance normalisations take.
    pub(crate) fn forward<'w, F: Float>(
        &self,
        values: &[F],
        x: &[F],
        rows: usize,
        whose: Statistics,
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
                Operation::Conv2d(layer) => layer.forward(tensors, input, rows, &mut work.scratch, output),
                Operation::MaxPool2d(layer) => layer.forward(input, rows, output, &mut work.chosen[i]),
                Operation::BatchNorm(layer) => {
                    layer.forward(tensors, input, rows, whose, &mut work.moments[i], output);
                }
                Operation::Transpose(layer) => layer.forward(input, rows, output),
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

    /// Lets `loss` write the gradient of the outputs (given outputs, gradient).
    fn outputs_gradient<F: Float, R>(
        &self,
        rows: usize,
        work: &mut Workspace<F>,
        loss: impl FnOnce(&[F], &mut [F]) -> R,
    ) -> R {
        if work.gradients.is_empty() {
            work.gradients = self.stages.iter().map(|s| vec![F::zero(); work.rows * s.output]).collect();
        }
        let last = self.stages.len() - 1;
        let size = rows * self.task.outputs();
        loss(&work.outputs[last][..size], &mut work.gradients[last][..size])
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
        let result = self.outputs_gradient(rows, work, loss);
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
                Operation::Dense(layer) => {
                    layer.gradient(input, rows, dy, slot);
                    if let Some(dx) = dx {
                        layer.input_gradient(tensors, rows, dy, dx);
                    }
                }
                Operation::Conv2d(layer) => {
                    layer.backward(tensors, input, rows, dy, &mut work.scratch, slot, dx);
                }
                Operation::BatchNorm(layer) => layer.backward(input, rows, dy, &mut work.moments[i], slot, dx),
                Operation::MaxPool2d(_) | Operation::Transpose(_) | Operation::Copy => {
                    stage.operation.pass_back(dy, &work.chosen[i], rows, dx);
                }
            }
        }
        result
    }

    /// After [`Self::forward`] of a training block: lets the running statistics among `values` follow the block's.
    pub(crate) fn follow<F: Float>(&self, values: &mut [F], work: &Workspace<F>) {
        for (stage, moments) in self.stages.iter().zip(&work.moments) {
            if let Operation::BatchNorm(layer) = stage.operation {
                layer.follow(&mut values[stage.offset..stage.offset + layer.parameters()], moments);
            }
        }
    }
}

fn trained(stages: &[Stage]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for stage in stages {
        let start = stage.offset + stage.operation.running();
        let end = stage.offset + stage.operation.parameters();
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            Some(_) | None => runs.push(start..end),
        }
    }
    runs
}

/// Lays out the stages, layer by layer.
struct Builder {
    stages: Vec<Stage>,
    /// Shape of what the next layer is given, as the architecture says it.
    shape: Vec<usize>,
    /// Is it an image in the order `[h, w, channels]`?
    channels_last: bool,
    offset: usize,
}

impl Builder {
    fn layer(&mut self, layer: &LayerSpec, next: Vec<usize>) -> Result<(), ArchError> {
        match layer {
            LayerSpec::Dense { units } => {
                let layer = Dense { inputs: self.shape[0], units: *units };
                self.push(Operation::Dense(layer), next)
            }
            LayerSpec::Conv2d { filters, kernel } => {
                let [channels, height, width] = self.image()?;
                let layer = Conv2d { channels, height, width, filters: *filters, kernel: *kernel };
                self.push(Operation::Conv2d(layer), next)
            }
            LayerSpec::MaxPool2d { size } => {
                let [channels, height, width] = self.image()?;
                let layer = MaxPool2d { channels, height, width, size: *size };
                self.push(Operation::MaxPool2d(layer), next)
            }
            LayerSpec::BatchNorm {} => {
                let (channels, pixels) = match self.shape[..] {
                    [features] => (features, 1),
                    _ => {
                        let [channels, height, width] = self.image()?;
                        (channels, height * width)
                    }
                };
                self.push(Operation::BatchNorm(BatchNorm { channels, pixels }), next)
            }
            LayerSpec::Relu => {
                if self.stages.is_empty() {
                    self.push(Operation::Copy, next)?;
                }
                if let Some(stage) = self.stages.last_mut() {
                    stage.relu = true;
                }
                Ok(())
            }
            LayerSpec::Flatten => {
                if self.channels_last {
                    let columns = self.shape[0];
                    let lines = self.shape[1..].iter().product();
                    self.transpose(Transpose { lines, columns })?;
                    self.channels_last = false;
                }
                self.shape = next;
                Ok(())
            }
        }
    }

    /// The shape `[channels, h, w]` of the image that the next layer is given, after bringing it into `[h, w, channels]`.
    fn image(&mut self) -> Result<[usize; 3], ArchError> {
        let Ok(shape) = <[usize; 3]>::try_from(self.shape.as_slice()) else {
            return Err(ArchError(format!("an image has three dimensions, not {:?}", self.shape)));
        };
        if !self.channels_last {
            let [lines, height, width] = shape;
            self.transpose(Transpose { lines, columns: height * width })?;
            self.channels_last = true;
        }
        Ok(shape)
    }

    /// Appends a change of order, if it changes anything.
    fn transpose(&mut self, layer: Transpose) -> Result<(), ArchError> {
        if layer.lines == 1 || layer.columns == 1 {
            return Ok(());
        }
        let shape = self.shape.clone();
        self.push(Operation::Transpose(layer), shape)
    }

    fn push(&mut self, operation: Operation, next: Vec<usize>) -> Result<(), ArchError> {
        let (input, output) = (row_values(&self.shape)?, row_values(&next)?);
        self.stages.push(Stage { operation, relu: false, offset: self.offset, input, output });
        self.offset += operation.parameters();
        self.shape = next;
        Ok(())
    }
}

fn row_values(shape: &[usize]) -> Result<usize, ArchError> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| *n <= ROW_VALUES_MAX)
        .ok_or_else(|| ArchError(format!("a layer of shape {shape:?} is too large: at most {ROW_VALUES_MAX} values")))
}
