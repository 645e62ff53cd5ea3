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
    Batch { writes: vec![write], ..Batch::new("test") }
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
async fn a_file_of_the_first_version_is_brought_to_this_one_with_all_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let (open, clock) = (ManualClock::at(0), ManualClock::at(0));
    let rows: Vec<(String, Vec<u8>)> = (0..300).map(|n| (format!("{n:03}"), vec![7; n * 100])).collect();
    {
        let first = rusqlite::Connection::open(&path).unwrap();
        first.execute_batch(schema::MIGRATIONS[0]).unwrap();
        first.execute_batch("PRAGMA application_id = 1095325292; PRAGMA user_version = 1").unwrap();
        for (key, value) in &rows {
            let seal = apply::seal("t", key, 3, value);
            let insert = "INSERT INTO records (tbl, key, version, value, seal) VALUES ('t', ?1, 3, ?2, ?3)";
            first.execute(insert, rusqlite::params![key, value, seal]).unwrap();
        }
    }
    for clock in [open, clock] {
        let store = SqliteRecords::open(&path, clock).unwrap();
        let found = store.scan("t", Scan { limit: 1_000, ..Scan::default() }).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|row| (row.key, row.version, row.value.to_vec())).collect();
        let wanted: Vec<_> = rows.iter().map(|(key, value)| (key.clone(), 3, value.clone())).collect();
        assert!(found == wanted, "{} rows", found.len());
        let expected = Write { table: "t", key: "007".to_owned(), expect: Expect::Version(4), value: None };
        let refused = store.commit(Batch { writes: vec![expected], ..Batch::new("test") }).await;
        assert!(matches!(refused, Err(StoreError::Conflict { .. })));
    }
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
