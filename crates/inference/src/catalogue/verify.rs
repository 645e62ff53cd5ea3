//! Reading a bundle once, whole, in blocks: is it what its digest and its header say?

use aivillage_base::arch::Architecture;
use aivillage_base::bundle::{self, BundleHeader};
use aivillage_base::ports::{Blobs, StoreError};
use aivillage_base::wire::BlobRef;

/// Bytes read at a time: a large model must not pass through memory as one piece.
const BLOCK: usize = 1 << 20;

/// Why bytes are not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// They could not be read.
    Store(StoreError),
    /// They are not what they should be.
    Bytes(String),
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// Checks digest, length, header, tensors, that every value is finite, and the shape if one was `promised`.
pub(super) async fn bundle(
    blobs: &dyn Blobs,
    blob: BlobRef,
    promised: Option<&Architecture>,
) -> Result<BundleHeader, Refusal> {
    let refuse = |text: String| Err(Refusal::Bytes(text));
    match blobs.len(&blob.digest).await? {
        None => return refuse(format!("no bytes with blake3 {} have been uploaded", blob.digest)),
        Some(bytes) if bytes != blob.bytes => {
            return refuse(format!("{bytes} bytes were uploaded, {} were announced", blob.bytes));
        }
        Some(_) => {}
    }
    let front = blobs.read_at(&blob.digest, 0, bundle::HEADER_MAX + 8).await?;
    let header = match bundle::read_header(&front, blob.bytes) {
        Ok(header) => header,
        Err(e) => return refuse(e.to_string()),
    };
    if let Some(promised) = promised.filter(|p| **p != header.architecture) {
        return refuse(format!(
            "the bundle's shape (input {:?}, {} layers) is not the one that the metadata gives (input {:?}, {} layers)",
            header.architecture.input,
            header.architecture.layers.len(),
            promised.input,
            promised.layers.len()
        ));
    }
    values(blobs, blob, &header).await?;
    Ok(header)
}

async fn values(blobs: &dyn Blobs, blob: BlobRef, header: &BundleHeader) -> Result<(), Refusal> {
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    // Bytes of a value that a block has cut.
    let mut rest: Vec<u8> = Vec::with_capacity(4);
    let mut index = 0_usize;
    while offset < blob.bytes {
        let block = blobs.read_at(&blob.digest, offset, BLOCK).await?;
        if block.is_empty() {
            return Err(Refusal::Bytes(format!("cut after {offset} bytes")));
        }
        hasher.update(&block);
        let skip = header.data_offset.saturating_sub(usize::try_from(offset).unwrap_or(usize::MAX)).min(block.len());
        for byte in &block[skip..] {
            rest.push(*byte);
            if let Some(value) = rest.first_chunk::<4>() {
                if !f32::from_le_bytes(*value).is_finite() {
                    return Err(Refusal::Bytes(format!("value {index} is not finite")));
                }
                index += 1;
                rest.clear();
            }
        }
        offset += block.len() as u64;
    }
    if blob.digest != hasher.finalize().into() {
        return Err(StoreError::Damaged(format!("blob {} does not match its hash", blob.digest)).into());
    }
    Ok(())
}
