//! A thread that reads: lookups and scans on its own read-only connection.
//!
//! Promise: each answer is one snapshot, taken after the question arrived, so it holds every commit that returned
//! before; every row is checked against its seal.

use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use aivillage_base::ports::{Row, Scan, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{mpsc, oneshot};

use super::apply::seal;
use super::fault::plain;
use crate::scan_start;

/// A question to a reading thread.
pub(super) enum Read {
    Get {
        table: &'static str,
        key: String,
        answer: oneshot::Sender<Result<Option<Row>, StoreError>>,
    },
    Scan {
        table: &'static str,
        prefix: String,
        after: Option<String>,
        limit: usize,
        answer: oneshot::Sender<Result<Vec<Row>, StoreError>>,
    },
}

/// Serves until the store is dropped. The readers take turns at the one queue: whoever has its lock waits for the next
/// question, the others work or stand in line.
pub(super) fn run(connection: &Connection, queue: &Mutex<mpsc::Receiver<Read>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        // A caller that has gone away needs no answer: a failed send is fine.
        match next {
            Some(Read::Get { table, key, answer }) => {
                let _ = answer.send(get(connection, table, &key));
            }
            Some(Read::Scan { table, prefix, after, limit, answer }) => {
                let scan = Scan { prefix: &prefix, after: after.as_deref(), limit };
                let _ = answer.send(rows(connection, table, scan));
            }
            None => return,
        }
    }
}

/// A row as it lies in the file, before its seal is checked.
struct Raw {
    key: String,
    version: u64,
    value: Bytes,
    seal: i64,
}

fn raw(row: &rusqlite::Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        key: row.get(0)?,
        version: row.get::<_, i64>(1)?.cast_unsigned(),
        value: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
        seal: row.get(3)?,
    })
}

fn checked(table: &str, raw: Raw) -> Result<Row, StoreError> {
    if seal(table, &raw.key, raw.version, &raw.value) != raw.seal {
        return Err(StoreError::Damaged(format!(
            "the record {table}/{} is not what was written; restore the data folder from a backup",
            raw.key
        )));
    }
    Ok(Row { key: raw.key, version: raw.version, value: raw.value })
}

fn get(connection: &Connection, table: &str, key: &str) -> Result<Option<Row>, StoreError> {
    let found = connection
        .prepare_cached("SELECT key, version, value, seal FROM records WHERE tbl = ?1 AND key = ?2")
        .and_then(|mut s| s.query_row(params![table, key], raw).optional())
        .map_err(plain)?;
    found.map(|found| checked(table, found)).transpose()
}

fn rows(connection: &Connection, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
    let (sql, start) = match scan_start(&scan) {
        Bound::Excluded(after) => {
            ("SELECT key, version, value, seal FROM records WHERE tbl = ?1 AND key > ?2 ORDER BY key LIMIT ?3", after)
        }
        Bound::Included(prefix) => {
            ("SELECT key, version, value, seal FROM records WHERE tbl = ?1 AND key >= ?2 ORDER BY key LIMIT ?3", prefix)
        }
        Bound::Unbounded => unreachable!("a scan always has a start"),
    };
    let limit = i64::try_from(scan.limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(sql).map_err(plain)?;
    let found = statement.query_map(params![table, start, limit], raw).map_err(plain)?;
    let mut out = Vec::new();
    for raw in found {
        let raw = raw.map_err(plain)?;
        if !raw.key.starts_with(scan.prefix) {
            break; // in key order all keys with the prefix come first
        }
        out.push(checked(table, raw)?);
    }
    Ok(out)
}
