//! The worker with a counting uplink and an engine that the test can hold.

use super::*;
use std::sync::atomic::AtomicU64;

use aivillage_base::ports::{UplinkError, put_blob};
use aivillage_base::time::SystemClock;
use aivillage_base::wire::{UpdateHeader, UpdateReply};
use aivillage_base::{Digest, ModelId, RequestId};
use aivillage_storage::MemoryBlobs;
use async_trait::async_trait;
use bytes::Bytes;

/// Serves blobs, counts fetches, and fails while `down`.
#[derive(Debug)]
struct Source {
    blobs: MemoryBlobs,
    fetches: AtomicU64,
    down: AtomicUsize,
}

#[async_trait]
impl Uplink for Source {
    async fn send(&self, _message: &Up) -> Result<(), UplinkError> {
        Ok(())
    }
    async fn upload(&self, _header: &UpdateHeader, _payload: Bytes) -> Result<UpdateReply, UplinkError> {
        Err(UplinkError::Refused("no uploads here".into()))
    }
    async fn fetch(&self, blob: &BlobRef) -> Result<Bytes, UplinkError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if self.down.load(Ordering::SeqCst) > 0 {
            return Err(UplinkError::Unreachable("down".into()));
        }
        aivillage_base::ports::Blobs::read(&self.blobs, &blob.digest)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| UplinkError::Refused("no such blob".into()))
    }
}

/// Sums each row; `b"bad"` is no bundle; a row that starts with 13 panics, with 7 waits for the gate.
#[derive(Debug, Default)]
struct Summing {
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    open: std::sync::Mutex<bool>,
    changed: std::sync::Condvar,
    at_work: AtomicUsize,
    most: AtomicUsize,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let now = self.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        let bound = Duration::from_secs(10);
        let (_open, timeout) = self.changed.wait_timeout_while(open, bound, |open| !*open).unwrap();
        assert!(!timeout.timed_out(), "the test never opened the gate");
        self.at_work.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Predictor for Summing {
    fn load(&self, bundle: &[u8]) -> Result<Box<dyn LoadedModel>, PredictError> {
        if bundle == b"bad" {
            return Err(PredictError::Unfit("no bundle".into()));
        }
        Ok(Box::new(Self { gate: Arc::clone(&self.gate) }))
    }
}

impl LoadedModel for Summing {
    fn predict(&self, rows: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, PredictError> {
        let first = rows[0][0];
        assert!((first - 13.0).abs() > 0.1, "thirteen");
        if (first - 7.0).abs() < 0.1 {
            self.gate.pass();
        }
        Ok(rows.iter().map(|r| vec![r.iter().sum()]).collect())
    }
}

struct Bench {
    worker: Worker,
    source: Arc<Source>,
    gate: Arc<Gate>,
}

fn bench(config: WorkerConfig, cache_dir: Option<PathBuf>) -> Bench {
    let source = Arc::new(Source { blobs: MemoryBlobs::new(), fetches: AtomicU64::new(0), down: AtomicUsize::new(0) });
    let engine = Arc::new(Summing::default());
    let worker = Worker::new(WorkerDeps {
        uplink: Arc::<Source>::clone(&source),
        predictor: Arc::<Summing>::clone(&engine),
        cache_dir,
        clock: Arc::new(SystemClock::new()),
        config,
    });
    Bench { worker, source, gate: Arc::clone(&engine.gate) }
}

impl Bench {
    async fn model(&self, bytes: &'static [u8]) -> BlobRef {
        put_blob(&self.source.blobs, Bytes::from_static(bytes)).await.unwrap()
    }

    fn fetches(&self) -> u64 {
        self.source.fetches.load(Ordering::SeqCst)
    }
}

fn task(model: BlobRef, row: &[f32], deadline_ms: u64) -> PredictTask {
    PredictTask {
        request: RequestId::from_bits(1),
        attempt: 1,
        model_id: ModelId::new("m").unwrap(),
        model,
        rows: vec![row.to_vec()],
        deadline_ms,
    }
}

/// The first output value, or the reason and whether it is permanent.
fn answer(up: Up) -> Result<f32, (String, bool)> {
    match up {
        Up::Prediction { outcome: PredictOutcome::Done { outputs, .. }, .. } => Ok(outputs[0][0]),
        Up::Prediction { outcome: PredictOutcome::Failed { reason, permanent }, .. } => Err((reason, permanent)),
        Up::Report(_) | Up::Answer { .. } | Up::TrainingFailed { .. } | Up::Secure { .. } | Up::Leave => {
            unreachable!("only predictions")
        }
    }
}

#[tokio::test]
async fn a_model_is_fetched_once_however_many_ask() {
    let bench = bench(WorkerConfig::default(), None);
    let model = bench.model(b"model").await;
    let asks: Vec<_> = (0..20)
        .map(|i| {
            let worker = bench.worker.clone();
            tokio::spawn(async move { worker.handle(task(model, &[i as f32 + 20.0, 1.0], 10_000)).await })
        })
        .collect();
    for (i, ask) in asks.into_iter().enumerate() {
        assert_eq!(answer(ask.await.unwrap()), Ok(i as f32 + 21.0));
    }
    assert_eq!(bench.fetches(), 1);
}

#[tokio::test]
async fn a_failed_fetch_is_not_remembered_but_a_bad_bundle_is_permanent() {
    let bench = bench(WorkerConfig::default(), None);
    let model = bench.model(b"model").await;
    bench.source.down.store(1, Ordering::SeqCst);
    let (reason, permanent) = answer(bench.worker.handle(task(model, &[1.0], 10_000)).await).unwrap_err();
    assert!(reason.contains("could not be fetched") && !permanent, "{reason}");
    bench.source.down.store(0, Ordering::SeqCst);
    assert_eq!(answer(bench.worker.handle(task(model, &[1.0], 10_000)).await), Ok(1.0));
    let bad = bench.model(b"bad").await;
    assert_eq!(answer(bench.worker.handle(task(bad, &[1.0], 10_000)).await), Err(("no bundle".into(), true)));
}

#[tokio::test]
async fn the_folder_spares_a_fetch_and_damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let first = bench(WorkerConfig::default(), Some(cache.clone()));
    let model = first.model(b"model").await;
    assert!(first.worker.prefetch(model).await);
    let file = cache.join(model.digest.to_string());
    assert_eq!(std::fs::read(&file).unwrap(), b"model");

    let second = bench(WorkerConfig::default(), Some(cache.clone()));
    assert!(second.worker.prefetch(model).await);
    assert_eq!(second.fetches(), 0);

    std::fs::write(&file, b"modem").unwrap();
    let third = bench(WorkerConfig::default(), Some(cache));
    third.model(b"model").await;
    assert_eq!(answer(third.worker.handle(task(model, &[2.0], 10_000)).await), Ok(2.0));
    assert_eq!((third.fetches(), std::fs::read(&file).unwrap()), (1, b"model".to_vec()));
}

#[tokio::test]
async fn memory_and_folder_keep_to_their_bounds_oldest_use_out_first() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorkerConfig { memory_bytes: 10, disk_bytes: 10, ..WorkerConfig::default() };
    let bench = bench(config, Some(dir.path().to_owned()));
    std::fs::write(dir.path().join("notes.txt"), b"not ours").unwrap();
    let [a, b, c, large] = [
        bench.model(b"aaaaa").await,
        bench.model(b"bbbbb").await,
        bench.model(b"ccccc").await,
        bench.model(b"0123456789x").await,
    ];
    for model in [a, b, a, c] {
        assert!(bench.worker.prefetch(model).await);
    }
    assert_eq!(bench.fetches(), 3);
    assert!(bench.worker.prefetch(a).await && bench.worker.prefetch(c).await);
    assert_eq!(bench.fetches(), 3, "a and c are in memory, b is out");
    let files: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name().to_str().unwrap().parse::<Digest>().is_ok())
        .map(|e| e.metadata().unwrap().len())
        .sum();
    assert_eq!(files, 10);
    assert!(!bench.worker.prefetch(large).await, "larger than the memory: not fetched ahead");
    assert_eq!(answer(bench.worker.handle(task(large, &[3.0], 10_000)).await), Ok(3.0), "but used when asked for");
    assert!(dir.path().join("notes.txt").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_concurrency_compute_and_no_more_than_the_queue_wait() {
    let bench = bench(WorkerConfig { concurrency: 2, queue: 1, ..WorkerConfig::default() }, None);
    let model = bench.model(b"model").await;
    assert!(bench.worker.prefetch(model).await);
    let start = |row: f32| {
        let worker = bench.worker.clone();
        tokio::spawn(async move { answer(worker.handle(task(model, &[row], 10_000)).await) })
    };
    let held: Vec<_> = (0..3).map(|_| start(7.0)).collect();
    until(|| bench.worker.inner.inside.load(Ordering::SeqCst) == 3).await;
    until(|| bench.gate.at_work.load(Ordering::SeqCst) == 2).await;
    let (reason, permanent) = start(1.0).await.unwrap().unwrap_err();
    assert!(reason.contains("3 requests are here already") && !permanent);
    bench.gate.open();
    for ask in held {
        assert_eq!(ask.await.unwrap(), Ok(7.0));
    }
    assert_eq!(bench.gate.most.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_answers_though_the_engine_still_computes_and_a_panic_is_an_answer() {
    let bench = bench(WorkerConfig { concurrency: 1, ..WorkerConfig::default() }, None);
    let model = bench.model(b"model").await;
    assert!(bench.worker.prefetch(model).await);
    let late = answer(bench.worker.handle(task(model, &[7.0], 30)).await).unwrap_err();
    assert_eq!(late, ("not done within 30 ms".to_owned(), false));
    let waiting = answer(bench.worker.handle(task(model, &[1.0], 30)).await).unwrap_err();
    assert!(!waiting.1, "the turn belongs to the computation that is still running");
    bench.gate.open();
    assert_eq!(answer(bench.worker.handle(task(model, &[1.0], 10_000)).await), Ok(1.0));
    let panicked = answer(bench.worker.handle(task(model, &[13.0], 10_000)).await).unwrap_err();
    assert!(panicked.0.contains("panicked"));
    assert_eq!(answer(bench.worker.handle(task(model, &[1.0], 10_000)).await), Ok(1.0));
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the state is reached in 10 s");
}
