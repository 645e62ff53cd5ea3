//! Records of jobs, rounds, members and small updates over the one records port.
//!
//! Tables and keys: `training_jobs` by job; `training_rounds` by job/round/attempt; `training_members` and
//! `training_payloads` by job/round/attempt/node. Numbers in keys are zero-padded, so key order is time order.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use aivillage_base::ports::{Batch, Durability, Expect, Fence, Records, Row, Scan, StoreError, Write};
use aivillage_base::wire::RoundKey;
use aivillage_base::{Digest, JobId, NodeName};

use crate::record::{JobRecord, MemberRecord, MemberState, RoundRecord, SCHEMA, Saved, Stage};
use crate::spec::Start;
use crate::step::Change;

const JOBS: &str = "training_jobs";
const ROUNDS: &str = "training_rounds";
const MEMBERS: &str = "training_members";
const PAYLOADS: &str = "training_payloads";

/// Rows read at once.
const PAGE: usize = 500;

fn round_key(key: &RoundKey) -> String {
    format!("{}/{:06}/{:04}", key.job, key.round, key.attempt)
}

fn member_key(key: &RoundKey, node: &NodeName) -> String {
    format!("{}/{node}", round_key(key))
}

/// Name of the lease of a job.
#[must_use]
pub fn lease(job: &JobId) -> String {
    format!("training/{job}")
}

/// One transaction for the changes of one or more steps.
#[must_use]
pub fn batch(changes: Vec<Change>, fence: Option<Fence>) -> Batch {
    let mut batch = Batch::new(name(&changes));
    batch.durability = durability(&changes);
    batch.fence = fence;
    for change in changes {
        match change {
            Change::Job(record) => batch.put(JOBS, record.spec.job_id.as_str(), &*record),
            Change::Round(record) | Change::Noted(record) => batch.put(ROUNDS, round_key(&record.key), &*record),
            Change::Member(key, record) | Change::Words(key, record) => {
                batch.put(MEMBERS, member_key(&key, &record.peer.name), &*record)
            }
            Change::Payload(key, node, bytes) => batch.writes.push(Write {
                table: PAYLOADS,
                key: member_key(&key, &node),
                expect: Expect::Any,
                value: Some(bytes.to_vec()),
            }),
            Change::Forget(key, nodes) => {
                for node in nodes {
                    batch.delete(MEMBERS, member_key(&key, &node));
                    batch.delete(PAYLOADS, member_key(&key, &node));
                }
            }
            Change::Fold(key, nodes) => {
                for node in nodes {
                    batch.delete(MEMBERS, member_key(&key, &node));
                }
            }
        }
    }
    batch
}

/// Steps of secure aggregation need not wait for the disk: members who were told of a step that the store has forgotten after
/// a loss of power raise an alarm or answer as before, so the attempt is abandoned or goes on. What must not be forgotten is
/// an accepted update, whose sender lets go of it, and which sum is about to be opened; with a helper every step
/// says one of the two.
fn durability(changes: &[Change]) -> Durability {
    let can_be_lost = |change: &Change| match change {
        Change::Round(record) if record.secure.as_ref().is_some_and(|s| s.helper.is_none()) => match record.stage {
            Stage::Keying | Stage::Collecting | Stage::Publishing => true,
            Stage::Unmasking => record.secure.as_ref().is_some_and(|secure| secure.agreed.is_empty()),
            Stage::Done { .. } | Stage::Abandoned { .. } => false,
        },
        Change::Member(_, record) => record.state == MemberState::Silent,
        Change::Words(..) => true,
        Change::Job(_)
        | Change::Round(_)
        | Change::Noted(_)
        | Change::Payload(..)
        | Change::Forget(..)
        | Change::Fold(..) => false,
    };
    if changes.iter().all(can_be_lost) { Durability::Ordered } else { Durability::Durable }
}

/// What a step is called: by the most far-reaching of its changes.
fn name(changes: &[Change]) -> &'static str {
    let rank = |change: &Change| match change {
        Change::Job(record) if record.life.status().is_terminal() => (5, "job_ended"),
        Change::Round(record) => match record.stage {
            Stage::Done { .. } => (4, "round_published"),
            Stage::Abandoned { .. } => (4, "round_abandoned"),
            Stage::Publishing => (3, "round_closed"),
            Stage::Keying | Stage::Collecting | Stage::Unmasking => (2, step_name(record)),
        },
        Change::Noted(_) => (0, "time_noted"),
        Change::Member(..) | Change::Words(..) | Change::Payload(..) => (1, "update_stored"),
        Change::Job(_) | Change::Forget(..) | Change::Fold(..) => (0, "job_changed"),
    };
    changes.iter().map(rank).max().map_or("nothing", |(_, name)| name)
}

/// What the step is called that brought an attempt to where it waits.
fn step_name(record: &RoundRecord) -> &'static str {
    let Some(secure) = &record.secure else { return "round_opened" };
    match (&record.stage, secure.agreed.is_empty()) {
        (Stage::Keying, _) if secure.roster.is_empty() => "round_opened",
        (Stage::Keying, _) if secure.drawn.is_none() => "roster_fixed",
        (Stage::Keying, _) => "graph_drawn",
        (Stage::Collecting, _) => "sharers_fixed",
        (_, true) => "survivors_fixed",
        (_, false) => "agreements_fixed",
    }
}

/// The batch that accepts a new job; conflicts if its id is taken.
#[must_use]
pub fn creation(record: &JobRecord) -> Batch {
    let mut batch = Batch::new("job_created");
    batch.put(JOBS, record.spec.job_id.as_str(), record);
    batch.expect(Expect::Absent);
    batch
}

fn decode<T: DeserializeOwned>(table: &str, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Damaged(format!("{table}/{key}: {e}")))
}

async fn scan<T: DeserializeOwned>(
    records: &dyn Records,
    table: &'static str,
    prefix: &str,
) -> Result<Vec<T>, StoreError> {
    let mut out = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let rows = records.scan(table, Scan { prefix, after: after.as_deref(), limit: PAGE }).await?;
        let full = rows.len() == PAGE;
        for row in &rows {
            out.push(decode(table, &row.key, &row.value)?);
        }
        match rows.into_iter().next_back() {
            Some(last) if full => after = Some(last.key),
            Some(_) | None => return Ok(out),
        }
    }
}

/// One job.
///
/// # Errors
/// Store; a record written by a newer version.
pub async fn job(records: &dyn Records, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
    let Some(row) = records.get(JOBS, id.as_str()).await? else { return Ok(None) };
    let record: JobRecord = decode(JOBS, &row.key, &row.value)?;
    checked(record).map(Some)
}

/// One job with its attempts and, if one is open, that attempt's members.
///
/// # Errors
/// As [`job`].
pub async fn saved(records: &dyn Records, id: &JobId) -> Result<Option<Saved>, StoreError> {
    let Some(record) = job(records, id).await? else { return Ok(None) };
    let attempts = rounds(records, id).await?;
    let members = match attempts.iter().rev().find(|r| r.is_open()) {
        Some(open) => members(records, &open.key).await?,
        None => Vec::new(),
    };
    Ok(Some(Saved { record, attempts, members }))
}

/// All jobs, oldest first.
///
/// # Errors
/// As [`job`].
pub async fn jobs(records: &dyn Records) -> Result<Vec<JobRecord>, StoreError> {
    let all: Vec<JobRecord> = scan(records, JOBS, "").await?;
    let mut all = all.into_iter().map(checked).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(|a, b| (a.created_ms, &a.spec.job_id).cmp(&(b.created_ms, &b.spec.job_id)));
    Ok(all)
}

fn checked(record: JobRecord) -> Result<JobRecord, StoreError> {
    if record.schema > SCHEMA {
        return Err(StoreError::Damaged(format!(
            "job {} was written by a newer version (schema {}, this one reads up to {SCHEMA})",
            record.spec.job_id, record.schema
        )));
    }
    Ok(record)
}

/// Every blob that a job, an attempt or an update that counts refers to. Whoever knows all rooms can delete at start what
/// none of them refers to: a process that died between a blob and its row has left it.
///
/// # Errors
/// As [`job`].
pub async fn referenced(records: &dyn Records) -> Result<BTreeSet<Digest>, StoreError> {
    let mut digests = BTreeSet::new();
    for record in jobs(records).await? {
        let Some(saved) = saved(records, &record.spec.job_id).await? else { continue };
        digests.extend(saved.record.model.map(|m| m.digest));
        if let Start::Model(model) = &saved.record.spec.start {
            digests.extend(model.bundle.map(|b| b.digest));
        }
        for attempt in &saved.attempts {
            digests.insert(attempt.model_in.digest);
            digests.extend(attempt.state_in.iter().map(|s| s.blob.digest));
            if let Stage::Done { model_out, state_out } = &attempt.stage {
                digests.insert(model_out.digest);
                digests.extend(state_out.iter().map(|s| s.blob.digest));
            }
            digests.extend(attempt.retained().filter(|(_, c)| !c.inline).map(|(_, c)| c.payload.digest));
            digests.extend(attempt.helped().filter(|c| attempt.is_open() && !c.inline).map(|c| c.payload.digest));
            digests.extend(attempt.members.iter().filter_map(|m| Some(m.base.as_ref()?.model.digest)));
        }
        digests.extend(saved.members.iter().filter_map(|m| Some(m.base.as_ref()?.model.digest)));
        let stored = saved.members.iter().filter_map(MemberRecord::counted).filter(|c| !c.inline);
        digests.extend(stored.map(|c| c.payload.digest));
    }
    Ok(digests)
}

/// All attempts of a job, oldest first.
///
/// # Errors
/// Store.
pub async fn rounds(records: &dyn Records, id: &JobId) -> Result<Vec<RoundRecord>, StoreError> {
    scan(records, ROUNDS, &format!("{id}/")).await
}

/// Members of an attempt under way.
///
/// # Errors
/// Store.
pub async fn members(records: &dyn Records, key: &RoundKey) -> Result<Vec<MemberRecord>, StoreError> {
    scan(records, MEMBERS, &format!("{}/", round_key(key))).await
}

/// A small update.
///
/// # Errors
/// Store.
pub async fn payload(records: &dyn Records, key: &RoundKey, node: &NodeName) -> Result<Option<Bytes>, StoreError> {
    Ok(records.get(PAYLOADS, &member_key(key, node)).await?.map(|row| row.value))
}

/// Small updates of an attempt in the order of their nodes' names, up to `PAGE` of those after `after`; empty = no more.
///
/// # Errors
/// Store; a key that is no name.
pub async fn payloads(
    records: &dyn Records,
    key: &RoundKey,
    after: Option<&NodeName>,
) -> Result<Vec<(NodeName, Bytes)>, StoreError> {
    let prefix = format!("{}/", round_key(key));
    let after = after.map(|node| member_key(key, node));
    let rows = records.scan(PAYLOADS, Scan { prefix: &prefix, after: after.as_deref(), limit: PAGE }).await?;
    let named = |row: Row| match NodeName::new(&row.key[prefix.len()..]) {
        Ok(node) => Ok((node, row.value)),
        Err(e) => Err(StoreError::Damaged(format!("{PAYLOADS}/{}: {e}", row.key))),
    };
    rows.into_iter().map(named).collect()
}
