//! The demonstration as a user runs it: what it promises, what it leaves behind, and that it leaves nothing running.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::process::{LOOK, PATIENCE, Process, aivillage, say};

#[test]
fn killed_again_and_again_the_demonstration_ends_in_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.current_dir(dir.path()).args(["demo", "--nodes", "3", "--rounds", "12", "--chaos", "--json"]);
    let document: Value = serde_json::from_str(&say(command).ok()).unwrap();
    assert_eq!(document["model_blake3"], document["undisturbed_model_blake3"], "{document:#}");
    let kills = document["kills"].as_array().unwrap();
    let of = |what: &str| kills.iter().filter(|k| k["process"].as_str().unwrap().starts_with(what)).count();
    assert!(kills.len() >= 3 && of("gateway") >= 1 && of("node-") >= 1, "{kills:?}");
    assert!(
        kills.iter().all(|k| k["pid"].as_u64() > Some(1) && k["step"].as_str().unwrap().contains(':')),
        "{kills:?}"
    );

    let accuracy = |name: &str| document[name].as_f64().unwrap();
    assert_eq!((document["nodes"].as_u64(), document["rounds"].as_u64()), (Some(3), Some(12)));
    assert_eq!(document["local_accuracy"].as_array().unwrap().len(), 3);
    assert!(accuracy("federated_accuracy") > accuracy("best_local_accuracy"), "{document:#}");
    assert_eq!(accuracy("served_accuracy"), accuracy("federated_accuracy"), "nodes serve the model that was trained");
    assert!(document["predictions"].as_array().unwrap().len() > 3);

    let report = std::fs::read_to_string(dir.path().join(document["report"].as_str().unwrap())).unwrap();
    assert!(report.contains("<svg") && report.contains(document["model_blake3"].as_str().unwrap()));
}

#[test]
fn the_hospitals_story_is_told_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.current_dir(dir.path()).args([
        "demo",
        "--dataset",
        "breast_cancer",
        "--nodes",
        "2",
        "--rounds",
        "3",
        "--plain",
    ]);
    let story = say(command).ok();
    for part in [
        "node-2 alone",
        "together (federated)",
        "all data in one place",
        "right of what none of them has seen",
        "report.html",
    ] {
        assert!(story.contains(part), "{part}:\n{story}");
    }
    assert!(!story.contains('\u{1b}'), "no colours where there is no terminal");
}

/// Process ids of the gateway and the nodes of a demonstration that tells its story on standard error.
fn processes(demo: &mut Process) -> Vec<u32> {
    let started = Instant::now();
    loop {
        let log = demo.log();
        if log.contains("round 2/") {
            let line = log.lines().find(|l| l.starts_with("gateway: process ")).unwrap();
            let ids = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
            // Numbers of the address are among them; a process has a folder.
            return ids.filter(|id| alive(*id)).collect();
        }
        assert!(demo.ended().is_none() && started.elapsed() < PATIENCE, "no second round:\n{log}");
        std::thread::sleep(LOOK);
    }
}

/// Is it a process of this program that has not ended?
fn alive(id: u32) -> bool {
    let folder = Path::new("/proc").join(id.to_string());
    let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
    let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
    name.trim() == "aivillage" && !status.lines().any(|l| l.starts_with("State:\tZ"))
}

fn endless(dir: &Path) -> Process {
    let mut command = aivillage();
    command.current_dir(dir).args(["demo", "--nodes", "3", "--rounds", "1000", "--json"]);
    Process::start(command, dir.join("story"))
}

fn all_gone(ids: &[u32]) {
    let started = Instant::now();
    while ids.iter().any(|id| alive(*id)) {
        assert!(started.elapsed() < PATIENCE, "still running: {ids:?}");
        std::thread::sleep(LOOK);
    }
}

#[test]
fn an_interrupted_demonstration_stops_its_processes_and_writes_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = endless(dir.path());
    let ids = processes(&mut demo);
    assert_eq!(ids.len(), 4, "a gateway and three nodes");
    demo.terminate();
    assert_eq!(demo.wait().code(), Some(1));
    assert!(demo.log().contains("every process of the demonstration is stopped"), "{}", demo.log());
    all_gone(&ids);
    let runs = std::fs::read_dir(dir.path().join("aivillage-demo")).unwrap();
    assert!(runs.flatten().all(|run| !run.path().join("report.html").exists()));
}

#[test]
fn nothing_survives_a_demonstration_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = endless(dir.path());
    let ids = processes(&mut demo);
    assert_eq!(ids.len(), 4, "a gateway and three nodes");
    demo.kill();
    all_gone(&ids);
}
