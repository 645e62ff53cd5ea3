//! The pure parts of the demonstration: folders, the document, the report. Its processes are tested end to end.

use super::*;
use crate::demo::serve::Example;

fn setting(dataset: DatasetName) -> Setting {
    let args = DemoArgs { dataset, nodes: 3, rounds: 4, seed: 7, chaos: false, plain: false, keep: false, json: true };
    let recipe = Recipe::of(dataset);
    let split = split(recipe.data, 3, ALPHA, 7).unwrap();
    let architecture = recipe.architecture(&split.test).unwrap();
    Setting { args, recipe, architecture, split, dir: PathBuf::from("run") }
}

fn outcome(setting: &Setting) -> Outcome {
    let comparison = compare::run(setting).unwrap();
    let example = Example { row: 0, prediction: 1, label: 0, probability: 0.5, node: "node-1".into() };
    let served = Served { accuracy: 0.5, rows: 2, examples: vec![example], nodes: vec!["node-1".into()] };
    let run = Run {
        model_id: "demo".into(),
        blake3: "ab".repeat(32),
        model: bytes::Bytes::new(),
        accuracy: 0.75,
        curve: vec![(1, 0.4), (2, 0.6), (4, 0.75)],
        bytes: 1_000,
    };
    Outcome { run, comparison, served, chaos: None, seconds: 1.5 }
}

#[test]
fn two_runs_in_one_second_get_folders_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let made = || run_folder(dir.path(), 7, 1_700_000_000_000).unwrap().file_name().unwrap().to_owned();
    assert_eq!([made(), made(), made()], ["20231114T221320-7", "20231114T221320-7-2", "20231114T221320-7-3"]);
}

#[test]
fn everybody_is_compared_after_every_round_and_the_last_epoch_counts() {
    let setting = setting(DatasetName::BreastCancer);
    let comparison = compare::run(&setting).unwrap();
    assert_eq!(comparison.alone.len(), 3);
    assert!(comparison.alone.iter().chain([&comparison.central]).all(|curve| curve.len() == 4));
    assert_eq!(comparison.best_alone().1, comparison.alone_last().into_iter().fold(0.0, f64::max));
}

#[test]
fn the_document_has_the_promised_members() {
    let setting = setting(DatasetName::Digits);
    let mut outcome = outcome(&setting);
    let shown = document(&setting, &outcome, Path::new("report.html"));
    let members = [
        "seconds",
        "rounds",
        "nodes",
        "local_accuracy",
        "best_local_accuracy",
        "federated_accuracy",
        "central_accuracy",
        "model_blake3",
        "predictions",
    ];
    assert!(members.iter().all(|m| !shown[*m].is_null()), "{shown}");
    let kills = vec![Kill { process: "gateway".into(), pid: 1, step: "before:3 x".into() }];
    let disturbed = Run { blake3: "cd".repeat(32), ..outcome_run(&setting) };
    outcome.chaos = Some((disturbed, kills));
    let shown = document(&setting, &outcome, Path::new("report.html"));
    assert_eq!(shown["undisturbed_model_blake3"], "ab".repeat(32));
    assert_eq!(shown["model_blake3"], "cd".repeat(32));
    assert_eq!(shown["kills"][0]["process"], "gateway");
}

fn outcome_run(setting: &Setting) -> Run {
    outcome(setting).run
}

#[test]
fn the_report_fetches_nothing_and_has_a_curve_for_everybody() {
    for dataset in [DatasetName::Digits, DatasetName::BreastCancer] {
        let setting = setting(dataset);
        let html = report::html(&setting, &outcome(&setting));
        assert!(!html.contains("http") && !html.contains("<script") && !html.contains("url("), "nothing is fetched");
        assert_eq!(html.matches("<polyline").count(), 3 + 2);
        assert!(html.contains("prefers-color-scheme: dark") && html.contains("width=device-width"));
        assert!(!html.contains("NaN"), "{html}");
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    }
}
