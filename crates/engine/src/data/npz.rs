//! NumPy archives: a zip of `.npy` arrays (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
//!
//! Accepted: C order, little endian, f4 f8 i4 i8 u1. Arrays of Python objects are refused: reading them would run what
//! the file says.

use std::io::{Read, Seek};
use std::path::Path;

use aivillage_base::suggest;
use zip::ZipArchive;

use super::source::Raw;
use super::{DataError, VALUES_MAX};

/// Largest header of an array, in bytes.
const HEADER_MAX: usize = 1 << 16;

/// Reads the array `features` as rows and the array `label` as their targets.
pub(super) fn read<R: Read + Seek>(file: R, path: &Path, features: &str, label: &str) -> Result<Raw, DataError> {
    let content = |place: &str, reason: String| DataError::Content {
        path: path.to_owned(),
        place: if place.is_empty() { String::new() } else { format!(": array `{place}`") },
        reason,
    };
    let mut zip = ZipArchive::new(file).map_err(|e| content("", format!("not a NumPy archive (.npz): {e}")))?;
    #[expect(clippy::cast_possible_truncation, reason = "data is f32; what overflows is refused below")]
    let x = array(&mut zip, features, |v| v as f32).map_err(|(place, reason)| content(place, reason))?;
    let y = array(&mut zip, label, |v| v).map_err(|(place, reason)| content(place, reason))?;
    let Some((rows, shape)) = x.shape.split_first() else {
        return Err(content(features, "a single number: the first axis must be rows".into()));
    };
    let input = match shape {
        [_] | [_, _, _] => shape.to_vec(),
        [height, width] => vec![1, *height, *width],
        _ => {
            let text = format!("shape {:?}: rows of [features], [height, width] or [channels, height, width]", x.shape);
            return Err(content(features, format!("{text} are expected")));
        }
    };
    if y.shape != [*rows] && y.shape != [*rows, 1] {
        return Err(content(
            label,
            format!("shape {:?}, but `{features}` has {rows} rows: [{rows}] is expected", y.shape),
        ));
    }
    if let Some(i) = x.values.iter().position(|v| !v.is_finite()) {
        let width = input.iter().product::<usize>().max(1);
        return Err(content(features, format!("number {} of row {} is not a finite f32", i % width, i / width)));
    }
    Ok(Raw { input, x: x.values, y: y.values })
}

/// Finds and reads one array; an error is the array at fault (empty: none is) and the reason.
fn array<'n, R: Read + Seek, T>(
    zip: &mut ZipArchive<R>,
    name: &'n str,
    convert: impl Fn(f64) -> T,
) -> Result<Array<T>, (&'n str, String)> {
    let Some(index) = zip.index_for_name(&format!("{name}.npy")) else {
        let names: Vec<&str> = zip.file_names().map(|n| n.trim_end_matches(".npy")).take(40).collect();
        return Err(("", suggest::unknown("array", name, &names)));
    };
    let entry = zip.by_index(index).map_err(|e| (name, e.to_string()))?;
    npy(entry, convert).map_err(|reason| (name, reason))
}

/// One array, its numbers converted one by one: nothing larger than the result is held.
struct Array<T> {
    shape: Vec<usize>,
    values: Vec<T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F4,
    F8,
    I4,
    I8,
    U1,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::F4 | Self::I4 => 4,
            Self::F8 | Self::I8 => 8,
            Self::U1 => 1,
        }
    }

    /// f64 holds every accepted type (integers beyond 2^53 are no labels and no pixels).
    fn value(self, bytes: &[u8]) -> f64 {
        fn chunk<const N: usize>(bytes: &[u8]) -> [u8; N] {
            *bytes.first_chunk().expect("invariant: chunks are of the kind's size")
        }
        match self {
            Self::F4 => f64::from(f32::from_le_bytes(chunk(bytes))),
            Self::F8 => f64::from_le_bytes(chunk(bytes)),
            Self::I4 => f64::from(i32::from_le_bytes(chunk(bytes))),
            #[expect(clippy::cast_precision_loss, reason = "labels and pixels are small; others are refused as labels")]
            Self::I8 => i64::from_le_bytes(chunk(bytes)) as f64,
            Self::U1 => f64::from(bytes[0]),
        }
    }
}

fn npy<T>(mut file: impl Read, convert: impl Fn(f64) -> T) -> Result<Array<T>, String> {
    let mut front = [0; 8];
    file.read_exact(&mut front).map_err(|e| format!("cut: {e}"))?;
    if &front[..6] != b"\x93NUMPY" {
        return Err("not a NumPy array".into());
    }
    let length = match front[6] {
        1 => {
            let mut bytes = [0; 2];
            file.read_exact(&mut bytes).map_err(|e| format!("cut: {e}"))?;
            usize::from(u16::from_le_bytes(bytes))
        }
        2 | 3 => {
            let mut bytes = [0; 4];
            file.read_exact(&mut bytes).map_err(|e| format!("cut: {e}"))?;
            u32::from_le_bytes(bytes) as usize
        }
        version => return Err(format!("format version {version} is not known (1 to 3 are)")),
    };
    if length > HEADER_MAX {
        return Err(format!("its header claims {length} bytes, at most {HEADER_MAX} are accepted"));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(|e| format!("cut: {e}"))?;
    let (kind, shape) = header_fields(&String::from_utf8_lossy(&header))?;
    let count = shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .filter(|n| *n <= VALUES_MAX)
        .ok_or_else(|| format!("shape {shape:?} holds more than {VALUES_MAX} numbers"))?;
    Ok(Array { values: values(file, kind, count, convert)?, shape })
}

/// Reads exactly `count` numbers in blocks, so that a lying shape costs no memory.
fn values<T>(mut file: impl Read, kind: Kind, count: usize, convert: impl Fn(f64) -> T) -> Result<Vec<T>, String> {
    let mut values = Vec::new();
    let mut block = vec![0; (8192 * kind.bytes()).min(count * kind.bytes())];
    while values.len() < count {
        let bytes = block.len().min((count - values.len()) * kind.bytes());
        file.read_exact(&mut block[..bytes])
            .map_err(|e| format!("cut after {} of {count} numbers: {e}", values.len()))?;
        values.extend(block[..bytes].chunks_exact(kind.bytes()).map(|b| convert(kind.value(b))));
    }
    Ok(values)
}

/// The three fields of an array's header, a Python dictionary with fixed keys.
fn header_fields(text: &str) -> Result<(Kind, Vec<usize>), String> {
    let after = |key: &str| {
        let at = text.find(&format!("'{key}':")).ok_or_else(|| format!("its header has no `{key}`"))?;
        Ok::<_, String>(text[at + key.len() + 3..].trim_start())
    };
    let descr = after("descr")?;
    let descr = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map_or("a structure", |(d, _)| d);
    let kind = match descr {
        "<f4" => Kind::F4,
        "<f8" => Kind::F8,
        "<i4" => Kind::I4,
        "<i8" => Kind::I8,
        "|u1" => Kind::U1,
        other => {
            return Err(format!(
                "its type is {other}: float32, float64, int32, int64 and uint8 are read (in NumPy: a.astype('float32'))"
            ));
        }
    };
    if !after("fortran_order")?.starts_with("False") {
        return Err("it is in Fortran order: save numpy.ascontiguousarray(a)".into());
    }
    let shape =
        after("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or("its header has no readable shape")?.0;
    let shape: Result<Vec<usize>, _> =
        shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse).collect();
    Ok((kind, shape.map_err(|_| "its header has no readable shape")?))
}
