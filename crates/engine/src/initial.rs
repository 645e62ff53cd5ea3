//! The weights that a model starts from.
//!
//! Biases are zero; a normalisation starts as none (mean 0, variance 1, scale 1, shift 0). A weight is uniform in
//! ±sqrt(6 / inputs) if a ReLU follows its layer, behind a normalisation or not (He et al. 2015,
//! <https://arxiv.org/abs/1502.01852>), else in ±sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010). Each tensor has its
//! own random stream, named after it, so the values do not depend on how the others are drawn.

use aivillage_base::arch::{ArchError, Architecture, LayerSpec, TensorKind};
use aivillage_base::rng::SeededRng;

use crate::loss::as_f64;

/// Values made at a time: a model need not fit into memory to be started.
const PIECE: usize = 1 << 18;

/// Initial values in layout order: the same architecture and seed give the same bits on every machine.
///
/// # Errors
/// If the architecture does not hold together.
pub fn initial_values(architecture: &Architecture, seed: u64) -> Result<Vec<f32>, ArchError> {
    let mut values = Vec::with_capacity(architecture.parameters()?);
    let collected: Result<(), std::convert::Infallible> =
        initial_pieces(architecture, seed, &mut |piece: &[f32]| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
    collected.map_or_else(|never| match never {}, |()| Ok(values))
}

/// The same values in pieces of at most a MiB, up to the first piece that `out` refuses.
///
/// # Errors
/// If the architecture does not hold together; inside, the error of `out`.
pub fn initial_pieces<E>(
    architecture: &Architecture,
    seed: u64,
    out: &mut dyn FnMut(&[f32]) -> Result<(), E>,
) -> Result<Result<(), E>, ArchError> {
    let mut piece = Vec::with_capacity(PIECE);
    for mut tensor in tensors(architecture, seed)? {
        while tensor.next(&mut piece) {
            if let Err(error) = out(&piece) {
                return Ok(Err(error));
            }
        }
    }
    Ok(Ok(()))
}

/// Values of a tensor that are still to be made.
struct Tensor {
    left: usize,
    fill: Fill,
}

enum Fill {
    Constant(f32),
    /// Uniform in plus or minus this.
    Uniform(f64, Box<SeededRng>),
}

impl Tensor {
    /// Replaces the piece by the next values; false at the end.
    fn next(&mut self, piece: &mut Vec<f32>) -> bool {
        let length = self.left.min(PIECE);
        self.left -= length;
        piece.clear();
        match &mut self.fill {
            Fill::Constant(value) => piece.resize(length, *value),
            #[expect(clippy::cast_possible_truncation, reason = "models are f32; rounded once, here")]
            Fill::Uniform(limit, rng) => piece.extend((0..length).map(|_| ((2.0 * rng.unit() - 1.0) * *limit) as f32)),
        }
        length > 0
    }
}

fn tensors(architecture: &Architecture, seed: u64) -> Result<Vec<Tensor>, ArchError> {
    let layout = architecture.layout()?;
    let mut tensors = Vec::with_capacity(layout.len());
    // Layers with weights, in the order of their weights: each has one.
    let mut weighted = architecture.layers.iter().enumerate().filter(|(_, layer)| has_weight(layer));
    for spec in layout {
        let fill = match spec.kind {
            TensorKind::Bias | TensorKind::Shift | TensorKind::RunningMean => Fill::Constant(0.0),
            TensorKind::Scale | TensorKind::RunningVariance => Fill::Constant(1.0),
            TensorKind::Weight => {
                let (index, layer) = weighted.next().expect("invariant: a weight belongs to a layer that has one");
                let (inputs, outputs) = fans(layer, &spec.shape);
                let fan = if activated(&architecture.layers[index + 1..]) { inputs } else { inputs + outputs };
                let limit = (6.0 / as_f64(fan)).sqrt();
                let rng = SeededRng::new("initial weights", seed, &[spec.name.as_bytes()]);
                Fill::Uniform(limit, Box::new(rng))
            }
        };
        tensors.push(Tensor { left: spec.len(), fill });
    }
    Ok(tensors)
}

/// Do these layers start with a ReLU, normalised or not?
fn activated(next: &[LayerSpec]) -> bool {
    matches!(next, [LayerSpec::Relu, ..] | [LayerSpec::BatchNorm {}, LayerSpec::Relu, ..])
}

fn has_weight(layer: &LayerSpec) -> bool {
    match layer {
        LayerSpec::Dense { .. } | LayerSpec::Conv2d { .. } => true,
        LayerSpec::Relu | LayerSpec::MaxPool2d { .. } | LayerSpec::Flatten | LayerSpec::BatchNorm {} => false,
    }
}

/// How many values feed an output, and how many outputs an input feeds.
fn fans(layer: &LayerSpec, weight: &[usize]) -> (usize, usize) {
    match layer {
        LayerSpec::Conv2d { kernel, .. } => (weight[1] * kernel * kernel, weight[0] * kernel * kernel),
        LayerSpec::Dense { .. }
        | LayerSpec::Relu
        | LayerSpec::MaxPool2d { .. }
        | LayerSpec::Flatten
        | LayerSpec::BatchNorm {} => (weight[0], weight[1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aivillage_base::arch::Norm;
    use aivillage_base::{Digest, Recipe, Task};

    #[test]
    fn the_digits_model_starts_from_the_same_bits_on_every_machine() {
        let task = Task::Classification { classes: 10 };
        let arch = Recipe::Mlp { hidden: vec![32] }.build(&[64], task).unwrap();
        let values = initial_values(&arch, 1).unwrap();
        assert_eq!(values.len(), arch.parameters().unwrap());
        assert!(values[..32].iter().all(|v| *v == 0.0), "biases are zero");
        let limit = (6.0f64 / 64.0).sqrt() as f32;
        let weights = &values[32..32 + 64 * 32];
        assert!(weights.iter().all(|v| v.abs() <= limit) && weights.iter().any(|v| v.abs() > 0.9 * limit));
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Digest::of(&bytes).short(), "d03a66cb07aa");
        assert_ne!(values, initial_values(&arch, 2).unwrap());
    }

    #[test]
    fn a_normalisation_starts_as_none_and_leaves_the_other_weights_as_they_were() {
        let (task, mlp) = (Task::Classification { classes: 10 }, Recipe::Mlp { hidden: vec![32] });
        let plain = initial_values(&mlp.build(&[64], task).unwrap(), 1).unwrap();
        let normalised = mlp.with_norm(Norm::Batch).unwrap().build(&[64], task).unwrap();
        let values = initial_values(&normalised, 1).unwrap();
        let first = 32 + 64 * 32;
        assert_eq!(values[..first], plain[..first]);
        let norm = [0.0, 1.0, 1.0, 0.0].map(|v| [v; 32]).concat();
        assert_eq!(values[first..first + 4 * 32], norm);
    }

    #[test]
    fn pieces_stop_at_the_first_that_is_refused() {
        let arch = Recipe::Mlp { hidden: vec![600] }.build(&[1000], Task::Classification { classes: 2 }).unwrap();
        let whole = initial_values(&arch, 7).unwrap();
        for allowed in [0, 1, 3] {
            let mut got = Vec::new();
            let mut calls = 0;
            let stopped = initial_pieces(&arch, 7, &mut |piece: &[f32]| {
                calls += 1;
                if calls > allowed {
                    return Err(calls);
                }
                assert!(piece.len() <= PIECE);
                got.extend_from_slice(piece);
                Ok(())
            });
            assert_eq!(stopped, Ok(Err(allowed + 1)));
            assert!(got.len() < whole.len() && got == whole[..got.len()]);
        }
    }
}
