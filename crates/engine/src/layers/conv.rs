//! 2-D convolution, stride 1, zero padding that keeps height and width: `[channels, h, w] -> [filters, h, w]`.
//!
//! Each row (image) is unfolded into columns `[channels * kernel^2, h * w]`, so the convolution is one matrix product an
//! image; the sum over images is taken in row order.

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

/// Scratch of one image, shared by all convolutions of a network.
#[derive(Debug)]
pub(crate) struct Columns<F> {
    /// The unfolded input.
    values: Vec<F>,
    /// Its gradient; empty until a backward pass needs it.
    gradient: Vec<F>,
}

impl<F: Float> Columns<F> {
    /// Room for any of `layers`.
    pub(crate) fn for_layers(layers: impl Iterator<Item = Conv2d>) -> Self {
        let size = layers.map(|l| l.patch() * l.positions()).max().unwrap_or(0);
        Self { values: vec![F::zero(); size], gradient: Vec::new() }
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

    /// Writes `y` `[rows, filters, h, w]`.
    pub(crate) fn forward<F: Float>(self, values: &[F], x: &[F], rows: usize, columns: &mut Columns<F>, y: &mut [F]) {
        let (bias, weight) = values.split_at(self.filters);
        let weight = Matrix::new(self.filters, self.patch(), weight);
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        for (x, y) in x.chunks_exact(input).zip(y.chunks_exact_mut(output)).take(rows) {
            self.unfold(x, &mut columns.values);
            for (channel, b) in y.chunks_exact_mut(self.positions()).zip(bias) {
                channel.fill(*b);
            }
            let unfolded = Matrix::new(self.patch(), self.positions(), &columns.values);
            product(weight, unfolded, F::one(), y);
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
        columns: &mut Columns<F>,
        gradient: &mut [F],
        mut dx: Option<&mut [F]>,
    ) {
        let (bias, weight) = gradient.split_at_mut(self.filters);
        bias.fill(F::zero());
        weight.fill(F::zero());
        let (input, output) = (self.channels * self.positions(), self.filters * self.positions());
        for (row, (x, dy)) in x.chunks_exact(input).zip(dy.chunks_exact(output)).take(rows).enumerate() {
            for (channel, b) in dy.chunks_exact(self.positions()).zip(bias.iter_mut()) {
                *b += channel.iter().fold(F::zero(), |sum, g| sum + *g);
            }
            self.unfold(x, &mut columns.values);
            let unfolded = Matrix::new(self.patch(), self.positions(), &columns.values);
            let dy = Matrix::new(self.filters, self.positions(), dy);
            product(dy, unfolded.transposed(), F::one(), weight);
            if let Some(dx) = dx.as_deref_mut() {
                let weight = Matrix::new(self.filters, self.patch(), &values[self.filters..]);
                if columns.gradient.is_empty() {
                    columns.gradient.resize(columns.values.len(), F::zero());
                }
                product(weight.transposed(), dy, F::zero(), &mut columns.gradient);
                self.fold(&columns.gradient, &mut dx[row * input..(row + 1) * input]);
            }
        }
    }

    /// Lists what unfolding copies, one line of the image and one place in the kernel at a time.
    fn runs(self, mut each: impl FnMut(Run)) {
        let pad = self.kernel / 2;
        let (h, w) = (self.height, self.width);
        for c in 0..self.channels {
            for i in 0..self.kernel {
                for j in 0..self.kernel {
                    let patch = ((c * self.kernel + i) * self.kernel + j) * h * w;
                    // Output columns whose input column `out + j - pad` lies inside the image.
                    let (first, last) = (pad.saturating_sub(j).min(w), (w + pad).saturating_sub(j).min(w));
                    for row in 0..h {
                        let source = (row + i).checked_sub(pad).filter(|r| *r < h && first < last);
                        let column = patch + row * w;
                        each(Run {
                            column,
                            before: if source.is_some() { first } else { w },
                            image: source.map_or(0, |r| (c * h + r) * w + first + j - pad),
                            length: if source.is_some() { last - first } else { 0 },
                            after: if source.is_some() { w - last } else { 0 },
                        });
                    }
                }
            }
        }
    }

    fn unfold<F: Float>(self, image: &[F], columns: &mut [F]) {
        self.runs(|run| {
            let start = run.column + run.before;
            let end = start + run.length;
            columns[run.column..start].fill(F::zero());
            columns[start..end].copy_from_slice(&image[run.image..run.image + run.length]);
            columns[end..end + run.after].fill(F::zero());
        });
    }

    /// The transpose of [`Self::unfold`]: each pixel receives the sum over the places it was copied to.
    fn fold<F: Float>(self, columns: &[F], image: &mut [F]) {
        image.fill(F::zero());
        self.runs(|run| {
            let start = run.column + run.before;
            let source = &columns[start..start + run.length];
            for (pixel, g) in image[run.image..run.image + run.length].iter_mut().zip(source) {
                *pixel += *g;
            }
        });
    }
}

/// One line of pixels of one place in the kernel: zeros, a run copied from the image, zeros.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Index of the line in the columns.
    column: usize,
    /// Zeros before the run.
    before: usize,
    /// Index of the run in the image.
    image: usize,
    /// Pixels of the run.
    length: usize,
    /// Zeros after the run.
    after: usize,
}
