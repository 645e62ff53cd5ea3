//! From `input_data` of a request to rows of numbers, checked against the model's shape.
//!
//! ```text
//! {"inputs": [1, 2, 3]}                 one row of 3 features
//! {"inputs": [[1, 2, 3], [4, 5, 6]]}    two rows; a row may also have the model's nested shape [c][h][w]
//! ```
//!
//! Promise: every row that comes out is as long as the model's flattened input and all its values are finite; what does
//! not fit is an error with a JSON pointer and both shapes, and never shows the values given.

use aivillage_base::{Architecture, Task, suggest};
use serde_json::{Map, Value};

use crate::error::InferenceError;

#[cfg(test)]
mod tests;

/// Most rows of a request: larger sets are sent in parts, so that one client cannot hold a node for long.
pub const ROWS_MAX: usize = 1_024;
/// Most input values of a request: about 2.5 MB of JSON to a node.
pub const INPUT_VALUES_MAX: usize = 1 << 18;
/// Most output values of a request: about 0.8 MB of JSON from a node.
pub const OUTPUT_VALUES_MAX: usize = 1 << 16;

/// `inputs` is ours; the other two mean the same: a slip of many, and the word of the integration guide.
const KEYS: [&str; 3] = ["inputs", "input", "image_tensor"];

/// The rows in `input_data` for a model of this shape.
///
/// # Errors
/// [`InferenceError::Invalid`] with the pointer of the first fault.
pub fn parse(input_data: &Map<String, Value>, model: &Architecture) -> Result<Vec<Vec<f32>>, InferenceError> {
    if let Some(unknown) = input_data.keys().find(|k| !KEYS.contains(&k.as_str())) {
        return Err(InferenceError::invalid(
            format!("/input_data/{}", unknown.replace('~', "~0").replace('/', "~1")),
            format!("{}; {}", suggest::unknown("key of input_data", unknown, &["inputs"]), expected(model)),
        ));
    }
    let mut given = input_data.iter();
    let (Some((key, value)), None) = (given.next(), given.next()) else {
        let found = if input_data.is_empty() { "it is empty" } else { "it has several" };
        return Err(InferenceError::invalid(
            "/input_data",
            format!("exactly one key, `inputs`, is needed, but {found}; {}", expected(model)),
        ));
    };
    let reader = Reader { model, width: model.input.iter().product() };
    let rows = reader.rows(value, &format!("/input_data/{key}"))?;
    let outputs = rows.len() * output_width(model);
    if outputs > OUTPUT_VALUES_MAX {
        return Err(InferenceError::invalid(
            format!("/input_data/{key}"),
            format!(
                "{} rows would give {outputs} output values: at most {OUTPUT_VALUES_MAX} are possible in one request",
                rows.len()
            ),
        ));
    }
    Ok(rows)
}

fn output_width(model: &Architecture) -> usize {
    match model.task {
        Task::Classification { classes } => classes,
        Task::Regression => 1,
    }
}

fn expected(model: &Architecture) -> String {
    let width: usize = model.input.iter().product();
    match model.input.as_slice() {
        [_] => format!("the model takes a row of {width} numbers or a list of such rows"),
        nested => format!("the model takes a row of shape {nested:?} (or {width} numbers) or a list of such rows"),
    }
}

struct Reader<'a> {
    model: &'a Architecture,
    width: usize,
}

impl Reader<'_> {
    fn fault<T>(&self, pointer: &str, what: &str) -> Result<T, InferenceError> {
        Err(InferenceError::invalid(pointer, format!("{what}; {}", expected(self.model))))
    }

    /// One row or a list of rows, told apart by the depth of nesting.
    fn rows(&self, value: &Value, pointer: &str) -> Result<Vec<Vec<f32>>, InferenceError> {
        let Value::Array(items) = value else {
            return self.fault(pointer, &format!("a list is needed, but this is {}", kind(value)));
        };
        if items.is_empty() {
            return self.fault(pointer, "this list is empty");
        }
        let nesting = self.model.input.len();
        let depth = depth(value);
        let one_row = depth == 1 || (depth == nesting && (nesting != 2 || items.len() == self.model.input[0]));
        if one_row {
            return Ok(vec![self.row(value, pointer)?]);
        }
        if depth != 2 && depth != nesting + 1 {
            return self.fault(pointer, &format!("lists are nested {depth} deep here"));
        }
        if items.len() > ROWS_MAX {
            return self.fault(pointer, &format!("{} rows are given, at most {ROWS_MAX} are possible", items.len()));
        }
        if items.len().saturating_mul(self.width) > INPUT_VALUES_MAX {
            return self.fault(
                pointer,
                &format!(
                    "{} rows of {} numbers are given, at most {INPUT_VALUES_MAX} numbers are possible in one request",
                    items.len(),
                    self.width
                ),
            );
        }
        items.iter().enumerate().map(|(i, row)| self.row(row, &format!("{pointer}/{i}"))).collect()
    }

    fn row(&self, value: &Value, pointer: &str) -> Result<Vec<f32>, InferenceError> {
        let mut out = Vec::new();
        let flat = [self.width];
        let shape = if depth(value) <= 1 { flat.as_slice() } else { self.model.input.as_slice() };
        self.fill(value, shape, pointer, &mut out)?;
        Ok(out)
    }

    fn fill(&self, value: &Value, shape: &[usize], pointer: &str, out: &mut Vec<f32>) -> Result<(), InferenceError> {
        let Some((want, inner)) = shape.split_first() else {
            return match number(value) {
                Ok(x) => {
                    out.push(x);
                    Ok(())
                }
                Err(what) => self.fault(pointer, &what),
            };
        };
        let Value::Array(items) = value else {
            return self.fault(pointer, &format!("a list of {want} is needed, but this is {}", kind(value)));
        };
        if items.len() != *want {
            return self.fault(pointer, &format!("{} entries are given, {want} are needed", items.len()));
        }
        for (i, item) in items.iter().enumerate() {
            self.fill(item, inner, &format!("{pointer}/{i}"), out)?;
        }
        Ok(())
    }
}

fn number(value: &Value) -> Result<f32, String> {
    let Some(wide) = value.as_f64() else {
        return Err(format!("a number is needed, but this is {}", kind(value)));
    };
    #[expect(clippy::cast_possible_truncation, reason = "models compute in f32; what does not fit becomes infinite")]
    let narrow = wide as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err("this number does not fit in 32 bits".to_owned()) }
}

/// How deep lists are nested, seen along the first entries.
fn depth(value: &Value) -> usize {
    let mut depth = 0;
    let mut at = value;
    while let Value::Array(items) = at {
        depth += 1;
        match items.first() {
            Some(first) => at = first,
            None => break,
        }
    }
    depth
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
