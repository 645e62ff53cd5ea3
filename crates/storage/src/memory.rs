//! Records in memory: the deterministic twin of the SQLite store, for tests and simulation.
//!
//! Promise: same answers as SQLite for the same calls (a property test compares them); every future is ready on its
//! first poll, so no async runtime is needed. Nothing outlives the value. Must not know: files, threads, tokio.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aivillage_base::ports::{Batch, Durability, Records, Row, Scan, StoreError, SyncStats, Write};
use aivillage_base::time::Clock;
use async_trait::async_trait;
use bytes::Bytes;

use crate::lease::{self, Lease, StoreClock};
use crate::{next_version, scan_start};

/// A [`Records`] store that lives and dies with its value.
#[derive(Debug)]
pub struct MemoryRecords {
    state: Mutex<State>,
}

type Table = BTreeMap<String, Cell>;

#[derive(Debug)]
struct State {
    tables: BTreeMap<&'static str, Table>,
    /// What the writes since the last durable batch replaced, in order.
    ordered: Vec<Undo>,
    leases: BTreeMap<String, Lease>,
    clock: StoreClock,
}

#[derive(Debug, Clone)]
struct Cell {
    version: u64,
    value: Bytes,
}

/// What a key held before a write, to take it back.
#[derive(Debug)]
struct Undo {
    table: &'static str,
    key: String,
    before: Option<Cell>,
}

impl MemoryRecords {
    /// An empty store whose leases expire by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let clock = StoreClock::new(clock, 0);
        Self {
            state: Mutex::new(State { tables: BTreeMap::new(), ordered: Vec::new(), leases: BTreeMap::new(), clock }),
        }
    }

    /// What the death of the machine does: batches that were only ordered, with no durable one behind them, are gone.
    pub fn lose_power(&self) {
        let mut state = self.state();
        let lost = std::mem::take(&mut state.ordered);
        state.take_back(lost);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

impl State {
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if let Some(fence) = &batch.fence {
            lease::check(fence, self.leases.get(&fence.lease))?;
        }
        let mut undo = Vec::with_capacity(batch.writes.len());
        for write in &batch.writes {
            match self.write(write) {
                Ok(before) => undo.push(Undo { table: write.table, key: write.key.clone(), before }),
                Err(error) => {
                    self.take_back(undo);
                    return Err(error);
                }
            }
        }
        match batch.durability {
            Durability::Durable => self.ordered.clear(),
            Durability::Ordered => self.ordered.append(&mut undo),
        }
        Ok(())
    }

    /// Applies one write if its precondition holds; returns what it replaced.
    fn write(&mut self, write: &Write) -> Result<Option<Cell>, StoreError> {
        let table = self.tables.entry(write.table).or_default();
        let version = next_version(write, table.get(&write.key).map(|cell| cell.version))?;
        Ok(match &write.value {
            Some(value) => table.insert(write.key.clone(), Cell { version, value: Bytes::copy_from_slice(value) }),
            None => table.remove(&write.key),
        })
    }

    fn take_back(&mut self, undo: Vec<Undo>) {
        for Undo { table, key, before } in undo.into_iter().rev() {
            let table = self.tables.entry(table).or_default();
            match before {
                Some(cell) => table.insert(key, cell),
                None => table.remove(&key),
            };
        }
    }
}

fn row(key: &str, cell: &Cell) -> Row {
    Row { key: key.to_owned(), version: cell.version, value: cell.value.clone() }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn get(&self, table: &'static str, key: &str) -> Result<Option<Row>, StoreError> {
        Ok(self.state().tables.get(table).and_then(|t| t.get(key)).map(|cell| row(key, cell)))
    }

    async fn scan(&self, table: &'static str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        let state = self.state();
        let Some(table) = state.tables.get(table) else { return Ok(Vec::new()) };
        Ok(table
            .range::<str, _>((scan_start(&scan), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(scan.prefix))
            .take(scan.limit)
            .map(|(key, cell)| row(key, cell))
            .collect())
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.state().commit(&batch)
    }

    async fn acquire(&self, lease: &str, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        let mut state = self.state();
        let now_ms = state.clock.read();
        let next = lease::acquire(state.leases.get(lease), holder, now_ms, ttl);
        Ok(next.map(|next| {
            let epoch = next.epoch;
            state.ordered.clear();
            state.leases.insert(lease.to_owned(), next);
            epoch
        }))
    }

    async fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        if let Some(next) = lease::release(state.leases.get(lease), holder) {
            state.ordered.clear();
            state.leases.insert(lease.to_owned(), next);
        }
        Ok(())
    }

    fn sync_stats(&self) -> SyncStats {
        SyncStats::default()
    }
}

#[cfg(test)]
mod tests {
    use aivillage_base::ports::{Expect, Write};

    use super::*;
    use crate::contract::ManualClock;

    #[tokio::test]
    async fn a_loss_of_power_takes_what_was_only_ordered_and_nothing_before_a_durable_batch() {
        let store = MemoryRecords::new(ManualClock::at(0));
        let put = |value: &str, durability| {
            let write =
                Write { table: "t", key: "k".to_owned(), expect: Expect::Any, value: Some(value.as_bytes().to_vec()) };
            Batch { durability, writes: vec![write], ..Batch::new("test") }
        };
        let held = async || store.get("t", "k").await.unwrap().map(|row| row.value);
        store.commit(put("1", Durability::Ordered)).await.unwrap();
        store.commit(put("2", Durability::Durable)).await.unwrap();
        store.commit(put("3", Durability::Ordered)).await.unwrap();
        store.commit(put("4", Durability::Ordered)).await.unwrap();
        assert_eq!(held().await.as_deref(), Some(b"4".as_slice()));
        store.lose_power();
        assert_eq!(held().await.as_deref(), Some(b"2".as_slice()));
        store.lose_power();
        assert_eq!(held().await.as_deref(), Some(b"2".as_slice()));
    }
}
