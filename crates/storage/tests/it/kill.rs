//! kill -9: what a process acknowledged before it died is there when the folder is opened again.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use aivillage_base::ports::{Blobs, Records, Scan};
use aivillage_base::time::SystemClock;
use aivillage_base::wire::BlobRef;
use aivillage_storage::open_embedded;

const SIGKILL: i32 = 9;

/// Lets a victim work in `dir` until it has said `enough` keys, kills it, and returns every key it said.
fn work_and_kill(dir: &Path, life: &str, enough: usize, too_early: bool) -> BTreeSet<String> {
    let mut victim = Command::new(env!("CARGO_BIN_EXE_storage-kill-victim"))
        .arg(dir)
        .arg(life)
        .args(too_early.then_some("too-early"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BTreeSet::new();
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        said.insert(line.unwrap());
        if said.len() == enough {
            victim.kill().unwrap();
        }
    }
    let status = victim.wait().unwrap();
    assert_eq!(status.signal(), Some(SIGKILL), "it must have been killed, not ended: {status}");
    assert!(said.len() >= enough);
    said
}

/// Opens the folder as the next process would; checks that rows come in pairs and that no row refers to a missing
/// blob; returns the keys.
async fn survivors(dir: &Path) -> BTreeSet<String> {
    let (records, blobs) = open_embedded(dir, Arc::new(SystemClock::new()), None).unwrap();
    assert_eq!(std::fs::read_dir(dir.join("blobs/tmp")).unwrap().count(), 0, "half-written blobs are removed");
    let all = Scan { prefix: "", after: None, limit: usize::MAX };
    let first = records.scan("first", all).await.unwrap();
    let second = records.scan("second", all).await.unwrap();
    let keys: BTreeSet<String> = first.iter().map(|row| row.key.clone()).collect();
    assert!(second.iter().map(|row| &row.key).eq(keys.iter()), "a batch is there as a whole or not at all");
    for row in first {
        let blob: BlobRef = serde_json::from_slice(&row.value).unwrap();
        let bytes = blobs.read(&blob.digest).await.unwrap().expect("no row refers to a missing blob");
        assert_eq!(bytes, row.key.repeat(100));
    }
    keys
}

#[tokio::test]
async fn everything_acknowledged_before_a_sigkill_is_there_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for (life, enough) in [("a", 1), ("b", 37), ("c", 150)] {
        acknowledged.extend(work_and_kill(dir.path(), life, enough, false));
        let there = survivors(dir.path()).await;
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    }
}

#[tokio::test]
async fn a_store_that_acknowledged_too_early_would_be_caught() {
    let dir = tempfile::tempdir().unwrap();
    // Between a key and its commit lie several waits for the disk and a kill takes far less; 20 tries all the same.
    for life in 0..20 {
        let said = work_and_kill(dir.path(), &life.to_string(), 20, true);
        if !said.is_subset(&survivors(dir.path()).await) {
            return;
        }
    }
    panic!("20 kills right after a premature acknowledgement lost nothing: the test above proves nothing");
}
