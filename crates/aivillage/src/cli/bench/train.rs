//! `aivillage bench train`: local training, samples a second.

use aivillage_base::time::SystemClock;
use aivillage_engine::{TrainBench, bench_recipes, bench_train};
use clap::Args;
use serde_json::json;

use crate::cli::out;
use crate::exit::{CliError, ExitCode};

/// How to measure training.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Measured slices of 500 ms a recipe; the median counts
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    slices: u16,
    /// Also with each sample's gradient clipped (half of differential privacy), slice by slice in turn
    #[arg(long)]
    per_sample_clipping: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &TrainArgs) -> Result<(), CliError> {
    let clock = SystemClock::new();
    let mut figures = Vec::new();
    let bench = TrainBench { slice_ms: 500, slices: usize::from(args.slices), clipping: args.per_sample_clipping };
    for recipe in bench_recipes() {
        let speed = bench_train(&recipe, bench, &clock);
        figures.push(speed.map_err(|e| CliError::new(ExitCode::Bug, e.to_string()))?);
    }
    let document =
        json!({ "benchmark": "train", "threads": 1, "version": env!("CARGO_PKG_VERSION"), "recipes": figures });
    let row = |f: &aivillage_engine::TrainSpeed| {
        let clipped = f.clipped_samples_per_s.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}"));
        let speed = format!("{:.0}", f.samples_per_s);
        vec![f.recipe.clone(), f.parameters.to_string(), f.batch.to_string(), speed, clipped]
    };
    let rows = figures.iter().map(row).collect();
    out::listing(args.json, &document, &["RECIPE", "VALUES", "BATCH", "SAMPLES/S", "CLIPPED"], rows, "");
    Ok(())
}
