//! 2-D convolution, stride 1, zero padding that keeps height and width, on images with their channels last:
//! `[h, w, channels] -> [h, w, filters]`.
//!
//! Each image is padded and unfolded into one row of `kernel^2 * channels` numbers a pixel, so the convolution is one matrix
//! product an image; channels last makes what is copied long runs of memory. The model's weight is `[filters, channels,
//! kernel, kernel]`; it is reordered once a block. Sums over images are taken in row order.

use crate::float::{Float, Matrix, product};

/// A convolution's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv2d {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) filters: usize,
    pub(crate) kernel: usize,
}

/// Scratch of one image and one weight, shared by all convolutions of a network.
#[derive(Debug)]
pub(crate) struct Scratch<F> {
    /// The image, or its gradient, with a border of zeros.
    padded: Vec<F>,
    /// The unfolded image, or its gradient.
    unfolded: Vec<F>,
    /// The weight, `[kernel^2 * channels, filters]`.
    weight: Vec<F>,
    /// Its gradient; empty until a backward pass needs it.
    gradient: Vec<F>,
}

impl<F: Float> Scratch<F> {
    /// Room for any of `layers`.
    pub(crate) fn for_layers(layers: impl Iterator<Item = Conv2d> + Clone) -> Self {
        let buffer = |size: fn(Conv2d) -> usize| vec![F::zero(); layers.clone().map(size).max().unwrap_or(0)];
        Self {
            padded: buffer(|l| (l.height + l.kernel - 1) * l.padded_width() * l.channels),
            unfolded: buffer(|l| l.patch() * l.positions()),
            weight: buffer(|l| l.patch() * l.filters),
            gradient: Vec::new(),
        }
    }
}

impl Conv2d {
    /// Number of values of its tensors.
    pub(crate) fn parameters(self) -> usize {
        self.filters + self.filters * self.patch()
    }

    fn patch(self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    fn positions(self) -> usize {
        self.height * self.width
    }

    fn padded_width(self) -> usize {
        self.width + self.kernel - 1
    }

    /// Writes `y` `[rows, h, w, filters]`.
    pub(crate) fn forward<F: Float>(self, values: &[F], x: &[F], rows: usize, work: &mut Scratch<F>, y: &mut [F]) {
        let bias = &values[..self.filters];
        self.reorder(values, &mut work.weight);
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)).take(rows) {
            self.unfold(x, work);
            for pixel in y.chunks_exact_mut(self.filters) {
                pixel.copy_from_slice(bias);
            }
            let unfolded = Matrix::new(self.positions(), self.patch(), &work.unfolded);
            product(unfolded, Matrix::new(self.patch(), self.filters, &work.weight), F::one(), y);
        }
    }

    /// From the gradient `dy` of the output: overwrites `gradient` of the tensors, and `dx` if somebody needs it.
    #[expect(clippy::too_many_arguments, reason = "three inputs, three outputs and a scratch are what a layer has")]
    pub(crate) fn backward<F: Float>(
        self,
        values: &[F],
        x: &[F],
        rows: usize,
        dy: &[F],
        work: &mut Scratch<F>,
        gradient: &mut [F],
        mut dx: Option<&mut [F]>,
    ) {
        self.reorder(values, &mut work.weight);
        work.gradient.resize(work.weight.len(), F::zero());
        let (bias, weight) = gradient.split_at_mut(self.filters);
        bias.fill(F::zero());
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        for (row, (x, dy)) in x.chunks_exact(input).zip(dy.chunks_exact(output)).take(rows).enumerate() {
            for pixel in dy.chunks_exact(self.filters) {
                for (b, g) in bias.iter_mut().zip(pixel) {
                    *b += *g;
                }
            }
            self.unfold(x, work);
            let unfolded = Matrix::new(self.positions(), self.patch(), &work.unfolded);
            let dy = Matrix::new(self.positions(), self.filters, dy);
            let beta = if row == 0 { F::zero() } else { F::one() };
            product(unfolded.transposed(), dy, beta, &mut work.gradient);
            if let Some(dx) = dx.as_deref_mut() {
                let weight = Matrix::new(self.patch(), self.filters, &work.weight);
                product(dy, weight.transposed(), F::zero(), &mut work.unfolded);
                self.fold(work, &mut dx[row * input..(row + 1) * input]);
            }
        }
        self.places(|ours, models| weight[models] = work.gradient[ours]);
    }

    /// Lists where each number of the weight is: in our order `[kernel, kernel, channels, filters]`, and in the model's.
    fn places(self, mut each: impl FnMut(usize, usize)) {
        let squares = self.kernel * self.kernel;
        for square in 0..squares {
            for channel in 0..self.channels {
                let ours = (square * self.channels + channel) * self.filters;
                for filter in 0..self.filters {
                    each(ours + filter, (filter * self.channels + channel) * squares + square);
                }
            }
        }
    }

    fn reorder<F: Float>(self, values: &[F], weight: &mut [F]) {
        let models = &values[self.filters..];
        self.places(|to, from| weight[to] = models[from]);
    }

    /// Copies each pixel's neighbourhood, line by line of the kernel, into one row.
    fn unfold<F: Float>(self, image: &[F], work: &mut Scratch<F>) {
        let (line, run) = (self.width * self.channels, self.kernel * self.channels);
        let (padded_line, pad) = (self.padded_width() * self.channels, self.kernel / 2);
        let padded = &mut work.padded[..padded_line * (self.height + 2 * pad)];
        padded.fill(F::zero());
        let inside = padded.chunks_exact_mut(padded_line).skip(pad);
        for (to, from) in inside.zip(image.chunks_exact(line)) {
            to[pad * self.channels..pad * self.channels + line].copy_from_slice(from);
        }
        let mut rows = work.unfolded.chunks_exact_mut(run);
        for row in 0..self.height {
            for column in 0..self.width {
                let first = row * padded_line + column * self.channels;
                for (i, to) in rows.by_ref().take(self.kernel).enumerate() {
                    let from = first + i * padded_line;
                    to.copy_from_slice(&padded[from..from + run]);
                }
            }
        }
    }

    /// The transpose of [`Self::unfold`]: each pixel receives the sum over the places it was copied to.
    fn fold<F: Float>(self, work: &mut Scratch<F>, image: &mut [F]) {
        let (line, run) = (self.width * self.channels, self.kernel * self.channels);
        let (padded_line, pad) = (self.padded_width() * self.channels, self.kernel / 2);
        let padded = &mut work.padded[..padded_line * (self.height + 2 * pad)];
        padded.fill(F::zero());
        let mut rows = work.unfolded.chunks_exact(run);
        for row in 0..self.height {
            for column in 0..self.width {
                let first = row * padded_line + column * self.channels;
                for (i, from) in rows.by_ref().take(self.kernel).enumerate() {
                    let to = first + i * padded_line;
                    for (sum, g) in padded[to..to + run].iter_mut().zip(from) {
                        *sum += *g;
                    }
                }
            }
        }
        let inside = padded.chunks_exact(padded_line).skip(pad);
        for (to, from) in image.chunks_exact_mut(line).zip(inside) {
            to.copy_from_slice(&from[pad * self.channels..pad * self.channels + line]);
        }
    }
}
