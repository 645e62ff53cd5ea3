//! Training speed of this machine, one thread: `cargo run --release -p aivillage-engine --example speed`.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use aivillage_base::time::SystemClock;
use aivillage_engine::{TrainBench, bench_recipes, bench_train};

const BENCH: TrainBench = TrainBench { slice_ms: 500, slices: 7, clipping: true };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for recipe in bench_recipes() {
        let speed = bench_train(&recipe, BENCH, &SystemClock::new())?;
        println!(
            "{}: {:.0} samples/s, {:.0} with each sample's gradient clipped ({} parameters, batch {})",
            speed.recipe,
            speed.samples_per_s,
            speed.clipped_samples_per_s.unwrap_or_default(),
            speed.parameters,
            speed.batch
        );
    }
    Ok(())
}
