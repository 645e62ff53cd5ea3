//! Benchmarks at a small size: what they claim about themselves holds; nothing is timed here.

use std::process::Command;

use serde_json::Value;

use crate::process::{aivillage, clean, say};

fn bench(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.current_dir(dir.path()).arg("bench").args(arguments).arg("--json");
    serde_json::from_str(&say(command).ok()).unwrap()
}

#[test]
fn the_measured_round_makes_the_model_that_aggregate_makes_of_the_same_updates() {
    let mut models = Vec::new();
    for strategy in ["fedavg", "fedadam", "scaffold", "qfedavg", "trimmed_mean", "bulyan", "centered_clipping"] {
        let arguments = ["aggregate", "--strategy", strategy, "--clients", "12", "--params", "5000", "--runs", "1"];
        let figures = bench(&[&arguments[..], &["--dir", "."]].concat());
        assert_eq!((&figures["clients"], &figures["strategy"]), (&12.into(), &strategy.into()));
        assert!(figures["blake3"].is_string(), "{figures:#}");
        assert_eq!(figures["blake3"], figures["aggregate_blake3"], "{figures:#}");
        for figure in ["gb_per_s", "pread_gb_per_s", "ratio", "wall_ms", "rss_peak_kb"] {
            assert!(figures[figure].as_f64().is_some_and(|f| f > 0.0), "{figure}: {figures:#}");
        }
        models.push(figures["blake3"].to_string());
    }
    models.sort();
    models.dedup();
    assert_eq!(models.len(), 7, "each strategy makes a model of its own");
}

#[test]
fn dishonest_nodes_spoil_the_mean_and_not_the_robust_rules() {
    let arguments = ["robust", "--dataset", "breast_cancer", "--deal", "even", "--seeds", "1", "--rounds", "15"];
    let attacks = ["--attack", "sign_flip", "--attack", "scaled", "--attack", "noise"];
    let strategies = ["--strategy", "fedavg", "--strategy", "geometric_median", "--strategy", "trimmed_mean"];
    let all = [&arguments[..], &attacks, &strategies].concat();
    let figures = bench(&all);
    let rows = figures["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3 * 4, "{figures:#}");
    for row in rows {
        assert!(row["clean"].as_f64().unwrap() > 0.85, "{row:#}");
        let robust = row["strategy"] != "fedavg";
        if robust || row["attack"] == "none" {
            assert_eq!(row["holds"], true, "{row:#}");
        } else if row["attack"] == "sign_flip" {
            assert_eq!(row["holds"], false, "{row:#}");
        }
    }
    assert_eq!(bench(&all)["rows"], figures["rows"], "the seed decides");
}

#[test]
fn pages_and_pictures_are_what_the_raw_results_give() {
    let mut command = clean(Command::new("python3"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/report.py")).arg("--check");
    say(command).ok();
}
