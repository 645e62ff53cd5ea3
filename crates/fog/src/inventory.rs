//! The inventory: every node by name, what was declared of it, what it reported, and whether it is connected.
//!
//! Reads come from memory; writes reach the store first. Must not know who asks or how nodes connect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::ports::{Batch, Records, Scan};
use aivillage_base::time::Clock;
use aivillage_base::wire::{NodeReport, NodeType, Peer};
use aivillage_base::{NodeId, NodeName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::FogError;

#[cfg(test)]
mod tests;

const NODES: &str = "fog_nodes";
const DECLARED: &str = "fog_declared";
/// Most declared participants: anybody with a key may declare, so memory needs a bound (about 200 bytes each).
pub const DECLARED_MAX: usize = 65_536;
/// Rows read at a time when the inventory is opened.
const PAGE: usize = 512;

/// What somebody says about a participant before (or without) its node connecting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declaration {
    /// The name its node is or will be enrolled under.
    pub participant_id: NodeName,
    /// Kinds of node it is.
    pub node_types: Vec<NodeType>,
    /// Claimed speed, in 10^9 operations a second, >= 0.
    pub compute_gflops: f64,
    /// Claimed memory, in 2^30 bytes, >= 0.
    pub memory_gb: f64,
    /// Claimed bandwidth, in 10^6 bits a second, >= 0.
    pub network_mbps: f64,
}

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Only spoken of: no node of this name has connected yet.
    Declared,
    /// Known, without an open stream.
    Offline,
    /// Its stream is open.
    Connected,
}

/// One entry of the inventory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRecord {
    /// The name, unique in the inventory.
    pub name: NodeName,
    /// Its key; None while it is only declared.
    pub id: Option<NodeId>,
    /// Declared, offline or connected.
    pub state: NodeState,
    /// What was declared, if anything.
    pub declared: Option<Declaration>,
    /// What the node measured of itself, if it has reported.
    pub report: Option<NodeReport>,
    /// Wall clock of the declaration or first connection, in milliseconds since 1970.
    pub first_seen_ms: u64,
    /// Wall clock of the last sign of life (or of the declaration).
    pub last_seen_ms: u64,
}

/// Counts over the inventory; `total` is the sum of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All entries.
    pub total: usize,
    /// With an open stream.
    pub connected: usize,
    /// Only declared.
    pub declared: usize,
    /// Known, without an open stream.
    pub offline: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct NodeRow {
    id: NodeId,
    name: NodeName,
    report: NodeReport,
    first_seen_ms: u64,
    last_seen_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct DeclaredRow {
    declaration: Declaration,
    declared_ms: u64,
}

/// Handle of the inventory; clones share it.
#[derive(Clone, Debug)]
pub struct Inventory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
    view: Mutex<BTreeMap<NodeName, NodeRecord>>,
    changes: watch::Sender<u64>,
}

impl Inventory {
    /// Reads the inventory from the store; every node starts `offline` (or `declared`).
    ///
    /// # Errors
    /// The store's own, or a damaged row.
    pub async fn open(records: Arc<dyn Records>, clock: Arc<dyn Clock>) -> Result<Self, FogError> {
        let mut view = BTreeMap::new();
        for row in all::<DeclaredRow>(&*records, DECLARED).await? {
            let name = row.declaration.participant_id.clone();
            view.insert(
                name.clone(),
                NodeRecord {
                    name,
                    id: None,
                    state: NodeState::Declared,
                    declared: Some(row.declaration),
                    report: None,
                    first_seen_ms: row.declared_ms,
                    last_seen_ms: row.declared_ms,
                },
            );
        }
        for row in all::<NodeRow>(&*records, NODES).await? {
            let declared = view.remove(&row.name).and_then(|d| d.declared);
            view.insert(
                row.name.clone(),
                NodeRecord {
                    name: row.name,
                    id: Some(row.id),
                    state: NodeState::Offline,
                    declared,
                    report: Some(row.report),
                    first_seen_ms: row.first_seen_ms,
                    last_seen_ms: row.last_seen_ms,
                },
            );
        }
        let (changes, _) = watch::channel(0);
        Ok(Self { inner: Arc::new(Inner { records, clock, view: Mutex::new(view), changes }) })
    }

    /// Takes a declaration; a second one for the same name replaces the first.
    ///
    /// # Errors
    /// A negative or non-finite figure, no node type, the inventory is full, or the store's own.
    pub async fn declare(&self, declaration: Declaration) -> Result<(), FogError> {
        check(&declaration)?;
        let name = declaration.participant_id.clone();
        let now = self.inner.clock.now().wall_ms;
        let declared_ms = {
            let view = self.view();
            let known = view.get(&name).filter(|r| r.declared.is_some());
            let count = || view.values().filter(|r| r.declared.is_some()).count();
            if known.is_some_and(|r| r.declared.as_ref() == Some(&declaration)) {
                return Ok(());
            }
            if known.is_none() && count() >= DECLARED_MAX {
                return Err(FogError::Full { limit: DECLARED_MAX });
            }
            known.map_or(now, |r| r.first_seen_ms)
        };
        let mut batch = Batch::new("participant_declared");
        batch.put(DECLARED, name.as_str(), &DeclaredRow { declaration: declaration.clone(), declared_ms });
        self.inner.records.commit(batch).await?;
        self.view()
            .entry(name.clone())
            .or_insert_with(|| NodeRecord {
                name,
                id: None,
                state: NodeState::Declared,
                declared: None,
                report: None,
                first_seen_ms: now,
                last_seen_ms: now,
            })
            .declared = Some(declaration);
        self.changed();
        Ok(())
    }

    /// Takes what a node says about itself. It says nothing about the stream: see [`Self::online`].
    ///
    /// # Errors
    /// The store's own; the old report stays then.
    pub async fn report(&self, peer: &Peer, report: NodeReport) -> Result<(), FogError> {
        let now = self.inner.clock.now().wall_ms;
        let first_seen_ms = self.view().get(&peer.name).map_or(now, |r| r.first_seen_ms);
        let row =
            NodeRow { id: peer.id, name: peer.name.clone(), report: report.clone(), first_seen_ms, last_seen_ms: now };
        let mut batch = Batch::new("node_reported");
        batch.put(NODES, peer.name.as_str(), &row);
        self.inner.records.commit(batch).await?;
        self.touch(peer, |record| record.report = Some(report));
        Ok(())
    }

    /// The node's stream has opened.
    pub fn online(&self, peer: &Peer) {
        self.touch(peer, |record| record.state = NodeState::Connected);
    }

    /// The node's stream has closed; an unknown node is ignored.
    pub fn offline(&self, node: &NodeId) {
        let now = self.inner.clock.now().wall_ms;
        if let Some(record) = self.view().values_mut().find(|r| r.id == Some(*node)) {
            record.state = NodeState::Offline;
            record.last_seen_ms = now;
        }
        self.changed();
    }

    /// Removes a node; a declaration under its name stays and becomes `declared` again. Unknown is fine.
    ///
    /// # Errors
    /// The store's own; the node stays then.
    pub async fn forget(&self, node: &NodeId) -> Result<(), FogError> {
        let Some(name) = self.get(node).map(|r| r.name) else {
            return Ok(());
        };
        let mut batch = Batch::new("node_forgotten");
        batch.delete(NODES, name.as_str());
        self.inner.records.commit(batch).await?;
        {
            let mut view = self.view();
            match view.get_mut(&name) {
                Some(record) if record.declared.is_some() => {
                    record.id = None;
                    record.report = None;
                    record.state = NodeState::Declared;
                }
                Some(_) => {
                    view.remove(&name);
                }
                None => {}
            }
        }
        self.changed();
        Ok(())
    }

    /// All entries in name order.
    #[must_use]
    pub fn list(&self) -> Vec<NodeRecord> {
        self.view().values().cloned().collect()
    }

    /// The entry of this key.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<NodeRecord> {
        self.view().values().find(|r| r.id == Some(*node)).cloned()
    }

    /// Counts.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for record in self.view().values() {
            summary.total += 1;
            match record.state {
                NodeState::Declared => summary.declared += 1,
                NodeState::Offline => summary.offline += 1,
                NodeState::Connected => summary.connected += 1,
            }
        }
        summary
    }

    /// Wakes whenever an entry changes; the value is a count of changes and means nothing else.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Changes an entry that speaks for itself, making it if need be.
    fn touch(&self, peer: &Peer, change: impl FnOnce(&mut NodeRecord)) {
        let now = self.inner.clock.now().wall_ms;
        {
            let mut view = self.view();
            let record = view.entry(peer.name.clone()).or_insert_with(|| NodeRecord {
                name: peer.name.clone(),
                id: Some(peer.id),
                state: NodeState::Offline,
                declared: None,
                report: None,
                first_seen_ms: now,
                last_seen_ms: now,
            });
            if record.id != Some(peer.id) {
                // Another key under this name (it was revoked and enrolled anew): nothing of the old one holds.
                record.id = Some(peer.id);
                record.report = None;
                record.state = NodeState::Offline;
            }
            record.last_seen_ms = now;
            change(record);
        }
        self.changed();
    }

    fn view(&self) -> MutexGuard<'_, BTreeMap<NodeName, NodeRecord>> {
        // Every change under this lock is a plain assignment: a panic elsewhere leaves nothing half done.
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }
}

fn check(declaration: &Declaration) -> Result<(), FogError> {
    if declaration.node_types.is_empty() {
        let detail = "at least one of mobile, edge, cloud, gpu is needed".to_owned();
        return Err(FogError::Invalid { field: "node_type", detail });
    }
    let figures = [
        ("compute_gflops", declaration.compute_gflops),
        ("memory_gb", declaration.memory_gb),
        ("network_mbps", declaration.network_mbps),
    ];
    for (field, value) in figures {
        if !(value.is_finite() && value >= 0.0) {
            return Err(FogError::Invalid { field, detail: format!("{field} is {value}: a number >= 0 is needed") });
        }
    }
    Ok(())
}

/// Every row of a table, page by page.
async fn all<T: for<'de> Deserialize<'de>>(records: &dyn Records, table: &'static str) -> Result<Vec<T>, FogError> {
    let mut out = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let rows = records.scan(table, Scan { prefix: "", after: after.as_deref(), limit: PAGE }).await?;
        for row in &rows {
            let value = serde_json::from_slice(&row.value)
                .map_err(|e| aivillage_base::ports::StoreError::Damaged(format!("{table}/{}: {e}", row.key)))?;
            out.push(value);
        }
        match rows.last() {
            Some(last) if rows.len() == PAGE => after = Some(last.key.clone()),
            Some(_) | None => return Ok(out),
        }
    }
}
