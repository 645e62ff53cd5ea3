//! The memory store is the SQLite store without a disk: the same calls get the same answers.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aivillage_base::ports::{Batch, Blobs, Expect, Fence, Records, Row, Scan, StoreError, Write, put_blob};
use aivillage_storage::contract::ManualClock;
use aivillage_storage::{MemoryBlobs, MemoryRecords, SqliteRecords};
use bytes::Bytes;
use proptest::prelude::*;

const TABLES: [&str; 2] = ["t", "u"];
const KEYS: [&str; 6] = ["", "a", "a/1", "a/2", "b", "ü"];
const HOLDERS: [&str; 3] = ["x", "y", "z"];

#[derive(Debug, Clone)]
enum Op {
    Commit(Batch),
    Get(&'static str, &'static str),
    Scan { table: &'static str, prefix: &'static str, after: Option<&'static str>, limit: usize },
    Acquire { lease: &'static str, holder: &'static str, ttl_ms: u64 },
    Release { lease: &'static str, holder: &'static str },
    Advance(u64),
    SetWall(u64),
}

/// All that a store can say.
#[derive(Debug, PartialEq)]
enum Said {
    Nothing,
    Rows(Vec<Row>),
    Epoch(Option<u64>),
    Refused(String),
}

fn table() -> impl Strategy<Value = &'static str> {
    prop::sample::select(TABLES.to_vec())
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(KEYS.to_vec())
}

fn holder() -> impl Strategy<Value = &'static str> {
    prop::sample::select(HOLDERS.to_vec())
}

fn write() -> impl Strategy<Value = Write> {
    let expect = prop_oneof![
        4 => Just(Expect::Any),
        2 => Just(Expect::Absent),
        3 => (0..4_u64).prop_map(Expect::Version),
    ];
    let value = prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..20));
    (table(), key(), expect, value).prop_map(|(table, key, expect, value)| Write {
        table,
        key: key.to_owned(),
        expect,
        value,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let fence = prop::option::weighted(0.3, (table(), 0..4_u64));
    let commit = (fence, prop::collection::vec(write(), 0..5)).prop_map(|(fence, writes)| {
        let fence = fence.map(|(lease, epoch)| Fence { lease: lease.to_owned(), epoch });
        Op::Commit(Batch { fence, writes, ..Batch::new("twins") })
    });
    prop_oneof![
        6 => commit,
        2 => (table(), key()).prop_map(|(table, key)| Op::Get(table, key)),
        3 => (table(), key(), prop::option::of(key()), 0..5_usize)
            .prop_map(|(table, prefix, after, limit)| Op::Scan { table, prefix, after, limit }),
        3 => (table(), holder(), 0..50_u64).prop_map(|(lease, holder, ttl_ms)| Op::Acquire { lease, holder, ttl_ms }),
        1 => (table(), holder()).prop_map(|(lease, holder)| Op::Release { lease, holder }),
        2 => (0..40_u64).prop_map(Op::Advance),
        1 => (0..2_000_u64).prop_map(Op::SetWall),
    ]
}

async fn ask(store: &dyn Records, op: &Op) -> Said {
    let said = match op {
        Op::Commit(batch) => store.commit(batch.clone()).await.map(|()| Said::Nothing),
        Op::Get(table, key) => store.get(table, key).await.map(|row| Said::Rows(row.into_iter().collect())),
        Op::Scan { table, prefix, after, limit } => {
            store.scan(table, Scan { prefix, after: *after, limit: *limit }).await.map(Said::Rows)
        }
        Op::Acquire { lease, holder, ttl_ms } => {
            store.acquire(lease, holder, Duration::from_millis(*ttl_ms)).await.map(Said::Epoch)
        }
        Op::Release { lease, holder } => store.release(lease, holder).await.map(|()| Said::Nothing),
        Op::Advance(_) | Op::SetWall(_) => Ok(Said::Nothing),
    };
    said.unwrap_or_else(|error: StoreError| Said::Refused(format!("{error:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_sqlite_answer_alike(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let clock = ManualClock::at(1_000);
            let memory = MemoryRecords::new(clock.clone());
            let sqlite = SqliteRecords::open(&dir.path().join("s.sqlite"), clock.clone()).unwrap();
            for (n, op) in ops.iter().enumerate() {
                match op {
                    Op::Advance(ms) => clock.advance(Duration::from_millis(*ms)),
                    Op::SetWall(ms) => clock.set_wall(*ms),
                    Op::Commit(_) | Op::Get(..) | Op::Scan { .. } | Op::Acquire { .. } | Op::Release { .. } => {}
                }
                assert_eq!(ask(&memory, op).await, ask(&sqlite, op).await, "step {n}: {op:?}");
            }
            for table in TABLES {
                let all = Op::Scan { table, prefix: "", after: None, limit: usize::MAX };
                assert_eq!(ask(&memory, &all).await, ask(&sqlite, &all).await);
            }
        });
    }
}

/// Polls once, without any runtime.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(out) => out,
        Poll::Pending => panic!("a memory store must answer on the first poll"),
    }
}

#[test]
fn memory_stores_need_no_runtime() {
    let records = MemoryRecords::new(ManualClock::at(0));
    let mut batch = Batch::new("step");
    batch.put("t", "k", &1);
    at_once(records.commit(batch)).unwrap();
    assert_eq!(&at_once(records.get("t", "k")).unwrap().unwrap().value[..], b"1");
    assert_eq!(at_once(records.acquire("l", "h", Duration::from_secs(1))).unwrap(), Some(1));

    let blobs = MemoryBlobs::new();
    let blob = at_once(put_blob(&blobs, Bytes::from_static(b"bytes"))).unwrap();
    assert_eq!(at_once(blobs.read(&blob.digest)).unwrap().unwrap(), "bytes");
}
