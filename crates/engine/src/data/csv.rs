//! Comma-separated numbers: one row a line, one column to predict.

use std::io::Read;
use std::path::Path;

use ::csv::{ByteRecord, ReaderBuilder, Trim};
use aivillage_base::suggest;

use super::source::Raw;
use super::{Column, DataError, VALUES_MAX};

/// Most columns of a file.
const COLUMNS_MAX: usize = 1 << 20;

/// Builds errors about one file.
struct About<'a> {
    path: &'a Path,
}

impl About<'_> {
    fn file(&self, reason: impl Into<String>) -> DataError {
        DataError::Content { path: self.path.to_owned(), place: String::new(), reason: reason.into() }
    }

    /// `column` counts from 0; people count from 1.
    fn cell(&self, line: u64, column: usize, reason: impl Into<String>) -> DataError {
        let place = format!(":{line}:{}", column + 1);
        DataError::Content { path: self.path.to_owned(), place, reason: reason.into() }
    }

    fn line(&self, line: u64, reason: impl Into<String>) -> DataError {
        DataError::Content { path: self.path.to_owned(), place: format!(":{line}"), reason: reason.into() }
    }

    fn csv(&self, error: ::csv::Error) -> DataError {
        let line = error.position().map_or(0, ::csv::Position::line);
        if let ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
            let text =
                format!("{len} columns, but {expected_len} in the lines before: every line needs the same number");
            return self.line(line, text);
        }
        let text = error.to_string();
        if let ::csv::ErrorKind::Io(cause) = error.into_kind() {
            return DataError::Read { path: self.path.to_owned(), cause };
        }
        self.line(line, format!("not CSV: {text}"))
    }
}

/// Reads all rows: the columns `features` (None = all but the label) and the column `label` (None = the last).
pub(super) fn read(
    input: impl Read,
    path: &Path,
    label: Option<&Column>,
    features: Option<&[Column]>,
) -> Result<Raw, DataError> {
    let about = About { path };
    let mut reader = ReaderBuilder::new().has_headers(false).trim(Trim::All).from_reader(input);
    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record).map_err(|e| about.csv(e))? {
        return Err(about.file("the file is empty"));
    }
    if record.len() > COLUMNS_MAX {
        return Err(about.file(format!("{} columns: at most {COLUMNS_MAX} are read", record.len())));
    }
    let header = (!record.iter().all(|cell| number(cell).is_some())).then(|| names(&record));
    let columns = Columns::find(&about, record.len(), header.as_deref(), label, features)?;
    let mut raw = Raw { input: vec![columns.features.len()], x: Vec::new(), y: Vec::new() };
    let mut more = header.is_none() || next(&mut reader, &mut record, &about)?;
    while more {
        columns.take(&about, header.as_deref(), &record, &mut raw)?;
        more = next(&mut reader, &mut record, &about)?;
    }
    if raw.y.is_empty() {
        return Err(about.file("there is a header line, but no row below it"));
    }
    Ok(raw)
}

fn next<R: Read>(reader: &mut ::csv::Reader<R>, record: &mut ByteRecord, about: &About<'_>) -> Result<bool, DataError> {
    reader.read_byte_record(record).map_err(|e| about.csv(e))
}

fn names(record: &ByteRecord) -> Vec<String> {
    record.iter().map(|cell| String::from_utf8_lossy(cell).trim_start_matches('\u{feff}').trim().to_owned()).collect()
}

/// A finite number, or nothing.
fn number(cell: &[u8]) -> Option<f64> {
    std::str::from_utf8(cell).ok()?.trim().parse::<f64>().ok().filter(|v| v.is_finite())
}

/// Which columns are read.
struct Columns {
    features: Vec<usize>,
    label: usize,
}

impl Columns {
    fn find(
        about: &About<'_>,
        count: usize,
        header: Option<&[String]>,
        label: Option<&Column>,
        features: Option<&[Column]>,
    ) -> Result<Self, DataError> {
        let find = |column: &Column| position(about, count, header, column);
        let label = label.map_or(Ok(count - 1), find)?;
        let features = match features {
            None => (0..count).filter(|c| *c != label).collect(),
            Some(list) => list.iter().map(find).collect::<Result<Vec<_>, _>>()?,
        };
        if features.is_empty() {
            return Err(about.file("no column is left to predict from: a file needs at least two columns"));
        }
        if features.contains(&label) {
            return Err(about.file(format!("column {label} is both `label` and one of `features`")));
        }
        Ok(Self { features, label })
    }

    /// Appends the row in `record`.
    fn take(
        &self,
        about: &About<'_>,
        header: Option<&[String]>,
        record: &ByteRecord,
        raw: &mut Raw,
    ) -> Result<(), DataError> {
        let line = record.position().map_or(0, ::csv::Position::line);
        let value = |column: usize| {
            let cell = record.get(column).unwrap_or_default();
            number(cell).ok_or_else(|| {
                let named = header.map_or(String::new(), |h| format!(" in column `{}`", h[column]));
                let text: String = String::from_utf8_lossy(cell).chars().take(40).collect();
                let what = if text.is_empty() { "an empty cell".to_owned() } else { format!("`{text}`") };
                about.cell(line, column, format!("{what}{named}: a finite number is expected"))
            })
        };
        if raw.x.len() + self.features.len() > VALUES_MAX {
            return Err(about.line(line, format!("the file holds more than {VALUES_MAX} numbers: split it")));
        }
        for column in &self.features {
            #[expect(clippy::cast_possible_truncation, reason = "data is f32; what overflows is refused")]
            let v = value(*column)? as f32;
            if !v.is_finite() {
                return Err(about.cell(line, *column, "the number is too large for 32-bit floating point"));
            }
            raw.x.push(v);
        }
        raw.y.push(value(self.label)?);
        Ok(())
    }
}

fn position(about: &About<'_>, count: usize, header: Option<&[String]>, column: &Column) -> Result<usize, DataError> {
    match (column, header) {
        (Column::Index(i), _) => {
            let i = usize::try_from(*i).unwrap_or(usize::MAX);
            if i < count { Ok(i) } else { Err(about.file(format!("no column {i}: they run from 0 to {}", count - 1))) }
        }
        (Column::Name(name), None) => {
            Err(about.file(format!("no column `{name}`: the file has no header line, so give the index from 0")))
        }
        (Column::Name(name), Some(header)) => header.iter().position(|h| h == name).ok_or_else(|| {
            // A wide file's header would bury the message.
            let shown: Vec<&str> = header.iter().map(String::as_str).take(40).collect();
            about.line(1, suggest::unknown("column", name, &shown))
        }),
    }
}
