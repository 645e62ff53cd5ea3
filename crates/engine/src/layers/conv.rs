//! 2-D convolution, stride 1, zero padding that keeps height and width, on images with their channels last:
//! `[h, w, channels] -> [h, w, filters]`.
//!
//! Forward: a pixel's window is `kernel` runs of `kernel * channels` numbers of the padded image, so a line of pixels times
//! the weight is one product that reads the image where it lies. Backward: behind a ReLU or a pool most of the output's
//! gradient is zero (a 2 x 2 pool passes one of four), so both halves run over its non-zero numbers, filter by filter: the
//! windows they look at are summed up for the weight, and the filter is added at these windows for the image.
//! The model's weight is `[filters, channels, kernel, kernel]`; it is reordered once a block. Sums over images are taken in
//! row order.

use crate::float::{Float, squares};
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
    /// The gradient of bias and weight in our order, see [`Conv2d::own`].
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
        let mut own = std::mem::take(&mut work.gradient);
        own.resize(self.own().max(own.len()), F::zero());
        own.fill(F::zero());
        self.prepare_backward(values, work, dx.is_some());
        let input = self.channels * self.positions();
        let images = x.chunks_exact(input).zip(dy.chunks_exact(self.filters * self.positions()));
        for (row, (x, dy)) in images.take(rows).enumerate() {
            self.image(x, dy, work, &mut own, dx.as_deref_mut().map(|dx| &mut dx[row * input..(row + 1) * input]));
        }
        self.to_model(&own, gradient);
        work.gradient = own;
    }

    /// As [`Self::backward`], but each row's gradient goes into its part of `samples`, [`Self::own`] numbers, and its squared
    /// norm is added to `norms`; the gradient of the tensors is then [`Self::combine`]'s.
    #[expect(clippy::too_many_arguments, reason = "three inputs, three outputs and a scratch are what a layer has")]
    pub(crate) fn backward_samples<F: Float>(
        self,
        values: &[F],
        x: &[F],
        dy: &[F],
        work: &mut Scratch<F>,
        samples: &mut [F],
        norms: &mut [f64],
        mut dx: Option<&mut [F]>,
    ) {
        samples[..norms.len() * self.own()].fill(F::zero());
        self.prepare_backward(values, work, dx.is_some());
        let (input, reach) = (self.channels * self.positions(), self.kernel * self.channels);
        let images = x.chunks_exact(input).zip(dy.chunks_exact(self.filters * self.positions()));
        let rows = images.zip(samples.chunks_exact_mut(self.own())).zip(norms);
        for (row, (((x, dy), own), norm)) in rows.enumerate() {
            self.image(x, dy, work, own, dx.as_deref_mut().map(|dx| &mut dx[row * input..(row + 1) * input]));
            let (bias, windows) = own.split_at(self.filters);
            let lines = windows.chunks_exact(self.window().chunks * LANES);
            *norm += squares(bias) + lines.map(|line| squares(&line[..reach])).sum::<f64>();
        }
    }

    /// The sum of all rows' gradients, each times its factor: overwrites `gradient` of the tensors.
    pub(crate) fn combine<F: Float>(self, samples: &[F], factors: &[F], work: &mut Scratch<F>, gradient: &mut [F]) {
        work.gradient.resize(self.own().max(work.gradient.len()), F::zero());
        let total = &mut work.gradient[..self.own()];
        total.fill(F::zero());
        for (own, factor) in samples.chunks_exact(self.own()).zip(factors) {
            for (sum, g) in total.iter_mut().zip(own) {
                *sum += *factor * *g;
            }
        }
        self.to_model(total, gradient);
    }

    /// Numbers of a gradient in our order: the bias, then a window a filter.
    pub(crate) fn own(self) -> usize {
        self.filters * (1 + self.window().len())
    }

    fn to_model<F: Float>(self, own: &[F], gradient: &mut [F]) {
        let (bias, weight) = gradient.split_at_mut(self.filters);
        let (own_bias, own_weight) = own.split_at(self.filters);
        bias.copy_from_slice(own_bias);
        self.places(|filter, i, within, models| weight[models] = own_weight[self.place(filter, i, within)]);
    }

    /// Where a number of a filter is among the windows.
    fn place(self, filter: usize, line: usize, within: usize) -> usize {
        filter * self.window().len() + line * self.window().chunks * LANES + within
    }

    fn prepare_backward<F: Float>(self, values: &[F], work: &mut Scratch<F>, input: bool) {
        work.scattered.resize(work.padded.len(), F::zero());
        let none = Spike { at: 0, value: F::zero() };
        work.spikes.resize((self.filters * self.positions()).max(work.spikes.len()), none);
        work.counts.resize(self.filters.max(work.counts.len()), 0);
        if input {
            // What a window reads beyond the kernel meets zeros.
            work.weight.fill(F::zero());
            self.places(|filter, i, within, models| {
                work.weight[self.place(filter, i, within)] = values[self.filters + models];
            });
        }
    }

    /// Adds the gradient of one image to `own`; overwrites that of its input, if somebody needs it.
    fn image<F: Float>(self, x: &[F], dy: &[F], work: &mut Scratch<F>, own: &mut [F], dx: Option<&mut [F]>) {
        let (window, len) = (self.window(), self.window().len());
        let (bias, gradient) = own.split_at_mut(self.filters);
        self.list(dy, bias, work);
        self.pad(x, &mut work.padded);
        let filters = work.spikes.chunks_exact(self.positions()).zip(&work.counts).map(|(list, n)| &list[..*n]);
        for (spikes, gradient) in filters.clone().zip(gradient.chunks_exact_mut(len)).take(self.filters) {
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
