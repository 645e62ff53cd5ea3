//! What an auditor gets of a job beside its record: updates that were kept after their round, piece by piece.
//!
//! Promise: only updates that counted in a published round and whose nodes allowed it are found; a large one is never in
//! memory as a whole. Must not know: who asks.

use std::sync::Arc;

use aivillage_base::Digest;
use aivillage_base::ports::{Blobs, Records, StoreError};
use aivillage_base::wire::BlobRef;
use bytes::Bytes;

use crate::error::TrainingError;
use crate::record::{RoundRecord, Saved};
use crate::store;

/// An update that was kept: little-endian i32 in layout order.
#[derive(Debug, Clone)]
pub struct KeptUpdate {
    blob: BlobRef,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// A small update, whole.
    Here(Bytes),
    /// In the blob store.
    Stored(Arc<dyn Blobs>),
}

impl KeptUpdate {
    /// The kept update of this digest.
    pub(crate) async fn find(
        saved: Saved,
        digest: &Digest,
        records: &dyn Records,
        blobs: &Arc<dyn Blobs>,
    ) -> Result<Self, TrainingError> {
        let kept = |round: &RoundRecord| {
            let (name, counted) = round.retained().find(|(_, c)| c.payload.digest == *digest)?;
            Some((round.key.clone(), name.clone(), counted.clone()))
        };
        let gone = || TrainingError::NoUpdate(digest.short());
        let (key, name, counted) = saved.attempts.iter().find_map(kept).ok_or_else(gone)?;
        let place = if counted.inline {
            Place::Here(store::payload(records, &key, &name).await?.ok_or_else(gone)?)
        } else {
            blobs.len(digest).await?.ok_or_else(gone)?;
            Place::Stored(Arc::clone(blobs))
        };
        Ok(Self { blob: counted.payload, place })
    }

    /// Its digest and length.
    #[must_use]
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Up to `len` bytes from `offset`; fewer only at the end.
    ///
    /// # Errors
    /// Store.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        match &self.place {
            Place::Here(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..start.saturating_add(len).min(bytes.len())))
            }
            Place::Stored(blobs) => blobs.read_at(&self.blob.digest, offset, len).await,
        }
    }
}
