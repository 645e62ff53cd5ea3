//! SIGKILL at every persisted step of a job, of the gateway and of a node: the model is the undisturbed run's.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::process::{LOOK, PATIENCE};
use crate::village::{Village, addresses, job};

const ROUNDS: u32 = 3;

/// A job that everybody's update makes, so that its models are settled.
#[derive(Debug, Clone)]
struct Scenario {
    nodes: u32,
    job: Value,
}

impl Scenario {
    fn of(nodes: u32, strategy: Value) -> Self {
        let mut job = job("digits", ROUNDS, nodes);
        job["strategy"] = strategy;
        Self { nodes, job }
    }

    fn secure() -> Self {
        let mut scenario = Self::of(3, json!({"name": "fedavg"}));
        scenario.job["privacy_techniques"] = json!(["secure_aggregation"]);
        scenario
    }

    fn plain() -> Self {
        Self::of(2, json!({"name": "fedavg"}))
    }
}

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
async fn template(dir: &Path, nodes: u32) -> (String, String) {
    let mut village = Village::without_node(dir);
    village.join_sites(nodes).await;
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
async fn run(
    template: &Path,
    (http, link): (&str, &str),
    scenario: &Scenario,
    crash: Option<(Victim, &str)>,
) -> Option<Run> {
    let dir = tempfile::tempdir().unwrap();
    copy(template, dir.path());
    let plan = |victim| match crash {
        Some((who, plan)) if who == victim => vec!["--crash-at", plan],
        Some(_) | None => Vec::new(),
    };
    let arguments = [&addresses(http, link)[..], &["--no-node"], &plan(Victim::Gateway)].concat();
    let mut village = Village::start_with(dir.path(), &arguments)?;
    village.run_node("site-0", &plan(Victim::Node));
    for index in 1..scenario.nodes {
        village.run_node(&format!("site-{index}"), &[]);
    }
    let connected = |v: &Value| v["training"]["participant_summary"]["connected"] == scenario.nodes;
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
            let sent = village.client.post::<Value>("training/create", &scenario.job).await;
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

/// Steps of a job at the gateway, and how often each comes. An update is a step of its own unless it arrives together with
/// the one that closes the round: then both are one commit, and the step is the closing.
const GATEWAY_STEPS: [(&str, u32); 8] = [
    ("job_created", 1),
    ("job_owner_noted", 1),
    ("job_changed", 1),
    ("round_opened", 1),
    ("round_closed", ROUNDS),
    ("round_published", ROUNDS),
    ("model_changed", 1),
    ("job_ended", 1),
];

/// Tries for a step that comes in most runs, not in all.
const TRIES: u32 = 10;

/// Kills the victim before or after each of these steps, by name; all of them must come.
async fn sweep(scenario: &Scenario, victim: Victim, when: &[&str], steps: &[(&str, u32)], sometimes: Option<&str>) {
    let home = tempfile::tempdir().unwrap();
    let (http, link) = template(home.path(), scenario.nodes).await;
    let place = (http.as_str(), link.as_str());
    let undisturbed = run(home.path(), place, scenario, None).await.expect("nothing dies");
    assert!(undisturbed.model.is_string() && undisturbed.step.is_none(), "{undisturbed:?}");
    let plans = |when: &&str| {
        let each = steps.iter().flat_map(move |(name, times)| (1..=*times).map(move |number| (*name, number)));
        each.map(|(name, number)| (name, format!("{when}:{name}:{number}"))).collect::<Vec<_>>()
    };
    for (name, plan) in when.iter().flat_map(plans) {
        let run = run(home.path(), place, scenario, Some((victim, &plan))).await.expect("a step of the job");
        assert_eq!(run.step, Some(format!("{plan} {name}")), "{victim:?} was to die there");
        assert_eq!(run.model, undisturbed.model, "{victim:?} killed at {plan}");
    }
    let Some(name) = sometimes else { return };
    let plan = format!("{}:{name}:1", when[0]);
    for _ in 0..TRIES {
        let run = run(home.path(), place, scenario, Some((victim, &plan))).await.expect("a step of the job");
        assert_eq!(run.model, undisturbed.model, "{victim:?} killed at {plan}");
        if run.step.is_some() {
            return;
        }
    }
    panic!("in {TRIES} runs no `{name}` was a step of its own");
}

#[tokio::test]
async fn a_gateway_killed_before_any_step_of_a_job_ends_in_the_undisturbed_model() {
    sweep(&Scenario::plain(), Victim::Gateway, &["before"], &GATEWAY_STEPS, Some("update_stored")).await;
}

#[tokio::test]
async fn a_gateway_killed_after_any_step_of_a_job_ends_in_the_undisturbed_model() {
    sweep(&Scenario::plain(), Victim::Gateway, &["after"], &GATEWAY_STEPS, Some("update_stored")).await;
}

#[tokio::test]
async fn a_node_killed_before_or_after_any_of_its_steps_ends_in_the_undisturbed_model() {
    // One a round: its update.
    sweep(&Scenario::plain(), Victim::Node, &["before", "after"], &[("update", ROUNDS)], None).await;
}

/// Steps between which a round's model and its server state are made.
const MAKING_STEPS: [(&str, u32); 3] = [("round_opened", 1), ("round_closed", ROUNDS), ("round_published", ROUNDS)];

#[tokio::test]
async fn server_state_survives_a_gateway_killed_wherever_a_model_is_made() {
    let adam = Scenario::of(2, json!({"name": "fedadam", "config": {"eta": 0.05}}));
    sweep(&adam, Victim::Gateway, &["before", "after"], &MAKING_STEPS, None).await;
}

#[tokio::test]
async fn ranks_are_the_same_after_a_gateway_was_killed_wherever_a_model_is_made() {
    let trimmed = Scenario::of(3, json!({"name": "trimmed_mean", "config": {"beta": 0.4}}));
    sweep(&trimmed, Victim::Gateway, &["before", "after"], &MAKING_STEPS, None).await;
}

#[tokio::test]
async fn control_variates_survive_a_gateway_killed_wherever_a_model_is_made() {
    let scaffold = Scenario::of(2, json!({"name": "scaffold"}));
    sweep(&scaffold, Victim::Gateway, &["before", "after"], &MAKING_STEPS, None).await;
}

#[tokio::test]
async fn a_control_variate_survives_its_node_killed_at_any_of_its_steps() {
    let scaffold = Scenario::of(2, json!({"name": "scaffold"}));
    sweep(&scaffold, Victim::Node, &["before", "after"], &[("state", ROUNDS), ("update", ROUNDS)], None).await;
}

/// Steps of secure aggregation at the gateway.
const SECURE_STEPS: [(&str, u32); 7] = [
    ("round_opened", 1),
    ("roster_fixed", 1),
    ("sharers_fixed", 1),
    ("survivors_fixed", 1),
    ("agreements_fixed", 1),
    ("round_closed", 1),
    ("round_published", 1),
];

#[tokio::test]
async fn a_gateway_killed_at_any_step_of_secure_aggregation_ends_in_the_plain_model() {
    let home = tempfile::tempdir().unwrap();
    let (http, link) = template(home.path(), 3).await;
    let place = (http.as_str(), link.as_str());
    let plain = run(home.path(), place, &Scenario::of(3, json!({"name": "fedavg"})), None).await.unwrap();
    let secure = run(home.path(), place, &Scenario::secure(), None).await.unwrap();
    assert_eq!(secure.model, plain.model);
    sweep(&Scenario::secure(), Victim::Gateway, &["before", "after"], &SECURE_STEPS, None).await;
}

#[tokio::test]
async fn a_node_killed_at_any_of_its_words_of_secure_aggregation_ends_in_the_undisturbed_model() {
    let words = ["advert", "shares", "update", "agreement", "opening"].map(|word| (word, 1));
    sweep(&Scenario::secure(), Victim::Node, &["before", "after"], &words, None).await;
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
