//! The inner loops of layers: products of narrow matrices in place, and the two halves of a sparse convolution gradient.
//!
//! `matrixmultiply` copies both matrices before it multiplies; at 32 rows a batch and 32 filters a layer this costs as much
//! as the product. These loops read their arguments where they lie, 16 columns at once ([`LANES`]), with the sums in
//! registers. They are written once, in plain Rust, and compiled three times: for AVX-512, for AVX2 (both with fused
//! multiply-add), and for any processor; the processor chooses when it runs.
//!
//! Promises: each sum has one order, whatever the tile, so AVX-512 and AVX2 give the same bits, and a row's result does not
//! depend on its neighbours. Without fused multiply-add the last bit differs. Unsafe are the instructions ([`register`]), the
//! choice by processor, and one access whose bounds are asserted in front of its loop.

use std::ops::Range;

use crate::float::Float;

mod register;

pub(crate) use register::LANES;
#[cfg(target_arch = "x86_64")]
use register::{Avx2, Avx512};
use register::{Plain, Register};

/// Rows of a tile's left side.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left {
    /// Value `k` of row `m` is at `m * row + (k / run) * line + k % run`: rows lie `row` apart, may overlap, and are read in
    /// pieces of `run` that lie `line` apart.
    Pieces { row: usize, run: usize, line: usize },
    /// Value `k` of row `m` is at `k * line + m`: the transpose of a row-major matrix.
    Transposed { line: usize },
}

/// `c[m][n] = start[n] + sum over k of left[m][k] * right[k][n]`, sums in the order of `k`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a, F> {
    pub(crate) left: &'a [F],
    pub(crate) how: Left,
    pub(crate) rows: usize,
    pub(crate) inner: usize,
    /// Row `k` starts at `k * right_row`.
    pub(crate) right: &'a [F],
    pub(crate) right_row: usize,
    /// Where each sum starts; empty = zero.
    pub(crate) start: &'a [F],
    pub(crate) columns: usize,
    /// Row `m` of the result starts at `m * result_row`.
    pub(crate) result_row: usize,
}

/// One non-zero number of an image's gradient.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spike<F> {
    /// Where its window starts in the padded image.
    pub(crate) at: usize,
    pub(crate) value: F,
}

/// A window of an image: `lines` pieces, `stride` apart, each of `chunks` times [`LANES`] numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) lines: usize,
    pub(crate) stride: usize,
    pub(crate) chunks: usize,
}

impl Window {
    /// Numbers of a window, laid out one after the other.
    pub(crate) fn len(self) -> usize {
        self.lines * self.chunks * LANES
    }

    #[inline(always)]
    fn offset(self, unit: usize) -> usize {
        unit / self.chunks * self.stride + unit % self.chunks * LANES
    }
}

/// The numbers from `at`; zeros behind the end.
#[inline(always)]
fn lanes<F: Float, R: Register<F>>(values: &[F], at: usize) -> R {
    match values[at..].first_chunk() {
        Some(full) => R::load(full),
        None => R::load(&rest(&values[at..])),
    }
}

#[cold]
fn rest<F: Float>(values: &[F]) -> [F; LANES] {
    let mut padded = [F::zero(); LANES];
    padded[..values.len()].copy_from_slice(values);
    padded
}

impl<F: Float> Product<'_, F> {
    #[inline(always)]
    fn compute<R: Register<F>>(&self, result: &mut [F]) {
        match self.how {
            // Sixteen columns of the right side stay in the first cache while all rows pass.
            Left::Pieces { .. } => {
                for column in (0..self.columns).step_by(LANES) {
                    let mut row = 0;
                    while row < self.rows {
                        row += self.rows_from::<R>(row, column..column + 1, result);
                    }
                }
            }
            // The right side is small, the result is large and wants to be written row by row.
            Left::Transposed { .. } => {
                let mut row = 0;
                while row < self.rows {
                    row += self.rows_from::<R>(row, 0..self.columns, result);
                }
            }
        }
    }

    /// As many rows from `row` as fill the registers; returns how many.
    #[inline(always)]
    fn rows_from<R: Register<F>>(&self, row: usize, columns: Range<usize>, result: &mut [F]) -> usize {
        let left = self.rows - row;
        match left {
            _ if R::ROWS >= 16 && left.is_multiple_of(14) && left < 32 => self.tiles::<R, 14>(row, columns, result),
            _ if R::ROWS >= 16 && left >= 16 => self.tiles::<R, 16>(row, columns, result),
            _ if R::ROWS >= 8 && left >= 8 => self.tiles::<R, 8>(row, columns, result),
            _ if R::ROWS == 6 && left >= 6 => self.tiles::<R, 6>(row, columns, result),
            _ if R::ROWS >= 4 && left >= 4 => self.tiles::<R, 4>(row, columns, result),
            _ if left >= 2 => self.tiles::<R, 2>(row, columns, result),
            _ => self.tiles::<R, 1>(row, columns, result),
        }
    }

    #[inline(always)]
    fn tiles<R: Register<F>, const ROWS: usize>(&self, row: usize, columns: Range<usize>, result: &mut [F]) -> usize {
        for column in columns.step_by(LANES) {
            self.tile::<R, ROWS>(row, column, result);
        }
        ROWS
    }

    #[inline(always)]
    fn tile<R: Register<F>, const ROWS: usize>(&self, row: usize, column: usize, result: &mut [F]) {
        let start = if self.start.is_empty() { R::splat(F::zero()) } else { lanes(self.start, column) };
        let sums = match self.how {
            Left::Pieces { row: apart, run, line } => {
                let mut sums = [start; ROWS];
                for piece in 0..self.inner / run {
                    let left = &self.left[row * apart + piece * line..][..(ROWS - 1) * apart + run];
                    let right = &self.right[piece * run * self.right_row + column..];
                    sums = run_of::<F, R, ROWS>(sums, left, (apart, run), right, self.right_row);
                }
                sums
            }
            Left::Transposed { line } => {
                let mut sums = [start; ROWS];
                for k in 0..self.inner {
                    let factors: &[F; ROWS] = self.left[row + k * line..].first_chunk().expect("invariant: whole rows");
                    let right = lanes::<F, R>(self.right, column + k * self.right_row);
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = sum.add_product(R::splat(*factor), right);
                    }
                }
                sums
            }
        };
        let width = LANES.min(self.columns - column);
        for (m, sum) in sums.into_iter().enumerate() {
            let at = (row + m) * self.result_row + column;
            match result[at..at + width].first_chunk_mut() {
                Some(full) => sum.store(full),
                None => {
                    let mut all = [F::zero(); LANES];
                    sum.store(&mut all);
                    result[at..at + width].copy_from_slice(&all[..width]);
                }
            }
        }
    }
}

/// Adds a piece of the inner dimension: `run` numbers of each of the rows of `left`, which lie `apart`.
#[inline(always)]
fn run_of<F: Float, R: Register<F>, const ROWS: usize>(
    mut sums: [R; ROWS],
    left: &[F],
    (apart, run): (usize, usize),
    right: &[F],
    right_row: usize,
) -> [R; ROWS] {
    assert!(left.len() >= (ROWS - 1) * apart + run, "a tile's rows lie in its slice");
    for i in 0..run {
        let right = lanes::<F, R>(right, i * right_row);
        for (m, sum) in sums.iter_mut().enumerate() {
            #[expect(unsafe_code, reason = "fourteen checks an instruction cost more than the product")]
            // SAFETY: m < ROWS and i < run, so the place is within what was asserted above.
            let factor = unsafe { *left.get_unchecked(m * apart + i) };
            *sum = sum.add_product(R::splat(factor), right);
        }
    }
    sums
}

/// `sums[..] += sum over spikes of value * the window of the image at the spike`.
#[inline(always)]
fn gather<F: Float, R: Register<F>>(spikes: &[Spike<F>], image: &[F], window: Window, sums: &mut [F]) {
    let units = window.lines * window.chunks;
    let mut unit = 0;
    while unit < units {
        unit += match units - unit {
            8.. => gather_units::<F, R, 8>(spikes, image, window, unit, sums),
            4.. => gather_units::<F, R, 4>(spikes, image, window, unit, sums),
            _ => gather_units::<F, R, 1>(spikes, image, window, unit, sums),
        };
    }
}

#[inline(always)]
fn gather_units<F: Float, R: Register<F>, const UNITS: usize>(
    spikes: &[Spike<F>],
    image: &[F],
    window: Window,
    first: usize,
    sums: &mut [F],
) -> usize {
    let offsets: [usize; UNITS] = std::array::from_fn(|u| window.offset(first + u));
    let mut totals = [R::splat(F::zero()); UNITS];
    for spike in spikes {
        let value = R::splat(spike.value);
        for (total, offset) in totals.iter_mut().zip(offsets) {
            let values = image[spike.at + offset..].first_chunk().expect("invariant: windows lie in the image");
            *total = total.add_product(value, R::load(values));
        }
    }
    let (slots, _) = sums[first * LANES..].as_chunks_mut::<LANES>();
    for (slot, total) in slots.iter_mut().zip(totals) {
        let mut all = [F::zero(); LANES];
        total.store(&mut all);
        for (sum, total) in slot.iter_mut().zip(all) {
            *sum += total;
        }
    }
    UNITS
}

/// For each spike: `the window of the image at the spike += value * weight`.
#[inline(always)]
fn scatter<F: Float, R: Register<F>>(spikes: &[Spike<F>], weight: &[F], window: Window, image: &mut [F]) {
    let line = window.chunks * LANES;
    for spike in spikes {
        let value = R::splat(spike.value);
        for (i, weights) in weight.chunks_exact(line).take(window.lines).enumerate() {
            let at = spike.at + i * window.stride;
            let (places, _) = image[at..at + line].as_chunks_mut::<LANES>();
            let (weights, _) = weights.as_chunks::<LANES>();
            for (place, weights) in places.iter_mut().zip(weights) {
                R::load(place).add_product(value, R::load(weights)).store(place);
            }
        }
    }
}

/// The loops of one number type, as the layers call them.
pub(crate) trait Kernels: Sized {
    /// [`Product`]: overwrites rows and columns of `result`.
    fn product(product: &Product<'_, Self>, result: &mut [Self]);
    /// Adds to `sums`, one [`Window`] laid out, the windows of `image` weighted by the spikes.
    fn gather(spikes: &[Spike<Self>], image: &[Self], window: Window, sums: &mut [Self]);
    /// Adds to `image`, at each spike, its value times `weight`, one [`Window`] laid out.
    fn scatter(spikes: &[Spike<Self>], weight: &[Self], window: Window, image: &mut [Self]);
}

impl Kernels for f64 {
    fn product(product: &Product<'_, Self>, result: &mut [Self]) {
        product.compute::<Plain<Self>>(result);
    }

    fn gather(spikes: &[Spike<Self>], image: &[Self], window: Window, sums: &mut [Self]) {
        gather::<Self, Plain<Self>>(spikes, image, window, sums);
    }

    fn scatter(spikes: &[Spike<Self>], weight: &[Self], window: Window, image: &mut [Self]) {
        scatter::<Self, Plain<Self>>(spikes, weight, window, image);
    }
}

/// What a processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Any,
    Avx2,
    Avx512,
}

impl Level {
    /// What this processor can do.
    fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return if is_x86_feature_detected!("avx512f") { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Any
    }
}

/// Compiles a loop for each level and runs the given one, or the best that this processor has.
macro_rules! by_level {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*), $register:ident => $body:expr) => {
        $(#[$doc])*
        fn $name(level: Level, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn avx512($($argument: $type),*) {
                    type $register = Avx512;
                    $body
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) {
                    type $register = Avx2;
                    $body
                }
                match level.min(Level::here()) {
                    #[expect(unsafe_code, reason = "the processor has just said that it can do this")]
                    // SAFETY: `here` has asked for all features that the function is compiled for.
                    Level::Avx512 => return unsafe { avx512($($argument),*) },
                    #[expect(unsafe_code, reason = "the processor has just said that it can do this")]
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($argument),*) },
                    Level::Any => {}
                }
            }
            type $register = Plain<f32>;
            let _any = level;
            $body
        }
    };
}

by_level! {
    fn product_at(product: &Product<'_, f32>, result: &mut [f32]), R => product.compute::<R>(result)
}
by_level! {
    fn gather_at(spikes: &[Spike<f32>], image: &[f32], window: Window, sums: &mut [f32]),
    R => gather::<f32, R>(spikes, image, window, sums)
}
by_level! {
    fn scatter_at(spikes: &[Spike<f32>], weight: &[f32], window: Window, image: &mut [f32]),
    R => scatter::<f32, R>(spikes, weight, window, image)
}

impl Kernels for f32 {
    fn product(product: &Product<'_, Self>, result: &mut [Self]) {
        product_at(Level::here(), product, result);
    }

    fn gather(spikes: &[Spike<Self>], image: &[Self], window: Window, sums: &mut [Self]) {
        gather_at(Level::here(), spikes, image, window, sums);
    }

    fn scatter(spikes: &[Spike<Self>], weight: &[Self], window: Window, image: &mut [Self]) {
        scatter_at(Level::here(), spikes, weight, window, image);
    }
}

#[cfg(test)]
mod tests;
