//! `aivillage bench aggregate`: from stored updates to the new model, beside the bandwidth of reading the same files.
//!
//! Promise: what is timed is the function that closes a round of a gateway, over a gateway's blob store, new model and its
//! wait for the disk included; every update is a buffer of its own. The model is the one that `aivillage aggregate` makes of
//! the same updates as files, which is checked after the measurement.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aivillage_base::arch::{Architecture, LayerSpec};
use aivillage_base::fixed::Grid;
use aivillage_base::ports::{BlobReader, Blobs, StoreError, put_blob};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::{Clock as _, SystemClock};
use aivillage_base::wire::{BlobRef, LocalTraining, RoundKey, UpdateHeader};
use aivillage_base::{Digest, JobId, NodeName, Task, bundle};
use aivillage_engine::initial_values;
use aivillage_storage::{FolderBlobs, MemoryRecords};
use aivillage_training::aggregate::{Options, run_with};
use aivillage_training::record::Counted;
use aivillage_training::step::ComputePlan;
use aivillage_training::strategy;
use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Scratch, median, rounded};
use crate::cli::{aggregate, out};
use crate::exit::{CliError, ExitCode};
use crate::offline::plan::Declared;
use crate::offline::updates::{Content, SECOND};
use crate::offline::{Files, Round, begin_tensors, recompute, strategy_fault};

/// Which round.
#[derive(Debug, Args)]
pub struct AggregateArgs {
    /// Strategy, as jobs name it
    #[arg(long, value_name = "NAME", default_value = "fedavg")]
    strategy: String,
    /// A setting of the strategy; may be repeated [default: beta 0.1, byzantine a tenth of the clients]
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Updates
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Values of the model
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(2..=200_000_000))]
    params: u32,
    /// Measured runs; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    runs: u16,
    /// Folder for the updates; a new one in it is made and removed [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave out the comparison with `aivillage aggregate`, which writes all updates once more
    #[arg(long)]
    no_check: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// A measured run lasts at least so long, by repetition: the clock shows milliseconds.
const RUN_MS: u64 = 250;
/// Bytes of one read: as aggregation reads.
const READ: usize = 64 * 1024;
/// Largest width of a layer.
const WIDTH_MAX: usize = 1 << 20;

pub(super) async fn run(args: &AggregateArgs) -> Result<(), CliError> {
    let scratch = Scratch::new(args.dir.as_deref(), "aggregate")?;
    let document = measure(args, &scratch.0).await?;
    if args.json {
        out::document(&document);
    } else {
        let names = ["strategy", "clients", "params", "median_ms", "wall_ms", "fsync_ms", "gb_per_s", "pread_gb_per_s"];
        let more = ["ratio", "rss_peak_kb", "blake3", "aggregate_blake3"];
        let pairs: Vec<_> = names.iter().chain(&more).map(|n| (*n, out::cell(&document[*n]))).collect();
        out::line(&out::fields(&pairs));
    }
    Ok(())
}

/// A closed round in a blob store.
struct Closed {
    plan: ComputePlan,
    blobs: FolderBlobs,
    records: MemoryRecords,
    options: Options,
}

/// Lets this process have as many files open as the system allows: the bandwidth of reading is measured on files that are
/// open already. Aggregation itself keeps to a bound of its own.
fn open_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused the usual limit stands, and too many clients are an error with the system's words.
    let _raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

async fn measure(args: &AggregateArgs, dir: &Path) -> Result<Value, CliError> {
    open_many_files();
    let closed = closed(args, dir).await.map_err(failed)?;
    let clock = SystemClock::new();
    let readers = closed.readers()?;
    let bytes = readers.iter().map(|(_, length)| *length).sum::<u64>();
    // One run to warm up: caches, and the number of repetitions.
    let started = clock.now().monotonic_ms;
    let first = closed.close().await?;
    let once = clock.now().monotonic_ms.saturating_sub(started).max(1);
    let repeat = RUN_MS.div_ceil(once).clamp(1, 1_000);
    let (mut walls, mut preads) = (Vec::new(), Vec::new());
    let syncs = closed.blobs.sync_stats();
    for _ in 0..args.runs {
        preads.push(timed(&clock, repeat, || read_all(&readers))?);
        let started = clock.now().monotonic_ms;
        for _ in 0..repeat {
            let again = closed.close().await?;
            if again != first {
                return Err(CliError::new(ExitCode::Bug, "two runs over the same updates made different models"));
            }
        }
        walls.push(per(clock.now().monotonic_ms.saturating_sub(started), repeat));
    }
    let spent = closed.blobs.sync_stats();
    let closes = f64::from(args.runs) * per(repeat, 1);
    let fsync_ms = per(spent.total_us - syncs.total_us, 1_000) / closes;
    let wall = median(walls.clone());
    let pread = median(preads);
    let checked = if args.no_check { None } else { Some(check(&closed, dir)?) };
    if checked.is_some_and(|digest| digest != first.digest) {
        return Err(CliError::new(
            ExitCode::Bug,
            format!("`aggregate` made another model than the round: {checked:?}"),
        ));
    }
    let gb = |ms: f64| per(bytes, 1_000_000) / ms;
    let config = serde_json::to_value(&closed.plan.strategy).unwrap_or_default();
    Ok(json!({
        "benchmark": "aggregate", "version": env!("CARGO_PKG_VERSION"),
        "strategy": closed.plan.strategy.name(), "settings": config["config"],
        "clients": args.clients, "params": bytes / 4 / u64::from(args.clients), "runs": args.runs,
        "wall_ms": rounded(wall), "median_ms": rounded((wall - fsync_ms).max(0.0)), "fsync_ms": rounded(fsync_ms),
        "fsyncs": rounded(per(spent.count - syncs.count, 1) / closes),
        "wall_ms_runs": walls.iter().map(|w| rounded(*w)).collect::<Vec<_>>(),
        "gb_per_s": figure(gb(wall)), "gb_per_s_net": figure(gb((wall - fsync_ms).max(f64::MIN_POSITIVE))),
        "pread_gb_per_s": figure(gb(pread)), "ratio": figure(pread / wall),
        "ratio_net": figure(pread / (wall - fsync_ms).max(f64::MIN_POSITIVE)),
        "rss_peak_kb": super::memory_kb(std::process::id(), "VmHWM"), "blake3": first.digest, "aggregate_blake3": checked,
    }))
}

fn failed(why: String) -> CliError {
    CliError::new(ExitCode::Failed, why)
}

/// A figure to four digits after the point.
fn figure(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn per(count: u64, of: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "figures with a few digits")]
    let ratio = count as f64 / of as f64;
    ratio
}

/// Milliseconds of one `work`, repeated.
fn timed(clock: &SystemClock, repeat: u64, work: impl Fn() -> Result<(), StoreError>) -> Result<f64, CliError> {
    let started = clock.now().monotonic_ms;
    for _ in 0..repeat {
        work().map_err(|e| failed(e.to_string()))?;
    }
    Ok(per(clock.now().monotonic_ms.saturating_sub(started).max(1), repeat))
}

/// An opened update, and its length.
type Opened = (Arc<dyn BlobReader>, u64);

/// Reads all updates on all cores, and does nothing with them.
fn read_all(readers: &[Opened]) -> Result<(), StoreError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(readers.len());
    std::thread::scope(|scope| {
        let one = |thread: usize| {
            move || {
                let mut buffer = vec![0; READ];
                for (reader, length) in readers.iter().skip(thread).step_by(threads) {
                    let mut offset = 0;
                    while offset < *length {
                        let len = usize::try_from(length - offset).map_or(READ, |left| left.min(READ));
                        reader.read_at(offset, &mut buffer[..len])?;
                        std::hint::black_box(&buffer);
                        offset += len as u64;
                    }
                }
                Ok(())
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(one(thread))).collect();
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(StoreError::Unavailable("a reading thread died".to_owned())))
        })
    })
}

impl Closed {
    /// Closes the round; the model is left in the store, where the next run writes the same bytes again.
    async fn close(&self) -> Result<BlobRef, CliError> {
        let made = run_with(&self.plan, &self.records, &self.blobs, &self.options).await;
        let made = made.map_err(|e| failed(format!("{}: {e:?}", self.plan.strategy.name())))?;
        for blob in std::iter::once(made.model).chain(made.state.iter().map(|s| s.blob)) {
            self.blobs.delete(&blob.digest).await.map_err(|e| failed(e.to_string()))?;
        }
        Ok(made.model)
    }

    fn readers(&self) -> Result<Vec<Opened>, CliError> {
        let open = |counted: &Counted| {
            let reader = self.blobs.open(&counted.payload.digest).map_err(|e| failed(e.to_string()))?;
            let reader = reader.ok_or_else(|| failed("an update is gone".to_owned()))?;
            Ok((reader, counted.payload.bytes))
        };
        self.plan.accepted.iter().map(|(_, counted)| open(counted)).collect()
    }
}

/// A model of about `params` values: exactly as many up to 2^20.
fn architecture(params: usize) -> Architecture {
    let (input, layers) = if params <= WIDTH_MAX {
        (params - 1, vec![LayerSpec::Dense { units: 1 }])
    } else {
        let units = params.div_ceil(WIDTH_MAX);
        (((params - 1) / units).saturating_sub(2), vec![LayerSpec::Dense { units }, LayerSpec::Dense { units: 1 }])
    };
    Architecture { input: vec![input], layers, task: Task::Regression }
}

/// Random integers as an update carries them: 21 bits and a sign.
fn integers(values: usize, client: u32) -> Bytes {
    let mut rng = SeededRng::new("updates of a bench", 1, &[&client.to_le_bytes()]);
    let mut bytes = Vec::with_capacity(values * 4 + 4);
    while bytes.len() < values * 4 {
        let two = rng.next_u64().to_le_bytes();
        for four in two.as_chunks::<4>().0 {
            bytes.extend_from_slice(&(i32::from_le_bytes(*four) >> 11).to_le_bytes());
        }
    }
    bytes.truncate(values * 4);
    bytes.into()
}

fn settings(args: &AggregateArgs) -> Result<Map<String, Value>, CliError> {
    let mut map = aggregate::settings(&args.set)?;
    let (key, value) = match args.strategy.as_str() {
        "trimmed_mean" => ("beta", json!(0.1)),
        "krum" | "multi_krum" | "bulyan" => ("byzantine", json!(args.clients / 10)),
        _ => return Ok(map),
    };
    map.entry(key).or_insert(value);
    Ok(map)
}

/// Stores a model and `clients` updates.
async fn closed(args: &AggregateArgs, dir: &Path) -> Result<Closed, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let map = settings(args).map_err(|e| e.message)?;
    let strategy = strategy::named(&args.strategy, &map).map_err(|fault| strategy_fault(&fault).message)?.strategy;
    let architecture = architecture(args.params as usize);
    let layout = architecture.layout().map_err(|e| text(&e))?;
    let values = initial_values(&architecture, 1).map_err(|e| text(&e))?;
    let blobs = FolderBlobs::open(&dir.join("blobs"), None).map_err(|e| text(&e))?;
    let length = values.len() * strategy.rule().planes();
    let bundle = bundle::write(&architecture, &values).map_err(|e| text(&e))?;
    drop(values);
    let model_in = put_blob(&blobs, bundle.into()).await.map_err(|e| text(&e))?;
    let key = RoundKey { job: JobId::new("bench").map_err(|e| text(&e))?, round: 1, attempt: 1 };
    let mut accepted = Vec::new();
    for client in 0..args.clients {
        let payload = put_blob(&blobs, integers(length, client)).await.map_err(|e| text(&e))?;
        let mut header = UpdateHeader::new(key.clone(), payload, 1 + client % 100, Default::default());
        (header.steps, header.initial_loss) = (1 + client % 7, Some(1.0));
        let name = NodeName::new(format!("client-{client:06}")).map_err(|e| text(&e))?;
        accepted.push((name, Counted::new(&header, false)));
    }
    let training = LocalTraining {
        epochs: 1,
        batch_size: 32,
        learning_rate: 0.1,
        momentum: 0.0,
        weight_decay: 0.0,
        proximal_mu: 0.0,
    };
    let trusted = accepted.iter().map(|(_, c)| c.payload.digest).chain([model_in.digest]).collect();
    let plan = ComputePlan {
        key,
        grids: vec![Grid::default(); layout.len()],
        architecture,
        model_in,
        state_in: Vec::new(),
        strategy,
        training,
        personal: Vec::new(),
        invited: args.clients,
        examples_max: None,
        opened: None,
        accepted,
    };
    let records = MemoryRecords::new(Arc::new(SystemClock::new()));
    // This process has hashed and stored them, as a gateway has when it takes updates in.
    Ok(Closed { plan, blobs, records, options: Options { trusted, ..Options::default() } })
}

/// The digest that `aivillage aggregate` finds for the same updates as files of differences.
fn check(closed: &Closed, dir: &Path) -> Result<Digest, CliError> {
    let folder = dir.join("updates");
    std::fs::create_dir_all(&folder).map_err(|e| failed(e.to_string()))?;
    let model = dir.join("model.safetensors");
    let plan = &closed.plan;
    copy(closed, &plan.model_in, &mut begin(&model)?)?;
    let layout = plan.architecture.layout().map_err(|e| failed(e.to_string()))?;
    let fronts = ["", SECOND];
    let planes = fronts.iter().take(plan.strategy.rule().planes());
    let tensors: Vec<_> =
        planes.flat_map(|front| layout.iter().map(move |t| (format!("{front}{}", t.name), t.shape.clone()))).collect();
    let step = Grid::default().step();
    for (name, counted) in &plan.accepted {
        let mut file = begin_tensors(&folder.join(format!("{name}.safetensors")), &tensors)?;
        closed.each_piece(&counted.payload, |piece| {
            #[expect(clippy::cast_possible_truncation, reason = "24 bits times a power of two fit an f32")]
            let float = |q: &[u8; 4]| (f64::from(i32::from_le_bytes(*q)) * step) as f32;
            let floats: Vec<u8> = piece.as_chunks::<4>().0.iter().flat_map(|q| float(q).to_le_bytes()).collect();
            file.write(&floats).map_err(CliError::from)
        })?;
        file.finish()?;
    }
    let round = Round {
        strategy: plan.strategy.clone(),
        training: plan.training.clone(),
        round: Some(1),
        invited: plan.invited,
        examples_max: plan.examples_max,
        participants: plan.accepted.iter().map(|(n, c)| (n.to_string(), Declared::of(c, 1))).collect(),
        personal: Vec::new(),
        grids: Some(layout.iter().map(|t| t.name.clone()).zip(plan.grids.iter().copied()).collect()),
        recorded: None,
    };
    let output = dir.join("made.safetensors");
    let files = Files { model, updates: folder, content: Content::Differences, state: None, state_out: None, output };
    Ok(recompute(&round, &files)?.model.digest)
}

fn begin(path: &Path) -> Result<std::fs::File, CliError> {
    std::fs::File::create(path).map_err(|e| failed(format!("cannot write {}: {e}", path.display())))
}

fn copy(closed: &Closed, blob: &BlobRef, file: &mut std::fs::File) -> Result<(), CliError> {
    use std::io::Write as _;
    closed.each_piece(blob, |piece| file.write_all(piece).map_err(|e| failed(e.to_string())))
}

impl Closed {
    /// A blob in pieces of whole values.
    fn each_piece(&self, blob: &BlobRef, mut take: impl FnMut(&[u8]) -> Result<(), CliError>) -> Result<(), CliError> {
        let reader = self.blobs.open(&blob.digest).map_err(|e| failed(e.to_string()))?;
        let reader = reader.ok_or_else(|| failed("a blob is gone".to_owned()))?;
        let mut buffer = vec![0; 16 * READ];
        let mut offset = 0;
        while offset < blob.bytes {
            let len = usize::try_from(blob.bytes - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
            reader.read_at(offset, &mut buffer[..len]).map_err(|e| failed(e.to_string()))?;
            take(&buffer[..len])?;
            offset += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_size_that_is_asked_for_or_nearly() {
        for params in [2, 1_000, 1_000_000, 1 << 20] {
            assert_eq!(architecture(params).parameters().unwrap(), params);
        }
        for params in [2_000_000, 10_000_000, 200_000_000] {
            let found = architecture(params).parameters().unwrap();
            assert!(found <= params && params - found < 1_000, "{found} of {params}");
        }
    }

    #[test]
    fn integers_are_distinct_and_within_21_bits() {
        let (a, b) = (integers(1_001, 1), integers(1_001, 2));
        assert_eq!(a.len(), 4_004);
        assert_ne!(a, b);
        assert!(a.as_chunks::<4>().0.iter().all(|q| i32::from_le_bytes(*q).abs() <= 1 << 20));
    }
}
