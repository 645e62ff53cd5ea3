//! Failures of the disk itself, which cannot be had through the public door: a file that may not grow.

use super::*;
use crate::contract::ManualClock;
use aivillage_base::ports::{Expect, Write};

/// A store whose file ends at 32 pages of 4 KiB.
fn small_disk(dir: &Path) -> SqliteRecords {
    let cap = |c: &Connection| c.query_row("PRAGMA max_page_count = 32", [], |_| Ok(()));
    SqliteRecords::open_tuned(&dir.join("store.sqlite"), ManualClock::at(0), cap).unwrap()
}

fn write(key: String, len: usize) -> Batch {
    let write = Write { table: "t", key, expect: Expect::Any, value: Some(vec![7; len]) };
    Batch { name: "test", fence: None, writes: vec![write] }
}

#[tokio::test]
async fn a_full_disk_is_told_with_sizes_and_spares_those_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(small_disk(dir.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40 {
        let store = Arc::clone(&store);
        // Every fourth is larger than the whole file may become; they share groups with small ones.
        let len = if n % 4 == 0 { 500_000 } else { 10 };
        tasks.spawn(async move { (n, store.commit(write(n.to_string(), len)).await) });
    }
    for (n, result) in tasks.join_all().await {
        if n % 4 == 0 {
            assert!(
                matches!(result, Err(StoreError::Full { needed: 500_000, available }) if available > 0),
                "{result:?}"
            );
        } else {
            assert!(result.is_ok(), "{n}: {result:?}");
        }
        let row = store.get("t", &n.to_string()).await.unwrap();
        assert_eq!(row.is_some(), n % 4 != 0, "{n}");
    }
    store.commit(write("later".to_owned(), 10)).await.unwrap();
}

#[tokio::test]
async fn a_call_whose_caller_has_gone_hurts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_disk(dir.path());
    for n in 0..20 {
        let mut call = store.commit(write(n.to_string(), 10));
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx)));
        let _ = once.await;
    }
    store.commit(write("after".to_owned(), 10)).await.unwrap();
    assert!(store.get("t", "after").await.unwrap().is_some());
}

#[tokio::test]
async fn dropping_the_store_finishes_what_was_queued() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_disk(dir.path());
    let mut call = store.commit(write("queued".to_owned(), 10));
    let once = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx)));
    let _ = once.await;
    drop(call);
    drop(store);
    assert!(small_disk(dir.path()).get("t", "queued").await.unwrap().is_some());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(files.iter().any(|name| name == "store.sqlite"), "{files:?}");
}

#[test]
fn the_writer_waits_for_the_disk_at_every_commit() {
    let dir = tempfile::tempdir().unwrap();
    let connection = schema::open_writer(&dir.path().join("store.sqlite")).unwrap();
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
    assert_eq!(ask("PRAGMA journal_mode"), "wal".to_owned().into());
    assert_eq!(ask("PRAGMA synchronous"), 2.into(), "2 is FULL: NORMAL would lose acknowledged commits in a power cut");
}
