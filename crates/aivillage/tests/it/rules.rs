//! The owner's rules of real nodes: no job, role or admin key overrides one, each refusal is signed, and nothing else leaves.

use std::collections::BTreeMap;

use aivillage_base::time::{Clock as _, SystemClock};
use aivillage_base::wire::secure::Hex;
use aivillage_base::wire::{Declined, RoundKey};
use aivillage_base::{JobId, NodeId};
use aivillage_privacy::refusal;
use serde_json::{Value, json};

use crate::http::ask;
use crate::village::{Village, job, shard};

/// A part of the day that is over for hours to come.
fn other_hours() -> String {
    let minute = SystemClock::new().now().wall_ms / 60_000 % (24 * 60);
    let at = |later: u64| (minute + later * 60) % (24 * 60);
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{}-{}", clock(at(8)), clock(at(9)))
}

/// One node for each rule, called by the rule but for what no name may hold.
fn nodes() -> Vec<(&'static str, String)> {
    vec![
        ("require_secure_aggregation", "true".into()),
        ("min_cohort", "4".into()),
        ("allowed_publishers", "[research]".into()),
        ("allowed_job_types", "[statistics]".into()),
        ("allowed_recipes", "[logistic_regression]".into()),
        ("max_clip", "1.5".into()),
        ("max_rounds", "2".into()),
        ("retain_updates", "never".into()),
        ("hours", format!("[\"{}\"]", other_hours())),
    ]
}

/// What each member of the newest attempt that has ended declined by.
fn declined(status: &Value) -> BTreeMap<String, Declined> {
    let rounds = status["rounds"].as_array().unwrap();
    let members = rounds.last().into_iter().flat_map(|r| r["participants"].as_array().unwrap());
    let refusal = |m: &Value| {
        let declined = serde_json::from_value(m["declined"].clone()).ok()?;
        Some((m["name"].as_str().unwrap().to_owned(), declined))
    };
    members.filter_map(refusal).collect()
}

/// Lines of a node's log about this job: kind and note.
fn sent(village: &Village, node: &str, job: &str) -> Vec<(String, String)> {
    let log = std::fs::read_to_string(village.dir.join(node).join("sent.log")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    lines.filter(|l| l["job"] == job).map(|l| (text(&l["kind"]), text(&l["note"]))).collect()
}

/// Every node has refused by its own rule, with its own key, and has sent nothing else of the job.
async fn all_refuse(village: &Village, job: &str, rules: &[&str]) {
    let ended = |v: &Value| {
        let waits = v["reason"].as_str().is_some_and(|reason| reason.contains("declined by themselves"));
        waits && v["rounds"].as_array().is_some_and(|rounds| !rounds.is_empty())
    };
    let status = village.until(&format!("training/status/{job}"), "the refusals", ended).await;
    let refusals = declined(&status);
    assert_eq!(refusals.len(), rules.len(), "{status:#}");
    for rule in rules {
        let refusal = &refusals[*rule];
        assert_eq!(refusal.rule, *rule, "{refusal:?}");
        let id: NodeId = village.listed(rule).await["node_id"].as_str().unwrap().parse().unwrap();
        let key = RoundKey { job: JobId::new(job).unwrap(), round: 1, attempt: 1 };
        assert!(refusal.signature != Hex([0; 64]) && refusal::is_signed(&id, &key, refusal), "{refusal:?}");
        assert!(status["reason"].as_str().unwrap().contains(&format!("{rule} ({rule})")), "{status:#}");
        assert_eq!(sent(village, rule, job), [("answer".to_owned(), format!("declined: {rule}"))]);
    }
}

#[tokio::test]
async fn no_job_role_or_admin_key_overrides_a_rule_of_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let nodes = nodes();
    let rules: Vec<&str> = nodes.iter().map(|(rule, _)| *rule).collect();
    for (index, (rule, value)) in (0..).zip(&nodes) {
        village.join_with(rule, &format!("{}privacy:\n  {rule}: {value}\n", shard(index, 9))).await;
    }
    village.connected(&rules).await;
    let plain = |id: &str| {
        let mut body = job(id, 3, 9);
        body["retain_updates"] = true.into();
        // As few as possible, so that the attempt waits for the answer of each.
        body["min_participants"] = 1.into();
        body
    };
    let mut of_all = plain("of-all");
    of_all["min_participants"] = 9.into();
    let warned: Value = village.client.post("training/create", &of_all).await.unwrap();
    let foretold: Vec<&str> =
        warned["warnings"].as_array().unwrap().iter().map(|w| w["rule"].as_str().unwrap()).collect();
    let mut lasting: Vec<&str> = rules.iter().copied().filter(|rule| *rule != "hours").collect();
    lasting.sort_unstable();
    assert_eq!(foretold, lasting, "{warned:#}");
    village.say(&["train", "cancel", "of-all"]).ok();

    // The operator's own admin key, a client's key, and nobody's.
    village.create(&plain("by-admin")).await;
    all_refuse(&village, "by-admin", &rules).await;
    village.say(&["train", "cancel", "by-admin"]).ok();
    let key = village.say(&["token", "create", "--role", "client", "--owner", "somebody"]).ok();
    let path = "/v1/federated/training/create";
    for (id, key) in [("by-client", Some(key.trim())), ("by-nobody", None)] {
        let headers: Vec<(&str, &str)> = key.iter().map(|key| ("X-API-Key", *key)).collect();
        assert_eq!(ask(&village.http, "POST", path, &headers, Some(&plain(id))).status, 200);
        all_refuse(&village, id, &rules).await;
        village.say(&["train", "cancel", id]).ok();
    }

    // A secure job: the rules that it keeps let their nodes take part, the others refuse as before.
    let mut secure = job("secure", 1, 3);
    secure["model_architecture"] = "logistic_regression".into();
    secure["hyperparameters"].as_object_mut().unwrap().remove("hidden");
    secure["privacy_techniques"] = json!(["secure_aggregation"]);
    secure["privacy"] = json!({"clip": 2.0});
    secure["max_participants"] = 9.into();
    village.create(&secure).await;
    let status = village.completed("secure").await;
    let refusals = declined(&status);
    let refusing = ["min_cohort", "allowed_publishers", "allowed_job_types", "max_clip", "hours"];
    let mut names: Vec<&str> = refusals.keys().map(String::as_str).collect();
    names.sort_unstable_by_key(|name| rules.iter().position(|rule| rule == name));
    assert_eq!(names, refusing, "{status:#}");
    for rule in refusing {
        assert_eq!(refusals[rule].rule, rule);
        assert_eq!(sent(&village, rule, "secure"), [("answer".to_owned(), format!("declined: {rule}"))]);
    }
    for rule in ["require_secure_aggregation", "allowed_recipes", "max_rounds", "retain_updates"] {
        let kinds: Vec<String> = sent(&village, rule, "secure").into_iter().map(|(kind, _)| kind).collect();
        assert!(kinds.contains(&"update".to_owned()), "{rule}: {kinds:?}");
    }
}
