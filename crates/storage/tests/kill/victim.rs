//! The victim of the kill -9 test: commits records and blobs from several tasks for ever, and prints each key on its
//! own line once the store has acknowledged it. With `too-early` it prints before it commits: the twin that shows that
//! the test would notice.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use aivillage_base::ports::{Batch, Blobs, Records, put_blob};
use aivillage_base::time::SystemClock;
use aivillage_storage::open_embedded;
use bytes::Bytes;
use tokio::task::JoinSet;

const TASKS: u64 = 8;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("first argument: the data folder"));
    let life = args.next().expect("second argument: a prefix of the keys");
    let too_early = args.next().is_some_and(|word| word == "too-early");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (records, blobs) = open_embedded(&dir, Arc::new(SystemClock::new()), None).expect("the store opens");
    let (records, blobs): (Arc<dyn Records>, Arc<dyn Blobs>) = (Arc::new(records), Arc::new(blobs));
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            tasks.spawn(work(Arc::clone(&records), Arc::clone(&blobs), format!("{life}/{task}"), too_early));
        }
        tasks.join_all().await;
    });
}

async fn work(records: Arc<dyn Records>, blobs: Arc<dyn Blobs>, name: String, too_early: bool) {
    for n in 0_u64.. {
        let key = format!("{name}/{n}");
        if too_early {
            say(&key);
        }
        let blob = put_blob(&*blobs, Bytes::from(key.repeat(100))).await.expect("a blob is stored");
        // Two rows in one batch: the test checks that they come and go together.
        let mut batch = Batch::new("victim");
        batch.put("first", key.as_str(), &blob);
        batch.put("second", key.as_str(), &n);
        records.commit(batch).await.expect("a batch is committed");
        if !too_early {
            say(&key);
        }
        // The current-thread runtime must get around to all tasks.
        tokio::task::yield_now().await;
    }
}

fn say(key: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{key}").and_then(|()| out.flush()).expect("the test reads what we say");
}
