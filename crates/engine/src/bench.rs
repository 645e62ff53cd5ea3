//! How fast this machine trains: the figure behind `aivillage bench train`.

use aivillage_base::arch::{ArchError, Recipe, Task};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::Clock;
use aivillage_base::wire::LocalTraining;
use serde::Serialize;

use crate::data::{Batch, Dataset};
use crate::initial::initial_values;
use crate::loss::as_f64;
use crate::network::{Network, Workspace};
use crate::pull::Pull;
use crate::sgd::Sgd;
use crate::train::step;

/// Rows a step.
const BATCH: u32 = 32;
/// Rows to draw batches from: more than a processor's cache holds of 784-pixel images.
const ROWS: usize = 8192;

/// Bound of a row's gradient where clipping is measured: any bound costs the same.
const CLIP: f64 = 1.0;

/// A measured training speed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSpeed {
    /// Recipe, e.g. `mlp`.
    pub recipe: String,
    /// Number of trained values.
    pub parameters: usize,
    /// Rows a step.
    pub batch: u32,
    /// Median over the measured slices of rows trained a second, on one thread.
    pub samples_per_s: f64,
    /// The same with each row's gradient clipped, if that was asked for; its slices lie between the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clipped_samples_per_s: Option<f64>,
}

/// The two models whose speed is compared: `mlp` 784-128-10 and `simple_cnn` on 28 x 28 pixels, 10 classes.
#[must_use]
pub fn bench_recipes() -> [Recipe; 2] {
    [Recipe::Mlp { hidden: vec![128] }, Recipe::SimpleCnn]
}

/// How long to measure, and what.
#[derive(Debug, Clone, Copy)]
pub struct TrainBench {
    /// Length of a slice in milliseconds, at least 1.
    pub slice_ms: u64,
    /// Slices of which the median counts, at least 1.
    pub slices: usize,
    /// Per-sample clipping too?
    pub clipping: bool,
}

/// Trains `recipe` on random 28 x 28 images, one thread, batch 32, plain SGD: one slice to warm up, then those that count.
///
/// # Errors
/// If the recipe does not fit images with 10 classes; or clipping is asked for, and it mixes the rows of a batch.
pub fn bench_train(recipe: &Recipe, bench: TrainBench, clock: &dyn Clock) -> Result<TrainSpeed, ArchError> {
    if bench.clipping {
        recipe.examples_apart()?;
    }
    let mut runner = Runner::new(recipe)?;
    let (mut plain, mut clipped) = (Vec::new(), Vec::new());
    for slice in 0..=bench.slices.max(1) {
        let speed = runner.slice(bench.slice_ms, None, clock);
        let speed_clipped = bench.clipping.then(|| runner.slice(bench.slice_ms, Some(CLIP), clock));
        if slice > 0 {
            plain.push(speed);
            clipped.extend(speed_clipped);
        }
    }
    Ok(TrainSpeed {
        recipe: recipe.name().to_owned(),
        parameters: runner.values.len(),
        batch: BATCH,
        samples_per_s: median(plain),
        clipped_samples_per_s: bench.clipping.then(|| median(clipped)),
    })
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

/// A training that goes on from slice to slice.
struct Runner {
    network: Network,
    values: Vec<f32>,
    gradient: Vec<f32>,
    optimiser: Sgd,
    work: Workspace<f32>,
    data: Dataset,
    order: Vec<usize>,
    rng: SeededRng,
    batch: Batch,
}

impl Runner {
    fn new(recipe: &Recipe) -> Result<Self, ArchError> {
        let architecture = recipe.build(&[784], Task::Classification { classes: 10 })?;
        let network = Network::new(&architecture)?;
        let values = initial_values(&architecture, 1)?;
        let training = LocalTraining {
            epochs: 1,
            batch_size: BATCH,
            learning_rate: 0.01,
            momentum: 0.0,
            weight_decay: 0.0,
            proximal_mu: 0.0,
        };
        let data = images();
        Ok(Self {
            gradient: vec![0.0; values.len()],
            optimiser: Sgd::new(&training, values.len()),
            work: network.workspace(BATCH as usize),
            order: (0..data.rows()).collect(),
            rng: SeededRng::new("batch order", 1, &[]),
            batch: Batch::new(),
            network,
            values,
            data,
        })
    }

    /// Trains for a while; returns rows a second.
    fn slice(&mut self, slice_ms: u64, clip: Option<f64>, clock: &dyn Clock) -> f64 {
        let started = clock.now().monotonic_ms;
        let mut rows = 0;
        loop {
            self.rng.shuffle(&mut self.order);
            // An eighth of the rows between two looks at the clock keeps a slice of a slow machine short.
            for chunk in self.order[..ROWS / 8].chunks(BATCH as usize) {
                self.batch.gather(&self.data, chunk);
                step(
                    &self.network,
                    &mut self.values,
                    &mut self.gradient,
                    &self.batch,
                    &mut self.work,
                    &mut self.optimiser,
                    Pull::default(),
                    clip,
                );
                rows += chunk.len();
            }
            let elapsed = clock.now().monotonic_ms.saturating_sub(started);
            if elapsed >= slice_ms.max(1) {
                return as_f64(rows) * 1000.0 / as_f64(usize::try_from(elapsed).unwrap_or(usize::MAX));
            }
        }
    }
}

/// Random images with random labels.
fn images() -> Dataset {
    let mut rng = SeededRng::new("benchmark images", 1, &[]);
    #[expect(clippy::cast_possible_truncation, reason = "pixels are f32")]
    let x = (0..ROWS * 784).map(|_| rng.unit() as f32).collect();
    let labels = (0..ROWS).map(|_| u32::try_from(rng.below(10)).unwrap_or(0)).collect();
    Dataset::classification("random images", vec![784], 10, x, labels).expect("invariant: lengths and labels fit")
}

/// Speed of f32 matrix products on one thread, in 10^9 operations a second, measured for `time`.
#[must_use]
pub fn gflops(time: std::time::Duration, clock: &dyn Clock) -> f64 {
    const SIDE: usize = 192;
    let left = ndarray::Array2::<f32>::from_elem((SIDE, SIDE), 0.5);
    let mut product = ndarray::Array2::<f32>::zeros((SIDE, SIDE));
    let started = clock.now().monotonic_ms;
    let limit = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut tries = 0;
    let elapsed = loop {
        for _ in 0..4 {
            ndarray::linalg::general_mat_mul(1.0, &left, &left, 0.0, &mut product);
        }
        tries += 4;
        let elapsed = clock.now().monotonic_ms.saturating_sub(started);
        if elapsed >= limit.max(1) {
            break elapsed;
        }
    };
    let operations = as_f64(2 * SIDE * SIDE * SIDE * tries);
    operations / (as_f64(usize::try_from(elapsed).unwrap_or(usize::MAX)) * 1e6)
}
