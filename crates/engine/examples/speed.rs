//! Training speed of this machine, one thread: `cargo run --release -p aivillage-engine --example speed`.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use aivillage_base::time::SystemClock;
use aivillage_engine::{bench_recipes, bench_train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for recipe in bench_recipes() {
        let speed = bench_train(&recipe, 500, 7, &SystemClock::new())?;
        println!(
            "{}: {:.0} samples/s ({} parameters, batch {})",
            speed.recipe, speed.samples_per_s, speed.parameters, speed.batch
        );
    }
    Ok(())
}
