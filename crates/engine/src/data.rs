//! Data sets: rows of numbers with a label or a value each, and where they come from.
//!
//! ```text
//!  Source (node.yaml) --load--> Dataset          csv.rs  npz.rs   files of the node's owner
//!  Bundled            --bundled--> Dataset       bundled.rs       embedded in the program
//!  Bundled            --split--> Split           split.rs         a common test set and one shard a node
//! ```
//!
//! Promise: a [`Dataset`] has at least one row, only finite numbers, and labels below its number of classes, so nothing
//! downstream checks again. Errors name the file, line and column, never a value of the data beyond the one at fault.

mod bundled;
mod csv;
mod npz;
mod source;
mod split;

use std::ops::Range;
use std::path::PathBuf;

use aivillage_base::arch::Task;
use aivillage_base::wire::DataSummary;

use crate::loss::Wanted;

pub use bundled::{Bundled, bundled};
pub use source::{Column, DataTask, Loaded, Origin, Source, load};
pub use split::{SHARD_ROWS_MIN, Split, Table, split};

/// Most numbers that a data set may hold (1 GiB of f32): a bound against typing errors and decompression bombs.
pub const VALUES_MAX: usize = 1 << 28;

/// Why there is no data set.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {cause}: check `path` of this data source in node.yaml", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: std::io::Error,
    },
    /// The file's content is at fault.
    #[error("{}{place}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// `:line:column` (both from 1), or `: array x`, or empty.
        place: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// The description of the data does not hold together.
    #[error("{0}")]
    Description(String),
}

/// What each row should give.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// A label below the number of classes.
    Labels(Vec<u32>),
    /// A finite value.
    Values(Vec<f32>),
}

/// Rows to learn from or to be measured on.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    name: String,
    input: Vec<usize>,
    task: Task,
    x: Vec<f32>,
    targets: Targets,
}

impl Dataset {
    /// Rows of shape `input` in `x`, row after row, with one label each.
    ///
    /// # Errors
    /// One sentence: no rows, lengths that do not fit, numbers that are not finite, labels of no class.
    pub fn classification(
        name: impl Into<String>,
        input: Vec<usize>,
        classes: usize,
        x: Vec<f32>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let task = Task::Classification { classes };
        if let Some(row) = labels.iter().position(|l| *l as usize >= classes) {
            return Err(DataError::Description(format!(
                "row {row} has label {}, but {classes} classes have the labels 0 to {}: set `classes` to the number of \
                 labels in the whole village",
                labels[row],
                classes.saturating_sub(1)
            )));
        }
        Self::checked(Self { name: name.into(), input, task, x, targets: Targets::Labels(labels) })
    }

    /// Rows of shape `input` in `x`, row after row, with one value each.
    ///
    /// # Errors
    /// One sentence: no rows, lengths that do not fit, numbers that are not finite.
    pub fn regression(
        name: impl Into<String>,
        input: Vec<usize>,
        x: Vec<f32>,
        values: Vec<f32>,
    ) -> Result<Self, DataError> {
        if let Some(row) = values.iter().position(|v| !v.is_finite()) {
            return Err(DataError::Description(format!("the target of row {row} is not finite")));
        }
        Self::checked(Self { name: name.into(), input, task: Task::Regression, x, targets: Targets::Values(values) })
    }

    fn checked(self) -> Result<Self, DataError> {
        let fail = |text: String| Err(DataError::Description(format!("data set `{}`: {text}", self.name)));
        let rows = self.rows();
        let width = self.input.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|w| *w > 0);
        let Some(width) = width else { return fail(format!("rows of shape {:?}", self.input)) };
        if rows == 0 {
            return fail("it has no rows".into());
        }
        if rows.checked_mul(width) != Some(self.x.len()) || self.x.len() > VALUES_MAX {
            return fail(format!("{rows} rows of shape {:?} do not make {} numbers", self.input, self.x.len()));
        }
        if let Some(i) = self.x.iter().position(|v| !v.is_finite()) {
            return fail(format!("number {} of row {} is not finite", i % width, i / width));
        }
        Ok(self)
    }

    /// Name by which a job asks for it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shape of one row: `[features]` or `[channels, height, width]`.
    #[must_use]
    pub fn input(&self) -> &[usize] {
        &self.input
    }

    /// Numbers of one row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.input.iter().product()
    }

    /// What is to be learnt.
    #[must_use]
    pub fn task(&self) -> Task {
        self.task
    }

    /// Number of rows, at least 1.
    #[must_use]
    pub fn rows(&self) -> usize {
        match &self.targets {
            Targets::Labels(labels) => labels.len(),
            Targets::Values(values) => values.len(),
        }
    }

    /// Numbers of these rows, row after row.
    #[must_use]
    pub fn x(&self, rows: Range<usize>) -> &[f32] {
        let width = self.width();
        &self.x[rows.start * width..rows.end * width]
    }

    /// One label a row; None for regression.
    #[must_use]
    pub fn labels(&self) -> Option<&[u32]> {
        match &self.targets {
            Targets::Labels(labels) => Some(labels),
            Targets::Values(_) => None,
        }
    }

    /// What the rows should give.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The rows with these numbers, in this order.
    ///
    /// # Panics
    /// If `rows` is empty or names a row that is not there.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        assert!(!rows.is_empty(), "a data set has at least one row");
        let x = rows.iter().flat_map(|r| self.x(*r..*r + 1)).copied().collect();
        let targets = match &self.targets {
            Targets::Labels(labels) => Targets::Labels(rows.iter().map(|r| labels[*r]).collect()),
            Targets::Values(values) => Targets::Values(rows.iter().map(|r| values[*r]).collect()),
        };
        Self { name: self.name.clone(), input: self.input.clone(), task: self.task, x, targets }
    }

    /// The rows of all `parts`, one after the other; the first gives the name.
    ///
    /// # Errors
    /// If there is no part, or the parts differ in shape or task.
    pub fn concat(parts: &[Self]) -> Result<Self, DataError> {
        let Some((first, rest)) = parts.split_first() else {
            return Err(DataError::Description("there is nothing to join".into()));
        };
        let mut all = first.clone();
        for part in rest {
            match (&mut all.targets, &part.targets) {
                (Targets::Labels(a), Targets::Labels(b)) if first.same_kind(part) => a.extend_from_slice(b),
                (Targets::Values(a), Targets::Values(b)) if first.same_kind(part) => a.extend_from_slice(b),
                (Targets::Labels(_) | Targets::Values(_), _) => {
                    return Err(DataError::Description(format!(
                        "data of shape {:?} for {:?} cannot be joined with data of shape {:?} for {:?}",
                        part.input, part.task, first.input, first.task
                    )));
                }
            }
            all.x.extend_from_slice(&part.x);
        }
        Ok(all)
    }

    fn same_kind(&self, other: &Self) -> bool {
        self.input == other.input && self.task == other.task
    }

    /// What a node says about it to a coordinator: its shape, never its rows.
    #[must_use]
    pub fn summary(&self) -> DataSummary {
        DataSummary { name: self.name.clone(), rows: self.rows() as u64, input: self.input.clone(), task: self.task }
    }

    /// What these rows should give, for a loss.
    pub(crate) fn wanted(&self, rows: Range<usize>) -> Wanted<'_> {
        match &self.targets {
            Targets::Labels(labels) => Wanted::Labels(&labels[rows]),
            Targets::Values(values) => Wanted::Values(&values[rows]),
        }
    }
}

/// Rows gathered for one step; its buffers are reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    x: Vec<f32>,
    labels: Vec<u32>,
    values: Vec<f32>,
    rows: usize,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Replaces the content by these rows of `data`.
    pub(crate) fn gather(&mut self, data: &Dataset, rows: &[usize]) {
        self.x.clear();
        self.labels.clear();
        self.values.clear();
        self.rows = rows.len();
        for row in rows {
            self.x.extend_from_slice(data.x(*row..*row + 1));
        }
        match &data.targets {
            Targets::Labels(labels) => self.labels.extend(rows.iter().map(|r| labels[*r])),
            Targets::Values(values) => self.values.extend(rows.iter().map(|r| values[*r])),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn x(&self) -> &[f32] {
        &self.x
    }

    pub(crate) fn wanted(&self) -> Wanted<'_> {
        if self.labels.is_empty() { Wanted::Values(&self.values) } else { Wanted::Labels(&self.labels) }
    }
}
