//! Where records and blobs lie: implementations of the ports [`Records`] and [`Blobs`] of `aivillage-base`.
//!
//! | port | for a running village | for tests and simulation |
//! |---|---|---|
//! | [`Records`] | [`SqliteRecords`]: one file, WAL, group commit, fsync before every answer | [`MemoryRecords`] |
//! | [`Blobs`] | [`FolderBlobs`]: `ab/abcdef…`, written once, fsynced, verified on read | [`MemoryBlobs`] |
//!
//! Promises, checked by one suite for all implementations ([`contract`]):
//! - what was acknowledged is there after `kill -9` and after a power cut; what was refused left nothing;
//! - damaged bytes are an error, never an answer;
//! - the memory twins decide exactly as the durable ones (one rule each for leases, fences, preconditions and scans; a property test), and need
//!   no async runtime: their futures are ready on the first poll.
//!
//! One process owns a data folder; the binary holds its lock. This crate must not know: what a record means, any
//! room, HTTP, sockets.

pub mod blobs;
pub mod contract;
mod disk;
mod lease;
mod memory;
mod meter;
pub mod sqlite;

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use aivillage_base::ports::{Blobs, Expect, Records, Scan, StoreError, Write};
use aivillage_base::time::Clock;

pub use blobs::{FolderBlobs, MemoryBlobs};
pub use memory::MemoryRecords;
pub use sqlite::SqliteRecords;

/// File of the records inside a data folder.
pub const RECORDS_FILE: &str = "store.sqlite";
/// Folder of the blobs inside a data folder.
pub const BLOBS_FOLDER: &str = "blobs";

/// Opens (on first start: creates, for this user only) the embedded store of a data folder: `store.sqlite` and
/// `blobs/`. `quota_bytes` bounds the blobs; without it the free space of the disk does.
///
/// Blocks on the disk: call it while starting, not from an async task.
///
/// # Errors
/// [`StoreError::Unavailable`] if the folder cannot be used or was written by a newer version, with what to do;
/// [`StoreError::Damaged`] if the file is no store.
pub fn open_embedded(
    dir: &Path,
    clock: Arc<dyn Clock>,
    quota_bytes: Option<u64>,
) -> Result<(SqliteRecords, FolderBlobs), StoreError> {
    disk::create_private_dir(dir)?;
    let records = SqliteRecords::open(&dir.join(RECORDS_FILE), clock)?;
    let blobs = FolderBlobs::open(&dir.join(BLOBS_FOLDER), quota_bytes)?;
    Ok((records, blobs))
}

/// Where a scan starts: the one rule both stores share.
fn scan_start<'a>(scan: &Scan<'a>) -> Bound<&'a str> {
    match scan.after {
        Some(after) if after >= scan.prefix => Bound::Excluded(after),
        Some(_) | None => Bound::Included(scan.prefix),
    }
}

/// The version that a row gets by this write, if its precondition holds for the row's `current` version: the one rule
/// both stores share.
fn next_version(write: &Write, current: Option<u64>) -> Result<u64, StoreError> {
    let holds = match write.expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Version(expected) => current == Some(expected),
    };
    if holds {
        return Ok(current.unwrap_or(0) + 1);
    }
    Err(StoreError::Conflict { table: write.table, key: write.key.clone() })
}

// The ports are object-safe and shared between threads: rooms hold them as `Arc<dyn ..>`.
const _: fn(SqliteRecords) -> Arc<dyn Records> = |records| Arc::new(records);
const _: fn(FolderBlobs) -> Arc<dyn Blobs> = |blobs| Arc::new(blobs);
