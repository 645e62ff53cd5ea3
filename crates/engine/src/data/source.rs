//! Where a node's training data comes from, as node.yaml says it, and how it becomes a [`Dataset`].

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use aivillage_base::rng::SeededRng;
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::{Bundled, DataError, Dataset, csv, npz, split};

/// One source of training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Name by which a job asks for it.
    pub name: String,
    /// What the label is.
    pub task: DataTask,
    /// Labels in the whole village; None = largest label here + 1.
    pub classes: Option<usize>,
    /// Share of rows kept apart and never trained on, 0 to 0.9.
    pub test_fraction: f64,
    /// Where the rows come from.
    pub origin: Origin,
}

/// What the label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataTask {
    /// Integers from 0.
    Classification,
    /// Real numbers.
    Regression,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A NumPy archive.
    Npz {
        /// The file.
        path: PathBuf,
        /// Name of the array of examples, first axis = rows.
        features: String,
        /// Name of the array of labels.
        label: String,
    },
    /// A CSV file, plain or gzip. Its first line is a header if any of its cells is not a number.
    Csv {
        /// The file.
        path: PathBuf,
        /// Column to predict; None = the last.
        label: Option<Column>,
        /// Columns to predict from; None = all others.
        features: Option<Vec<Column>>,
    },
    /// A part of a bundled data set.
    Shard {
        /// Which.
        dataset: Bundled,
        /// Part, from 0, below `of`.
        index: u32,
        /// Parts in all.
        of: u32,
        /// Dirichlet alpha of the deal.
        alpha: f64,
        /// Seed of the deal.
        seed: u64,
    },
}

/// A column of a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// By its name in the header.
    Name(String),
    /// By its index from 0.
    Index(u32),
}

/// The rows of a source.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the node trains on.
    pub train: Dataset,
    /// What it keeps for its own evaluation; None if `test_fraction` is 0.
    pub held_out: Option<Dataset>,
}

/// Columns or arrays as they were read, before the label is understood.
pub(super) struct Raw {
    pub(super) input: Vec<usize>,
    pub(super) x: Vec<f32>,
    /// Exact for integers of up to 53 bits.
    pub(super) y: Vec<f64>,
}

/// Reads a source; a relative path is taken from `dir`.
///
/// # Errors
/// [`DataError`]: which file, line and column, what is wrong, what is expected.
pub fn load(source: &Source, dir: &Path) -> Result<Loaded, DataError> {
    let all = match &source.origin {
        Origin::Shard { dataset, index, of, alpha, seed } => shard(source, *dataset, *index, *of, *alpha, *seed)?,
        Origin::Csv { path, label, features } => {
            let path = dir.join(path);
            let raw = csv::read(open(&path)?, &path, label.as_ref(), features.as_deref())?;
            dataset(source, &path, raw)?
        }
        Origin::Npz { path, features, label } => {
            let path = dir.join(path);
            let file = File::open(&path).map_err(|cause| DataError::Read { path: path.clone(), cause })?;
            let raw = npz::read(BufReader::new(file), &path, features, label)?;
            dataset(source, &path, raw)?
        }
    };
    hold_out(source, all)
}

/// A shard of a bundled set under this source's name.
fn shard(source: &Source, which: Bundled, index: u32, of: u32, alpha: f64, seed: u64) -> Result<Dataset, DataError> {
    if source.task != DataTask::Classification {
        return Err(DataError::Description(format!("`{}` has class labels: leave out `task`", which.name())));
    }
    if index >= of {
        return Err(DataError::Description(format!("shard {index} of {of}: `index` runs from 0 to `of` - 1")));
    }
    let mut shards = split(which, of as usize, alpha, seed)?.shards;
    let mut data = shards.swap_remove(index as usize);
    if let Some(classes) = source.classes
        && classes != data.task().outputs()
    {
        let have = data.task().outputs();
        return Err(DataError::Description(format!("`{}` has {have} classes, not {classes}", which.name())));
    }
    data.name.clone_from(&source.name);
    Ok(data)
}

/// Understands the label column.
fn dataset(source: &Source, path: &Path, raw: Raw) -> Result<Dataset, DataError> {
    let Raw { input, x, y } = raw;
    let located = |e: DataError| match e {
        DataError::Description(reason) => DataError::Content { path: path.to_owned(), place: String::new(), reason },
        e @ (DataError::Read { .. } | DataError::Content { .. }) => e,
    };
    match source.task {
        DataTask::Classification => {
            let labels = labels(&y).map_err(located)?;
            let classes = match source.classes {
                Some(classes) => classes,
                None => labels.iter().max().map_or(0, |m| *m as usize + 1),
            };
            if classes < 2 {
                return Err(located(DataError::Description(
                    "every row has label 0: set `classes` to the number of labels in the whole village, or choose another \
                     `label` column"
                        .into(),
                )));
            }
            Dataset::classification(&source.name, input, classes, x, labels).map_err(located)
        }
        DataTask::Regression => {
            if source.classes.is_some() {
                return Err(DataError::Description(format!(
                    "data source `{}`: `classes` has no meaning for a regression: leave it out",
                    source.name
                )));
            }
            #[expect(clippy::cast_possible_truncation, reason = "training is in f32; infinities are refused next")]
            let values = y.iter().map(|v| *v as f32).collect();
            Dataset::regression(&source.name, input, x, values).map_err(located)
        }
    }
}

fn labels(y: &[f64]) -> Result<Vec<u32>, DataError> {
    y.iter()
        .enumerate()
        .map(|(row, v)| {
            if v.fract() == 0.0 && (0.0..1_048_576.0).contains(v) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
                Ok(*v as u32)
            } else {
                Err(DataError::Description(format!(
                    "row {row} has label {v}: labels of a classification are 0, 1, 2, … (for real numbers set `task: \
                     regression`)"
                )))
            }
        })
        .collect()
}

/// Keeps the asked-for share of rows apart: the same rows whenever the same number of rows is loaded under this name.
fn hold_out(source: &Source, all: Dataset) -> Result<Loaded, DataError> {
    if !(0.0..=0.9).contains(&source.test_fraction) {
        return Err(DataError::Description(format!(
            "data source `{}`: test_fraction {} is not in 0 to 0.9",
            source.name, source.test_fraction
        )));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 0.9 of the number of rows")]
    let held = (source.test_fraction * crate::loss::as_f64(all.rows())).round() as usize;
    if held == 0 {
        return Ok(Loaded { train: all, held_out: None });
    }
    let mut rows: Vec<usize> = (0..all.rows()).collect();
    SeededRng::new("held-out rows", 0, &[source.name.as_bytes()]).shuffle(&mut rows);
    let mut train = rows.split_off(held);
    if train.is_empty() {
        return Err(DataError::Description(format!("data source `{}`: no row is left to train on", source.name)));
    }
    rows.sort_unstable();
    train.sort_unstable();
    Ok(Loaded { train: all.select(&train), held_out: Some(all.select(&rows)) })
}

/// Opens a file, unpacking gzip if its first bytes say so.
fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let opened = || -> io::Result<Box<dyn Read>> {
        let mut file = File::open(path)?;
        let mut magic = Vec::with_capacity(2);
        file.by_ref().take(2).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(0))?;
        let file = BufReader::new(file);
        Ok(if magic == [0x1f, 0x8b] { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
    };
    opened().map_err(|cause| DataError::Read { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests;
