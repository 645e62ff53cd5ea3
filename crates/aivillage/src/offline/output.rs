//! Files of tensors as they are written: hashed on the way, in place whole or not at all.
//!
//! Must not know: what the values are.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use aivillage_base::Digest;
use aivillage_base::wire::BlobRef;

use super::tensors::FileError;

/// Bytes written at a time.
const BUFFER: usize = 1 << 20;

/// A file under way; dropped before [`Self::finish`] it leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Output {
    /// Begins a file with these first bytes.
    pub(super) fn begin(path: &Path, front: &[u8]) -> Result<Self, FileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|e| FileError::new(path, format!("cannot be written: {e}")))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        let mut output = Self { path: path.to_owned(), temporary, file, hasher: blake3::Hasher::new(), bytes: 0 };
        output.write(front)?;
        Ok(output)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| FileError::new(&self.path, format!("cannot be written: {e}")))
    }

    /// Digest and length of what was written so far.
    #[must_use]
    pub fn blob(&self) -> BlobRef {
        BlobRef { digest: self.hasher.finalize().into(), bytes: self.bytes }
    }

    /// Puts the file in place, durably.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn finish(mut self) -> Result<BlobRef, FileError> {
        let fail = |e: std::io::Error| FileError::new(&self.path, format!("cannot be written: {e}"));
        self.file.flush().map_err(fail)?;
        self.file.get_ref().sync_all().map_err(fail)?;
        std::fs::rename(&self.temporary, &self.path).map_err(fail)?;
        Ok(self.blob())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name; a left-over is hidden and harmless.
        let _removed = std::fs::remove_file(&self.temporary);
    }
}

/// Begins a file of f32 tensors with these names and shapes, whose values are to follow in this order.
///
/// # Errors
/// [`FileError`]
pub fn begin_tensors(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<Output, FileError> {
    let mut header = String::from("{");
    let mut offset = 0;
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let end = offset + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
        let comma = if i == 0 { "" } else { "," };
        header.push_str(&format!("{comma}{}:{entry}", serde_json::Value::from(name.as_str())));
        offset = end;
    }
    header.push('}');
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    Output::begin(path, &[&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat())
}

/// BLAKE3 of a file.
///
/// # Errors
/// [`FileError`]
pub fn file_digest(path: &Path) -> Result<Digest, FileError> {
    let unreadable = |e: std::io::Error| FileError::new(path, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        };
    }
}
