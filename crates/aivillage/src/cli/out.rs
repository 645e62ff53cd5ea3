//! What commands print: documents, tables, lines; the only place of the program that writes to stdout.
//!
//! Promise: colours only on a terminal and without NO_COLOR; a reader that goes away (`| head`) is no error.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// Prints text as it is.
pub fn text(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // Whoever closed the pipe does not want to read on.
    let _written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Prints a line.
pub fn line(line: &str) {
    text(&format!("{line}\n"));
}

/// Prints one JSON document.
pub fn document(value: &Value) {
    line(&serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()));
}

/// Prints a note for people on stderr, beside a result on stdout.
pub fn note(note: &str) {
    let _written = writeln!(std::io::stderr().lock(), "{note}");
}

/// Is stdout a terminal?
#[must_use]
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A table without frames: header line, then rows; columns of numbers stand to the right.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let numeric =
        |text: &String| matches!(text.as_str(), "-" | "·") || text.trim_end_matches(" %").parse::<f64>().is_ok();
    let right: Vec<bool> = (0..header.len()).map(|i| rows.iter().all(|row| row.get(i).is_some_and(numeric))).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for (index, right) in right.into_iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Prints a listing: the document with `--json`, else a table, or `none` when there are no rows.
pub fn listing(json: bool, value: &Value, header: &[&str], rows: Vec<Vec<String>>, none: &str) {
    if json {
        document(value);
    } else if rows.is_empty() {
        line(none);
    } else {
        line(&table(header, rows));
    }
}

/// A JSON value in a table: text without quotes, `-` for nothing, lists with commas.
#[must_use]
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

/// A value that is there.
#[must_use]
pub fn present(value: &Value) -> Option<&Value> {
    (!value.is_null()).then_some(value)
}

/// The elements of a list inside a document; none if it is no list.
#[must_use]
pub fn items<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// Lines `name  value`, aligned.
#[must_use]
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = pairs.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

/// Bytes for people, in units of 1000.
#[must_use]
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let value = count as f64;
    match count {
        0..=999 => format!("{count} B"),
        1_000..=999_999 => format!("{:.1} kB", value / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

/// A share as per cent with one digit, or `-`.
#[must_use]
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |s| format!("{:.1} %", 100.0 * s))
}

/// A number with four digits after the point, or `-`.
#[must_use]
pub fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"))
}
