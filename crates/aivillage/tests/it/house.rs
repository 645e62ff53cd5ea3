//! The gateway as a house: parts that are off, keys, the end, the documents.

use serde_json::{Value, json};

use crate::http;
use crate::process::{aivillage, say};
use crate::village::{FREE, Village};

#[tokio::test]
async fn a_gateway_without_coordinators_answers_503_in_the_words_of_the_guide() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.env("ENABLE_FEDERATED", "false");
    let village = Village::start_by(command, dir.path(), &FREE).unwrap();
    let body = json!({"model_id": "m", "input_data": {"inputs": [[1.0]]}});
    let path = "/v1/federated/inference/submit";
    let inference = http::ask(&village.http, "POST", path, &[], Some(&body));
    assert_eq!((inference.status, &inference.json()["detail"]), (503, &"Inference coordinator not available".into()));
    assert!(inference.header.to_ascii_lowercase().contains("application/problem+json"), "{}", inference.header);
    let body = json!({"job_name": "x", "model_architecture": "mlp"});
    let training = http::ask(&village.http, "POST", "/v1/federated/training/create", &[], Some(&body));
    assert_eq!((training.status, &training.json()["detail"]), (503, &"Training coordinator not available".into()));
    let status = http::ask(&village.http, "GET", "/v1/federated/status", &[], None);
    let document = status.json();
    assert_eq!(status.status, 200);
    assert!(document["training"].is_null() && document["inference"].is_null(), "{document:#}");
    let shown = village.say(&["status"]).ok();
    assert!(shown.contains("ENABLE_FEDERATED is false"), "{shown}");
}

#[tokio::test]
async fn the_key_of_the_environment_is_an_admins_and_a_wrong_one_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.env("API_KEY", "a-key-from-the-environment");
    let village = Village::start_by(command, dir.path(), &[&FREE[..], &["--no-node"]].concat()).unwrap();
    let create = |key: &str| {
        let mut command = aivillage();
        command.args(["token", "create", "--role", "client", "--owner", "someone", "--url", &village.http]);
        command.env("API_KEY", key);
        say(command)
    };
    let client = create("a-key-from-the-environment").ok().trim().to_owned();
    let refused = create("a-key-of-nobody").refused(4);
    assert!(refused.contains("API key"), "{refused}");
    let scope = create(&client).refused(4);
    assert!(scope.contains("admin"), "{scope}");
    let bearer = format!("Bearer {client}");
    let models = http::ask(&village.http, "GET", "/v1/federated/models", &[("Authorization", &bearer)], None);
    assert_eq!(models.status, 200);
    let nodes = http::ask(&village.http, "GET", "/v1/federated/tokens", &[("X-API-Key", &client)], None);
    assert_eq!(nodes.status, 403);
}

#[tokio::test]
async fn in_production_nobody_comes_in_without_a_key_and_logs_are_json() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = aivillage();
    command.env("ENVIRONMENT", "production");
    let village = Village::start_by(command, dir.path(), &[&FREE[..], &["--no-node"]].concat()).unwrap();
    for path in ["/v1/federated/status", "/v1/federated/models", "/metrics", "/openapi.json"] {
        assert_eq!(http::ask(&village.http, "GET", path, &[], None).status, 401, "{path}");
    }
    assert_eq!(http::ask(&village.http, "GET", "/healthz", &[], None).status, 200);
    village.client.get::<Value>("status").await.expect("the folder's key opens");
    let log = village.gateway.log();
    assert!(!log.is_empty() && log.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()), "{log}");
}

#[tokio::test]
async fn a_gateway_that_is_asked_to_stop_ends_its_streams_drains_and_leaves_no_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    village.join_sites(1).await;
    village.submit("waiting", 1, 5).await;
    let mut stream = village.client.events("training/waiting/events").await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert!(village.data().join("endpoint").exists());
    village.gateway.terminate();
    while let Ok(Some(_)) = tokio::time::timeout(crate::process::PATIENCE, stream.next()).await.unwrap() {}
    assert_eq!(village.gateway.wait().code(), Some(0), "{}", village.gateway.log());
    assert!(!village.data().join("endpoint").exists());
    let node = &mut village.nodes[0];
    assert!(node.ended().is_none(), "the node waits for the gateway to come back:\n{}", node.log());
    let village = village.again(&[]);
    village.connected(&["built-in", "site-0"]).await;
    let status: Value = village.client.get("training/status/waiting").await.unwrap();
    assert!(["created", "running"].contains(&status["status"].as_str().unwrap()), "{status:#}");
}

#[tokio::test]
async fn the_served_api_document_is_the_published_one_and_the_pages_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    let served = http::ask(&village.http, "GET", "/openapi.json", &[], None);
    let published = include_str!("../../../../docs/api/openapi.json");
    // The gateway's own tests rewrite the file with UPDATE_EXPECT=1.
    assert_eq!(served.json(), serde_json::from_str::<Value>(published).unwrap());
    for (path, text) in [("/docs/", "swagger"), ("/healthz", "ok"), ("/readyz", "ok")] {
        let answer = http::ask(&village.http, "GET", path, &[], None);
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.status == 200 && body.contains(text), "{path}: {} {body}", answer.status);
    }
    let metrics = village.client.text("/metrics").await.unwrap();
    for name in [
        "federated_inference_latency_p95",
        "federated_training_participants",
        "federated_requests_failed",
        "federated_requests_total",
        "federated_privacy_budget_remaining",
    ] {
        assert!(metrics.lines().any(|l| l.starts_with(name)), "{name}");
    }
    let status: Value = village.client.get("status").await.unwrap();
    assert_eq!(status["training"]["participant_summary"]["total"], 0);
    assert_eq!(status["inference"]["statistics"]["registered_models"], 0);
}

#[tokio::test]
async fn a_request_that_a_node_is_working_on_is_answered_while_the_gateway_drains() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = crate::inference::serving(dir.path()).await;
    village.nodes[1].kill();
    village.until("status", "one node serves", |v| v["inference"]["statistics"]["serving_nodes"] == 1).await;
    village.nodes[0].freeze();
    let client = village.client.clone();
    let body = crate::inference::request(1, 20_000);
    let asked = tokio::spawn(async move { client.post::<Value>("inference/submit?wait=20000", &body).await });
    let active = |v: &Value| v["inference"]["statistics"]["active"] == 1 && v["inference"]["statistics"]["queued"] == 0;
    village.until("status", "the request on its way", active).await;
    village.gateway.terminate();
    // It has begun to stop once it is no longer found.
    while village.data().join("endpoint").exists() {
        tokio::time::sleep(crate::process::LOOK).await;
    }
    village.nodes[0].thaw();
    let answer =
        asked.await.unwrap().unwrap_or_else(|e| panic!("{e}\n{}\n{}", village.gateway.log(), village.nodes[0].log()));
    assert_eq!(answer["status"], "completed", "{answer:#}\n{}", village.gateway.log());
    assert_eq!(village.gateway.wait().code(), Some(0), "{}", village.gateway.log());
}

#[tokio::test]
async fn a_killed_gateways_folder_is_told_apart_from_a_running_ones_and_serves_again_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(1).await;
    let old = village.http.clone();
    village.gateway.kill();
    let refused = village.say(&["status"]).refused(7);
    assert!(refused.contains(&old) && refused.contains("aivillage up --data"), "{refused}");
    // Other ports: clients find it by its folder, a node is told where it went.
    village.nodes.clear();
    let mut moved = Village::without_node(dir.path());
    assert_ne!(moved.link, village.link);
    moved.run_node("site-0", &[&moved.link.clone()]);
    moved.connected(&["site-0"]).await;
    assert!(moved.say(&["status"]).ok().contains("1 connected"));
    moved.nodes[0].terminate();
    moved.nodes[0].wait();
    // From now on it knows.
    moved.run_node("site-0", &[]);
    moved.connected(&["site-0"]).await;
}

#[tokio::test]
async fn a_gateway_that_is_stopped_amid_a_job_goes_on_to_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    village.submit("undisturbed", 30, 2).await;
    let undisturbed = village.completed("undisturbed").await;
    village.submit("stopped", 30, 2).await;
    village.until("training/status/stopped", "some rounds", |v| v["rounds_completed"].as_u64() > Some(2)).await;
    village.gateway.terminate();
    assert_eq!(village.gateway.wait().code(), Some(0), "{}", village.gateway.log());
    let village = village.again(&["--no-node"]);
    let early: Value = village.client.get("training/status/stopped").await.unwrap();
    let stopped = village.completed("stopped").await;
    assert_eq!(stopped["model"]["blake3"], undisturbed["model"]["blake3"]);
    assert!(early["rounds_completed"].as_u64() < Some(30), "it was stopped before the end: {early:#}");
}
