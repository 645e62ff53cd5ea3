//! From SQLite's errors to the port's: what the caller can do, with what was tried.

use aivillage_base::ports::StoreError;
use rusqlite::ErrorCode;

/// The port's error for one of SQLite's. A full disk has no sizes yet: the writer knows them.
pub(super) fn store_error(what: &str, error: &rusqlite::Error) -> StoreError {
    let code = error.sqlite_error_code();
    if code == Some(ErrorCode::DiskFull) {
        return StoreError::Full { needed: 0, available: 0 };
    }
    if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
        return StoreError::Damaged(format!("{what}: {error}; restore the data folder from a backup"));
    }
    if matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) {
        return StoreError::Unavailable(format!("{what}: another process is using the file; stop it first"));
    }
    StoreError::Unavailable(format!("{what}: {error}"))
}

/// For `map_err`, when nothing better than "the store" can be said about where.
pub(super) fn plain(error: rusqlite::Error) -> StoreError {
    store_error("the record store failed", &error)
}
