//! The registry's rows: read whole when it opens, and the chain's made whole.

use std::collections::{BTreeSet, HashMap};

use aivillage_base::NodeId;
use aivillage_base::ports::{Batch, Expect, Records, Row, Scan, StoreError};
use serde::Deserialize;

use super::chain::{Chain, Entry, Event};
use super::{CHAIN, EnrolledNode};

/// Rows read at once when the registry opens.
const PAGE: usize = 256;

pub(super) fn put_entry(batch: &mut Batch, entry: &Entry) {
    // Keys are scanned as text: 20 digits hold every number.
    batch.put(CHAIN, format!("{:020}", entry.sequence), entry);
    batch.expect(Expect::Absent);
}

/// Reads the chain, and adds what the nodes' records say and it does not: all, in a store from before there was one. In the
/// order of time, then key, so that it comes out the same wherever it is done.
pub(super) async fn open_chain(
    records: &dyn Records,
    nodes: &HashMap<NodeId, EnrolledNode>,
) -> Result<Chain, StoreError> {
    let entries = scan_all::<Entry>(records, CHAIN).await?;
    let chain = Chain::of(entries.into_iter().map(|(_, entry)| entry));
    let mut chain = chain.map_err(|e| StoreError::Damaged(e.to_string()))?;
    let known: BTreeSet<_> = chain.after(0).iter().map(|entry| (entry.id, entry.event)).collect();
    let mut missing = Vec::new();
    for node in nodes.values() {
        missing.push((node.enrolled_ms, node.id, Event::Enrolled, &node.name));
        missing.extend(node.revoked_ms.map(|at_ms| (at_ms, node.id, Event::Revoked, &node.name)));
    }
    missing.retain(|(_, id, event, _)| !known.contains(&(*id, *event)));
    missing.sort_unstable();
    let mut batch = Batch::new("link_chain_completed");
    for (at_ms, id, event, name) in missing {
        let entry = chain.next(event, name, id, at_ms);
        put_entry(&mut batch, &entry);
        chain.push(entry).map_err(|e| StoreError::Damaged(e.to_string()))?;
    }
    if !batch.writes.is_empty() {
        records.commit(batch).await?;
    }
    Ok(chain)
}

pub(super) async fn scan_all<T: for<'de> Deserialize<'de>>(
    records: &dyn Records,
    table: &'static str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let scan = Scan { prefix: "", after: after.as_deref(), limit: PAGE };
        let rows = records.scan(table, scan).await?;
        let last = rows.len() < PAGE;
        after = rows.last().map(|row| row.key.clone());
        for row in rows {
            let value = decode(&row)?;
            all.push((row.key, value));
        }
        if last {
            return Ok(all);
        }
    }
}

pub(super) fn decode<T: for<'de> Deserialize<'de>>(row: &Row) -> Result<T, StoreError> {
    serde_json::from_slice(&row.value).map_err(|e| StoreError::Damaged(format!("link record {}: {e}", row.key)))
}
