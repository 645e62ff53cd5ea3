//! Content-addressed bytes: a folder for a running village, a map for tests and simulation.
//!
//! [`FolderBlobs`] keeps each blob as one file named by its BLAKE3; [`MemoryBlobs`] is its twin without a disk.

mod folder;
mod intake;
mod ledger;
mod memory;

pub use folder::FolderBlobs;
pub use memory::MemoryBlobs;

use aivillage_base::Digest;
use aivillage_base::ports::StoreError;

/// Reading part of a blob that is not there: a row must never refer to a missing blob, so it counts as damage.
fn missing(digest: &Digest) -> StoreError {
    StoreError::Damaged(format!("there is no blob {digest}"))
}

/// A writer whose earlier call failed or was cancelled half-way has lost its place.
fn lost() -> StoreError {
    StoreError::Unavailable(
        "an earlier write of this blob failed or was cancelled; write it again from the start".to_owned(),
    )
}
