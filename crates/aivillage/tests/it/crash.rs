//! SIGKILL at every persisted step of a job: the model is the one of the undisturbed run.

use std::path::Path;

use serde_json::Value;

use crate::village::Village;

const NODES: u32 = 3;
const ROUNDS: u32 = 3;

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
    let mut village = Village::start(dir);
    for index in 0..NODES {
        village.join(&format!("site-{index}"), index, NODES).await;
    }
    let all = |v: &Value| v["training"]["participant_summary"]["connected"].as_u64() == Some(u64::from(NODES) + 1);
    village.until("status", "all nodes connected", all).await;
    for node in &mut village.nodes {
        node.terminate();
        node.wait();
    }
    village.gateway.terminate();
    assert!(village.gateway.wait().success(), "{}", village.gateway.log());
    (village.http, village.link)
}

fn addresses<'a>(http: &'a str, link: &'a str) -> [&'a str; 4] {
    ["--http", http.trim_start_matches("http://"), "--link", link]
}

/// Runs the job in a copy of the template; the gateway dies at `crash` and is started again.
async fn run(template: &Path, http: &str, link: &str, crash: Option<String>) -> (Value, bool) {
    let dir = tempfile::tempdir().unwrap();
    copy(template, dir.path());
    let mut arguments = addresses(http, link).to_vec();
    if let Some(crash) = &crash {
        arguments.extend(["--crash-at", crash]);
    }
    let mut crashed = false;
    let started = Village::start_with(dir.path(), &arguments);
    let mut village = match started {
        Some(village) => village,
        None => {
            crashed = true;
            Village::start_with(dir.path(), &addresses(http, link)).expect("the gateway starts again")
        }
    };
    for index in 0..NODES {
        village.run_node(&format!("site-{index}"), &[]);
    }
    loop {
        // A job whose answer was lost in the crash is asked for again: its id says whether it was accepted.
        let body = serde_json::json!({
            "job_id": "digits", "job_name": "digits", "model_architecture": "mlp", "total_rounds": ROUNDS,
            "min_participants": NODES, "max_participants": NODES, "privacy_techniques": [],
            "strategy": {"name": "fedavg"},
            "hyperparameters": {"hidden": [16], "learning_rate": 0.3, "local_epochs": 1}, "seed": 7,
        });
        let sent = village.client.post::<Value>("training/create", &body).await;
        if sent.is_ok() || sent.is_err_and(|e| e.code == aivillage::exit::ExitCode::Conflict) {
            break;
        }
        if village.gateway.ended().is_some() {
            crashed = true;
            village = again(village, http, link);
        }
    }
    loop {
        let status = village.client.get::<Value>("training/status/digits").await;
        if let Ok(status) = status
            && status["status"] == "completed"
        {
            return (status, crashed);
        }
        if village.gateway.ended().is_some() {
            crashed = true;
            village = again(village, http, link);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn again(mut old: Village, http: &str, link: &str) -> Village {
    let nodes = std::mem::take(&mut old.nodes);
    let dir = old.dir.clone();
    drop(old);
    let mut village = Village::start_with(&dir, &addresses(http, link)).expect("the gateway starts again");
    village.nodes = nodes;
    village
}

#[tokio::test]
async fn a_gateway_killed_at_any_step_ends_in_the_undisturbed_model() {
    let home = tempfile::tempdir().unwrap();
    let (http, link) = template(home.path()).await;
    let (undisturbed, _) = run(home.path(), &http, &link, None).await;
    let mut crashes = 0;
    for step in 1.. {
        let mut died = false;
        for when in ["before", "after"] {
            let (status, crashed) = run(home.path(), &http, &link, Some(format!("{when}:{step}"))).await;
            assert_eq!(status["model"]["blake3"], undisturbed["model"]["blake3"], "killed {when} step {step}");
            died |= crashed;
            crashes += u32::from(crashed);
        }
        if !died {
            break;
        }
    }
    // Job created, started, initialised; per round at least: updates, closing, publishing.
    assert!(crashes >= 2 * 3 * ROUNDS, "only {crashes} crashes happened");
}
