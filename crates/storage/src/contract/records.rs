//! What every [`Records`] store must do; the list of [`aivillage_base::ports::Records`] as functions.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Batch, Expect, Fence, Records, Scan, StoreError, Write};

use super::ManualClock;

/// Opens a fresh, empty store whose leases follow the given clock.
pub type Make<'a> = &'a (dyn Fn(Arc<ManualClock>) -> Arc<dyn Records> + Sync);

/// A table of the suite.
const T: &str = "contract";
const START_MS: u64 = 1_700_000_000_000;
const TTL: Duration = Duration::from_secs(10);

fn fresh(make: Make<'_>) -> (Arc<dyn Records>, Arc<ManualClock>) {
    let clock = ManualClock::at(START_MS);
    (make(Arc::clone(&clock)), clock)
}

fn put(key: &str, value: &str, expect: Expect) -> Write {
    Write { table: T, key: key.to_owned(), expect, value: Some(value.as_bytes().to_vec()) }
}

fn delete(key: &str, expect: Expect) -> Write {
    Write { table: T, key: key.to_owned(), expect, value: None }
}

fn batch(writes: Vec<Write>) -> Batch {
    Batch { writes, ..Batch::new("contract") }
}

async fn ok(store: &dyn Records, writes: Vec<Write>) {
    store.commit(batch(writes)).await.expect("this batch must be accepted");
}

async fn conflict(store: &dyn Records, writes: Vec<Write>, on: &str) {
    let refused = store.commit(batch(writes)).await;
    assert!(matches!(&refused, Err(StoreError::Conflict { table: T, key }) if key == on), "{refused:?}");
}

/// Value and version of a key.
async fn look(store: &dyn Records, key: &str) -> Option<(String, u64)> {
    let row = store.get(T, key).await.expect("a lookup must work")?;
    assert_eq!(row.key, key);
    Some((String::from_utf8_lossy(&row.value).into_owned(), row.version))
}

async fn keys(store: &dyn Records, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let rows = store.scan(T, Scan { prefix, after, limit }).await.expect("a scan must work");
    rows.into_iter().map(|row| row.key).collect()
}

fn some(value: &str, version: u64) -> Option<(String, u64)> {
    Some((value.to_owned(), version))
}

/// A commit is read back, and tables do not see each other's keys.
pub async fn what_is_committed_is_read_back(make: Make<'_>) {
    let (store, _) = fresh(make);
    assert_eq!(look(&*store, "a").await, None);
    let mut batch = batch(vec![put("a", "one", Expect::Any), put("b", "", Expect::Any)]);
    batch.put("other", "a", &7);
    store.commit(batch).await.expect("accepted");
    assert_eq!(look(&*store, "a").await, some("one", 1));
    assert_eq!(look(&*store, "b").await, some("", 1), "an empty value is a value");
    let other = store.get("other", "a").await.expect("read").expect("present");
    assert_eq!(&other.value[..], b"7");
    store.commit(Batch::new("nothing")).await.expect("an empty batch is fine");
}

/// Versions count writes from 1 and start again after a deletion.
pub async fn versions_count_writes_from_one(make: Make<'_>) {
    let (store, _) = fresh(make);
    for version in 1..=3 {
        ok(&*store, vec![put("a", "x", Expect::Any)]).await;
        assert_eq!(look(&*store, "a").await, some("x", version));
    }
    ok(&*store, vec![delete("a", Expect::Version(3)), delete("never", Expect::Any)]).await;
    assert_eq!(look(&*store, "a").await, None);
    ok(&*store, vec![put("a", "again", Expect::Absent)]).await;
    assert_eq!(look(&*store, "a").await, some("again", 1));
}

/// Each precondition admits exactly the state it names.
pub async fn preconditions_hold_or_the_batch_is_refused(make: Make<'_>) {
    let (store, _) = fresh(make);
    conflict(&*store, vec![put("a", "x", Expect::Version(1))], "a").await;
    conflict(&*store, vec![delete("a", Expect::Version(1))], "a").await;
    ok(&*store, vec![delete("a", Expect::Absent)]).await;
    ok(&*store, vec![put("a", "one", Expect::Absent)]).await;
    conflict(&*store, vec![put("a", "x", Expect::Absent)], "a").await;
    conflict(&*store, vec![put("a", "x", Expect::Version(2))], "a").await;
    conflict(&*store, vec![put("a", "x", Expect::Version(0))], "a").await;
    ok(&*store, vec![put("a", "two", Expect::Version(1))]).await;
    assert_eq!(look(&*store, "a").await, some("two", 2));
}

/// One refused write takes the whole batch back, whatever came before it.
pub async fn a_refused_batch_leaves_nothing(make: Make<'_>) {
    let (store, _) = fresh(make);
    ok(&*store, vec![put("kept", "old", Expect::Any), put("gone", "old", Expect::Any)]).await;
    let writes = vec![
        put("new", "x", Expect::Any),
        put("kept", "x", Expect::Any),
        put("kept", "y", Expect::Any),
        delete("gone", Expect::Any),
        put("kept", "z", Expect::Version(9)),
        put("after", "x", Expect::Any),
    ];
    conflict(&*store, writes, "kept").await;
    assert_eq!(look(&*store, "kept").await, some("old", 1));
    assert_eq!(look(&*store, "gone").await, some("old", 1));
    assert_eq!(keys(&*store, "", None, 10).await, ["gone", "kept"]);
}

/// Writes of a batch are applied in order; each precondition sees the writes before it.
pub async fn writes_of_a_batch_see_those_before_them(make: Make<'_>) {
    let (store, _) = fresh(make);
    let writes = vec![
        put("a", "one", Expect::Absent),
        put("a", "two", Expect::Version(1)),
        delete("a", Expect::Version(2)),
        put("a", "three", Expect::Absent),
    ];
    ok(&*store, writes).await;
    assert_eq!(look(&*store, "a").await, some("three", 1));
}

/// Scans list keys by their bytes, within a prefix, page by page.
pub async fn scans_are_ordered_bounded_and_paged(make: Make<'_>) {
    let (store, _) = fresh(make);
    let names = ["b/2", "a/10", "a/1", "a0", "a", "b/1", "é", "Z", "a/2"];
    ok(&*store, names.iter().map(|key| put(key, key, Expect::Any)).collect()).await;
    let all = keys(&*store, "", None, 100).await;
    assert_eq!(all, ["Z", "a", "a/1", "a/10", "a/2", "a0", "b/1", "b/2", "é"]);
    assert_eq!(keys(&*store, "a/", None, 100).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(keys(&*store, "a/", None, 2).await, ["a/1", "a/10"]);
    assert_eq!(keys(&*store, "a/", Some("a/10"), 2).await, ["a/2"]);
    assert_eq!(keys(&*store, "a/", Some("a/2"), 2).await, [""; 0]);
    assert_eq!(keys(&*store, "a/", Some("Z"), 1).await, ["a/1"], "an earlier `after` changes nothing");
    assert_eq!(keys(&*store, "a/", Some("b"), 9).await, [""; 0]);
    assert_eq!(keys(&*store, "a/", Some("a/15"), 9).await, ["a/2"], "`after` need not exist");
    assert_eq!(keys(&*store, "", None, 0).await, [""; 0]);
    assert_eq!(keys(&*store, "c", None, 9).await, [""; 0]);
    assert_eq!(keys(&*store, "", Some("é"), usize::MAX).await, [""; 0]);
    let rows = store.scan(T, Scan { prefix: "b/", after: None, limit: 1 }).await.expect("scan");
    assert_eq!((&rows[0].value[..], rows[0].version), (&b"b/1"[..], 1));
}

/// Of writers that saw the same version, one wins.
pub async fn one_of_many_racing_writers_wins(make: Make<'_>) {
    let (store, _) = fresh(make);
    ok(&*store, vec![put("a", "start", Expect::Absent)]).await;
    let mut racers = tokio::task::JoinSet::new();
    for n in 0..16 {
        let store = Arc::clone(&store);
        let writes = vec![put(&format!("own/{n}"), "x", Expect::Any), put("a", &n.to_string(), Expect::Version(1))];
        racers.spawn(async move { store.commit(batch(writes)).await.is_ok() });
    }
    let won = racers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
    let (winner, version) = look(&*store, "a").await.expect("present");
    assert_eq!(version, 2);
    assert_eq!(keys(&*store, "own/", None, 99).await, [format!("own/{winner}")], "the losers left nothing");
}

/// A lease is one holder's until it expires, by the store's clock.
pub async fn a_lease_has_one_holder_until_it_expires(make: Make<'_>) {
    let (store, clock) = fresh(make);
    let acquire = async |holder: &str| store.acquire("job", holder, TTL).await.expect("the store works");
    assert_eq!(acquire("a").await, Some(1));
    assert_eq!(acquire("b").await, None);
    assert_eq!(store.acquire("other", "b", TTL).await.expect("works"), Some(1), "leases do not know each other");
    clock.advance(TTL - Duration::from_millis(1));
    assert_eq!(acquire("b").await, None);
    assert_eq!(acquire("a").await, Some(1), "renewed in time: same epoch");
    clock.advance(TTL - Duration::from_millis(1));
    assert_eq!(acquire("b").await, None, "the renewal counts from when it was made");
    clock.advance(Duration::from_millis(1));
    assert_eq!(acquire("b").await, Some(2), "expired: the next holder has a larger epoch");
    assert_eq!(acquire("a").await, None);
    clock.advance(TTL);
    assert_eq!(acquire("b").await, Some(3), "too late to renew: a new tenure");
}

/// A released lease is free at once; only its holder can release it; epochs go on.
pub async fn a_released_lease_is_free_and_its_epoch_is_never_reused(make: Make<'_>) {
    let (store, _) = fresh(make);
    store.release("job", "a").await.expect("releasing what was never taken is fine");
    assert_eq!(store.acquire("job", "a", TTL).await.expect("works"), Some(1));
    store.release("job", "b").await.expect("not b's to give, and no error");
    assert_eq!(store.acquire("job", "b", TTL).await.expect("works"), None);
    store.release("job", "a").await.expect("released");
    assert_eq!(store.acquire("job", "a", TTL).await.expect("works"), Some(2));
    store.release("job", "a").await.expect("released");
    assert_eq!(store.acquire("job", "b", TTL).await.expect("works"), Some(3));
}

/// Setting the wall clock back neither frees a lease nor lengthens it.
pub async fn the_stores_clock_never_goes_back(make: Make<'_>) {
    let (store, clock) = fresh(make);
    assert_eq!(store.acquire("job", "a", TTL).await.expect("works"), Some(1));
    clock.set_wall(START_MS - 3_600_000);
    assert_eq!(store.acquire("job", "b", TTL).await.expect("works"), None);
    clock.advance(TTL);
    assert_eq!(store.acquire("job", "b", TTL).await.expect("works"), Some(2), "time has passed all the same");
}

/// A fenced batch is written in its tenure only.
pub async fn a_fence_admits_only_the_current_epoch(make: Make<'_>) {
    let (store, clock) = fresh(make);
    let try_epoch = async |epoch: u64| {
        let fence = Some(Fence { lease: "job".to_owned(), epoch });
        store.commit(Batch { fence, ..batch(vec![put("k", &epoch.to_string(), Expect::Any)]) }).await
    };
    let fenced = |result: Result<(), StoreError>, presented: u64| {
        let right =
            matches!(&result, Err(StoreError::Fenced { lease, epoch }) if lease == "job" && *epoch == presented);
        assert!(right, "{result:?}");
    };
    fenced(try_epoch(0).await, 0);
    fenced(try_epoch(1).await, 1);
    assert_eq!(store.acquire("job", "a", TTL).await.expect("works"), Some(1));
    try_epoch(1).await.expect("held");
    fenced(try_epoch(2).await, 2);
    clock.advance(TTL * 2);
    try_epoch(1).await.expect("expired, but nobody else has taken it: still the only actor");
    assert_eq!(store.acquire("job", "b", TTL).await.expect("works"), Some(2));
    fenced(try_epoch(1).await, 1);
    try_epoch(2).await.expect("held");
    store.release("job", "b").await.expect("released");
    fenced(try_epoch(2).await, 2);
    assert_eq!(look(&*store, "k").await, some("2", 3), "three admitted writes, none of the refused");
}

/// The suite as tests of the calling module.
#[macro_export]
macro_rules! records_contract {
    ($make:expr) => {
        $crate::records_contract!(@ $make;
            what_is_committed_is_read_back
            versions_count_writes_from_one
            preconditions_hold_or_the_batch_is_refused
            a_refused_batch_leaves_nothing
            writes_of_a_batch_see_those_before_them
            scans_are_ordered_bounded_and_paged
            one_of_many_racing_writers_wins
            a_lease_has_one_holder_until_it_expires
            a_released_lease_is_free_and_its_epoch_is_never_reused
            the_stores_clock_never_goes_back
            a_fence_admits_only_the_current_epoch
        );
    };
    (@ $make:expr; $($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            $crate::contract::records::$name(&$make).await;
        })*
    };
}
