//! Safetensors files of f32 tensors, ours or anybody's: opened by their front, read in pieces.
//!
//! Promise: what is opened is a whole file whose tensors lie without gaps and are all f32; everything else is refused with
//! the file, the tensor and the reason. No more than the front and the piece asked for is in memory.
//! Must not know: what the tensors are for.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Longest front: a hundred thousand tensors with long names.
const FRONT_MAX: u64 = 16 << 20;

/// A file that cannot be used: which, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

impl FileError {
    /// An error about `path`.
    pub fn new(path: &Path, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), why: why.into() }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Place of its first value among the file's values.
    pub start: usize,
    /// Number of values.
    pub len: usize,
}

/// The front of a file.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// Where it is.
    pub path: PathBuf,
    /// All bytes before the first value.
    pub front: Vec<u8>,
    /// Its tensors, in the order of their values.
    pub tensors: Vec<Tensor>,
}

impl TensorFile {
    /// Reads the front of a file and checks its length.
    ///
    /// # Errors
    /// [`FileError`]: unreadable, no safetensors file, cut, or a tensor that is not f32.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let fail = |why: String| FileError::new(path, why);
        let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let total = file.metadata().map_err(unreadable)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| fail("is no safetensors file: shorter than 8 bytes".into()))?;
        let header = u64::from_le_bytes(length);
        if header > FRONT_MAX || header + 8 > total {
            return Err(fail(format!("is no safetensors file, or cut: its header claims {header} of {total} bytes")));
        }
        let mut json = vec![0; usize::try_from(header).unwrap_or_default()];
        file.read_exact(&mut json).map_err(unreadable)?;
        let tensors = tensors(&json).map_err(&fail)?;
        let values: usize = tensors.iter().map(|t| t.len).sum();
        let want = 8 + header + values as u64 * 4;
        if total != want {
            return Err(fail(format!("is {total} bytes long, {want} are needed: it is cut or has more in it")));
        }
        let front = [&length[..], &json].concat();
        Ok(Self { path: path.to_owned(), front, tensors })
    }

    /// Number of values.
    #[must_use]
    pub fn values(&self) -> usize {
        self.tensors.iter().map(|t| t.len).sum()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// A handle for reading values.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn reader(&self) -> Result<ValueReader, FileError> {
        let file = File::open(&self.path).map_err(|e| FileError::new(&self.path, format!("cannot be read: {e}")))?;
        Ok(ValueReader { file, offset: self.front.len() as u64, path: self.path.clone() })
    }
}

/// Reads values of an open file by their place.
#[derive(Debug)]
pub struct ValueReader {
    file: File,
    offset: u64,
    path: PathBuf,
}

impl ValueReader {
    /// The values from place `start`; `scratch` is for the bytes.
    ///
    /// # Errors
    /// The file cannot be read so far.
    pub fn read(&self, start: usize, out: &mut [f32], scratch: &mut Vec<u8>) -> Result<(), FileError> {
        scratch.resize(out.len() * 4, 0);
        let place = self.offset + start as u64 * 4;
        self.file
            .read_exact_at(scratch, place)
            .map_err(|e| FileError::new(&self.path, format!("cannot be read at byte {place}: {e}")))?;
        for (value, bytes) in out.iter_mut().zip(scratch.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// The tensors of a header, in the order of their values, checked to lie without gaps.
fn tensors(json: &[u8]) -> Result<Vec<Tensor>, String> {
    let header: Value =
        serde_json::from_slice(json).map_err(|e| format!("is no safetensors file: its header is not JSON: {e}"))?;
    let Value::Object(entries) = header else {
        return Err("is no safetensors file: its header is not an object".to_owned());
    };
    let mut found = Vec::new();
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let dtype = entry["dtype"].as_str().unwrap_or("no type");
        if dtype != "F32" {
            return Err(format!("tensor `{name}` is {dtype}, and only F32 can be aggregated: convert it first"));
        }
        let numbers = |field: &str| -> Option<Vec<usize>> {
            entry[field].as_array()?.iter().map(|d| usize::try_from(d.as_u64()?).ok()).collect()
        };
        let (Some(shape), Some([start, end])) = (numbers("shape"), numbers("data_offsets").as_deref().map(pair)) else {
            return Err(format!("tensor `{name}` lacks a shape or data_offsets"));
        };
        let len = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if end.checked_sub(start).is_none_or(|bytes| len.and_then(|l| l.checked_mul(4)) != Some(bytes)) {
            return Err(format!("tensor `{name}` of shape {shape:?} does not fit its place, {start} to {end}"));
        }
        found.push(Tensor { name: name.clone(), shape, start: start / 4, len: (end - start) / 4 });
        if start % 4 != 0 {
            return Err(format!("tensor `{name}` starts at byte {start}, which is no multiple of 4"));
        }
    }
    found.sort_by(|a, b| (a.start, a.len, &a.name).cmp(&(b.start, b.len, &b.name)));
    let mut next = 0;
    for tensor in &found {
        if tensor.start != next {
            return Err(format!("tensor `{}` starts at value {}, {next} is expected", tensor.name, tensor.start));
        }
        next += tensor.len;
    }
    if found.is_empty() {
        return Err("has no tensors".to_owned());
    }
    Ok(found)
}

fn pair(numbers: &[usize]) -> [usize; 2] {
    match numbers {
        [start, end] => [*start, *end],
        // An end before its start is refused with the numbers.
        _ => [1, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(header: &str, values: usize) -> Result<TensorFile, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend((0..values).flat_map(|v| f32::from(u16::try_from(v).unwrap()).to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        TensorFile::open(&path).map_err(|e| e.why)
    }

    const TWO: &str = r#"{"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},"__metadata__":{"x":"y"},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;

    #[test]
    fn tensors_come_in_the_order_of_their_values() {
        let file = open(TWO, 3).unwrap();
        let found: Vec<_> = file.tensors.iter().map(|t| (t.name.as_str(), t.start, t.len)).collect();
        assert_eq!(found, [("a", 0, 1), ("b", 1, 2)]);
        assert_eq!(file.values(), 3);
        assert_eq!(file.tensor("b").unwrap().shape, [2, 1]);
    }

    #[test]
    fn what_is_no_whole_file_of_f32_is_refused_with_the_reason() {
        let refused = |header: &str, values, why: &str| {
            let found = open(header, values).unwrap_err();
            assert!(found.contains(why), "{found}");
        };
        refused(TWO, 2, "it is cut");
        refused(TWO, 4, "it is cut or has more in it");
        refused("[]", 0, "not an object");
        refused("{", 0, "not JSON");
        refused("{}", 0, "no tensors");
        refused(r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#, 1, "`a` is F16");
        refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 1, "does not fit its place");
        refused(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 2, "starts at value 1");
        refused(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}"#, 2, "does not fit");
        refused(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 2, "lacks a shape");
    }

    #[test]
    fn values_are_read_from_any_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let header = r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend((0..9_u8).flat_map(|v| f32::from(v).to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        let reader = TensorFile::open(&path).unwrap().reader().unwrap();
        let (mut out, mut scratch) = ([0.0; 3], Vec::new());
        reader.read(4, &mut out, &mut scratch).unwrap();
        assert_eq!(out, [4.0, 5.0, 6.0]);
        assert!(reader.read(7, &mut out, &mut scratch).is_err());
    }
}
