//! What every [`Blobs`] store must do; the list of [`aivillage_base::ports::Blobs`] as functions.

use std::sync::Arc;

use aivillage_base::Digest;
use aivillage_base::ports::{Blobs, StoreError, put_blob};
use aivillage_base::rng::SeededRng;
use bytes::Bytes;

/// Opens a fresh, empty store with a quota in bytes.
pub type Make<'a> = &'a (dyn Fn(Option<u64>) -> Arc<dyn Blobs> + Sync);

/// `len` bytes that no compression or zero page could fake.
fn noise(len: usize, seed: u64) -> Bytes {
    let mut rng = SeededRng::new("blob contract", seed, &[]);
    (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(len).collect()
}

async fn read(store: &dyn Blobs, digest: &Digest) -> Option<Bytes> {
    store.read(digest).await.expect("a read must work")
}

/// Blobs of all sizes come back whole, under the hash of their bytes.
pub async fn a_blob_is_read_back_under_its_hash(make: Make<'_>) {
    let store = make(None);
    for (seed, len) in [0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 3_000_000].into_iter().enumerate() {
        let bytes = noise(len, seed as u64);
        let blob = put_blob(&*store, bytes.clone()).await.expect("stored");
        assert_eq!((blob.digest, blob.bytes), (Digest::of(&bytes), len as u64));
        assert_eq!(store.len(&blob.digest).await.expect("works"), Some(len as u64));
        assert_eq!(read(&*store, &blob.digest).await, Some(bytes));
    }
    let absent = Digest::of(b"nobody wrote this");
    assert_eq!(read(&*store, &absent).await, None);
    assert_eq!(store.len(&absent).await.expect("works"), None);
}

/// It does not matter in which pieces the bytes come.
pub async fn pieces_make_the_same_blob(make: Make<'_>) {
    let store = make(None);
    let bytes = noise(1_000_003, 7);
    for piece in [9_999, 65_536, 400_000] {
        let mut writer = store.writer(bytes.len() as u64).await.expect("room");
        let mut came = 0;
        for chunk in bytes.chunks(piece) {
            writer.write(bytes.slice_ref(chunk)).await.expect("written");
            came += chunk.len();
            let so_far = writer.written().expect("nothing failed");
            assert_eq!((so_far.digest, so_far.bytes), (Digest::of(&bytes[..came]), came as u64));
        }
        let blob = writer.finish().await.expect("finished");
        assert_eq!(blob.digest, Digest::of(&bytes));
    }
    assert_eq!(store.list().await.expect("works").len(), 1);
}

/// More or fewer bytes than announced are fine while there is room.
pub async fn the_announced_size_is_only_an_estimate(make: Make<'_>) {
    let store = make(Some(1_000_000));
    for announced in [0, 10, 900_000] {
        let bytes = noise(300_000, announced);
        let mut writer = store.writer(announced).await.expect("room");
        writer.write(bytes.clone()).await.expect("written");
        let blob = writer.finish().await.expect("finished");
        assert_eq!(read(&*store, &blob.digest).await, Some(bytes));
        store.delete(&blob.digest).await.expect("deleted");
    }
    assert_eq!(store.available().await.expect("works"), 1_000_000);
}

/// The same bytes twice, even at once, are one blob and are counted once.
pub async fn writing_twice_is_one_blob(make: Make<'_>) {
    let store = make(Some(10_000));
    let bytes = noise(3000, 1);
    let (a, b) = put_twice_at_once(&store, &bytes).await;
    assert_eq!(a, b);
    put_blob(&*store, bytes.clone()).await.expect("again");
    assert_eq!(store.list().await.expect("works"), [a]);
    assert_eq!(store.available().await.expect("works"), 7000);
    assert_eq!(read(&*store, &a).await, Some(bytes));
}

async fn put_twice_at_once(store: &Arc<dyn Blobs>, bytes: &Bytes) -> (Digest, Digest) {
    let mut both = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (store, bytes) = (Arc::clone(store), bytes.clone());
        both.spawn(async move { put_blob(&*store, bytes).await.expect("stored").digest });
    }
    let digests = both.join_all().await;
    (digests[0], digests[1])
}

/// A writer that is dropped leaves no blob and gives its room back; an unfinished one is not visible.
pub async fn a_dropped_writer_leaves_nothing(make: Make<'_>) {
    let store = make(Some(2_000_000));
    for len in [10, 1_000_000] {
        let bytes = noise(len, 3);
        let mut writer = store.writer(len as u64).await.expect("room");
        writer.write(bytes.clone()).await.expect("written");
        assert_eq!(read(&*store, &Digest::of(&bytes)).await, None, "not visible before it is finished");
        assert_eq!(store.available().await.expect("works"), 2_000_000 - len as u64, "its room is taken");
        drop(writer);
        assert_eq!(read(&*store, &Digest::of(&bytes)).await, None);
        assert_eq!(store.available().await.expect("works"), 2_000_000);
    }
    assert_eq!(store.list().await.expect("works"), []);
}

/// What does not fit is refused with the sizes, before or while it is written, and leaves nothing.
pub async fn a_full_quota_refuses_with_the_sizes(make: Make<'_>) {
    let store = make(Some(1000));
    let first = put_blob(&*store, noise(600, 1)).await.expect("fits");
    let refused = store.writer(401).await.map(|_| ());
    assert!(matches!(refused, Err(StoreError::Full { needed: 401, available: 400 })), "{refused:?}");

    let held = store.writer(300).await.expect("fits");
    assert_eq!(store.available().await.expect("works"), 100, "room promised to a writer is not promised twice");
    assert!(store.writer(101).await.is_err());
    drop(held);

    let mut liar = store.writer(10).await.expect("fits");
    let refused = liar.write(noise(500, 2)).await;
    assert!(matches!(refused, Err(StoreError::Full { available: 390, .. })), "{refused:?}");
    assert!(liar.write(noise(1, 2)).await.is_err(), "a writer that has failed stays failed");
    assert!(liar.finish().await.is_err());

    assert_eq!(store.list().await.expect("works"), [first.digest]);
    assert_eq!(store.available().await.expect("works"), 400);
    store.delete(&first.digest).await.expect("deleted");
    put_blob(&*store, noise(1000, 3)).await.expect("fits now");
}

/// Blocks come from anywhere in the blob; fewer bytes only at its end.
pub async fn blocks_are_read_at_offsets(make: Make<'_>) {
    let store = make(None);
    let bytes = noise(100_000, 9);
    let blob = put_blob(&*store, bytes.clone()).await.expect("stored").digest;
    for (offset, len, expected) in [(0, 10, 0..10), (12_345, 50_000, 12_345..62_345), (99_990, 100, 99_990..100_000)] {
        let block = store.read_at(&blob, offset, len).await.expect("read");
        assert_eq!(block, bytes[expected]);
    }
    for offset in [100_000, 100_001, u64::MAX] {
        assert!(store.read_at(&blob, offset, 5).await.expect("read").is_empty());
    }
    assert!(store.read_at(&blob, 0, 0).await.expect("read").is_empty());
    assert_eq!(store.read_at(&blob, 1, usize::MAX).await.expect("read").len(), 99_999);
    let absent = store.read_at(&Digest::of(b"absent"), 0, 1).await;
    assert!(matches!(absent, Err(StoreError::Damaged(_))), "{absent:?}");
}

/// An opened blob fills buffers from anywhere, on any thread, and says when it ends too early; deletion does not end it.
pub async fn an_opened_blob_is_read_in_place(make: Make<'_>) {
    let store = make(None);
    let bytes = noise(100_000, 11);
    let blob = put_blob(&*store, bytes.clone()).await.expect("stored").digest;
    let reader = store.open(&blob).expect("works").expect("there");
    store.delete(&blob).await.expect("deleted");
    std::thread::scope(|scope| {
        for start in [0, 1, 12_345, 99_990] {
            let (reader, bytes) = (&reader, &bytes);
            scope.spawn(move || {
                let mut out = [0; 10];
                reader.read_at(start as u64, &mut out).expect("read");
                assert_eq!(out, bytes[start..start + 10]);
            });
        }
    });
    reader.read_at(100_000, &mut []).expect("nothing asked, nothing missing");
    for offset in [99_991, 100_000, u64::from(u32::MAX)] {
        let cut = reader.read_at(offset, &mut [0; 10]);
        assert!(matches!(cut, Err(StoreError::Damaged(_))), "{cut:?}");
    }
    assert!(store.open(&blob).expect("works").is_none(), "a deleted blob cannot be opened");
}

/// A deleted blob is gone, can be deleted again and written again; the list is in order.
pub async fn deleted_blobs_are_forgotten(make: Make<'_>) {
    let store = make(None);
    let mut digests = Vec::new();
    for seed in 0..5 {
        digests.push(put_blob(&*store, noise(100, seed)).await.expect("stored").digest);
    }
    let gone = digests.remove(2);
    store.delete(&gone).await.expect("deleted");
    store.delete(&gone).await.expect("absent is fine");
    digests.sort();
    assert_eq!(store.list().await.expect("works"), digests);
    assert_eq!(read(&*store, &gone).await, None);
    put_blob(&*store, noise(100, 2)).await.expect("stored again");
    assert!(read(&*store, &gone).await.is_some());
}

/// The suite as tests of the calling module.
#[macro_export]
macro_rules! blobs_contract {
    ($make:expr) => {
        $crate::blobs_contract!(@ $make;
            a_blob_is_read_back_under_its_hash
            pieces_make_the_same_blob
            the_announced_size_is_only_an_estimate
            writing_twice_is_one_blob
            a_dropped_writer_leaves_nothing
            a_full_quota_refuses_with_the_sizes
            blocks_are_read_at_offsets
            an_opened_blob_is_read_in_place
            deleted_blobs_are_forgotten
        );
    };
    (@ $make:expr; $($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            $crate::contract::blobs::$name(&$make).await;
        })*
    };
}
