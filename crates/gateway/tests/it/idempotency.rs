//! Idempotency-Key: the whole matrix.

use aivillage_gateway::GatewayConfig;
use serde_json::{Value, json};

use crate::village::{Plan, Village};

const CREATE: &str = "/v1/federated/training/create";

fn job(name: &str) -> Value {
    json!({"job_name": name, "model_architecture": "mlp", "privacy_techniques": []})
}

#[tokio::test]
async fn the_same_key_and_body_get_the_stored_answer_and_one_effect() {
    let village = Village::start().await;
    let ask = || village.post(CREATE).header("idempotency-key", "k1").json(&job("a"));
    let first = ask().send().await;
    let second = ask().send().await;
    assert_eq!(first.ok(), second.ok());
    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(second.header("content-type"), "application/json");
    let jobs = village.get("/v1/federated/training/jobs").send().await.ok();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_422() {
    let village = Village::start().await;
    village.post(CREATE).header("idempotency-key", "k").json(&job("a")).send().await.ok();
    village.post(CREATE).header("idempotency-key", "k").json(&job("b")).send().await.problem(422);
}

#[tokio::test]
async fn keys_belong_to_their_caller_and_route() {
    let village = Village::start().await;
    let ask = |key: &str| village.post(CREATE).header("idempotency-key", "k").key(key).json(&job("a"));
    let mine = ask(&village.client).send().await.ok();
    let theirs = ask(&village.admin).send().await.ok();
    assert_ne!(mine["job_id"], theirs["job_id"]);
    let participant = json!({"participant_id": "p", "node_type": "edge"});
    let other_route = village.post("/v1/federated/participants").header("idempotency-key", "k").key(&village.client);
    other_route.json(&participant).send().await.ok();
}

#[tokio::test]
async fn an_error_had_no_effect_and_is_not_stored() {
    let village = Village::start().await;
    let ask = |body: &Value| village.post(CREATE).header("idempotency-key", "k").json(body);
    ask(&json!({"job_name": "a"})).send().await.problem(400);
    ask(&job("a")).send().await.ok();
}

#[tokio::test]
async fn answers_survive_a_restart_of_the_gateway() {
    let before = Village::start().await;
    let ask = |village: &Village| village.post(CREATE).header("idempotency-key", "k").json(&job("a"));
    let first = ask(&before).send().await.ok();
    before.cancel.cancel();
    let records = before.records.clone();
    before.gateway.stopped().await;
    let after = Village::planned(Plan { records: Some(records), ..Plan::default() }).await;
    let again = ask(&after).send().await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.ok(), first);
}

#[tokio::test]
async fn a_request_that_lost_its_stored_answer_in_a_crash_finds_its_own_job() {
    let village = Village::start().await;
    let ask = || village.post(CREATE).header("idempotency-key", "k").json(&job("a"));
    let first = ask().send().await.ok();
    // What a crash between the effect and the stored answer leaves behind: the job without the answer.
    let scan = aivillage_base::ports::Scan { prefix: "", after: None, limit: 10 };
    let rows = village.records.scan("gateway_answers", scan).await.unwrap();
    assert_eq!(rows.len(), 1);
    let mut batch = aivillage_base::ports::Batch::new("crash");
    batch.delete("gateway_answers", rows[0].key.clone());
    village.records.commit(batch).await.unwrap();
    let second = ask().send().await;
    assert_eq!(second.header("idempotency-replayed"), "");
    assert_eq!(second.ok(), first);
}

#[tokio::test]
async fn a_key_whose_request_still_runs_is_409() {
    let village = Village::start().await;
    let model = json!({"model_id": "m", "architecture": {"input": [1], "layers": [{"type": "dense", "units": 1}],
        "task": {"kind": "regression"}}});
    village.post("/v1/federated/models").key(&village.admin).json(&model).send().await.ok();
    let architecture = serde_json::from_value(model["architecture"].clone()).unwrap();
    let bundle = aivillage_base::bundle::write(&architecture, &[1.0, 2.0]).unwrap();
    let content = village.put("/v1/federated/models/m/content").key(&village.admin);
    content.header("content-type", "application/octet-stream").body(bundle).send().await.ok();
    // No node serves: the first request waits, and its key is taken meanwhile.
    let ask = |input: i32| {
        village
            .post("/v1/federated/inference/submit?wait=3000")
            .header("idempotency-key", "k")
            .json(&json!({"model_id": "m", "input_data": {"inputs": [input]}}))
    };
    let running = tokio::spawn(ask(1).send());
    let mut statuses = (0, 0);
    while !running.is_finished() && statuses == (0, 0) {
        // Only once the first request is known to be in work can the second meet it.
        let status = village.get("/v1/federated/status").send().await.ok();
        if status["inference"]["statistics"]["active"] == 1 {
            let same = ask(1).send().await.status.as_u16();
            let other = ask(2).send().await.status.as_u16();
            statuses = (same, other);
        }
    }
    assert_eq!(statuses, (409, 422));
    running.await.unwrap().ok();
}

#[tokio::test]
async fn stored_answers_are_bounded_and_the_oldest_go_first() {
    let config = GatewayConfig { idempotency_entries_max: 3, ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    for i in 0..6 {
        let body = json!({"participant_id": format!("p{i}"), "node_type": "edge"});
        let ask = village.post("/v1/federated/participants").header("idempotency-key", &format!("k{i}"));
        ask.json(&body).send().await.ok();
    }
    let scan = aivillage_base::ports::Scan { prefix: "", after: None, limit: 10 };
    assert_eq!(village.records.scan("gateway_answers", scan).await.unwrap().len(), 3);
    let newest = village.post("/v1/federated/participants").header("idempotency-key", "k5");
    let newest = newest.json(&json!({"participant_id": "p5", "node_type": "edge"})).send().await;
    assert_eq!(newest.header("idempotency-replayed"), "true");
}

#[tokio::test]
async fn secrets_are_not_stored_for_repetition() {
    let village = Village::start().await;
    let ask = || {
        village
            .post("/v1/federated/tokens")
            .key(&village.admin)
            .header("idempotency-key", "k")
            .json(&json!({"role": "client", "owner": "bob"}))
    };
    let made = ask().send().await.ok();
    ask().send().await.problem(409);
    let secret = made["token"].as_str().unwrap();
    let scan = aivillage_base::ports::Scan { prefix: "", after: None, limit: 10 };
    for row in village.records.scan("gateway_answers", scan).await.unwrap() {
        assert!(!String::from_utf8_lossy(&row.value).contains(secret));
    }
}

#[tokio::test]
async fn keys_that_are_no_keys_are_400() {
    let village = Village::start().await;
    for bad in ["", &"k".repeat(256)] {
        village.post(CREATE).header("idempotency-key", bad).json(&job("a")).send().await.problem(400);
    }
}
