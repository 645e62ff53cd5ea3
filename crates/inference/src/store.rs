//! The persisted form of requests. Models have theirs in [`crate::model`].
//!
//! An unfinished row holds all that is needed to plan the request again after a restart, its input included; a finished
//! row holds the outcome and no input.

use aivillage_base::ports::{Batch, Expect, Records, Scan, StoreError};
use aivillage_base::wire::BlobRef;
use aivillage_base::{RequestId, Task};
use serde::{Deserialize, Serialize};

use crate::plan::Needs;
use crate::request::{ModelRef, PrivacyLevel, RequestView};

pub(crate) const REQUESTS: &str = "inference_requests";
pub(crate) const MODELS: &str = "inference_models";
/// Rows of a table read, and rows written or deleted in one batch.
pub(crate) const PAGE: usize = 256;

/// A request that was promised and has no outcome yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    pub model: ModelRef,
    pub bundle: BlobRef,
    pub task: Task,
    pub rows: Vec<Vec<f32>>,
    pub needs: Needs,
    pub privacy: PrivacyLevel,
    /// Label of the client, for statistics.
    pub client: String,
    /// Wall clock of the submission, in milliseconds since 1970.
    pub submitted_ms: u64,
    /// Milliseconds from submission until the answer is of no use.
    pub within_ms: u64,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum RequestRow {
    Unfinished(Box<Unfinished>),
    Finished {
        view: Box<RequestView>,
        /// Wall clock of the outcome.
        finished_ms: u64,
    },
}

/// Promises a request. An outcome that is already there stays: it was faster than this commit.
pub(crate) async fn promise(records: &dyn Records, id: RequestId, row: Unfinished) -> Result<(), StoreError> {
    let mut batch = Batch::new("request_accepted");
    batch.put(REQUESTS, id.to_string(), &RequestRow::Unfinished(Box::new(row)));
    batch.expect(Expect::Absent);
    match records.commit(batch).await {
        Err(StoreError::Conflict { .. }) => Ok(()),
        other => other,
    }
}

/// Stores outcomes in one commit.
pub(crate) async fn finish(records: &dyn Records, views: &[RequestView], now_ms: u64) -> Result<(), StoreError> {
    let mut batch = Batch::new("request_finished");
    for view in views {
        let row = RequestRow::Finished { view: Box::new(view.clone()), finished_ms: now_ms };
        batch.put(REQUESTS, view.request_id.to_string(), &row);
    }
    records.commit(batch).await
}

pub(crate) async fn forget(records: &dyn Records, ids: &[RequestId]) -> Result<(), StoreError> {
    let mut batch = Batch::new("request_forgotten");
    for id in ids {
        batch.delete(REQUESTS, id.to_string());
    }
    records.commit(batch).await
}

pub(crate) async fn get(records: &dyn Records, id: &RequestId) -> Result<Option<RequestRow>, StoreError> {
    let key = id.to_string();
    records.get(REQUESTS, &key).await?.map(|row| decode(REQUESTS, &key, &row.value)).transpose()
}

/// A page of a table: key, version and record of each row.
pub(crate) async fn page<T: for<'de> Deserialize<'de>>(
    records: &dyn Records,
    table: &'static str,
    after: Option<&str>,
) -> Result<Vec<(String, u64, T)>, StoreError> {
    let rows = records.scan(table, Scan { prefix: "", after, limit: PAGE }).await?;
    rows.into_iter()
        .map(|row| decode(table, &row.key, &row.value).map(|record| (row.key, row.version, record)))
        .collect()
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(table: &str, key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|e| StoreError::Damaged(format!("{table}/{key}: {e}")))
}
