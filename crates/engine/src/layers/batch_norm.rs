//! Batch normalisation (Ioffe and Szegedy 2015, <https://arxiv.org/abs/1502.03167>) of each feature, or of each channel of
//! images with their channels last, over all rows and pixels of a block:
//! `y = scale (x - mean) / sqrt(variance + 1e-5) + shift`.
//!
//! In training mean and variance are those of the block, the variance being the mean squared distance. After the step the
//! running ones go a tenth of the way to them, with the sum of squares over n - 1 so that they estimate the variance of the
//! data (as the paper, and PyTorch). Everything but training computes with the running ones, so that a row's output is its own.
//!
//! A block with one number a channel (one row of features) has no spread: it is computed with the running statistics, which
//! stay as they are. A channel that is constant has a distance of exactly 0, and its output is `shift`.
//! Sums go over the lines in order: 64 of them in the type of the values, channels side by side, then on in f64.

use crate::float::Float;
use crate::loss::as_f64;

/// Added to a variance before its root is taken: what keeps constant channels finite.
const EPSILON: f64 = 1e-5;
/// How far the running statistics go to those of a block.
const MOMENTUM: f64 = 0.1;
/// Lines that are summed in the type of the values: f32 loses little over so few.
const LINES: usize = 64;

/// A normalisation's shape; 1 pixel for features.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchNorm {
    pub(crate) channels: usize,
    pub(crate) pixels: usize,
}

/// Whose mean and variance to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statistics {
    /// The block's: training.
    Block,
    /// The model's: evaluation, prediction.
    Running,
}

/// What the last forward pass computed with, a number a channel.
#[derive(Debug)]
pub(crate) struct Moments<F> {
    mean: Vec<F>,
    /// 1 / sqrt(variance + epsilon).
    inverse: Vec<F>,
    /// `scale` times it.
    factor: Vec<F>,
    /// The block's, over n - 1; None if the running statistics were taken.
    sample: Option<Vec<f64>>,
    /// Sums of a few lines.
    part: Vec<F>,
}

impl<F: Float> Moments<F> {
    /// Room for `channels`.
    pub(crate) fn new(channels: usize) -> Self {
        let zeros = || vec![F::zero(); channels];
        Self { mean: zeros(), inverse: zeros(), factor: zeros(), sample: None, part: zeros() }
    }
}

/// The four tensors of a layer, or their gradients, from its slice.
fn tensors<T>(values: &[T], channels: usize) -> [&[T]; 4] {
    let (running, trained) = values.split_at(2 * channels);
    let ((mean, variance), (scale, shift)) = (running.split_at(channels), trained.split_at(channels));
    [mean, variance, scale, shift]
}

impl BatchNorm {
    /// Number of values of its tensors.
    pub(crate) fn parameters(self) -> usize {
        4 * self.channels
    }

    /// How many of them, at the front, are no business of gradients.
    pub(crate) fn running(self) -> usize {
        2 * self.channels
    }

    /// Its running variances.
    pub(crate) fn variances<T>(self, values: &[T]) -> &[T] {
        tensors(values, self.channels)[1]
    }

    /// Writes `y`, in the shape of `x`, and what it computed with.
    pub(crate) fn forward<F: Float>(
        self,
        values: &[F],
        x: &[F],
        rows: usize,
        whose: Statistics,
        moments: &mut Moments<F>,
        y: &mut [F],
    ) {
        let x = &x[..rows * self.pixels * self.channels];
        let [mean, variance, scale, shift] = tensors(values, self.channels);
        if whose == Statistics::Block && x.len() > self.channels {
            self.measure(x, moments);
        } else {
            moments.mean.copy_from_slice(mean);
            for (inverse, variance) in moments.inverse.iter_mut().zip(variance) {
                *inverse = inverse_root(variance.to_f64());
            }
            moments.sample = None;
        }
        for ((factor, scale), inverse) in moments.factor.iter_mut().zip(scale).zip(&moments.inverse) {
            *factor = *scale * *inverse;
        }
        for (x, y) in x.chunks_exact(self.channels).zip(y.chunks_exact_mut(self.channels)) {
            let channels = moments.mean.iter().zip(&moments.factor).zip(shift);
            for ((y, x), ((mean, factor), shift)) in y.iter_mut().zip(x).zip(channels) {
                *y = (*x - *mean) * *factor + *shift;
            }
        }
    }

    /// Mean and variance of the block.
    fn measure<F: Float>(self, x: &[F], moments: &mut Moments<F>) {
        let lines = as_f64(x.len() / self.channels);
        // Distances from the first line: exact for constant channels, and small for those far from zero.
        let first = &x[..self.channels];
        let sums = total(x, x, first, &mut moments.part, |distance, _| distance);
        for ((mean, first), sum) in moments.mean.iter_mut().zip(first).zip(sums) {
            *mean = F::of(first.to_f64() + sum / lines);
        }
        let mut squares = total(x, x, &moments.mean, &mut moments.part, |distance, _| distance * distance);
        for (inverse, square) in moments.inverse.iter_mut().zip(&mut squares) {
            *inverse = inverse_root(*square / lines);
            *square /= lines - 1.0;
        }
        moments.sample = Some(squares);
    }

    /// From the gradient `dy` of the output: overwrites `gradient` of the tensors (zero for running statistics), and `dx` if
    /// somebody needs it.
    pub(crate) fn backward<F: Float>(
        self,
        x: &[F],
        rows: usize,
        dy: &[F],
        moments: &mut Moments<F>,
        gradient: &mut [F],
        dx: Option<&mut [F]>,
    ) {
        let size = rows * self.pixels * self.channels;
        let (x, dy) = (&x[..size], &dy[..size]);
        let Moments { mean, inverse, factor, sample, part } = moments;
        let by_shift = total(x, dy, mean, part, |_, dy| dy);
        let by_scale = total(x, dy, mean, part, |distance, dy| distance * dy);
        let (running, trained) = gradient.split_at_mut(self.running());
        running.fill(F::zero());
        let (scale, shift) = trained.split_at_mut(self.channels);
        for ((scale, by_scale), inverse) in scale.iter_mut().zip(&by_scale).zip(&*inverse) {
            *scale = F::of(by_scale * inverse.to_f64());
        }
        for (shift, by_shift) in shift.iter_mut().zip(&by_shift) {
            *shift = F::of(*by_shift);
        }
        let Some(dx) = dx else { return };
        let lines = as_f64(size / self.channels);
        // What a number moves by way of the block's mean and variance; nothing, if they are the running ones.
        let share = if sample.is_some() { 1.0 / lines } else { 0.0 };
        let common: Vec<F> = by_shift.iter().map(|sum| F::of(sum * share)).collect();
        let slope = |(sum, inverse): (&f64, &F)| F::of(sum * share * inverse.to_f64() * inverse.to_f64());
        let slope: Vec<F> = by_scale.iter().zip(&*inverse).map(slope).collect();
        for ((x, dy), dx) in
            x.chunks_exact(self.channels).zip(dy.chunks_exact(self.channels)).zip(dx.chunks_exact_mut(self.channels))
        {
            let channels = mean.iter().zip(&*factor).zip(&common).zip(&slope);
            for (((dx, dy), x), (((mean, factor), common), slope)) in dx.iter_mut().zip(dy).zip(x).zip(channels) {
                *dx = (*dy - *common - (*x - *mean) * *slope) * *factor;
            }
        }
    }

    /// Moves the running statistics towards those of the last block; they stay if it had none of its own.
    pub(crate) fn follow<F: Float>(self, values: &mut [F], moments: &Moments<F>) {
        let Some(sample) = &moments.sample else { return };
        let (means, variances) = values[..self.running()].split_at_mut(self.channels);
        // Two numbers that are not negative: neither is their sum.
        let moved = |old: F, new: f64| F::of((1.0 - MOMENTUM) * old.to_f64() + MOMENTUM * new);
        for (running, mean) in means.iter_mut().zip(&moments.mean) {
            *running = moved(*running, mean.to_f64());
        }
        for (running, variance) in variances.iter_mut().zip(sample) {
            *running = moved(*running, *variance);
        }
    }
}

fn inverse_root<F: Float>(variance: f64) -> F {
    F::of(1.0 / (variance + EPSILON).sqrt())
}

/// For each channel the sum over all lines of `term(x - centre, with)`.
fn total<F: Float>(x: &[F], with: &[F], centre: &[F], part: &mut [F], term: impl Fn(F, F) -> F) -> Vec<f64> {
    let channels = centre.len();
    let mut totals = vec![0.0; channels];
    for (x, with) in x.chunks(LINES * channels).zip(with.chunks(LINES * channels)) {
        part.fill(F::zero());
        for (x, with) in x.chunks_exact(channels).zip(with.chunks_exact(channels)) {
            for ((sum, centre), (x, with)) in part.iter_mut().zip(centre).zip(x.iter().zip(with)) {
                *sum += term(*x - *centre, *with);
            }
        }
        for (total, sum) in totals.iter_mut().zip(&*part) {
            *total += sum.to_f64();
        }
    }
    totals
}

#[cfg(test)]
mod tests;
