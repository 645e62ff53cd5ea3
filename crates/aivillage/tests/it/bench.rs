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
fn a_secure_round_is_measured_with_its_exact_sum() {
    let shape = ["secure", "--participants", "12", "--params", "20000", "--runs", "1"];
    let keys = [
        "cpu_s_total",
        "cpu_s_participant",
        "cpu_s_mask",
        "cpu_s_coordinator",
        "cpu_s_unmask",
        "upload_bytes_per_value",
        "mask_gb_per_s",
        "wall_ms",
        "rss_peak_kb",
    ];
    for (bits, bytes) in [("32", 4.0), ("24", 3.0), ("40", 5.0)] {
        let figures = bench(&[&shape[..], &["--bits", bits]].concat());
        assert_eq!(figures["sum_ok"], true, "{figures:#}");
        assert_eq!(
            (&figures["neighbours"], &figures["threshold"], &figures["survivors"]),
            (&11.into(), &7.into(), &11.into())
        );
        for key in keys {
            assert!(figures[key].as_f64().is_some_and(|f| f > 0.0), "{key}: {figures:#}");
        }
        let upload = figures["upload_bytes_per_value"].as_f64().unwrap();
        assert!(upload > bytes && upload < bytes + 1.0, "{upload}");
    }
    let sparse = bench(&[&shape[..], &["--neighbours", "8", "--dropout", "0"]].concat());
    assert_eq!((&sparse["neighbours"], &sparse["survivors"], &sparse["sum_ok"]), (&8.into(), &12.into(), &true.into()));
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
