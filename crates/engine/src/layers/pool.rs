//! Maximum over disjoint squares, on images with their channels last: `[h, w, channels] -> [h / size, w / size, channels]`;
//! the rest at the border is dropped.
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

    /// Writes `y`, and for each output the pixel of its row's input that it came from.
    pub(crate) fn forward<F: Float>(self, x: &[F], rows: usize, y: &mut [F], chosen: &mut [u32]) {
        let images = x.chunks_exact(self.input()).take(rows);
        let outputs = y.chunks_exact_mut(self.output()).zip(chosen.chunks_exact_mut(self.output()));
        for (x, (y, chosen)) in images.zip(outputs) {
            let pixels = y.chunks_exact_mut(self.channels).zip(chosen.chunks_exact_mut(self.channels));
            let columns = self.width / self.size;
            for (i, (y, chosen)) in pixels.enumerate() {
                let corner = (i / columns * self.width + i % columns) * self.size;
                self.square(x, corner, y, chosen);
            }
        }
    }

    /// One square, all channels side by side: plain selections that the compiler turns into wide registers.
    fn square<F: Float>(self, x: &[F], corner: usize, y: &mut [F], chosen: &mut [u32]) {
        y.copy_from_slice(&x[corner * self.channels..(corner + 1) * self.channels]);
        chosen.fill(number(corner));
        for i in 0..self.size {
            for j in 0..self.size {
                let pixel = corner + i * self.width + j;
                let at = number(pixel);
                let candidates = &x[pixel * self.channels..(pixel + 1) * self.channels];
                for ((best, chosen), v) in y.iter_mut().zip(chosen.iter_mut()).zip(candidates) {
                    let better = *v > *best;
                    // A mask, not an `if`: a branch that depends on the pixels costs four times as much.
                    *chosen ^= (*chosen ^ at) & u32::from(better).wrapping_neg();
                    *best = if better { *v } else { *best };
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
            let pixels = dy.chunks_exact(self.channels).zip(chosen.chunks_exact(self.channels));
            for (dy, chosen) in pixels {
                for (channel, (g, at)) in dy.iter().zip(chosen).enumerate() {
                    dx[*at as usize * self.channels + channel] += *g;
                }
            }
        }
    }
}

fn number(pixel: usize) -> u32 {
    u32::try_from(pixel).expect("invariant: a network bounds the values of a row")
}
