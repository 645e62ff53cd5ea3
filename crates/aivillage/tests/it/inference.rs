//! Predictions through real nodes: another one answers for one that falls silent or dies, and ids outlive the gateway.

use std::time::Duration;

use serde_json::{Value, json};

use crate::village::Village;

/// Two nodes and a trained model called `digits`.
pub(crate) async fn serving(dir: &std::path::Path) -> Village {
    let yaml = "federated_systems:\n  inference: {load_balancing_strategy: round_robin}\n";
    let mut village = Village::configured(dir, yaml);
    village.join_sites(2).await;
    village.submit("digits", 1, 2).await;
    village.completed("digits").await;
    village.until("models", "the model in the catalogue", |v| v["models"][0]["state"] == "ready").await;
    village
}

pub(crate) fn request(rows: usize, max_latency_ms: u64) -> Value {
    let row = |i: usize| (0..64).map(|j| f64::from(u8::from((i + j).is_multiple_of(3)))).collect::<Vec<f64>>();
    json!({
        "model_id": "digits",
        "input_data": {"inputs": (0..rows).map(row).collect::<Vec<_>>()},
        "max_latency_ms": max_latency_ms,
    })
}

async fn ask(village: &Village, max_latency_ms: u64) -> Value {
    village.client.post("inference/submit?wait=20000", &request(2, max_latency_ms)).await.unwrap()
}

#[tokio::test]
async fn requests_go_round_the_nodes_and_name_model_and_node() {
    let dir = tempfile::tempdir().unwrap();
    let village = serving(dir.path()).await;
    let status = village.completed("digits").await;
    let mut used = Vec::new();
    for _ in 0..2 {
        let answer = ask(&village, 20_000).await;
        assert_eq!(answer["status"], "completed", "{answer:#}");
        assert_eq!(answer["model"]["blake3"], status["model"]["blake3"]);
        let predictions = answer["result"]["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), 2);
        let sum: f64 = predictions[0]["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-3, "{answer:#}");
        used.push(answer["metadata"]["nodes_used"][0].as_str().unwrap().to_owned());
    }
    used.sort();
    assert_eq!(used, ["site-0", "site-1"]);
    let sent = std::fs::read_to_string(dir.path().join("site-0/sent.log")).unwrap();
    assert!(sent.contains(r#""kind":"prediction""#), "{sent}");
}

#[tokio::test]
async fn another_node_answers_for_one_that_falls_silent_or_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = serving(dir.path()).await;
    // Silent: half of its time goes to the first node, the rest to the next one.
    village.nodes[0].freeze();
    let silent = ask(&village, 2_000).await;
    assert_eq!(silent["status"], "completed", "{silent:#}");
    assert_eq!(silent["metadata"]["nodes_used"], json!(["site-1"]), "{silent:#}");
    village.nodes[0].thaw();
    // Whose turn it is now is seen: the request stays with the node that is frozen.
    village.nodes[0].freeze();
    let mut held = None;
    for _ in 0..2 {
        let submitted: Value = village.client.post("inference/submit", &request(2, 25_000)).await.unwrap();
        let path = format!("inference/result/{}", submitted["request_id"].as_str().unwrap());
        let seen = |v: &Value| v["status"] == "completed" || v["metadata"]["nodes_used"][0] == "site-0";
        if village.until(&path, "a node with the request", seen).await["status"] == "processing" {
            held = Some(path);
            break;
        }
    }
    let held = held.expect("one of two requests goes to the frozen node");
    village.nodes[0].kill();
    let answer = village.until(&held, "the answer", |v| v["status"] == "completed").await;
    assert_eq!(answer["metadata"]["nodes_used"], json!(["site-1"]), "{answer:#}");
    assert!(answer["metadata"]["attempts"].as_u64().unwrap() >= 2, "{answer:#}");
    // It was the death that moved it, not half of the deadline.
    let took = Duration::from_millis(answer["metadata"]["processing_time_ms"].as_u64().unwrap());
    assert!(took < Duration::from_millis(12_500), "{answer:#}");
}

#[tokio::test]
async fn a_returned_request_id_survives_the_death_of_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = serving(dir.path()).await;
    for node in &mut village.nodes {
        node.kill();
    }
    village.nodes.clear();
    village.until("status", "nobody serves", |v| v["inference"]["statistics"]["serving_nodes"] == 0).await;
    let submitted: Value = village.client.post("inference/submit", &request(1, 30_000)).await.unwrap();
    assert_eq!(submitted["status"], "submitted");
    let path = format!("inference/result/{}", submitted["request_id"].as_str().unwrap());
    village.gateway.kill();
    let mut village = village.again(&["--no-node"]);
    let waiting: Value = village.client.get(&path).await.unwrap();
    assert_eq!(waiting["status"], "queued", "{waiting:#}");
    village.run_node("site-1", &[]);
    let answer = village.until(&path, "the answer", |v| v["status"] == "completed").await;
    assert_eq!(answer["result"]["predictions"].as_array().unwrap().len(), 1);
    // And so does its result.
    village.gateway.kill();
    let village = village.again(&["--no-node"]);
    let kept: Value = village.client.get(&path).await.unwrap();
    assert_eq!(kept["result"], answer["result"]);
}

#[tokio::test]
async fn a_declared_model_and_bad_rows_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    std::fs::write(dir.path().join("model.yaml"), "model_id: spoken\nmodel_name: Spoken of\n").unwrap();
    assert!(village.say(&["models", "register", "model.yaml"]).ok().contains("spoken is declared"));
    let mut body = request(1, 1_000);
    body["model_id"] = "spoken".into();
    let path = "/v1/federated/inference/submit";
    let refused = crate::http::ask(&village.http, "POST", path, &[], Some(&body));
    assert_eq!(refused.status, 409);
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("declared") && detail.contains("spoken"), "{detail}");
    body["model_id"] = "unheard".into();
    assert_eq!(crate::http::ask(&village.http, "POST", path, &[], Some(&body)).status, 404);
    std::fs::write(dir.path().join("rows.json"), "[[1, 2,").unwrap();
    let broken = village.say(&["infer", "spoken", "--input", "rows.json"]).refused(3);
    assert!(broken.contains("rows.json:1:"), "{broken}");
}
