//! Nodes with a will of their own: they leave, are shut out, decline, fall silent.

use std::time::Duration;

use aivillage_base::time::{Clock as _, SystemClock};
use serde_json::Value;

use crate::process::LOOK;
use crate::village::{FREE, Village, job, shard};

/// The node at `index` must end by itself; returns its last words.
fn last_words(village: &mut Village, index: usize) -> String {
    let node = &mut village.nodes[index];
    assert_eq!(node.wait().code(), Some(8), "{}", node.log());
    node.log()
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once_and_its_process_says_why_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    let folder = dir.path().join("site-1");
    let left = crate::process::run(&["node", "leave", "--dir", folder.to_str().unwrap()]).ok();
    assert!(left.contains("left"), "{left}");
    assert_ne!(village.listed("site-1").await["status"], "connected");
    let words = last_words(&mut village, 1);
    assert!(words.contains("site-1") && words.contains("->"), "{words}");
    assert_eq!(village.listed("site-0").await["status"], "connected");
    let again = crate::process::run(&["node", "leave", "--dir", folder.to_str().unwrap()]).refused(5);
    assert!(again.contains("has not joined"), "{again}");
    // The name is free for another key.
    std::fs::remove_file(folder.join("identity.key")).unwrap();
    village.join("site-1", 1, 2).await;
    village.connected(&["site-0", "site-1"]).await;
}

#[tokio::test]
async fn a_nodes_folder_is_run_by_one_process_and_a_node_may_stop_and_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(1).await;
    let mut second = village.node("site-0", &[]);
    assert_eq!(second.wait().code(), Some(6), "{}", second.log());
    assert!(second.log().contains("another process runs this node"), "{}", second.log());
    assert!(village.nodes[0].ended().is_none());
    village.nodes[0].terminate();
    assert_eq!(village.nodes[0].wait().code(), Some(0));
    village.until("nodes", "the node offline", |v| v["nodes"][0]["status"] == "offline").await;
    village.run_node("site-0", &[]);
    village.connected(&["site-0"]).await;
    let mut strange = village.node("never-joined", &[]);
    assert_eq!(strange.wait().code(), Some(2), "{}", strange.log());
    assert!(strange.log().contains("aivillage token create"), "{}", strange.log());
}

/// When the node's certificate runs out, in milliseconds since 1970.
fn expiry(village: &Village, node: &str) -> u64 {
    let text = std::fs::read_to_string(village.dir.join(node).join("enrolment.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["not_after_ms"].as_u64().unwrap()
}

async fn until_expired(village: &Village, node: &str) {
    let clock = SystemClock::new();
    while clock.now().wall_ms <= expiry(village, node) {
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn a_node_renews_while_it_runs_and_after_its_certificate_ran_out_unless_it_was_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let up = [&FREE[..], &["--no-node", "--certificate-life", "3"]].concat();
    let mut village = Village::start_with(dir.path(), &up).expect("the gateway starts");
    village.join_sites(2).await;
    let first = expiry(&village, "site-0");
    village.nodes[0].until_said("certificate renewed");
    assert!(expiry(&village, "site-0") > first);
    for node in &mut village.nodes {
        node.terminate();
        assert_eq!(node.wait().code(), Some(0), "{}", node.log());
    }
    village.say(&["node", "revoke", "site-1"]).ok();
    let old = expiry(&village, "site-0");
    until_expired(&village, "site-0").await;
    until_expired(&village, "site-1").await;
    village.run_node("site-0", &[]);
    village.connected(&["site-0"]).await;
    assert!(expiry(&village, "site-0") > old);
    let mut revoked = village.node("site-1", &[]);
    assert_eq!(revoked.wait().code(), Some(8), "{}", revoked.log());
    assert!(revoked.log().contains("was revoked"), "{}", revoked.log());
    assert_eq!(village.listed("site-1").await["status"], "revoked");
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_at_once_and_stays_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    village.say(&["node", "revoke", "site-0"]).ok();
    assert_eq!(village.listed("site-0").await["status"], "revoked");
    let words = last_words(&mut village, 0);
    assert!(words.contains("revoked") && words.contains("ask the gateway's operator"), "{words}");
    let mut returned = village.node("site-0", &[]);
    assert_eq!(returned.wait().code(), Some(8), "{}", returned.log());
    village.say(&["node", "revoke", "nobody"]).refused(5);
    // Its name is taken no longer, and a round goes on with who is there.
    village.submit("digits", 1, 1).await;
    let status = village.completed("digits").await;
    assert_eq!(status["rounds"][0]["participants"][0]["name"], "site-1", "{status:#}");
}

#[tokio::test]
async fn a_nodes_own_rules_win_and_the_status_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let picky = format!("{}privacy: {{allowed_recipes: [logistic_regression]}}\n", shard(0, 3));
    let private = format!("{}privacy: {{require_secure_aggregation: true}}\n", shard(1, 3));
    village.join_with("picky", &picky).await;
    village.join_with("private", &private).await;
    village.join("willing", 2, 3).await;
    village.connected(&["picky", "private", "willing"]).await;
    let mut body = job("digits", 1, 3);
    body["min_participants"] = 2.into();
    village.create(&body).await;
    let waits = |v: &Value| v["reason"].as_str().is_some_and(|r| r.contains("declined"));
    let status = village.until("training/status/digits", "the refusals", waits).await;
    let reason = status["reason"].as_str().unwrap();
    for rule in ["picky (allowed_recipes)", "private (require_secure_aggregation)"] {
        assert!(reason.contains(rule), "{reason}");
    }
    let round = &status["rounds"][0];
    assert_eq!(round["phase"], "abandoned", "{status:#}");
    let why = |name: &str| {
        let member = round["participants"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap();
        format!("{}: {}", member["status"].as_str().unwrap(), member["reason"].as_str().unwrap_or(""))
    };
    assert!(why("picky").starts_with("declined: ") && why("picky").contains("allowed_recipes"), "{}", why("picky"));
    assert!(why("private").contains("require_secure_aggregation"), "{}", why("private"));
    // Nothing but what the node is and the refusal has left it.
    let sent = std::fs::read_to_string(dir.path().join("private/sent.log")).unwrap();
    let lines: Vec<Value> = sent.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["kind"], "report", "{sent}");
    assert!(lines.len() > 1, "{sent}");
    for line in &lines[1..] {
        assert_eq!((&line["kind"], &line["bytes"]), (&"answer".into(), &0.into()), "{line}");
        assert_eq!(line["note"], "declined: require_secure_aggregation", "{line}");
    }
    // What one node allows goes on with that node.
    let mut modest = job("modest", 1, 2);
    modest["model_architecture"] = "logistic_regression".into();
    modest["hyperparameters"].as_object_mut().unwrap().remove("hidden");
    village.create(&modest).await;
    let ended = village.completed("modest").await;
    let counted = ended["rounds"].as_array().unwrap().last().unwrap()["participants"].as_array().unwrap().clone();
    let names: Vec<&str> =
        counted.iter().filter(|m| m["status"] == "counted").map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["picky", "willing"], "{ended:#}");
    let preview = ["node", "preview", "digits", "--dir", "picky"];
    let refused = village.say(&preview).refused(8);
    assert!(refused.contains("allowed_recipes"), "{refused}");
}

#[tokio::test]
async fn a_round_closes_without_a_silent_node_when_enough_others_have_counted() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "federated_systems:\n  training:\n    participant_selection: {selection_timeout_ms: 1500}\n";
    let mut village = Village::configured(dir.path(), yaml);
    village.join_sites(3).await;
    village.nodes[2].freeze();
    let mut body = job("digits", 1, 3);
    body["min_participants"] = 2.into();
    village.create(&body).await;
    let status = village.completed("digits").await;
    let round = &status["rounds"][0];
    let statuses: Vec<(&str, &str)> = round["participants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["name"].as_str().unwrap(), m["status"].as_str().unwrap()))
        .collect();
    assert_eq!(statuses, [("site-0", "counted"), ("site-1", "counted"), ("site-2", "silent")], "{round:#}");
    assert!(Duration::from_millis(round["elapsed_ms"].as_u64().unwrap()) >= Duration::from_millis(1_500), "{round:#}");
    assert_eq!(round["attempt"], 1);
    // It comes back and takes part again.
    village.nodes[2].thaw();
    village.submit("later", 1, 3).await;
    let later = village.completed("later").await;
    assert!(later["rounds"][0]["participants"].as_array().unwrap().iter().all(|m| m["status"] == "counted"));
}
