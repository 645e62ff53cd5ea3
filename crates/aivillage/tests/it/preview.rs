//! `node preview`: what it shows is what a round sends, byte by byte.

use serde_json::Value;

use crate::process::{aivillage, say};
use crate::village::Village;

fn preview(village: &Village, job: &str, node: &str, more: &[&str]) -> crate::process::Said {
    let mut command = aivillage();
    command
        .args(["node", "preview", job, "--data"])
        .arg(village.data())
        .arg("--dir")
        .arg(village.dir.join(node))
        .args(more);
    say(command)
}

#[tokio::test]
async fn the_previewed_update_is_the_one_that_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    for (index, name) in ["north", "south"].into_iter().enumerate() {
        village.join(name, u32::try_from(index).unwrap(), 2).await;
    }
    village.submit("short", 1, 2).await;
    village.ended("short").await;
    let file = dir.path().join("update.bin");
    let shown = preview(&village, "short", "north", &["--json", "--output", file.to_str().unwrap()]).ok();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), shown["header"]["payload"]["bytes"].as_u64().unwrap());

    // The same job with one round more: its second update is the one that was previewed.
    village.submit("long", 2, 2).await;
    village.ended("long").await;
    let log = std::fs::read_to_string(dir.path().join("north/sent.log")).unwrap();
    let lines = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let sent: Vec<_> = lines.filter(|l| l["job"] == "long" && l["round"] == 2 && l["kind"] == "update").collect();
    assert_eq!(sent.len(), 1, "{log}");
    assert_eq!(sent[0]["digest"], shown["header"]["payload"]["digest"]);
    assert_eq!(sent[0]["bytes"], shown["header"]["payload"]["bytes"]);
    let previewed = |l: &Value| l["job"] == "short" && l["round"] == 2;
    assert!(!log.lines().any(|l| previewed(&serde_json::from_str(l).unwrap())), "a preview sends nothing:\n{log}");
}

#[tokio::test]
async fn a_preview_says_which_rule_of_the_node_would_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    village.join("north", 0, 1).await;
    village.submit("short", 1, 1).await;
    village.ended("short").await;
    let yaml = dir.path().join("north/node.yaml");
    let text = std::fs::read_to_string(&yaml).unwrap();
    let rules = "privacy:\n  allowed_recipes: [logistic_regression]\n  min_cohort: 5\n  max_rounds: 2\n";
    std::fs::write(&yaml, format!("{text}{rules}")).unwrap();
    let error = preview(&village, "short", "north", &[]).refused(8);
    assert!(error.contains("(allowed_recipes)") && error.contains("(min_cohort)"), "all that refuse: {error}");
    assert!(!error.contains("(max_rounds)"), "{error}");
    let error = preview(&village, "nothing", "north", &[]).refused(5);
    assert!(error.contains("Job not found"), "{error}");
}
