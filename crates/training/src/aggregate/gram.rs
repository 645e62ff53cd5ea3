//! Squared norms and distances of updates: exact integers, one pass over the values, rounded once.
//!
//! |x - y|^2 = xx + yy - 2 xy, so all distances come from the Gram matrix. It is made in tiles of [`TILE`] by [`TILE`] updates
//! over runs of [`RUN`] positions, which stay in the core's cache; only tiles on and above the diagonal.
//!
//! Overflow: with magnitudes up to m < 2^31 a run of min([`RUN`], 2^63 / m^2) positions fits 64 bits; runs are added up in
//! 128 bits, enough for 2^65 positions. Where m is small enough for the sums of a run to be below 2^53 (24 bits: 512
//! positions), f64 adds up the same integers, exactly, with half the instructions.
//!
//! Each thread has a matrix of its own; the matrices are added at the end of a part.
//!
//! Grids differ by a power of two only. Tensors are taken in the order of their grids; the products of one grid are exact,
//! become f64 (rounded once, scaled exactly), and the few grids are added in that order.

use std::ops::Range;

use crate::strategy::Geometry;

use super::layout::{Layout, Segment};
use super::parallel::{Threads, each, piece};
use super::simd::{self, PRODUCTS};
use super::table::{Table, columns};
use super::{Floats, Rows, WorkError};

/// Rows and columns of a tile of the matrix: a multiple of both sides of the tile in registers.
const TILE: usize = 12;
/// Positions of a run: 8 KiB a row, long enough that adding up the lanes afterwards costs little.
const RUN: usize = 2048;
/// Shorter runs in floats cost more than they save.
const FLOATS_MIN: usize = 512;

/// Products of each of a few rows with each of a few others.
type Products = fn([&[i32]; PRODUCTS.0], [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0];

/// Norms or distances under way. The default has nothing to do.
#[derive(Debug, Default)]
pub(super) struct Measuring {
    parts: Vec<Part>,
    next: usize,
    /// Rows of the table: updates, then the centre.
    updates: usize,
    centre: Option<usize>,
    pairs: Pairs,
    /// Of the grids that are complete.
    norms: Vec<f64>,
    distances: Vec<f64>,
}

/// Bytes of all threads' matrices at most.
const MATRICES_MAX: usize = 64 << 20;

/// Positions of one grid exponent that are measured together.
#[derive(Debug)]
struct Part {
    exponent: i32,
    segments: Vec<Segment>,
}

/// Products of the current grid.
#[derive(Debug, Clone)]
enum Pairs {
    /// Squares only.
    Squares(Vec<i128>),
    /// Tiles on and above the diagonal, row by row.
    Tiles(Vec<[i128; TILE * TILE]>),
}

impl Default for Pairs {
    fn default() -> Self {
        Self::Squares(Vec::new())
    }
}

impl Measuring {
    /// Norms of `updates` updates.
    pub(super) fn norms(layout: &Layout, updates: usize, wave: usize) -> Self {
        Self {
            parts: parts(layout, wave),
            updates,
            pairs: Pairs::Squares(vec![0; updates]),
            norms: vec![0.0; updates],
            ..Self::default()
        }
    }

    /// Distances of `updates` updates and, if given, of the state in this place.
    pub(super) fn distances(layout: &Layout, updates: usize, centre: Option<usize>, wave: usize) -> Self {
        let points = updates + usize::from(centre.is_some());
        let tiles = points.div_ceil(TILE);
        Self {
            parts: parts(layout, wave),
            updates,
            centre,
            pairs: Pairs::Tiles(vec![[0; TILE * TILE]; tiles * (tiles + 1) / 2]),
            norms: vec![0.0; points],
            distances: vec![0.0; points * points],
            ..Self::default()
        }
    }

    /// Positions that are read next; None when all is measured.
    pub(super) fn wanted(&self) -> Option<Vec<Range<usize>>> {
        self.parts.get(self.next).map(|part| part.segments.iter().map(|s| s.position..s.position + s.len).collect())
    }

    /// What was measured.
    pub(super) fn take_geometry(&mut self) -> Geometry {
        Geometry {
            norms_squared: std::mem::take(&mut self.norms),
            distances_squared: std::mem::take(&mut self.distances),
        }
    }

    /// Measures the next part.
    pub(super) fn advance(
        &mut self,
        rows: &dyn Rows,
        state: &[Option<&dyn Floats>],
        threads: Threads,
    ) -> Result<(), WorkError> {
        let Some(part) = self.parts.get(self.next) else { return Ok(()) };
        let positions: usize = part.segments.iter().map(|s| s.len).sum();
        let threads = threads.for_values(positions.saturating_mul(self.updates)).min(self.pairs.copies());
        let columns = columns(self.norms.len(), threads);
        let shares = pack(&part.segments, piece(positions, threads, columns));
        let centre = self.centre.map(|place| state[place]);
        let begin = || (Table::default(), self.pairs.empty());
        let measured = each(threads, shares, begin, |(table, pairs), share| {
            for segments in pack(&share, columns) {
                let largest = fill(table, rows, self.updates, centre, &segments)?;
                pairs.add(table, largest);
            }
            Ok(())
        })?;
        measured.iter().for_each(|(_, pairs)| self.pairs.merge(pairs));
        let exponent = part.exponent;
        self.next += 1;
        if self.parts.get(self.next).is_none_or(|next| next.exponent != exponent) {
            self.fold(exponent);
        }
        Ok(())
    }

    /// Adds what is complete of one grid to the result and begins anew.
    fn fold(&mut self, exponent: i32) {
        let scale = f64::powi(2.0, 2 * exponent);
        #[expect(clippy::cast_precision_loss, reason = "this is where a distance is rounded")]
        let number = |exact: i128| exact as f64 * scale;
        match &mut self.pairs {
            Pairs::Squares(squares) => {
                for (norm, square) in self.norms.iter_mut().zip(&mut *squares) {
                    *norm += number(*square);
                }
                squares.fill(0);
            }
            Pairs::Tiles(tiles) => {
                let points = self.norms.len();
                let count = points.div_ceil(TILE);
                let at = |a: usize, b: usize| tiles[place(a / TILE, b / TILE, count)][a % TILE * TILE + b % TILE];
                for a in 0..points {
                    self.norms[a] += number(at(a, a));
                    for b in a + 1..points {
                        let squared = number(at(a, a) + at(b, b) - 2 * at(a, b));
                        self.distances[a * points + b] += squared;
                        self.distances[b * points + a] = self.distances[a * points + b];
                    }
                }
                tiles.fill([0; TILE * TILE]);
            }
        }
    }
}

/// Place of tile (i, j), i <= j, of `count` by `count`.
fn place(i: usize, j: usize, count: usize) -> usize {
    i * count - i * (i + 1) / 2 + j
}

/// All positions that travel, by grid, in parts of at most `size` positions.
fn parts(layout: &Layout, size: usize) -> Vec<Part> {
    let mut all: Vec<Segment> = layout.travelling().collect();
    all.sort_by_key(|s| (s.grid.exponent, s.position));
    let grids = all.chunk_by(|a, b| a.grid.exponent == b.grid.exponent);
    let part = |segments: Vec<Segment>| Part { exponent: segments[0].grid.exponent, segments };
    grids.flat_map(|grid| pack(grid, size)).map(part).collect()
}

/// The same positions in lists of `size` positions, the last may have fewer; none is empty.
fn pack(segments: &[Segment], size: usize) -> Vec<Vec<Segment>> {
    let mut lists: Vec<Vec<Segment>> = Vec::new();
    let mut room = 0;
    for segment in segments {
        let mut rest = *segment;
        while rest.len > 0 {
            if room == 0 {
                lists.push(Vec::new());
                room = size;
            }
            let len = rest.len.min(room);
            if let Some(list) = lists.last_mut() {
                list.push(Segment { len, ..rest });
            }
            room -= len;
            rest = Segment { start: rest.start + len, position: rest.position + len, len: rest.len - len, ..rest };
        }
    }
    lists
}

/// Fills a table with the values of all updates, and of the centre if there is one; returns the largest magnitude.
fn fill(
    table: &mut Table,
    rows: &dyn Rows,
    updates: usize,
    centre: Option<Option<&dyn Floats>>,
    segments: &[Segment],
) -> Result<u32, WorkError> {
    let ranges: Vec<Range<usize>> = segments.iter().map(|s| s.position..s.position + s.len).collect();
    let bounds: Vec<(usize, i32)> = segments.iter().map(|s| (s.len, s.grid.bound)).collect();
    let all: Vec<usize> = (0..updates).collect();
    table.fill(rows, &all, &ranges, (0, &bounds), usize::from(centre.is_some()))?;
    let centre_largest = match centre {
        Some(Some(centre)) => {
            fill_centre(centre, segments, table.row_mut(updates))?;
            bounds.iter().map(|(_, bound)| bound.unsigned_abs()).max().unwrap_or(0)
        }
        Some(None) => {
            table.row_mut(updates).fill(0);
            0
        }
        None => 0,
    };
    Ok(table.largest().max(centre_largest))
}

/// The state as integers: it lies on the grid (a rule rounds it there), so nothing is lost unless the grid has changed.
fn fill_centre(centre: &dyn Floats, segments: &[Segment], row: &mut [i32]) -> Result<(), WorkError> {
    let mut at = 0;
    for segment in segments {
        let mut values = vec![0.0; segment.len];
        centre.read(segment.start, &mut values).map_err(WorkError::Read)?;
        let (inverse, bound) = (1.0 / segment.grid.step(), f64::from(segment.grid.bound));
        for (integer, value) in row[at..].iter_mut().zip(values) {
            #[expect(clippy::cast_possible_truncation, reason = "clamped to the bound, an i32")]
            let rounded = (f64::from(value) * inverse).round_ties_even().clamp(-bound, bound) as i32;
            *integer = rounded;
        }
        at += segment.len;
    }
    Ok(())
}

impl Pairs {
    /// As many zeros.
    fn empty(&self) -> Self {
        match self {
            Self::Squares(squares) => Self::Squares(vec![0; squares.len()]),
            Self::Tiles(tiles) => Self::Tiles(vec![[0; TILE * TILE]; tiles.len()]),
        }
    }

    /// How many of it memory has room for, at least 1.
    fn copies(&self) -> usize {
        let bytes = match self {
            Self::Squares(squares) => size_of_val(&squares[..]),
            Self::Tiles(tiles) => size_of_val(&tiles[..]),
        };
        (MATRICES_MAX / bytes.max(1)).max(1)
    }

    /// Adds the products of a table's rows, whose magnitudes are at most `largest`.
    fn add(&mut self, table: &Table, largest: u32) {
        let square = u64::from(largest.max(1)).pow(2);
        let run = usize::try_from(i64::MAX.unsigned_abs() / square).unwrap_or(RUN).min(RUN);
        match self {
            Self::Squares(squares) => {
                for (row, square) in squares.iter_mut().enumerate() {
                    *square += table.row(row).chunks(run).map(|values| i128::from(simd::square(values))).sum::<i128>();
                }
            }
            Self::Tiles(tiles) => {
                let points = table.rows();
                let count = points.div_ceil(TILE);
                // Floats where a run is long enough for them, or all there is.
                let floats = simd::fit_floats(largest).min(RUN);
                let (run, products): (usize, Products) =
                    if floats >= FLOATS_MIN { (floats, simd::products_in_floats) } else { (run, simd::products) };
                let nothing = vec![0; run];
                for start in (0..table.width()).step_by(run) {
                    let end = (start + run).min(table.width());
                    let row = |i: usize| if i < points { &table.row(i)[start..end] } else { &nothing[..end - start] };
                    let places = (0..count).flat_map(|i| (i..count).map(move |j| (i, j)));
                    for ((i, j), tile) in places.zip(&mut *tiles) {
                        add_tile(&row, points, (i * TILE, j * TILE), products, tile);
                    }
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Squares(into), Self::Squares(from)) => into.iter_mut().zip(from).for_each(|(a, b)| *a += b),
            (Self::Tiles(into), Self::Tiles(from)) => {
                let both = into.as_flattened_mut().iter_mut().zip(from.as_flattened());
                both.for_each(|(a, b)| *a += b);
            }
            (Self::Squares(_), Self::Tiles(_)) | (Self::Tiles(_), Self::Squares(_)) => {
                unreachable!("invariant: one measurement has one kind of products")
            }
        }
    }
}

/// Adds the products of the rows from `i` with those from `j`, of `points` rows.
fn add_tile<'t>(
    row: &impl Fn(usize) -> &'t [i32],
    points: usize,
    (i, j): (usize, usize),
    products: Products,
    tile: &mut [i128; TILE * TILE],
) {
    for a in (0..TILE.min(points - i)).step_by(PRODUCTS.0) {
        // Below the diagonal nobody looks.
        for b in (0..TILE.min(points - j)).step_by(PRODUCTS.1).filter(|b| j + b + PRODUCTS.1 > i + a) {
            let found = products(std::array::from_fn(|k| row(i + a + k)), std::array::from_fn(|k| row(j + b + k)));
            for (k, line) in found.iter().enumerate() {
                for (l, product) in line.iter().enumerate() {
                    tile[(a + k) * TILE + b + l] += i128::from(*product);
                }
            }
        }
    }
}
