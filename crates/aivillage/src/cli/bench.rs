//! `aivillage bench`: figures of this version on this machine, one file a benchmark.
//!
//! Promise: the measured case is what the help says, and one JSON document holds every figure. What others reach in the
//! same run is `bench/`'s business.

mod aggregate;
mod ingest;
mod robust;
mod round;
mod secure;
mod train;
mod updates;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::exit::{CliError, ExitCode};

/// Measure this version on this machine
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// From stored updates to the new model, beside the bandwidth of reading the same files
    Aggregate(aggregate::AggregateArgs),
    /// Rounds of real processes that send updates without training
    Round(round::RoundArgs),
    /// Updates over the node link into durable blobs
    Ingest(ingest::IngestArgs),
    /// The coordinator's part of a round with many small updates
    Updates(updates::UpdatesArgs),
    /// Accuracy of each strategy when some nodes are not honest, on real data
    Robust(robust::RobustArgs),
    /// A round of secure aggregation with all its participants: CPU time of each side
    Secure(secure::SecureArgs),
    /// Local training: samples a second on one thread
    Train(train::TrainArgs),
}

pub(super) async fn run(command: BenchCommand) -> Result<(), CliError> {
    match command {
        BenchCommand::Aggregate(args) => aggregate::run(&args).await,
        BenchCommand::Round(args) => round::run(&args).await,
        BenchCommand::Ingest(args) => ingest::run(&args).await,
        BenchCommand::Updates(args) => updates::run(&args).await,
        BenchCommand::Robust(args) => robust::run(&args),
        BenchCommand::Secure(args) => secure::run(&args),
        BenchCommand::Train(args) => train::run(&args),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A new folder for the files of one measurement, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    /// In `parent`, or where the system keeps temporary files.
    fn new(parent: Option<&Path>, what: &str) -> Result<Self, CliError> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let dir = parent.join(format!("aivillage-bench-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)
            .map_err(|e| CliError::new(ExitCode::Failed, format!("cannot create {}: {e}", dir.display())))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed in a folder for temporary files is the system's to remove.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

/// Resident memory of a process in kB: `VmRSS` now, `VmHWM` at its peak.
fn memory_kb(pid: u32, which: &str) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(which)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of a process or thread from its `stat`: two fields behind its name in brackets.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn cpu_s(path: &Path) -> std::io::Result<f64> {
    let text = std::fs::read_to_string(path)?;
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_ones() {
        assert!((median(vec![4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
        assert!((median(vec![9.0, 1.0, 3.0]) - 3.0).abs() < 1e-9);
        for which in ["VmRSS", "VmHWM"] {
            assert!(memory_kb(std::process::id(), which).is_some_and(|kb| kb > 1_000));
        }
    }
}
