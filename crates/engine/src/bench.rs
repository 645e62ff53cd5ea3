//! How fast this machine trains: the figure behind `aivillage bench train`.

use aivillage_base::arch::{ArchError, Recipe, Task};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::Clock;
use aivillage_base::wire::LocalTraining;
use serde::Serialize;

use crate::data::{Batch, Dataset};
use crate::initial::initial_values;
use crate::network::Network;
use crate::pull::Pull;
use crate::sgd::Sgd;
use crate::train::step;

/// Rows a step.
const BATCH: u32 = 32;
/// Rows to draw batches from: more than a processor's cache holds of 784-pixel images.
const ROWS: usize = 8192;

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
}

/// The two models whose speed is compared: `mlp` 784-128-10 and `simple_cnn` on 28 x 28 pixels, 10 classes.
#[must_use]
pub fn bench_recipes() -> [Recipe; 2] {
    [Recipe::Mlp { hidden: vec![128] }, Recipe::SimpleCnn]
}

/// Trains `recipe` on random 28 x 28 images, one thread, batch 32, plain SGD: one slice of `slice_ms` to warm up, then
/// `slices`, of which the median counts.
///
/// # Errors
/// If the recipe does not fit images with 10 classes.
pub fn bench_train(recipe: &Recipe, slice_ms: u64, slices: usize, clock: &dyn Clock) -> Result<TrainSpeed, ArchError> {
    let architecture = recipe.build(&[784], Task::Classification { classes: 10 })?;
    let network = Network::new(&architecture)?;
    let mut values = initial_values(&architecture, 1)?;
    let mut gradient = vec![0.0; values.len()];
    let training =
        LocalTraining { epochs: 1, batch_size: BATCH, learning_rate: 0.01, momentum: 0.0, weight_decay: 0.0, proximal_mu: 0.0 };
    let mut optimiser = Sgd::new(&training, values.len());
    let mut work = network.workspace(BATCH as usize);
    let data = images();
    let mut order: Vec<usize> = (0..data.rows()).collect();
    let mut rng = SeededRng::new("batch order", 1, &[]);
    let mut batch = Batch::new();
    let mut speeds = Vec::with_capacity(slices);
    for slice in 0..=slices.max(1) {
        let started = clock.now().monotonic_ms;
        let mut rows = 0;
        let elapsed = loop {
            rng.shuffle(&mut order);
            // An eighth of the rows between two looks at the clock keeps a slice of a slow machine short.
            for chunk in order[..ROWS / 8].chunks(BATCH as usize) {
                batch.gather(&data, chunk);
                step(&network, &mut values, &mut gradient, &batch, &mut work, &mut optimiser, Pull::default());
                rows += chunk.len();
            }
            let elapsed = clock.now().monotonic_ms.saturating_sub(started);
            if elapsed >= slice_ms.max(1) {
                break elapsed;
            }
        };
        if slice > 0 {
            speeds.push(
                crate::loss::as_f64(rows) * 1000.0
                    / crate::loss::as_f64(usize::try_from(elapsed).unwrap_or(usize::MAX)),
            );
        }
    }
    speeds.sort_by(f64::total_cmp);
    Ok(TrainSpeed {
        recipe: recipe.name().to_owned(),
        parameters: values.len(),
        batch: BATCH,
        samples_per_s: speeds[speeds.len() / 2],
    })
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
    let operations = crate::loss::as_f64(2 * SIDE * SIDE * SIDE * tries);
    operations / (crate::loss::as_f64(usize::try_from(elapsed).unwrap_or(usize::MAX)) * 1e6)
}
