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
}

/// Name and shape of one tensor of f32 values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// `layerNN.weight` or `layerNN.bias`; lexical order is layer order.
    pub name: String,
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
            let (weight, bias) = match layer {
                LayerSpec::Dense { units } => (vec![input[0], *units], *units),
                LayerSpec::Conv2d { filters, kernel } => (vec![*filters, input[0], *kernel, *kernel], *filters),
                LayerSpec::Relu | LayerSpec::MaxPool2d { .. } | LayerSpec::Flatten => {
                    input = output;
                    continue;
                }
            };
            // Safetensors keeps tensors sorted by name: `bias` before `weight` within a layer.
            layout.push(TensorSpec { name: format!("layer{i:03}.bias"), shape: vec![bias] });
            layout.push(TensorSpec { name: format!("layer{i:03}.weight"), shape: weight });
            input = output;
        }
        let parameters: u128 = layout.iter().map(|t| t.shape.iter().map(|d| *d as u128).product::<u128>()).sum();
        if parameters > u128::from(PARAMETERS_MAX) {
            return fail(format!("{parameters} parameters: at most {PARAMETERS_MAX} are accepted"));
        }
        Ok(layout)
    }

    /// Number of trainable values.
    ///
    /// # Errors
    /// As [`Self::layout`].
    pub fn parameters(&self) -> Result<usize, ArchError> {
        Ok(self.layout()?.iter().map(TensorSpec::len).sum())
    }
}

impl LayerSpec {
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
