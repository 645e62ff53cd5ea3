//! What a model is: input shape, layers, task; and the recipes that people name instead.
//!
//! An [`Architecture`] is data, never code: a job ships it and every node can check it before it computes
//! anything. It fixes the tensors of the model, their names, shapes and order ([`Architecture::layout`]).
//! Must not know: how a layer is computed (that is `engine`).

use serde::{Deserialize, Serialize};

use crate::suggest;

/// The largest number of parameters of a model this version accepts (a bound against typing errors and attacks).
pub const PARAMETERS_MAX: u64 = 1 << 30;

/// A model's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Shape of one example without the batch: `[features]` or `[channels, height, width]`.
    pub input: Vec<usize>,
    /// Layers from input to output.
    pub layers: Vec<LayerSpec>,
    /// What the output means and which loss trains it.
    pub task: Task,
}

/// What a model's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// One of `classes` labels `0..classes`; softmax cross-entropy.
    Classification {
        /// Number of labels, at least 2.
        classes: usize,
    },
    /// One real number; half mean squared error.
    Regression,
}

impl Task {
    /// Width of the model's output.
    #[must_use]
    pub fn outputs(self) -> usize {
        match self {
            Self::Classification { classes } => classes,
            Self::Regression => 1,
        }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSpec {
    /// Fully connected: `[n] -> [units]`; weight `[n, units]`, bias `[units]`.
    Dense {
        /// Width of the output.
        units: usize,
    },
    /// max(0, x), elementwise.
    Relu,
    /// 2-D convolution, stride 1, zero padding that keeps height and width (odd kernels):
    /// `[c, h, w] -> [filters, h, w]`; weight `[filters, c, kernel, kernel]`, bias `[filters]`.
    Conv2d {
        /// Output channels.
        filters: usize,
        /// Side of the square kernel; odd.
        kernel: usize,
    },
    /// Maximum over disjoint `size` x `size` squares; what is left over at the border is dropped.
    MaxPool2d {
        /// Side of the square, at least 2.
        size: usize,
    },
    /// `[c, h, w] -> [c*h*w]`.
    Flatten,
    /// Batch normalisation (Ioffe and Szegedy 2015): each feature of `[n]`, or each channel of `[c, h, w]`, less its mean and
    /// over its standard deviation, times `scale`, plus `shift`. Training takes both from the batch, everything else the
    /// running ones. Four tensors of `[n]` or `[c]`: `running_mean`, `running_variance`, `scale`, `shift`.
    BatchNorm {}, // With braces: of a bare variant serde takes unknown keys.
}

/// What a tensor is to its layer. Lexical order of the names is the order within a layer, as safetensors keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKind {
    /// Added by a dense layer or a convolution.
    Bias,
    /// Multiplied by a dense layer or a convolution.
    Weight,
    /// Means of batches, followed by training, not by its gradients.
    RunningMean,
    /// Variances of batches, followed in the same way; never negative.
    RunningVariance,
    /// Multiplied by a normalisation.
    Scale,
    /// Added by a normalisation.
    Shift,
}

impl TensorKind {
    /// The end of the tensor's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bias => "bias",
            Self::Weight => "weight",
            Self::RunningMean => "running_mean",
            Self::RunningVariance => "running_variance",
            Self::Scale => "scale",
            Self::Shift => "shift",
        }
    }
}

/// Does a tensor of this name hold variances, which no sum of changes may leave below zero?
#[must_use]
pub fn holds_variances(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end == TensorKind::RunningVariance.name())
}

/// Name and shape of one tensor of f32 values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// `layerNNN.weight`, `layerNNN.bias`, ...; lexical order is layer order.
    pub name: String,
    /// What it is to its layer.
    pub kind: TensorKind,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor without values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An architecture that does not hold together; says which layer and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArchError(pub String);

fn fail<T>(text: String) -> Result<T, ArchError> {
    Err(ArchError(text))
}

impl Architecture {
    /// Output shape of every layer, in order, after checking that each accepts what it is given.
    ///
    /// # Errors
    /// The first layer that cannot follow, with both shapes.
    pub fn shapes(&self) -> Result<Vec<Vec<usize>>, ArchError> {
        if self.input.is_empty() || self.input.iter().any(|d| *d == 0 || *d > 1 << 20) {
            return fail(format!("input shape {:?}: every dimension must be 1 to 1048576", self.input));
        }
        if let Task::Classification { classes } = self.task
            && !(2..=1 << 20).contains(&classes)
        {
            return fail(format!("{classes} classes: 2 to 1048576 are possible"));
        }
        let mut shape = self.input.clone();
        let mut shapes = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            shape = layer.output(&shape).map_err(|e| ArchError(format!("layer {i}: {e}")))?;
            shapes.push(shape.clone());
        }
        let want = [self.task.outputs()];
        if shape != want {
            return fail(format!("the last layer gives {shape:?}, but the task needs {want:?}"));
        }
        Ok(shapes)
    }

    /// The tensors of the model, in the order in which a bundle stores them.
    ///
    /// # Errors
    /// As [`Self::shapes`]; or more than [`PARAMETERS_MAX`] parameters.
    pub fn layout(&self) -> Result<Vec<TensorSpec>, ArchError> {
        let shapes = self.shapes()?;
        let mut layout = Vec::new();
        let mut input = &self.input;
        for (i, (layer, output)) in self.layers.iter().zip(&shapes).enumerate() {
            for (kind, shape) in layer.tensors(input) {
                layout.push(TensorSpec { name: format!("layer{i:03}.{}", kind.name()), kind, shape });
            }
            input = output;
        }
        let parameters: u128 = layout.iter().map(|t| t.shape.iter().map(|d| *d as u128).product::<u128>()).sum();
        if parameters > u128::from(PARAMETERS_MAX) {
            return fail(format!("{parameters} parameters: at most {PARAMETERS_MAX} are accepted"));
        }
        Ok(layout)
    }

    /// Number of values: what gradients train, and running statistics.
    ///
    /// # Errors
    /// As [`Self::layout`].
    pub fn parameters(&self) -> Result<usize, ArchError> {
        Ok(self.layout()?.iter().map(TensorSpec::len).sum())
    }

    /// Has each example a gradient of its own, which could be clipped?
    ///
    /// # Errors
    /// The first layer that mixes the examples of a batch, why that is in the way, and what to do.
    pub fn examples_apart(&self) -> Result<(), ArchError> {
        examples_apart(&self.layers)
    }
}

/// Why batch normalisation and gradients of single examples exclude each other, and what to do.
const MIXED: &str = "batch_norm takes mean and variance from all examples of a batch, so no example has a gradient of its own \
                     that could be clipped: leave batch_norm out (`norm: none`), or do not ask for clipped examples";

/// As [`Architecture::examples_apart`].
fn examples_apart(layers: &[LayerSpec]) -> Result<(), ArchError> {
    match layers.iter().position(|layer| *layer == LayerSpec::BatchNorm {}) {
        None => Ok(()),
        Some(i) => fail(format!("layer {i}: {MIXED}")),
    }
}

impl LayerSpec {
    /// Kinds and shapes of the layer's tensors, in the order of their names; `input` is a shape that it accepts.
    fn tensors(&self, input: &[usize]) -> Vec<(TensorKind, Vec<usize>)> {
        match self {
            Self::Dense { units } => {
                vec![(TensorKind::Bias, vec![*units]), (TensorKind::Weight, vec![input[0], *units])]
            }
            Self::Conv2d { filters, kernel } => vec![
                (TensorKind::Bias, vec![*filters]),
                (TensorKind::Weight, vec![*filters, input[0], *kernel, *kernel]),
            ],
            Self::BatchNorm {} => {
                use TensorKind::{RunningMean, RunningVariance, Scale, Shift};
                [RunningMean, RunningVariance, Scale, Shift].map(|kind| (kind, vec![input[0]])).into()
            }
            Self::Relu | Self::MaxPool2d { .. } | Self::Flatten => Vec::new(),
        }
    }

    fn output(&self, input: &[usize]) -> Result<Vec<usize>, String> {
        let image = |what: &str| match input {
            [c, h, w] => Ok((*c, *h, *w)),
            _ => Err(format!("{what} needs [channels, height, width], but is given {input:?}")),
        };
        match self {
            Self::Dense { units } => match input {
                [_] if (1..=1 << 20).contains(units) => Ok(vec![*units]),
                [_] => Err(format!("{units} units: 1 to 1048576 are possible")),
                _ => Err(format!("dense needs a flat input, but is given {input:?}: put `flatten` before it")),
            },
            Self::Relu => Ok(input.to_vec()),
            Self::Conv2d { filters, kernel } => {
                let (_, h, w) = image("conv2d")?;
                if kernel % 2 == 0 || *kernel > 31 {
                    return Err(format!("kernel {kernel}: odd numbers from 1 to 31 are possible"));
                }
                if !(1..=65_536).contains(filters) {
                    return Err(format!("{filters} filters: 1 to 65536 are possible"));
                }
                Ok(vec![*filters, h, w])
            }
            Self::MaxPool2d { size } => {
                let (c, h, w) = image("max_pool2d")?;
                if *size < 2 || h / size == 0 || w / size == 0 {
                    return Err(format!("pool of {size} does not fit in {h} x {w}"));
                }
                Ok(vec![c, h / size, w / size])
            }
            Self::Flatten => Ok(vec![input.iter().product()]),
            Self::BatchNorm {} => match input {
                [_] | [_, _, _] => Ok(input.to_vec()),
                _ => Err(format!("batch_norm needs [features] or [channels, height, width], but is given {input:?}")),
            },
        }
    }
}

/// A named family of architectures: what `model_architecture` of a job may say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// One dense layer, softmax cross-entropy.
    LogisticRegression,
    /// One dense layer with one output, half mean squared error.
    LinearRegression,
    /// Dense layers with ReLU between; hidden widths given.
    Mlp {
        /// Widths of the hidden layers, input side first.
        hidden: Vec<usize>,
    },
    /// conv 5x5x16, ReLU, pool 2, conv 5x5x32, ReLU, pool 2, dense.
    SimpleCnn,
    /// Layers as given.
    Layers(Vec<LayerSpec>),
    /// An `mlp` or a `simple_cnn` with batch normalisation before each ReLU; see [`Recipe::with_norm`].
    BatchNormalised(Box<Recipe>),
}

/// Which normalisation a recipe puts before each ReLU: its option `norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Norm {
    /// None.
    #[default]
    None,
    /// [`LayerSpec::BatchNorm`].
    Batch,
}

/// Recipes that people may name.
pub const RECIPES: [&str; 4] = ["logistic_regression", "linear_regression", "mlp", "simple_cnn"];
/// Recipes of the vocabulary that this version does not build.
pub const RECIPES_NOT_BUILT: [&str; 2] = ["residual_cnn", "text_classifier"];

impl Recipe {
    /// The recipe called `name`; `hidden` are the widths an `mlp` uses.
    ///
    /// # Errors
    /// Unknown name with the nearest valid one, or a known recipe that this version does not build.
    pub fn named(name: &str, hidden: &[usize]) -> Result<Self, ArchError> {
        match name {
            "logistic_regression" => Ok(Self::LogisticRegression),
            "linear_regression" => Ok(Self::LinearRegression),
            "mlp" => Ok(Self::Mlp { hidden: hidden.to_vec() }),
            "simple_cnn" => Ok(Self::SimpleCnn),
            known if RECIPES_NOT_BUILT.contains(&known) => fail(format!(
                "recipe `{known}` is known, but this version does not build it yet: use one of {}",
                RECIPES.join(", ")
            )),
            other => fail(suggest::unknown("recipe", other, &RECIPES)),
        }
    }

    /// The name by which policies and statuses call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::LogisticRegression => "logistic_regression",
            Self::LinearRegression => "linear_regression",
            Self::Mlp { .. } => "mlp",
            Self::SimpleCnn => "simple_cnn",
            Self::Layers(_) => "layers",
            Self::BatchNormalised(plain) => plain.name(),
        }
    }

    /// This recipe with a normalisation before each ReLU.
    ///
    /// # Errors
    /// A recipe without hidden layers to normalise, or one whose layers are given.
    pub fn with_norm(self, norm: Norm) -> Result<Self, ArchError> {
        match (norm, &self) {
            (Norm::None, _) => Ok(self),
            (Norm::Batch, Self::Mlp { .. } | Self::SimpleCnn) => Ok(Self::BatchNormalised(Box::new(self))),
            (Norm::Batch, Self::Layers(_)) => {
                fail("norm is an option of `mlp` and `simple_cnn`: name `batch_norm` among the layers instead".into())
            }
            (Norm::Batch, Self::LogisticRegression | Self::LinearRegression | Self::BatchNormalised(_)) => {
                fail(format!(
                    "norm is an option of `mlp` and `simple_cnn`, and `{}` has no layer that it could stand behind",
                    self.name()
                ))
            }
        }
    }

    /// As [`Architecture::examples_apart`], before the shape of the data is known.
    ///
    /// # Errors
    /// As there.
    pub fn examples_apart(&self) -> Result<(), ArchError> {
        match self {
            Self::LogisticRegression | Self::LinearRegression | Self::Mlp { .. } | Self::SimpleCnn => Ok(()),
            Self::Layers(layers) => examples_apart(layers),
            Self::BatchNormalised(plain) => fail(format!("norm batch of `{}`: {}", plain.name(), MIXED)),
        }
    }

    /// The architecture for data of this shape and task.
    ///
    /// # Errors
    /// When the recipe and the data do not fit, with both.
    pub fn build(&self, input: &[usize], task: Task) -> Result<Architecture, ArchError> {
        let flat = input.len() != 1;
        let out = LayerSpec::Dense { units: task.outputs() };
        let dense = |hidden: &[usize]| {
            let mut layers = if flat { vec![LayerSpec::Flatten] } else { Vec::new() };
            for units in hidden {
                layers.extend([LayerSpec::Dense { units: *units }, LayerSpec::Relu]);
            }
            layers.push(out.clone());
            layers
        };
        let (input, layers) = match self {
            Self::LogisticRegression => match task {
                Task::Classification { .. } => (input.to_vec(), dense(&[])),
                Task::Regression => return fail("logistic_regression needs data with class labels; the data has real targets: use linear_regression".into()),
            },
            Self::LinearRegression => match task {
                Task::Regression => (input.to_vec(), dense(&[])),
                Task::Classification { .. } => return fail("linear_regression needs data with real targets; the data has class labels: use logistic_regression".into()),
            },
            Self::Mlp { hidden } => (input.to_vec(), dense(hidden)),
            Self::SimpleCnn => {
                let image = square(input)?;
                let conv = |filters| LayerSpec::Conv2d { filters, kernel: 5 };
                let pool = LayerSpec::MaxPool2d { size: 2 };
                let layers = vec![
                    conv(16), LayerSpec::Relu, pool.clone(),
                    conv(32), LayerSpec::Relu, pool,
                    LayerSpec::Flatten, out.clone(),
                ];
                (image, layers)
            }
            Self::Layers(layers) => (input.to_vec(), layers.clone()),
            Self::BatchNormalised(plain) => {
                let Architecture { input, layers, .. } = plain.build(input, task)?;
                let normalised = layers.into_iter().flat_map(|layer| {
                    let norm = (layer == LayerSpec::Relu).then_some(LayerSpec::BatchNorm {});
                    norm.into_iter().chain([layer])
                });
                (input, normalised.collect())
            }
        };
        let architecture = Architecture { input, layers, task };
        architecture.layout()?;
        Ok(architecture)
    }
}

/// `[c, h, w]` as it is; `[n]` as one channel of a square, if n is one.
fn square(input: &[usize]) -> Result<Vec<usize>, ArchError> {
    match input {
        [_, _, _] => Ok(input.to_vec()),
        [n] if n.isqrt().pow(2) == *n => Ok(vec![1, n.isqrt(), n.isqrt()]),
        _ => fail(format!(
            "simple_cnn needs images: [channels, height, width] or a square number of features, but the data has {input:?}"
        )),
    }
}

#[cfg(test)]
mod tests;
