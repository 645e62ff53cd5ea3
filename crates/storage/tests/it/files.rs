//! What only files can do: outlive their process, be damaged, be somebody else's, fill up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use aivillage_base::Digest;
use aivillage_base::ports::{Batch, Blobs, Durability, Expect, Fence, Records, Scan, StoreError, Write, put_blob};
use aivillage_storage::contract::ManualClock;
use aivillage_storage::{FolderBlobs, SqliteRecords, open_embedded};
use bytes::Bytes;
use rusqlite::Connection;

fn open(dir: &Path, clock: &Arc<ManualClock>) -> SqliteRecords {
    SqliteRecords::open(&dir.join("store.sqlite"), clock.clone()).unwrap()
}

fn write(key: &str, value: &[u8]) -> Batch {
    let write = Write { table: "t", key: key.to_owned(), expect: Expect::Any, value: Some(value.to_vec()) };
    Batch { writes: vec![write], ..Batch::new("test") }
}

#[tokio::test]
async fn records_leases_and_the_clock_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(50_000);
    let store = open(dir.path(), &clock);
    for n in 0..3 {
        store.commit(write("k", format!("v{n}").as_bytes())).await.unwrap();
    }
    assert_eq!(store.acquire("job", "first life", Duration::from_secs(10)).await.unwrap(), Some(1));
    drop(store);

    let earlier = ManualClock::at(1_000);
    let store = open(dir.path(), &earlier);
    let row = store.get("t", "k").await.unwrap().unwrap();
    assert_eq!((&row.value[..], row.version), (&b"v2"[..], 3));
    let second = async || store.acquire("job", "second life", Duration::from_secs(10)).await.unwrap();
    assert_eq!(second().await, None, "a lease outlives its process");
    earlier.advance(Duration::from_millis(9_999));
    assert_eq!(second().await, None, "the stores clock went on from where the first process left it");
    earlier.advance(Duration::from_millis(1));
    assert_eq!(second().await, Some(2));
    let mut late = write("k", b"late");
    late.fence = Some(Fence { lease: "job".to_owned(), epoch: 1 });
    assert!(matches!(store.commit(late).await, Err(StoreError::Fenced { .. })));
}

#[tokio::test]
async fn commits_that_wait_together_share_one_fsync_and_each_gets_its_own_answer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), &ManualClock::at(0)));
    let before = store.sync_stats();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = Arc::clone(&store);
        let mut batch = write(&format!("k{n:03}"), b"value");
        if n % 10 == 0 {
            batch.expect(Expect::Version(1));
        }
        tasks.spawn(async move { store.commit(batch).await.is_ok() });
    }
    let accepted = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(accepted, 180, "every tenth had a false precondition");
    let rows = store.scan("t", Scan { prefix: "", after: None, limit: 1000 }).await.unwrap();
    assert_eq!(rows.len(), 180);
    let after = store.sync_stats();
    let waits = after.count - before.count;
    assert!((1..=60).contains(&waits), "{waits} waits for 180 commits");
    assert!(after.total_us > before.total_us);
}

#[tokio::test]
async fn what_writes_nothing_counts_no_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &ManualClock::at(0));
    store.commit(Batch::new("empty")).await.unwrap();
    store.get("t", "k").await.unwrap();
    store.release("job", "nobody").await.unwrap();
    assert_eq!(store.sync_stats().count, 0);
    store.commit(write("k", b"v")).await.unwrap();
    assert_eq!(store.sync_stats().count, 1);
}

#[tokio::test]
async fn batches_that_are_only_ordered_wait_for_no_disk_and_outlive_their_process() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(0);
    let store = open(dir.path(), &clock);
    let ordered = |value: &[u8]| Batch { durability: Durability::Ordered, ..write("k", value) };
    store.commit(write("k", b"1")).await.unwrap();
    store.commit(ordered(b"2")).await.unwrap();
    store.commit(ordered(b"3")).await.unwrap();
    assert_eq!(store.sync_stats().count, 1);
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    // What a process that is killed now leaves behind.
    for name in ["store.sqlite", "store.sqlite-wal"] {
        fs::copy(dir.path().join(name), copy.join(name)).unwrap();
    }
    let row = open(&copy, &clock).get("t", "k").await.unwrap().unwrap();
    assert_eq!((&row.value[..], row.version), (&b"3"[..], 3));
    store.commit(write("k", b"4")).await.unwrap();
    assert_eq!(store.sync_stats().count, 2, "the next durable one waits again");
}

/// Flips the lowest bit in the one place of `file` that holds `needle`.
fn flip_a_bit_of(file: &Path, needle: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let places: Vec<_> = (0..=bytes.len() - needle.len()).filter(|i| bytes[*i..].starts_with(needle)).collect();
    assert_eq!(places.len(), 1, "the needle must be in the file exactly once");
    bytes[places[0]] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_a_record_is_damage_and_never_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(0);
    let store = open(dir.path(), &clock);
    store.commit(write("bad", b"the one and only needle")).await.unwrap();
    store.commit(write("good", b"hay")).await.unwrap();
    drop(store);
    flip_a_bit_of(&dir.path().join("store.sqlite"), b"only needle");

    let store = open(dir.path(), &clock);
    let damaged = store.get("t", "bad").await;
    assert!(matches!(&damaged, Err(StoreError::Damaged(text)) if text.contains("t/bad")), "{damaged:?}");
    assert!(store.scan("t", Scan { prefix: "", after: None, limit: 9 }).await.is_err());
    assert_eq!(&store.get("t", "good").await.unwrap().unwrap().value[..], b"hay");
    store.commit(write("bad", b"mended")).await.unwrap();
    assert_eq!(&store.get("t", "bad").await.unwrap().unwrap().value[..], b"mended");
}

#[test]
fn files_of_newer_versions_and_of_others_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let refuse = |expected: &str| {
        let before = fs::read(&path).unwrap();
        let error = SqliteRecords::open(&path, ManualClock::at(0)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
        error
    };
    fs::write(&path, "this is no database, and long enough to be seen as none by its header").unwrap();
    assert!(matches!(refuse("store.sqlite"), StoreError::Damaged(_)));

    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert!(matches!(refuse("another program"), StoreError::Damaged(_)));

    fs::remove_file(&path).unwrap();
    drop(SqliteRecords::open(&path, ManualClock::at(0)).unwrap());
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let newer = refuse("schema version 99, this build knows versions up to 2");
    assert!(matches!(newer, StoreError::Unavailable(_)));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open_embedded(&file.join("data"), ManualClock::at(0), None).unwrap_err();
    assert!(error.to_string().contains("file/data"), "{error}");
}

#[tokio::test]
async fn the_embedded_store_is_private_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/b");
    let (records, blobs) = open_embedded(&data, ManualClock::at(0), Some(1000)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join("store.sqlite")), mode(&data.join("blobs"))), (0o700, 0o600, 0o700));
    let blob = put_blob(&blobs, Bytes::from_static(b"weights")).await.unwrap();
    records.commit(write("model", blob.digest.to_string().as_bytes())).await.unwrap();
    assert!(blobs.sync_stats().count >= 2, "the file and its folder");
    drop((records, blobs));

    let (records, blobs) = open_embedded(&data, ManualClock::at(0), Some(1000)).unwrap();
    let row = records.get("t", "model").await.unwrap().unwrap();
    let digest: Digest = std::str::from_utf8(&row.value).unwrap().parse().unwrap();
    assert_eq!(blobs.read(&digest).await.unwrap().unwrap(), "weights");
    assert_eq!(blobs.available().await.unwrap(), 993, "the quota counts what was there");
}

/// A blob store with one blob, and that blob's file.
async fn one_blob(dir: &Path) -> (FolderBlobs, Digest, PathBuf) {
    let blobs = FolderBlobs::open(dir, None).unwrap();
    let digest = put_blob(&blobs, Bytes::from_static(b"precious bytes")).await.unwrap().digest;
    let name = digest.to_string();
    let path = dir.join(&name[..2]).join(&name);
    assert!(path.is_file());
    (blobs, digest, path)
}

#[tokio::test]
async fn a_damaged_blob_is_an_error_until_it_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, digest, path) = one_blob(dir.path()).await;
    let damage: [&dyn Fn(); 4] = [
        &|| flip_a_bit_of(&path, b"precious"),
        &|| fs::write(&path, b"precious byte").unwrap(),
        &|| fs::write(&path, b"precious bytes and more").unwrap(),
        &|| fs::remove_file(&path).unwrap(),
    ];
    for harm in damage {
        harm();
        let read = blobs.read(&digest).await;
        assert!(matches!(&read, Err(StoreError::Damaged(text)) if text.contains(&digest.to_string())), "{read:?}");
        put_blob(&blobs, Bytes::from_static(b"precious bytes")).await.unwrap();
        assert_eq!(blobs.read(&digest).await.unwrap().unwrap(), "precious bytes");
    }
    fs::write(&path, b"short").unwrap();
    assert!(matches!(blobs.read_at(&digest, 0, 14).await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn opening_removes_drafts_and_leaves_strangers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, digest, path) = one_blob(dir.path()).await;
    drop(blobs);
    let draft = dir.path().join("tmp/123-4");
    let strangers = [dir.path().join("notes.txt"), path.with_file_name("readme"), path.with_extension("bak")];
    for file in strangers.iter().chain([&draft]) {
        fs::write(file, "x").unwrap();
    }
    let blobs = FolderBlobs::open(dir.path(), None).unwrap();
    assert!(!draft.exists());
    assert!(strangers.iter().all(|file| file.exists()));
    assert_eq!(blobs.list().await.unwrap(), [digest]);
}

#[tokio::test]
async fn a_dropped_writer_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = FolderBlobs::open(dir.path(), None).unwrap();
    let drafts = || fs::read_dir(dir.path().join("tmp")).unwrap().count();
    let mut writer = blobs.writer(1 << 20).await.unwrap();
    writer.write(Bytes::from(vec![1; 1 << 20])).await.unwrap();
    assert_eq!(drafts(), 1, "a large blob is on its way to the disk before it is finished");
    drop(writer);
    assert_eq!(drafts(), 0);
}

#[test]
fn a_cancelled_write_fails_its_writer_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let blobs = FolderBlobs::open(dir.path(), Some(16 << 20)).unwrap();
        let mut writer = blobs.writer(16 << 20).await.unwrap();
        let mut write = writer.write(Bytes::from(vec![1; 16 << 20]));
        let once = std::future::poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx).is_pending()));
        assert!(once.await, "a large write goes to the disk and takes its time");
        drop(write);
        let refused = writer.write(Bytes::from_static(b"more")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(writer.finish().await.is_err());
        assert_eq!(blobs.list().await.unwrap(), []);
    });
    drop(runtime); // waits for the file work that was under way
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn free_space_of_the_disk_bounds_a_store_without_quota() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = FolderBlobs::open(dir.path(), None).unwrap();
    let available = blobs.available().await.unwrap();
    assert!(available > 0, "the machine that runs this test must have room");
    let refused = blobs.writer(u64::MAX / 2).await.map(|_| ());
    assert!(matches!(refused, Err(StoreError::Full { needed, .. }) if needed == u64::MAX / 2), "{refused:?}");
}
