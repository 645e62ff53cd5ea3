//! What the commands refuse, with which exit code, and what they say to do: configuration, environment, jobs, folders.

use serde_json::Value;

use crate::process::{Said, aivillage, run, say};
use crate::village::{FREE, Village};

fn up(dir: &std::path::Path, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = aivillage();
    command.args(["up", "--data"]).arg(dir.join("gateway")).args(FREE).args(arguments);
    command.envs(variables.iter().copied());
    say(command)
}

#[tokio::test]
async fn a_second_gateway_on_the_folder_is_refused_and_told_who_owns_it() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    let refused = up(dir.path(), &[], &[]).refused(6);
    assert!(refused.contains(&format!("process {}", village.gateway.id())), "{refused}");
    assert!(refused.contains(&village.http) && refused.contains("->"), "{refused}");
    village.client.get::<Value>("status").await.expect("the first one goes on");
}

#[test]
fn a_fault_of_the_configuration_is_shown_with_file_line_and_caret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.yaml");
    std::fs::write(&file, "federated_systems:\n  training:\n    defualt_rounds: 5\n    max_concurrent_jobs: 0\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let refused = up(dir.path(), &["--config", file], &[]).refused(3);
    for part in [&format!("--> {file}:3:5"), "    defualt_rounds: 5", "^^^^^^^^^^^^^^", "default_rounds", "4:"] {
        assert!(refused.contains(part), "{part} is missing:\n{refused}");
    }
    assert!(!dir.path().join("gateway").exists(), "nothing was started");
    assert_eq!(run(&["config", "check", "--config", file]).refused(3), refused);
    run(&["config", "check", "--config", "/nowhere/federated.yaml"]).refused(3);
}

#[test]
fn an_unknown_variable_of_ours_is_refused_with_the_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = up(dir.path(), &[], &[("AIVILLAGE_TRAINING__DEFAULT_ROUND", "5")]).refused(3);
    assert!(refused.contains("environment variable AIVILLAGE_TRAINING__DEFAULT_ROUND"), "{refused}");
    assert!(refused.contains("AIVILLAGE_TRAINING__DEFAULT_ROUNDS"), "{refused}");
    let short = up(dir.path(), &[], &[("API_KEY", "abc")]).refused(3);
    assert!(short.contains("API_KEY") && !short.contains("abc"), "a secret is never shown: {short}");
}

#[test]
fn an_address_beyond_this_machine_is_refused_without_tls_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let refused = up(dir.path(), &["--http", "0.0.0.0:0"], &[]);
    // clap takes a flag once: the free port of the helper comes first.
    assert!([2, 3].contains(&refused.code), "{refused:?}");
    let mut command = aivillage();
    command.args(["up", "--http", "0.0.0.0:0", "--link", "127.0.0.1:0", "--data"]).arg(dir.path().join("gateway"));
    let refused = say(command).refused(3);
    assert!(refused.contains("allow_insecure"), "{refused}");
}

#[test]
fn configuration_can_be_checked_shown_and_described() {
    let checked: Value = serde_json::from_str(&run(&["config", "check", "--json"]).ok()).unwrap();
    let unkept: Vec<&str> =
        checked["not_in_effect"].as_array().unwrap().iter().map(|e| e["key"].as_str().unwrap()).collect();
    assert!(unkept.contains(&"training.privacy.differential_privacy_adaptive"), "{unkept:?}");
    assert!(!unkept.contains(&"training.privacy.enable_secure_aggregation"), "{unkept:?}");
    let mut command = aivillage();
    command.args(["config", "show", "--json"]).env("AIVILLAGE_TRAINING__DEFAULT_ROUNDS", "17");
    let shown: Value = serde_json::from_str(&say(command).ok()).unwrap();
    assert_eq!(shown["federated_systems"]["training"]["default_rounds"], 17);
    let schema: Value = serde_json::from_str(&run(&["config", "schema"]).ok()).unwrap();
    assert!(schema["$schema"].is_string(), "{schema:#}");
    // What is shown can be used again.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("federated.yaml");
    std::fs::write(&file, run(&["config", "show"]).ok()).unwrap();
    run(&["config", "check", "--config", file.to_str().unwrap()]).ok();
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("aivillage") && script.contains("train"), "{shell}: {script}");
    }
    run(&["completions", "cmd"]).refused(2);
    run(&["trian"]).refused(2);
}

/// Submits a job.yaml.
fn submit(village: &Village, yaml: &str) -> Said {
    std::fs::write(village.dir.join("job.yaml"), yaml).unwrap();
    village.say(&["train", "submit", "job.yaml"])
}

#[tokio::test]
async fn a_job_that_privacy_or_names_forbid_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    // The configuration promises secure aggregation: a job that says nothing gets it, or is refused where it cannot.
    let alone = "job_name: x\nmodel_architecture: mlp\nstrategy: {name: fedavg}\nmin_participants: 2\n";
    let refused = submit(&village, alone).refused(8);
    for part in ["at least 3 participants, 2 were asked for", r#""privacy_techniques": []"#, "raise min_participants"] {
        assert!(refused.contains(part), "{part} is missing:\n{refused}");
    }
    let asked =
        "job_name: x\nmodel_architecture: mlp\nstrategy: {name: fedavg}\nprivacy_techniques: [differential_privacy]\n";
    let refused = submit(&village, asked).refused(8);
    assert!(refused.contains("differential_privacy"), "{refused}");
    // Names come first, all faults together, each with its nearest name.
    let wrong = "job_name: x\nmodel_architecture: mpl\nstrategy: {name: fedvag}\nprivacy_techniques: [secure_agregation]\n\
                 hyperparameters: {learning_rat: 0.1}\n";
    let refused = submit(&village, wrong).refused(1);
    for (pointer, name) in [
        ("/model_architecture", "mlp"),
        ("/strategy/name", "fedavg"),
        ("/privacy_techniques/0", "secure_aggregation"),
        ("/hyperparameters/learning_rat", "learning_rate"),
    ] {
        let line = refused.lines().find(|l| l.contains(pointer)).unwrap_or_else(|| panic!("{pointer}: {refused}"));
        assert!(line.contains(&format!("`{name}`")), "{line}");
    }
    let unknown = submit(&village, "job_name: x\nmodel_architecture: mlp\ntotal_round: 3\n").refused(1);
    assert!(unknown.contains("/total_round") && unknown.contains("`total_rounds`"), "{unknown}");
    let syntax = submit(&village, "job_name: x\n  model: [\n").refused(3);
    assert!(syntax.contains("job.yaml:2:") && syntax.contains('^'), "{syntax}");
    let jobs: Value = village.client.get("training/jobs").await.unwrap();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 0, "nothing was created");
}

#[test]
fn a_command_without_a_gateway_says_where_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let refused = run(&["status", "--data", missing.to_str().unwrap()]).refused(7);
    assert!(refused.contains("endpoint") && refused.contains("aivillage up"), "{refused}");
    // A port that nobody listens on: bound, told, and closed.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let refused = run(&["status", "--url", &url]).refused(7);
    assert!(refused.contains(&url), "{refused}");
}

#[tokio::test]
async fn a_token_works_once_and_a_wrong_one_is_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    let token = village.token("north").await;
    let join = |dir: &str, token: &str| {
        let mut command = aivillage();
        command.args(["node", "join", &village.link, "--enrol-only", "--token", token, "--dir"]);
        command.arg(village.dir.join(dir));
        say(command)
    };
    join("north", &token).ok();
    join("north", &token).ok();
    let used = join("thief", &token).refused(4);
    assert!(used.contains("token"), "{used}");
    let foreign = format!("{}.{}", token.rsplit_once('.').unwrap().0, "0".repeat(64));
    let refused = join("north-2", &foreign).refused(4);
    assert!(refused.contains("not the gateway that issued the token"), "{refused}");
    join("north-3", "nonsense").refused(1);
}

#[tokio::test]
async fn a_node_may_be_started_before_its_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let token = village.token("early").await;
    village.gateway.terminate();
    village.gateway.wait();
    let link = village.link.clone();
    let folder = dir.path().join("early");
    let once = ["node", "join", &link, "--wait", "0", "--token", &token, "--dir", folder.to_str().unwrap()];
    let late = run(&once).refused(7);
    assert!(late.contains("aivillage up") && late.contains("the token is not spent"), "{late}");
    village.run_node("early", &[&link, "--token", &token]);
    village.nodes[0].until_said("not joined yet, trying again");
    let village = village.again(&["--no-node"]);
    village.connected(&["early"]).await;
}
