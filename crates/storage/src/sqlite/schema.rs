//! The file's layout, its migrations, and how a connection is set up.
//!
//! Promise: a file of an older version is brought to this one, in one transaction per step; a newer one, or a file
//! that is not ours, is refused untouched.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use aivillage_base::ports::StoreError;
use rusqlite::{Connection, OpenFlags};

use super::fault::store_error;
use crate::disk;

/// "AIVl": tells `file(1)` and us whose file this is.
const APPLICATION_ID: i32 = 0x4149_566c;

/// Step `n` brings a file from version `n` to `n + 1`. Never edit a released step: add one.
///
/// `seal` is the first eight bytes of a BLAKE3 over table, key, version and value: SQLite has no checksum of its own
/// for pages, and a flipped bit must be an error, not an answer.
///
/// Step 1: in a table `WITHOUT ROWID` values lie in the search tree itself, and SQLite reads a row as a whole, however
/// large, to compare its key. The record of a round of 1,000 nodes has 300 kB, and every write compared a few of them. Now
/// keys have an index of their own.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE records (
        tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL, seal INTEGER NOT NULL,
        PRIMARY KEY (tbl, key)
    ) WITHOUT ROWID;
    CREATE TABLE leases (
        name TEXT NOT NULL PRIMARY KEY, holder TEXT, epoch INTEGER NOT NULL, expires_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), high_water_ms INTEGER NOT NULL);
    INSERT INTO clock VALUES (1, 0);
",
    "
    CREATE TABLE rows (
        id INTEGER PRIMARY KEY,
        tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL, seal INTEGER NOT NULL,
        UNIQUE (tbl, key)
    );
    INSERT INTO rows (tbl, key, version, value, seal)
        SELECT tbl, key, version, value, seal FROM records ORDER BY tbl, key;
    DROP TABLE records;
    ALTER TABLE rows RENAME TO records;
",
];

/// How long to wait for another process that holds the file (a backup, a stopped predecessor that still drains).
const BUSY: Duration = Duration::from_secs(5);

/// The one connection that writes.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let failed = |e: &rusqlite::Error| store_error(&format!("cannot open {}", path.display()), e);
    // For this user only, and SQLite gives its log the same mode: records hold updates and hashed keys.
    let mut private = std::fs::OpenOptions::new();
    private.append(true).create(true).mode(0o600);
    private.open(path).map_err(|e| disk::unusable("open", path, &e))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| failed(&e))?;
    connection.busy_timeout(BUSY).map_err(|e| failed(&e))?;
    let version = check_ours(&connection, path, failed)?;
    set_up_writer(&connection).map_err(|e| failed(&e))?;
    migrate(&mut connection, version).map_err(|e| failed(&e))?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY)?;
        // 1 MiB of pages: records are small and the kernel caches the file anyway.
        connection
            .execute_batch("PRAGMA cache_size = -1024; PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON;")?;
        Ok(connection)
    };
    open().map_err(|e| store_error(&format!("cannot open {} for reading", path.display()), &e))
}

/// Refuses files of newer versions and of others, before anything is changed; returns the file's version.
fn check_ours(
    connection: &Connection,
    path: &Path,
    failed: impl Fn(&rusqlite::Error) -> StoreError,
) -> Result<usize, StoreError> {
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|e| failed(&e));
    let version = ask("PRAGMA user_version")?;
    let owner = ask("PRAGMA application_id")?;
    let empty = ask("SELECT count(*) FROM sqlite_master")? == 0;
    if !empty && owner != i64::from(APPLICATION_ID) {
        return Err(StoreError::Damaged(format!(
            "{} is an SQLite file of another program; choose another data folder",
            path.display()
        )));
    }
    let known = MIGRATIONS.len();
    usize::try_from(version).ok().filter(|v| *v <= known).ok_or_else(|| {
        StoreError::Unavailable(format!(
            "{} has schema version {version}, this build knows versions up to {known}; \
             use the newer aivillage that wrote it, or another data folder",
            path.display()
        ))
    })
}

fn set_up_writer(connection: &Connection) -> rusqlite::Result<()> {
    // 2 MiB of pages. `fullfsync` matters on macOS, where fsync alone leaves data in the drive's cache. The log is cut
    // back to 8 MiB after a burst.
    connection.execute_batch(
        "PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;
         PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;",
    )?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        let text = format!("this file system does not support write-ahead logs (journal mode is `{mode}`)");
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(text),
        ));
    }
    connection.query_row("PRAGMA journal_size_limit = 8388608", [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn migrate(connection: &mut Connection, from: usize) -> rusqlite::Result<()> {
    for (version, step) in MIGRATIONS.iter().enumerate().skip(from) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", i64::try_from(version + 1).unwrap_or(i64::MAX))?;
        transaction.commit()?;
    }
    Ok(())
}
