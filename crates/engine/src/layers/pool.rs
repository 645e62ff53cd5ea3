//! Maximum over disjoint squares: `[channels, h, w] -> [channels, h / size, w / size]`; the rest at the border is dropped.
//!
//! Of equal values the first in row-major order is the maximum, so the gradient has one place to go.

use crate::float::Float;

/// A pooling layer's shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool2d {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) size: usize,
}

impl MaxPool2d {
    fn input(self) -> usize {
        self.channels * self.height * self.width
    }

    fn output(self) -> usize {
        self.channels * (self.height / self.size) * (self.width / self.size)
    }

    /// Writes `y`, and for each output the index within its row's input that it came from.
    pub(crate) fn forward<F: Float>(self, x: &[F], rows: usize, y: &mut [F], chosen: &mut [u32]) {
        let images = x.chunks_exact(self.input()).take(rows);
        let outputs = y.chunks_exact_mut(self.output()).zip(chosen.chunks_exact_mut(self.output()));
        for (x, (y, chosen)) in images.zip(outputs) {
            self.forward_image(x, y, chosen);
        }
    }

    fn forward_image<F: Float>(self, x: &[F], y: &mut [F], chosen: &mut [u32]) {
        let (out_h, out_w) = (self.height / self.size, self.width / self.size);
        let mut out = y.iter_mut().zip(chosen);
        for c in 0..self.channels {
            for row in 0..out_h {
                for column in 0..out_w {
                    let corner = (c * self.height + row * self.size) * self.width + column * self.size;
                    let mut best = (x[corner], corner);
                    for i in 0..self.size {
                        let line = corner + i * self.width;
                        for (j, v) in x[line..line + self.size].iter().enumerate() {
                            if *v > best.0 {
                                best = (*v, line + j);
                            }
                        }
                    }
                    let (y, chosen) = out.next().expect("invariant: one output for each square");
                    *y = best.0;
                    *chosen = u32::try_from(best.1).expect("invariant: inputs are bounded when a network is built");
                }
            }
        }
    }

    /// Overwrites `dx` with the gradient of the input.
    pub(crate) fn backward<F: Float>(self, dy: &[F], chosen: &[u32], rows: usize, dx: &mut [F]) {
        let dx = &mut dx[..rows * self.input()];
        dx.fill(F::zero());
        let images = dx.chunks_exact_mut(self.input());
        let outputs = dy.chunks_exact(self.output()).zip(chosen.chunks_exact(self.output()));
        for (dx, (dy, chosen)) in images.zip(outputs) {
            for (g, at) in dy.iter().zip(chosen) {
                dx[*at as usize] += *g;
            }
        }
    }
}
