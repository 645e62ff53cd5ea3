//! Every implementation under the suite of its port.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

thread_local! {
    /// One folder for all stores of a test: each test has its own thread, and the folder goes when it ends.
    static ROOT: TempDir = TempDir::with_prefix("storage-contract").unwrap();
}

fn fresh_dir() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let dir = ROOT.with(|root| root.path().join(name));
    std::fs::create_dir(&dir).unwrap();
    dir
}

mod memory_records {
    use std::sync::Arc;

    use aivillage_storage::MemoryRecords;

    aivillage_storage::records_contract!(|clock| Arc::new(MemoryRecords::new(clock)));
}

mod sqlite_records {
    use std::sync::Arc;

    use aivillage_storage::SqliteRecords;

    aivillage_storage::records_contract!(|clock| {
        Arc::new(SqliteRecords::open(&super::fresh_dir().join("store.sqlite"), clock).unwrap())
    });
}

mod memory_blobs {
    use std::sync::Arc;

    use aivillage_storage::MemoryBlobs;

    aivillage_storage::blobs_contract!(|quota: Option<u64>| {
        Arc::new(quota.map_or_else(MemoryBlobs::new, MemoryBlobs::with_quota))
    });
}

mod folder_blobs {
    use std::sync::Arc;

    use aivillage_storage::FolderBlobs;

    aivillage_storage::blobs_contract!(|quota: Option<u64>| {
        Arc::new(FolderBlobs::open(&super::fresh_dir(), quota).unwrap())
    });
}
