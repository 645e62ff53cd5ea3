//! The weights that a model starts from.
//!
//! Biases are zero. A weight is uniform in ±sqrt(6 / inputs) if a ReLU follows its layer (He et al. 2015,
//! <https://arxiv.org/abs/1502.01852>), else in ±sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010). Each tensor has its
//! own random stream, named after it, so the values do not depend on how the others are drawn.

use aivillage_base::arch::{ArchError, Architecture, LayerSpec};
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
    /// Uniform in plus or minus this; None = zeros.
    weights: Option<(f64, SeededRng)>,
}

impl Tensor {
    /// Replaces the piece by the next values; false at the end.
    fn next(&mut self, piece: &mut Vec<f32>) -> bool {
        let length = self.left.min(PIECE);
        self.left -= length;
        piece.clear();
        match &mut self.weights {
            None => piece.resize(length, 0.0),
            #[expect(clippy::cast_possible_truncation, reason = "models are f32; rounded once, here")]
            Some((limit, rng)) => piece.extend((0..length).map(|_| ((2.0 * rng.unit() - 1.0) * *limit) as f32)),
        }
        length > 0
    }
}

fn tensors(architecture: &Architecture, seed: u64) -> Result<Vec<Tensor>, ArchError> {
    let layout = architecture.layout()?;
    let mut tensors = Vec::with_capacity(layout.len());
    let mut layers = architecture.layers.iter().enumerate().filter(|(_, layer)| has_tensors(layer));
    // The layout lists two tensors, bias and weight, for each layer that has any.
    for pair in layout.chunks_exact(2) {
        let [bias, weight] = pair else { unreachable!("invariant: chunks of two") };
        let (index, layer) = layers.next().expect("invariant: tensors come in pairs, one pair a layer");
        tensors.push(Tensor { left: bias.len(), weights: None });
        let (inputs, outputs) = fans(layer, &weight.shape);
        let activated = matches!(architecture.layers.get(index + 1), Some(LayerSpec::Relu));
        let fan = if activated { inputs } else { inputs + outputs };
        let limit = (6.0 / as_f64(fan)).sqrt();
        let rng = SeededRng::new("initial weights", seed, &[weight.name.as_bytes()]);
        tensors.push(Tensor { left: weight.len(), weights: Some((limit, rng)) });
    }
    Ok(tensors)
}

fn has_tensors(layer: &LayerSpec) -> bool {
    match layer {
        LayerSpec::Dense { .. } | LayerSpec::Conv2d { .. } => true,
        LayerSpec::Relu | LayerSpec::MaxPool2d { .. } | LayerSpec::Flatten => false,
    }
}

/// How many values feed an output, and how many outputs an input feeds.
fn fans(layer: &LayerSpec, weight: &[usize]) -> (usize, usize) {
    match layer {
        LayerSpec::Conv2d { kernel, .. } => (weight[1] * kernel * kernel, weight[0] * kernel * kernel),
        LayerSpec::Dense { .. } | LayerSpec::Relu | LayerSpec::MaxPool2d { .. } | LayerSpec::Flatten => {
            (weight[0], weight[1])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
