//! 2-D convolution, stride 1, zero padding that keeps height and width, on images with their channels last:
//! `[h, w, channels] -> [h, w, filters]`.
//!
//! Forward: a pixel's window is `kernel` runs of `kernel * channels` numbers of the padded image, so a line of pixels times
//! the weight is one product that reads the image where it lies. Backward: behind a ReLU or a pool most of the output's
//! gradient is zero (a 2 x 2 pool passes one of four), so both halves run over its non-zero numbers, filter by filter: the
//! windows they look at are summed up for the weight, and the filter is added at these windows for the image.
//! The model's weight is `[filters, channels, kernel, kernel]`; it is reordered once a block. Sums over images are taken in
//! row order.

use crate::float::Float;
use crate::kernel::{LANES, Left, Product, Spike, Window};

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
    /// The image with a border of zeros.
    padded: Vec<F>,
    /// Its gradient in the same shape; this and what follows is empty until a backward pass needs it.
    scattered: Vec<F>,
    /// The weight: for forward `[kernel^2 * channels, filters]`, for backward a window a filter.
    weight: Vec<F>,
    /// Its gradient, a window a filter.
    gradient: Vec<F>,
    /// Non-zero numbers of an image's gradient, filter by filter, and how many each filter has.
    spikes: Vec<Spike<F>>,
    counts: Vec<usize>,
}

impl<F: Float> Scratch<F> {
    /// Room for any of `layers`.
    pub(crate) fn for_layers(layers: impl Iterator<Item = Conv2d> + Clone) -> Self {
        let largest = |size: fn(Conv2d) -> usize| layers.clone().map(size).max().unwrap_or(0);
        Self {
            padded: vec![F::zero(); largest(Conv2d::padded)],
            scattered: Vec::new(),
            weight: vec![F::zero(); largest(|l| l.filters * l.window().len().max(l.patch()))],
            gradient: Vec::new(),
            spikes: Vec::new(),
            counts: Vec::new(),
        }
    }

    fn prepare_backward(&mut self, layer: Conv2d) {
        let grow = |buffer: &mut Vec<F>, size: usize| buffer.resize(size.max(buffer.len()), F::zero());
        grow(&mut self.scattered, self.padded.len());
        grow(&mut self.gradient, self.weight.len());
        let none = Spike { at: 0, value: F::zero() };
        self.spikes.resize((layer.filters * layer.positions()).max(self.spikes.len()), none);
        self.counts.resize(layer.filters.max(self.counts.len()), 0);
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

    /// Numbers of a line of the padded image.
    fn padded_line(self) -> usize {
        (self.width + self.kernel - 1) * self.channels
    }

    /// Numbers of the padded image, with room for the last window to be read in whole registers.
    fn padded(self) -> usize {
        (self.height + self.kernel - 1) * self.padded_line() + LANES
    }

    /// What one output looks at, each line rounded up to whole registers.
    fn window(self) -> Window {
        let chunks = (self.kernel * self.channels).div_ceil(LANES);
        Window { lines: self.kernel, stride: self.padded_line(), chunks }
    }

    /// Writes `y` `[rows, h, w, filters]`.
    pub(crate) fn forward<F: Float>(self, values: &[F], x: &[F], rows: usize, work: &mut Scratch<F>, y: &mut [F]) {
        let (bias, weight) = values.split_at(self.filters);
        self.places(|filter, line, within, models| {
            work.weight[(line * self.kernel * self.channels + within) * self.filters + filter] = weight[models];
        });
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        let line = self.padded_line();
        for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)).take(rows) {
            self.pad(x, &mut work.padded);
            for (row, y) in y.chunks_exact_mut(self.width * self.filters).enumerate() {
                let product = Product {
                    left: &work.padded[row * line..],
                    how: Left::Pieces { row: self.channels, run: self.kernel * self.channels, line },
                    rows: self.width,
                    inner: self.patch(),
                    right: &work.weight[..self.patch() * self.filters],
                    right_row: self.filters,
                    start: bias,
                    columns: self.filters,
                    result_row: self.filters,
                };
                F::product(&product, y);
            }
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
        work.prepare_backward(self);
        let (window, line) = (self.window(), self.window().chunks * LANES);
        let place = |filter: usize, i: usize, within: usize| filter * window.len() + i * line + within;
        if dx.is_some() {
            // What a window reads beyond the kernel meets zeros.
            work.weight.fill(F::zero());
            self.places(|filter, i, within, models| {
                work.weight[place(filter, i, within)] = values[self.filters + models];
            });
        }
        work.gradient.fill(F::zero());
        let (bias, weight) = gradient.split_at_mut(self.filters);
        bias.fill(F::zero());
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        for (row, (x, dy)) in x.chunks_exact(input).zip(dy.chunks_exact(output)).take(rows).enumerate() {
            self.list(dy, bias, work);
            self.pad(x, &mut work.padded);
            let dx = dx.as_deref_mut().map(|dx| &mut dx[row * input..(row + 1) * input]);
            self.image(work, dx);
        }
        self.places(|filter, i, within, models| weight[models] = work.gradient[place(filter, i, within)]);
    }

    /// Both halves of the gradient of one image, whose non-zero numbers are listed.
    fn image<F: Float>(self, work: &mut Scratch<F>, dx: Option<&mut [F]>) {
        let (window, len) = (self.window(), self.window().len());
        let filters = work.spikes.chunks_exact(self.positions()).zip(&work.counts).map(|(list, n)| &list[..*n]);
        for (spikes, gradient) in filters.clone().zip(work.gradient.chunks_exact_mut(len)).take(self.filters) {
            F::gather(spikes, &work.padded, window, gradient);
        }
        let Some(dx) = dx else { return };
        work.scattered.fill(F::zero());
        for (spikes, weight) in filters.zip(work.weight.chunks_exact(len)).take(self.filters) {
            F::scatter(spikes, weight, window, &mut work.scattered);
        }
        let (pad, line) = (self.kernel / 2, self.width * self.channels);
        let inside = work.scattered.chunks_exact(self.padded_line()).skip(pad);
        for (to, from) in dx.chunks_exact_mut(line).zip(inside) {
            to.copy_from_slice(&from[pad * self.channels..pad * self.channels + line]);
        }
    }

    /// Lists the non-zero numbers of an image's gradient, filter by filter, and adds them to the gradient of the bias.
    fn list<F: Float>(self, dy: &[F], bias: &mut [F], work: &mut Scratch<F>) {
        let (counts, positions) = (&mut work.counts[..self.filters], self.positions());
        counts.fill(0);
        for (position, pixel) in dy.chunks_exact(self.filters).enumerate() {
            let at = position / self.width * self.padded_line() + position % self.width * self.channels;
            for (filter, ((value, count), bias)) in pixel.iter().zip(counts.iter_mut()).zip(bias.iter_mut()).enumerate()
            {
                *bias += *value;
                // Written in any case, counted if it is to stay: no branch that depends on the data.
                work.spikes[filter * positions + *count] = Spike { at, value: *value };
                *count += usize::from(*value != F::zero());
            }
        }
    }

    /// Lists where each number of the weight is: filter, line of the kernel, place within the line (channels last), and
    /// its place in the model's weight.
    fn places(self, mut each: impl FnMut(usize, usize, usize, usize)) {
        for filter in 0..self.filters {
            for channel in 0..self.channels {
                for i in 0..self.kernel {
                    for j in 0..self.kernel {
                        let models = ((filter * self.channels + channel) * self.kernel + i) * self.kernel + j;
                        each(filter, i, j * self.channels + channel, models);
                    }
                }
            }
        }
    }

    /// Copies an image into a border of zeros.
    fn pad<F: Float>(self, image: &[F], padded: &mut [F]) {
        let (pad, line) = (self.kernel / 2, self.width * self.channels);
        padded.fill(F::zero());
        let inside = padded.chunks_exact_mut(self.padded_line()).skip(pad);
        for (to, from) in inside.zip(image.chunks_exact(line)) {
            to[pad * self.channels..pad * self.channels + line].copy_from_slice(from);
        }
    }
}
