//! Our aggregation against code that we did not write: Flower's strategies, and the papers' formulas in NumPy.
//!
//! `tests/oracle/prepare.py` makes a Python environment under the target folder (once; that needs a package index), the two
//! oracles draw random rounds and say what comes out, and the real aggregator makes the same rounds from stored updates.

#![expect(clippy::unwrap_used, reason = "a test's own helpers: what fails here fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aivillage_base::arch::{Recipe, TensorSpec};
use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::ports::{Blobs as _, Records, put_blob};
use aivillage_base::time::SystemClock;
use aivillage_base::wire::{BlobRef, LocalMetrics, LocalTraining, RoundKey, UpdateHeader};
use aivillage_base::{Architecture, JobId, NodeName, Task, bundle};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use aivillage_training::aggregate;
use aivillage_training::record::{Counted, StateSlot};
use aivillage_training::step::ComputePlan;
use aivillage_training::strategy;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Step 2^-23, range ±1: a change is 6e-8 from what Flower sees, at most.
const GRID: Grid = Grid { exponent: -23, bound: (1 << 23) - 1 };

/// Largest relative difference of a weight or of a value of the server's state.
const TOLERANCE: f64 = 1e-5;

/// Largest difference of how far a weight has moved from the start, relative to the farthest: sharper than the other where
/// a model moves little. The adaptive optimisers make eta / tau = 100 of half a step.
const MOVEMENT_TOLERANCE: f64 = 5e-5;

/// A weight nearer to zero has lost digits in the difference that led there: it is compared on this scale.
const SMALL: f64 = 0.1;

/// What a node says of its update.
#[derive(Debug, Deserialize)]
struct Declared {
    weight: u32,
    steps: u32,
    initial_loss: f64,
    staleness: u32,
}

/// A job of some rounds; see `tests/oracle/cases.py`.
#[derive(Debug, Deserialize)]
struct Case {
    oracle: String,
    strategy: String,
    config: Map<String, Value>,
    rounds: u32,
    planes: usize,
    nodes: usize,
    invited: u32,
    learning_rate: f64,
    momentum: f64,
    mu: f64,
    facts: Vec<Vec<Declared>>,
    state: bool,
}

/// Numbers of a case, read from front to back.
struct Numbers(Vec<u8>);

impl Numbers {
    fn take<const N: usize, T>(&mut self, count: usize, number: impl Fn([u8; N]) -> T) -> Vec<T> {
        let rest = self.0.split_off(count * N);
        let taken = std::mem::replace(&mut self.0, rest);
        taken.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
    }
}

/// Four tensors, 404 weights.
fn architecture() -> Architecture {
    Recipe::Mlp { hidden: vec![16] }.build(&[20], Task::Classification { classes: 4 }).unwrap()
}

/// Runs a program to its end and returns what it printed; what it says of a failure is ours.
#[track_caller]
fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    let complaint = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} ended with {}:\n{complaint}", done.status);
    String::from_utf8(done.stdout).unwrap()
}

/// What this oracle says, in a folder of its own.
fn asked(script: &str) -> (PathBuf, Vec<Case>) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = scratch.parent().unwrap();
    let python = output(Command::new("python3").arg(scripts.join("prepare.py")).arg(target));
    let folder = scratch.join(script);
    std::fs::create_dir_all(&folder).unwrap();
    let shape = |t: &TensorSpec| t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let shapes = architecture().layout().unwrap().iter().map(shape).collect::<Vec<_>>().join(",");
    output(Command::new(python.trim()).arg("-B").arg(scripts.join(script)).arg(&folder).arg(shapes));
    let cases = std::fs::read(folder.join("cases.json")).unwrap();
    (folder, serde_json::from_slice(&cases).unwrap())
}

/// A job's stores between rounds.
struct Job {
    records: Arc<dyn Records>,
    blobs: MemoryBlobs,
    model: BlobRef,
    state: Vec<StateSlot>,
}

impl Job {
    async fn new(model: &[f32]) -> Self {
        let blobs = MemoryBlobs::new();
        let model = put_blob(&blobs, bundle::write(&architecture(), model).unwrap().into()).await.unwrap();
        Self { records: Arc::new(MemoryRecords::new(Arc::new(SystemClock::new()))), blobs, model, state: Vec::new() }
    }

    /// One round from stored updates to the next model.
    async fn round(&mut self, case: &Case, round: u32, updates: &[f32]) {
        let asynchronous = case.strategy == "fedbuff";
        // Late enough that an update can be as old as it says.
        let number = if asynchronous { round + 10 } else { round };
        let key = RoundKey { job: JobId::new("job").unwrap(), round: number, attempt: 1 };
        let mut accepted = Vec::new();
        for (i, declared) in case.facts[round as usize - 1].iter().enumerate() {
            let length = updates.len() / case.nodes;
            let mut integers = Vec::new();
            let clipped = GRID.quantise(&updates[i * length..(i + 1) * length], &mut integers).unwrap();
            assert_eq!(clipped, 0);
            let payload = put_blob(&self.blobs, to_bytes(&integers).into()).await.unwrap();
            let header = UpdateHeader::new(key.clone(), payload, declared.weight, LocalMetrics::default());
            let counted = Counted {
                steps: declared.steps,
                initial_loss: Some(declared.initial_loss),
                base: asynchronous.then(|| number - declared.staleness),
                ..Counted::new(&header, false)
            };
            accepted.push((NodeName::new(format!("n{i:03}")).unwrap(), counted));
        }
        let plan = ComputePlan {
            opened: None,
            key,
            architecture: architecture(),
            model_in: self.model,
            state_in: self.state.clone(),
            grids: vec![GRID; architecture().layout().unwrap().len()],
            strategy: strategy::named(&case.strategy, &case.config).unwrap().strategy,
            training: LocalTraining {
                epochs: 1,
                batch_size: 32,
                learning_rate: case.learning_rate,
                momentum: case.momentum,
                weight_decay: 0.0,
                proximal_mu: case.mu,
            },
            personal: Vec::new(),
            invited: case.invited,
            examples_max: None,
            accepted,
        };
        let made = aggregate::run(&plan, self.records.as_ref(), &self.blobs).await.unwrap();
        (self.model, self.state) = (made.model, made.state);
    }

    async fn read(&self, blob: &BlobRef) -> Vec<f64> {
        let bytes = self.blobs.read(&blob.digest).await.unwrap().unwrap();
        bundle::read(&bytes).unwrap().1.into_iter().map(f64::from).collect()
    }
}

/// The largest of |ours - theirs| / scale.
fn difference(ours: &[f64], theirs: &[f64], scale: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    (0..ours.len()).map(|i| (ours[i] - theirs[i]).abs() / scale(i)).fold(0.0, f64::max)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, v| most.max(v.abs()))
}

/// Runs every case of an oracle and shows how far apart both are.
#[expect(clippy::print_stdout, reason = "figures for whoever runs it with --success-output")]
async fn agree(script: &str, strategies: &[&str]) {
    let (folder, cases) = asked(script);
    let parameters = architecture().parameters().unwrap();
    for name in strategies {
        assert!(cases.iter().any(|case| case.strategy == *name), "{script} has no case of {name}");
    }
    for (index, case) in cases.iter().enumerate() {
        let mut numbers = Numbers(std::fs::read(folder.join(format!("{index}.bin"))).unwrap());
        let start = numbers.take(parameters, f32::from_le_bytes);
        let length = case.nodes * case.planes * parameters;
        let updates: Vec<Vec<f32>> = (0..case.rounds).map(|_| numbers.take(length, f32::from_le_bytes)).collect();
        let mut job = Job::new(&start).await;
        for (round, updates) in (1..).zip(&updates) {
            job.round(case, round, updates).await;
            let (ours, theirs) = (job.read(&job.model).await, numbers.take(parameters, f64::from_le_bytes));
            let moved = theirs.iter().zip(&start).map(|(now, start)| now - f64::from(*start));
            let farthest = largest(&moved.collect::<Vec<_>>());
            let of_weights = difference(&ours, &theirs, |i| theirs[i].abs().max(SMALL));
            let of_movement = difference(&ours, &theirs, |_| farthest);
            let what = format!("{} {} {:?}, round {round}", case.oracle, case.strategy, case.config);
            println!("{what}: weights {of_weights:.1e}, movement {of_movement:.1e}");
            assert!(of_weights <= TOLERANCE, "{what}: weights differ by {of_weights:e}");
            assert!(of_movement <= MOVEMENT_TOLERANCE, "{what}: movements differ by {of_movement:e}");
            if case.state {
                let theirs = numbers.take(parameters, f64::from_le_bytes);
                let ours = job.read(&job.state[0].blob).await;
                let found = difference(&ours, &theirs, |_| largest(&theirs));
                assert!(found <= TOLERANCE, "{what}: state {found:e}");
            }
        }
        assert!(numbers.0.is_empty(), "case {index} holds more than was read");
    }
}

#[tokio::test]
async fn what_flower_makes_of_the_same_updates_is_what_we_make() {
    let shared = [
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "qfedavg",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "bulyan",
        "norm_clipping",
    ];
    agree("flwr_oracle.py", &shared).await;
}

#[tokio::test]
async fn what_the_papers_formulas_make_of_the_same_updates_is_what_we_make() {
    let ours = ["scaffold", "fednova", "fedbuff", "geometric_median", "centered_clipping", "norm_clipping", "ditto"];
    agree("numpy_oracle.py", &ours).await;
}
