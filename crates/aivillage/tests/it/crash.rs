//! SIGKILL at every persisted step of a job, of the gateway and of a node: the model is the undisturbed run's.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::process::{LOOK, PATIENCE};
use crate::village::{Village, addresses, job};

const NODES: u32 = 2;
const ROUNDS: u32 = 3;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Gateway,
    Node,
}

/// Copies a folder, so that every run starts from the same joined nodes.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::copy(&source, &target).unwrap();
        }
    }
}

/// A village whose nodes have joined and whose processes have stopped.
async fn template(dir: &Path) -> (String, String) {
    let mut village = Village::without_node(dir);
    village.join_sites(NODES).await;
    for node in &mut village.nodes {
        node.terminate();
        node.wait();
    }
    village.gateway.terminate();
    assert!(village.gateway.wait().success(), "{}", village.gateway.log());
    for log in std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.path().extension().is_some_and(|e| e == "log")) {
        std::fs::remove_file(log.path()).unwrap();
    }
    (village.http, village.link)
}

/// How a run went.
#[derive(Debug)]
struct Run {
    /// BLAKE3 of the model.
    model: Value,
    /// The step at which the victim died, if it came to it.
    step: Option<String>,
}

/// Runs the job in a copy of the template; the victim dies at `plan` and is started again. None if the gateway died
/// before the job was asked for: such steps are not the job's.
async fn run(template: &Path, (http, link): (&str, &str), crash: Option<(Victim, &str)>) -> Option<Run> {
    let dir = tempfile::tempdir().unwrap();
    copy(template, dir.path());
    let plan = |victim| match crash {
        Some((who, plan)) if who == victim => vec!["--crash-at", plan],
        Some(_) | None => Vec::new(),
    };
    let arguments = [&addresses(http, link)[..], &["--no-node"], &plan(Victim::Gateway)].concat();
    let mut village = Village::start_with(dir.path(), &arguments)?;
    village.run_node("site-0", &plan(Victim::Node));
    for index in 1..NODES {
        village.run_node(&format!("site-{index}"), &[]);
    }
    let connected = |v: &Value| v["training"]["participant_summary"]["connected"] == NODES;
    while !village.client.get::<Value>("status").await.is_ok_and(|v| connected(&v)) {
        if village.gateway.ended().is_some() {
            return None;
        }
        tokio::time::sleep(LOOK).await;
    }
    let mut step = None;
    let mut asked = false;
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "{crash:?}:\n{}", village.gateway.log());
        // A job whose answer was lost in the crash is asked for again: its id says whether it was accepted.
        if !asked {
            let sent = village.client.post::<Value>("training/create", &job("digits", ROUNDS, NODES)).await;
            asked = sent.is_ok() || sent.is_err_and(|e| e.code == aivillage::exit::ExitCode::Conflict);
        } else if let Ok(status) = village.client.get::<Value>("training/status/digits").await
            && status["status"] == "completed"
        {
            return Some(Run { model: status["model"]["blake3"].clone(), step });
        }
        if village.gateway.ended().is_some() {
            step = died(&village.gateway.log());
            village = village.again(&["--no-node"]);
        }
        if village.nodes[0].ended().is_some() {
            step = died(&village.nodes[0].log());
            village.nodes[0] = village.node("site-0", &[]);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The step that a process died at, as its last words name it.
fn died(log: &str) -> Option<String> {
    let line = log.lines().find_map(|l| l.strip_prefix("crash-at "));
    Some(line.unwrap_or_else(|| panic!("it died by itself:\n{log}")).to_owned())
}

/// Kills the victim before or after each step of the job until there are no more; returns the steps.
async fn sweep(victim: Victim, when: &str) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    let (http, link) = template(home.path()).await;
    let place = (http.as_str(), link.as_str());
    let undisturbed = run(home.path(), place, None).await.expect("nothing dies");
    assert!(undisturbed.model.is_string() && undisturbed.step.is_none(), "{undisturbed:?}");
    let mut steps = Vec::new();
    let mut misses = 0;
    for number in 1.. {
        let plan = format!("{when}:{number}");
        let Some(run) = run(home.path(), place, Some((victim, &plan))).await else { continue };
        assert_eq!(run.model, undisturbed.model, "{victim:?} killed at {plan}: {:?}", run.step);
        match run.step {
            Some(step) => steps.push(step),
            // Reports of nodes are steps or not, as they come: the same step of the job can have two numbers.
            None if misses == 2 => break,
            None => misses += 1,
        }
    }
    steps
}

/// The steps of a job. The last update of a round is stored with the round's closing.
fn check_gateway(steps: &[String]) {
    let died = |name: &str| steps.iter().filter(|s| s.ends_with(name)).count();
    for (name, times) in [
        ("job_created", 1),
        ("job_changed", 1),
        ("round_opened", 1),
        ("update_stored", ROUNDS * (NODES - 1)),
        ("round_closed", ROUNDS),
        ("round_published", ROUNDS),
        ("model_changed", 1),
        ("job_ended", 1),
    ] {
        assert!(died(name) >= times as usize, "killed {} times at {name}, {times} expected: {steps:#?}", died(name));
    }
}

#[tokio::test]
async fn a_gateway_killed_before_any_step_of_a_job_ends_in_the_undisturbed_model() {
    check_gateway(&sweep(Victim::Gateway, "before").await);
}

#[tokio::test]
async fn a_gateway_killed_after_any_step_of_a_job_ends_in_the_undisturbed_model() {
    check_gateway(&sweep(Victim::Gateway, "after").await);
}

#[tokio::test]
async fn a_node_killed_before_or_after_any_of_its_steps_ends_in_the_undisturbed_model() {
    for when in ["before", "after"] {
        let steps = sweep(Victim::Node, when).await;
        // One a round: its update.
        assert_eq!(steps.len(), ROUNDS as usize, "{steps:?}");
    }
}

#[tokio::test]
async fn what_a_crash_left_in_the_blob_folder_is_gone_at_the_next_start_and_models_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    village.join("site-0", 0, 1).await;
    let job = village.submit("digits", 1, 1).await;
    let model = village.ended(&job).await["model"]["blake3"].as_str().unwrap().to_owned();
    village.gateway.terminate();
    assert!(village.gateway.wait().success());
    let blobs = village.data().join("blobs");
    let orphan = {
        let folder = aivillage_storage::FolderBlobs::open(&blobs, None).unwrap();
        aivillage_base::ports::put_blob(&folder, vec![7; 1000].into()).await.unwrap().digest
    };
    let village = Village::start(dir.path());
    let folder = aivillage_storage::FolderBlobs::open(&blobs, None).unwrap();
    let left = aivillage_base::ports::Blobs::list(&folder).await.unwrap();
    assert!(!left.contains(&orphan), "{left:?}");
    assert!(left.contains(&model.parse().unwrap()), "{left:?}");
    drop(village);
}
