//! Plain stochastic gradient descent with momentum and L2 penalty.
//!
//! v <- momentum v + gradient + `weight_decay` w;  w <- w - rate v. The velocity starts at zero with every optimiser, and an
//! optimiser lives for one round: nothing of a round but its model reaches the next.

use std::ops::Range;

use aivillage_base::wire::LocalTraining;

/// The optimiser of one round on one node.
#[derive(Debug)]
pub(crate) struct Sgd {
    rate: f32,
    momentum: f32,
    decay: f32,
    /// Empty without momentum.
    velocity: Vec<f32>,
}

impl Sgd {
    /// An optimiser at rest for `parameters` values.
    #[expect(clippy::cast_possible_truncation, reason = "training is in f32: its constants are rounded once, here")]
    pub(crate) fn new(training: &LocalTraining, parameters: usize) -> Self {
        let momentum = training.momentum as f32;
        Self {
            rate: training.learning_rate as f32,
            momentum,
            decay: training.weight_decay as f32,
            velocity: if momentum == 0.0 { Vec::new() } else { vec![0.0; parameters] },
        }
    }

    /// One step of the values in `trained`, runs of them; the others stay. `gradient` is scratch afterwards.
    pub(crate) fn step(&mut self, values: &mut [f32], gradient: &mut [f32], trained: &[Range<usize>]) {
        for run in trained {
            let velocity = if self.velocity.is_empty() { &mut [] } else { &mut self.velocity[run.clone()] };
            let (values, gradient) = (&mut values[run.clone()], &mut gradient[run.clone()]);
            if self.decay != 0.0 {
                for (g, w) in gradient.iter_mut().zip(values.iter()) {
                    *g += self.decay * *w;
                }
            }
            if velocity.is_empty() {
                for (w, g) in values.iter_mut().zip(gradient.iter()) {
                    *w -= self.rate * *g;
                }
                continue;
            }
            for ((w, v), g) in values.iter_mut().zip(velocity).zip(gradient.iter()) {
                *v = self.momentum * *v + *g;
                *w -= self.rate * *v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Range<usize>] = std::slice::from_ref(&(0..1));

    fn training(momentum: f64, weight_decay: f64) -> LocalTraining {
        LocalTraining { epochs: 1, batch_size: 1, learning_rate: 0.5, momentum, weight_decay, proximal_mu: 0.0 }
    }

    #[test]
    fn momentum_and_penalty_follow_their_formulas() {
        let mut plain = Sgd::new(&training(0.0, 0.0), 1);
        let mut w = [1.0];
        plain.step(&mut w, &mut [2.0], ALL);
        assert_eq!(w, [0.0]);
        let mut heavy = Sgd::new(&training(0.5, 0.25), 1);
        let mut w = [4.0];
        heavy.step(&mut w, &mut [1.0], ALL); // v = 1 + 0.25 * 4 = 2, w = 4 - 1
        assert_eq!(w, [3.0]);
        heavy.step(&mut w, &mut [1.0], ALL); // v = 0.5 * 2 + 1 + 0.25 * 3 = 2.75, w = 3 - 1.375
        assert_eq!(w, [1.625]);
    }

    #[test]
    fn what_is_not_trained_feels_neither_gradient_nor_penalty_nor_momentum() {
        let mut heavy = Sgd::new(&training(0.5, 0.25), 4);
        let mut w = [4.0; 4];
        for _ in 0..2 {
            heavy.step(&mut w, &mut [1.0; 4], &[0..1, 3..4]);
        }
        assert_eq!(w, [1.625, 4.0, 4.0, 1.625]);
    }
}
