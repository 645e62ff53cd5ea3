//! Participants' files as rows of integers: read in pieces, put on the round's grids on the way.
//!
//! ```text
//! survey (one pass over all files)   without grids: largest change a tensor -> grids
//!                                    with grids:    BLAKE3 of the integers, held against the record
//! read(row, start, out)              any piece of a row, as often as asked
//! ```
//! Promise: nothing is clipped; a value that is not finite or lies outside its grid is refused with file, tensor and
//! value. No more of a file is in memory than the piece asked for. Must not know: what becomes of the integers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aivillage_base::Digest;
use aivillage_base::fixed::Grid;

use super::tensors::{FileError, TensorFile, ValueReader};

/// Values read at once: 64 KiB of a file.
const PIECE: usize = 16 * 1024;
/// Files kept open; more are opened for each piece, since a process may often have 1,024 files open and no more.
const OPEN_MAX: usize = 512;
/// Bits of the largest integer of a tensor whose grid comes from the data.
const BITS: i32 = 22;
/// Name before the tensors of an update's second plane.
pub const SECOND: &str = "second/";

/// What files hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The participant's model.
    Models,
    /// What it changed.
    Differences,
}

/// A run of coordinates of an update: one tensor.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    name: String,
    /// Place among the update's coordinates.
    start: usize,
    len: usize,
    /// Place among the model's values.
    model: usize,
    /// Subtract the model?
    relative: bool,
    grid: Grid,
}

/// One participant's file.
#[derive(Debug)]
struct Row {
    file: TensorFile,
    /// Place of each run among the file's values.
    places: Vec<usize>,
    reader: Option<ValueReader>,
}

/// All participants' files over one model.
#[derive(Debug)]
pub struct Updates {
    runs: Vec<Run>,
    rows: Vec<Row>,
    model: ValueReader,
    values: usize,
}

/// Buffers of one reading thread.
#[derive(Debug, Default)]
struct Scratch {
    bytes: Vec<u8>,
    values: Vec<f32>,
    model: Vec<f32>,
}

/// What makes an update beside its files.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// What the files hold.
    pub content: Content,
    /// Names of tensors that stayed on the nodes.
    pub personal: &'a [String],
    /// Values an update has per coordinate: 1, or 2.
    pub planes: usize,
}

impl Updates {
    /// Opens the files `DIR/NAME.safetensors`, in the order of `names`, and checks their tensors against the model's.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn open<'n>(
        dir: &Path,
        names: impl Iterator<Item = &'n str>,
        model: &TensorFile,
        shape: Shape<'_>,
    ) -> Result<Self, FileError> {
        let runs = runs(model, shape);
        let mut rows = Vec::new();
        for name in names {
            let file = TensorFile::open(&dir.join(format!("{name}.safetensors")))?;
            let places = places(&file, model, &runs, shape)?;
            let reader = if rows.len() < OPEN_MAX { Some(file.reader()?) } else { None };
            rows.push(Row { file, places, reader });
        }
        let values = runs.iter().map(|r| r.len).sum();
        Ok(Self { runs, rows, model: model.reader()?, values })
    }

    /// Number of files.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Integers of each.
    #[must_use]
    pub fn values(&self) -> usize {
        self.values
    }

    /// Fixes the grids: those of a plan by tensor, or from the data, so that nothing is clipped and each step is the
    /// largest change of its tensor times 2^-21 or less. Both planes of a tensor lie on one grid.
    ///
    /// Returns the grid of each tensor of the model that takes part.
    ///
    /// # Errors
    /// [`FileError`]: a value that is not finite, or too large for any grid (2^82).
    pub fn fix_grids(&mut self, given: Option<&BTreeMap<String, Grid>>) -> Result<BTreeMap<String, Grid>, FileError> {
        let mut grids = BTreeMap::new();
        match given {
            Some(given) => grids.clone_from(given),
            None => {
                let largest = self.each_row(|row, scratch| self.largest(row, scratch))?;
                for (i, run) in self.runs.iter().enumerate() {
                    let most = largest.iter().map(|row| row[i]).fold(0.0, f64::max);
                    let grid = grid_for(most).ok_or_else(|| {
                        FileError::new(
                            Path::new(&run.name),
                            format!("a change of {most:e} is larger than any grid: the training has diverged"),
                        )
                    })?;
                    let name = run.name.strip_prefix(SECOND).unwrap_or(&run.name);
                    let wider = grids.get(name).is_none_or(|g: &Grid| g.exponent < grid.exponent);
                    if wider {
                        grids.insert(name.to_owned(), grid);
                    }
                }
            }
        }
        for run in &mut self.runs {
            let name = run.name.strip_prefix(SECOND).unwrap_or(&run.name);
            run.grid = grids.get(name).copied().unwrap_or_default();
        }
        Ok(grids)
    }

    /// BLAKE3 of each row's integers, and their length in bytes.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn digests(&self) -> Result<Vec<Digest>, FileError> {
        self.each_row(|row, _| {
            let mut hasher = blake3::Hasher::new();
            let mut out = vec![0; PIECE];
            for start in (0..self.values).step_by(PIECE) {
                let len = PIECE.min(self.values - start);
                self.read(row, start, &mut out[..len])?;
                let bytes: Vec<u8> = out[..len].iter().flat_map(|q| q.to_le_bytes()).collect();
                hasher.update(&bytes);
            }
            Ok(hasher.finalize().into())
        })
    }

    /// The integers of a row from coordinate `start`.
    ///
    /// # Errors
    /// [`FileError`]: unreadable, not finite, or outside the grid.
    pub fn read(&self, row: usize, start: usize, out: &mut [i32]) -> Result<(), FileError> {
        let mut scratch = Scratch::default();
        let first = self.runs.partition_point(|r| r.start + r.len <= start);
        let mut done = 0;
        let opened = self.reader(row)?;
        for (i, run) in self.runs.iter().enumerate().skip(first) {
            if done == out.len() {
                break;
            }
            let from = start + done - run.start;
            let len = (run.len - from).min(out.len() - done);
            self.read_run(row, i, from, &opened, &mut scratch, &mut out[done..done + len])?;
            done += len;
        }
        Ok(())
    }

    fn reader(&self, row: usize) -> Result<Opened<'_>, FileError> {
        let row = &self.rows[row];
        Ok(match &row.reader {
            Some(reader) => Opened::Kept(reader),
            None => Opened::New(row.file.reader()?),
        })
    }

    /// A piece of one run, as integers.
    fn read_run(
        &self,
        row: usize,
        run: usize,
        from: usize,
        reader: &Opened<'_>,
        scratch: &mut Scratch,
        out: &mut [i32],
    ) -> Result<(), FileError> {
        let Grid { exponent, bound } = self.runs[run].grid;
        let (inverse, bound) = (f64::powi(2.0, -exponent), f64::from(bound));
        for (piece, out) in out.chunks_mut(PIECE).enumerate() {
            let from = from + piece * PIECE;
            self.changes(row, run, from, out.len(), reader, scratch)?;
            let mut worst = 0.0_f64;
            for ((q, value), model) in out.iter_mut().zip(&scratch.values).zip(&scratch.model) {
                let scaled = ((f64::from(*value) - f64::from(*model)) * inverse).round_ties_even();
                worst = if scaled.is_nan() { f64::INFINITY } else { worst.max(scaled.abs()) };
                #[expect(clippy::cast_possible_truncation, reason = "refused below if it does not fit")]
                let narrow = scaled as i32;
                *q = narrow;
            }
            if worst > bound {
                return Err(self.outside(row, run, from, scratch, inverse, bound));
            }
        }
        Ok(())
    }

    /// Names the first value that has no place on the grid.
    fn outside(&self, row: usize, run: usize, from: usize, scratch: &Scratch, inverse: f64, bound: f64) -> FileError {
        let changes = scratch.values.iter().zip(&scratch.model).map(|(v, m)| f64::from(*v) - f64::from(*m));
        let fits = |change: f64| (change * inverse).round_ties_even().abs() <= bound;
        let found = changes.enumerate().find(|(_, change)| !fits(*change));
        let (index, change) = found.unwrap_or_default();
        let why = if change.is_finite() { "lies outside the round's grid" } else { "is not finite" };
        let name = &self.runs[run].name;
        FileError::new(
            &self.rows[row].file.path,
            format!("tensor `{name}`: change {change:e} of value {} {why}", from + index),
        )
    }

    /// Loads `len` values of a run and what is to be subtracted from them into `scratch`.
    fn changes(
        &self,
        row: usize,
        run: usize,
        from: usize,
        len: usize,
        reader: &Opened<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), FileError> {
        let place = self.rows[row].places[run];
        let run = &self.runs[run];
        scratch.values.resize(len, 0.0);
        reader.get().read(place + from, &mut scratch.values, &mut scratch.bytes)?;
        scratch.model.clear();
        scratch.model.resize(len, 0.0);
        if run.relative {
            self.model.read(run.model + from, &mut scratch.model, &mut scratch.bytes)?;
        }
        Ok(())
    }

    /// The largest change of each run in one row.
    fn largest(&self, row: usize, scratch: &mut Scratch) -> Result<Vec<f64>, FileError> {
        let reader = self.reader(row)?;
        let mut largest = vec![0.0_f64; self.runs.len()];
        for (i, run) in self.runs.iter().enumerate() {
            for from in (0..run.len).step_by(PIECE) {
                self.changes(row, i, from, PIECE.min(run.len - from), &reader, scratch)?;
                let changes = scratch.values.iter().zip(&scratch.model).map(|(v, m)| f64::from(*v) - f64::from(*m));
                let most =
                    changes.fold(0.0, |most: f64, c| if c.is_finite() { most.max(c.abs()) } else { f64::INFINITY });
                if !most.is_finite() {
                    return Err(self.outside(row, i, from, scratch, 0.0, 0.0));
                }
                largest[i] = largest[i].max(most);
            }
        }
        Ok(largest)
    }

    /// `work` for every row, on all cores; results in row order.
    fn each_row<T: Send>(
        &self,
        work: impl Fn(usize, &mut Scratch) -> Result<T, FileError> + Sync,
    ) -> Result<Vec<T>, FileError> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Result<T, FileError>)>> = Mutex::new(Vec::with_capacity(self.rows.len()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(self.rows.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut scratch = Scratch::default();
                    loop {
                        let row = next.fetch_add(1, Ordering::Relaxed);
                        if row >= self.rows.len() {
                            return;
                        }
                        let result = work(row, &mut scratch);
                        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((row, result));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(row, _)| *row);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

/// A file's handle, kept or opened for one read.
enum Opened<'a> {
    Kept(&'a ValueReader),
    New(ValueReader),
}

impl Opened<'_> {
    fn get(&self) -> &ValueReader {
        match self {
            Self::Kept(reader) => reader,
            Self::New(reader) => reader,
        }
    }
}

/// The grid for changes of at most `largest`; None if there is none.
fn grid_for(largest: f64) -> Option<Grid> {
    if largest == 0.0 {
        return Some(Grid::default());
    }
    let log2 = ((largest.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let exponent = (log2 + 1 - BITS).max(-60);
    let grid = Grid { exponent, ..Grid::default() };
    (exponent <= 60 && (largest / grid.step()).round_ties_even() <= f64::from(grid.bound)).then_some(grid)
}

/// The runs of an update: the model's tensors without those that stay on the nodes, once a plane.
fn runs(model: &TensorFile, shape: Shape<'_>) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut start = 0;
    for plane in 0..shape.planes {
        for tensor in model.tensors.iter().filter(|t| !shape.personal.contains(&t.name)) {
            let name = if plane == 0 { tensor.name.clone() } else { format!("{SECOND}{}", tensor.name) };
            let relative = plane == 0 && shape.content == Content::Models;
            let (len, model) = (tensor.len, tensor.start);
            runs.push(Run { name, start, len, model, relative, grid: Grid::default() });
            start += len;
        }
    }
    runs
}

/// Where a file has each run; refuses what is missing, foreign or of another shape.
fn places(file: &TensorFile, model: &TensorFile, runs: &[Run], shape: Shape<'_>) -> Result<Vec<usize>, FileError> {
    let fail = |why: String| Err(FileError::new(&file.path, why));
    for tensor in &file.tensors {
        let name = tensor.name.strip_prefix(SECOND).filter(|_| shape.planes == 2).unwrap_or(&tensor.name);
        match model.tensor(name) {
            None => return fail(format!("tensor `{}` is not in the model", tensor.name)),
            Some(wanted) if wanted.shape != tensor.shape => {
                return fail(format!(
                    "tensor `{}` is {:?}, the model's is {:?}",
                    tensor.name, tensor.shape, wanted.shape
                ));
            }
            Some(_) => {}
        }
    }
    let mut places = Vec::with_capacity(runs.len());
    for run in runs {
        match file.tensor(&run.name) {
            Some(tensor) => places.push(tensor.start),
            None => return fail(format!("tensor `{}` is missing", run.name)),
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests;
