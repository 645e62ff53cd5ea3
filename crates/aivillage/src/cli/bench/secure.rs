//! `aivillage bench secure`: what a sum without its summands costs.
//!
//! Promise: every step of the protocol is taken by the machines that nodes and gateway use, with real keys, signatures and
//! packed bytes; the sum is compared with the plain one. No network, no JSON and no training is in the CPU time.

mod cohort;

use aivillage_base::time::{Clock as _, SystemClock};
use aivillage_base::wire::secure::{GraphKind, SecureTerms, Weighting, Withstands};
use aivillage_privacy::bench::{MaskBench, measure};
use aivillage_privacy::secagg::ring::Width;
use aivillage_training::secure::{FULL_GRAPH_MAX, graph};
use clap::Args;
use cohort::Cohort;
use serde_json::{Value, json};

use super::{median, memory_kb, rounded};
use crate::cli::out;
use crate::exit::{CliError, ExitCode};

/// Which round.
#[derive(Debug, Args)]
pub struct SecureArgs {
    /// Participants
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(3..=10_000))]
    participants: u32,
    /// Values of the model
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    params: u32,
    /// Neighbours of each participant [default: all others, or from 129 participants on as few as are safe]
    #[arg(long, value_name = "K")]
    neighbours: Option<u32>,
    /// Share of the participants that may work with a lying coordinator
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    corrupt: f64,
    /// Share of the participants that leaves between its shares and its input, and that the threshold withstands
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    dropout: f64,
    /// Bits of a masked value
    #[arg(long, default_value_t = 32, value_parser = bits)]
    bits: u32,
    /// Threads on which participants work; the coordinator uses one [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    threads: Option<u16>,
    /// Measured rounds; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    runs: u16,
    /// One JSON document on stdout
    ///
    /// cpu_s_participant: mean of all participants. cpu_s_mask: mean of the survivors, from the neighbours' keys to packed
    /// bytes. cpu_s_coordinator: with hashing and adding the inputs, and with cpu_s_unmask, from the shares to the sum.
    /// upload_bytes_per_value: all that a survivor sends, as the link sends it. mask_gb_per_s: streams for as many
    /// neighbours made and added on one thread, in wall time. CPU times are of threads, user and system.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a number from 0 to below 1 is expected".to_owned())?;
    if (0.0..1.0).contains(&share) { Ok(share) } else { Err("a number from 0 to below 1 is expected".to_owned()) }
}

fn bits(text: &str) -> Result<u32, String> {
    let found = Width::ALL.into_iter().map(Width::bits).find(|bits| bits.to_string() == text);
    found.ok_or_else(|| "16, 24, 32, 40, 48 or 64 is expected".to_owned())
}

/// What one round took.
struct Figures {
    cpu_s_participants: f64,
    cpu_s_coordinator: f64,
    cpu_s_masks: f64,
    cpu_s_unmask: f64,
    wall_ms: f64,
    survivors: u32,
    threshold: usize,
    neighbours: usize,
    /// Of all survivors.
    upload_bytes: u64,
}

pub(super) fn run(args: &SecureArgs) -> Result<(), CliError> {
    let document = figures(args)?;
    if args.json {
        out::document(&document);
        return Ok(());
    }
    let names = [
        "participants",
        "params",
        "neighbours",
        "threshold",
        "survivors",
        "cpu_s_total",
        "cpu_s_participant",
        "cpu_s_mask",
        "cpu_s_coordinator",
        "cpu_s_unmask",
        "upload_bytes_per_value",
        "wall_ms",
        "rss_peak_kb",
    ];
    out::line(&out::fields(&names.map(|name| (name, out::cell(&document[name])))));
    Ok(())
}

fn figures(args: &SecureArgs) -> Result<Value, CliError> {
    let clock = SystemClock::new();
    let width = Width::ALL.into_iter().find(|width| width.bits() == args.bits);
    let width = width.ok_or_else(|| CliError::new(ExitCode::Usage, "no such width"))?;
    let mut runs = Vec::new();
    for run in 0..args.runs {
        let started = clock.now().monotonic_ms;
        let mut figures = Cohort::new(args, width, u64::from(run)).and_then(Cohort::run)?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of one run")]
        let wall_ms = clock.now().monotonic_ms.saturating_sub(started) as f64;
        figures.wall_ms = wall_ms;
        runs.push(figures);
    }
    let of = |figure: &dyn Fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
    let Some(last) = runs.last() else { return Err(CliError::new(ExitCode::Usage, "no run")) };
    let (count, survivors) = (f64::from(args.participants), f64::from(last.survivors));
    #[expect(clippy::cast_precision_loss, reason = "bytes of one round, far below 2^52")]
    let upload = last.upload_bytes as f64 / survivors / f64::from(args.params);
    // Before the masks are measured for themselves.
    let rss_peak_kb = memory_kb(std::process::id(), "VmHWM");
    let masks = MaskBench { width, keys: last.neighbours + 1, slice: std::time::Duration::from_millis(100), slices: 5 };
    Ok(json!({
        "benchmark": "secure", "version": env!("CARGO_PKG_VERSION"),
        "participants": args.participants, "params": args.params, "bits": args.bits, "runs": args.runs,
        "corrupt": args.corrupt, "dropout": args.dropout, "threads": args.threads(),
        "neighbours": last.neighbours, "threshold": last.threshold, "survivors": last.survivors,
        "cpu_s_total": figure(of(&|f| f.cpu_s_participants + f.cpu_s_coordinator)),
        "cpu_s_participant": figure(of(&|f| f.cpu_s_participants / count)),
        "cpu_s_mask": figure(of(&|f| f.cpu_s_masks / survivors)),
        "cpu_s_coordinator": figure(of(&|f| f.cpu_s_coordinator)),
        "cpu_s_unmask": figure(of(&|f| f.cpu_s_unmask)),
        "upload_bytes_per_value": figure(upload),
        "mask_gb_per_s": rounded(measure(masks, &clock)),
        "wall_ms": rounded(of(&|f| f.wall_ms)), "rss_peak_kb": rss_peak_kb,
        // A round whose sum is another one has ended the benchmark.
        "sum_ok": true,
    }))
}

/// A figure to four digits after the point.
fn figure(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

impl SecureArgs {
    fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    fn terms(&self) -> SecureTerms {
        SecureTerms {
            version: 1,
            cohort_min: 3,
            cohort_max: self.participants,
            bits: self.bits,
            weighting: Weighting::Equal,
            examples_max: 1,
            graph: match self.neighbours {
                Some(_) => GraphKind::Drawn,
                None => graph(self.participants, FULL_GRAPH_MAX),
            },
            helper: None,
            withstands: Withstands {
                corrupt: self.corrupt,
                dropout: self.dropout,
                lying_coordinator: true,
                neighbours: self.neighbours,
            },
        }
    }
}
