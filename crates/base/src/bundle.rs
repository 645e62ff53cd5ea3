//! A model's bytes: a safetensors file of f32 tensors with the architecture in its metadata.
//!
//! A bundle holds tensors and architecture only, so the same training gives the same BLAKE3; lineage lives in the
//! catalogue. The header is written by this module (fixed key order, 8-byte alignment) and read back by any safetensors
//! library. Tensors follow each other in the order of [`Architecture::layout`], so the data is one run of f32.

use crate::arch::{ArchError, Architecture};

/// Largest header this reader accepts, in bytes.
pub const HEADER_MAX: usize = 1 << 20;

/// Bytes that are no bundle of ours; says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not a safetensors file, or cut.
    #[error("not a model bundle: {0}")]
    Format(String),
    /// The tensors are not those of the architecture.
    #[error("the bundle's tensors do not match its architecture: {0}")]
    Mismatch(String),
    /// The architecture does not hold together.
    #[error(transparent)]
    Architecture(#[from] ArchError),
}

/// The front of a bundle: what it is and where its values start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleHeader {
    /// The model's shape.
    pub architecture: Architecture,
    /// Offset of the first value from the start of the file, in bytes.
    pub data_offset: usize,
    /// Number of f32 values.
    pub parameters: usize,
}

/// The bytes before the values: 8-byte little-endian length, then JSON padded with spaces to 8 bytes.
///
/// # Errors
/// If the architecture does not hold together.
pub fn header_bytes(architecture: &Architecture) -> Result<Vec<u8>, BundleError> {
    let mut text = String::from("{\"__metadata__\":{\"architecture\":");
    text.push_str(&json(&json(architecture)));
    text.push('}');
    let mut offset = 0;
    for tensor in architecture.layout()? {
        let end = offset + tensor.len() * 4;
        text.push_str(&format!(
            ",{}:{{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            json(&tensor.name),
            json(&tensor.shape),
        ));
        offset = end;
    }
    text.push('}');
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    Ok(out)
}

/// JSON text of values whose serialisation cannot fail.
fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("invariant: strings, numbers and our own structs serialise")
}

/// A whole bundle for `values` in layout order.
///
/// # Errors
/// If the architecture does not hold together or needs another number of values.
pub fn write(architecture: &Architecture, values: &[f32]) -> Result<Vec<u8>, BundleError> {
    let want = architecture.parameters()?;
    if values.len() != want {
        return Err(BundleError::Mismatch(format!("{} values given, {want} needed", values.len())));
    }
    let mut out = header_bytes(architecture)?;
    out.reserve(values.len() * 4);
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    Ok(out)
}

/// Reads the front of a bundle of `total` bytes from its first bytes (at least the whole header).
///
/// # Errors
/// [`BundleError`] with what is wrong: cut, too long, foreign tensors, wrong types.
pub fn read_header(front: &[u8], total: u64) -> Result<BundleHeader, BundleError> {
    let format = |text: String| BundleError::Format(text);
    let length = front
        .first_chunk::<8>()
        .map(|b| u64::from_le_bytes(*b))
        .ok_or_else(|| format("shorter than 8 bytes".into()))?;
    let length = usize::try_from(length)
        .ok()
        .filter(|l| *l <= HEADER_MAX)
        .ok_or_else(|| format(format!("its header claims {length} bytes, at most {HEADER_MAX} are accepted")))?;
    let json = front.get(8..8 + length).ok_or_else(|| format("its header is cut".into()))?;
    let header: serde_json::Value =
        serde_json::from_slice(json).map_err(|e| format(format!("its header is not JSON: {e}")))?;
    let architecture = header["__metadata__"]["architecture"]
        .as_str()
        .ok_or_else(|| format("no `architecture` in its metadata: it was not made by a recipe of ours".into()))?;
    let architecture: Architecture =
        serde_json::from_str(architecture).map_err(|e| format(format!("its architecture: {e}")))?;
    let layout = architecture.layout()?;
    let parameters: usize = layout.iter().map(crate::arch::TensorSpec::len).sum();
    let tensors = header.as_object().map_or(0, |o| o.len() - 1);
    if tensors != layout.len() {
        return Err(BundleError::Mismatch(format!("{tensors} tensors, {} needed", layout.len())));
    }
    let mut offset = 0;
    for tensor in &layout {
        let end = offset + tensor.len() * 4;
        let found = &header[&tensor.name];
        let want = serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]});
        if *found != want {
            return Err(BundleError::Mismatch(format!("tensor {} is {found}, {want} is needed", tensor.name)));
        }
        offset = end;
    }
    let data_offset = 8 + length;
    if total != (data_offset + offset) as u64 {
        return Err(format(format!("{total} bytes long, {} needed", data_offset + offset)));
    }
    Ok(BundleHeader { architecture, data_offset, parameters })
}

/// Reads a whole bundle: architecture and values in layout order.
///
/// # Errors
/// As [`read_header`]; or a value that is not finite.
pub fn read(bytes: &[u8]) -> Result<(Architecture, Vec<f32>), BundleError> {
    let header = read_header(bytes, bytes.len() as u64)?;
    let values: Vec<f32> =
        bytes[header.data_offset..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(BundleError::Format(format!("value {i} is not finite"))),
        None => Ok((header.architecture, values)),
    }
}

#[cfg(test)]
mod tests;
