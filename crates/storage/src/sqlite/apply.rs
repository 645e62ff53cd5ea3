//! The SQL of one write, lease or fence, inside a transaction that the writer owns.
//!
//! Promise: decides as `memory.rs` does; the rules themselves are shared. Must not know: groups, threads, fsync.

use std::time::Duration;

use aivillage_base::ports::{Batch, StoreError, Write};
use rusqlite::{Connection, OptionalExtension, params};

use super::fault::plain;
use crate::lease::{self, Lease};
use crate::next_version;

/// Checks the fence and applies the writes in order; each precondition sees the writes before it.
pub(super) fn commit(connection: &Connection, batch: &Batch) -> Result<(), StoreError> {
    if let Some(fence) = &batch.fence {
        lease::check(fence, load_lease(connection, &fence.lease).map_err(plain)?.as_ref())?;
    }
    batch.writes.iter().try_for_each(|write| apply(connection, write))
}

fn apply(connection: &Connection, write: &Write) -> Result<(), StoreError> {
    let version = next_version(write, version(connection, write).map_err(plain)?)?;
    match &write.value {
        Some(value) => put(connection, write, version, value),
        None => connection
            .prepare_cached("DELETE FROM records WHERE tbl = ?1 AND key = ?2")
            .and_then(|mut s| s.execute(params![write.table, write.key])),
    }
    .map(|_| ())
    .map_err(plain)
}

fn version(connection: &Connection, write: &Write) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT version FROM records WHERE tbl = ?1 AND key = ?2")?
        .query_row(params![write.table, write.key], |row| row.get::<_, i64>(0))
        .optional()
        .map(|found| found.map(i64::cast_unsigned))
}

fn put(connection: &Connection, write: &Write, version: u64, value: &[u8]) -> rusqlite::Result<usize> {
    let seal = seal(write.table, &write.key, version, value);
    connection
        .prepare_cached(
            "INSERT INTO records (tbl, key, version, value, seal) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (tbl, key) DO UPDATE SET version = ?3, value = ?4, seal = ?5",
        )?
        .execute(params![write.table, write.key, version.cast_signed(), value, seal])
}

/// What a row's bytes must hash to: eight bytes of BLAKE3 over everything in it, lengths first.
pub(super) fn seal(table: &str, key: &str, version: u64, value: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    for part in [table.as_bytes(), key.as_bytes(), &version.to_le_bytes(), value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    i64::from_le_bytes(first)
}

/// Takes or extends a lease at the store's time `now_ms`; the epoch, or None if another has it.
pub(super) fn acquire(
    connection: &Connection,
    name: &str,
    holder: &str,
    now_ms: u64,
    ttl: Duration,
) -> rusqlite::Result<Option<u64>> {
    // Another process may have seen a later time than this one.
    let stored_ms = high_water_ms(connection)?;
    let now_ms = now_ms.max(stored_ms);
    let current = load_lease(connection, name)?;
    let Some(next) = lease::acquire(current.as_ref(), holder, now_ms, ttl) else { return Ok(None) };
    if now_ms > stored_ms {
        connection
            .prepare_cached("UPDATE clock SET high_water_ms = ?1 WHERE id = 1")?
            .execute([now_ms.cast_signed()])?;
    }
    store_lease(connection, name, &next)?;
    Ok(Some(next.epoch))
}

/// Gives a lease back if it is `holder`'s.
pub(super) fn release(connection: &Connection, name: &str, holder: &str) -> rusqlite::Result<()> {
    match lease::release(load_lease(connection, name)?.as_ref(), holder) {
        Some(next) => store_lease(connection, name, &next),
        None => Ok(()),
    }
}

/// The largest time of the store's clock that was persisted.
pub(super) fn high_water_ms(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT high_water_ms FROM clock WHERE id = 1")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

fn load_lease(connection: &Connection, name: &str) -> rusqlite::Result<Option<Lease>> {
    connection
        .prepare_cached("SELECT holder, epoch, expires_ms FROM leases WHERE name = ?1")?
        .query_row([name], |row| {
            Ok(Lease {
                holder: row.get(0)?,
                epoch: row.get::<_, i64>(1)?.cast_unsigned(),
                expires_ms: row.get::<_, i64>(2)?.cast_unsigned(),
            })
        })
        .optional()
}

fn store_lease(connection: &Connection, name: &str, lease: &Lease) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO leases (name, holder, epoch, expires_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET holder = ?2, epoch = ?3, expires_ms = ?4",
        )?
        .execute(params![name, lease.holder, lease.epoch.cast_signed(), lease.expires_ms.cast_signed()])
        .map(|_| ())
}
