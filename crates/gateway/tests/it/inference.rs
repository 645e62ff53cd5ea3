//! Models, their bytes, and requests for predictions.

use aivillage_base::Digest;
use aivillage_base::arch::{Recipe, Task};
use aivillage_gateway::GatewayConfig;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::village::Village;

const MODELS: &str = "/v1/federated/models";
const SUBMIT: &str = "/v1/federated/inference/submit";

fn guide_model() -> Value {
    json!({
        "model_id": "test_model", "model_name": "Test Model", "model_version": "1.0",
        "model_type": "classification", "framework": "pytorch", "model_size_mb": 100.0,
        "memory_requirements_gb": 2.0, "compute_requirements_gflops": 5.0,
        "supported_node_types": ["mobile", "edge"], "privacy_requirements": "medium",
    })
}

async fn upload(village: &Village, id: &str, bytes: Vec<u8>) -> Answer {
    village
        .put(&format!("{MODELS}/{id}/content"))
        .key(&village.admin)
        .header("content-type", "application/octet-stream")
        .body(bytes)
        .send()
        .await
}

fn bundle() -> Vec<u8> {
    let architecture = Recipe::LogisticRegression.build(&[2], Task::Classification { classes: 2 }).unwrap();
    aivillage_base::bundle::write(&architecture, &[0.0, 0.0, 1.0, -1.0, 1.0, -1.0]).unwrap()
}

#[tokio::test]
async fn the_guides_model_is_registered_counts_and_is_not_servable_without_bytes() {
    let village = Village::start().await;
    let answer = village.post(MODELS).key(&village.admin).json(&guide_model()).send().await;
    assert_eq!(answer.status, 201);
    let model = answer.json();
    assert_eq!(model["state"], "declared");
    for (field, value) in guide_model().as_object().unwrap() {
        assert_eq!(&model[field], value, "{field}");
    }
    let status = village.get("/v1/federated/status").send().await.ok();
    assert_eq!(status["inference"]["statistics"]["registered_models"], 1);
    assert_eq!(village.get(MODELS).send().await.ok()["models"][0]["model_id"], "test_model");
    let submit = json!({"model_id": "test_model", "input_data": {"inputs": [1, 2]}});
    village.post(SUBMIT).json(&submit).send().await.problem(409);
    village.get(&format!("{MODELS}/test_model/content")).send().await.problem(409);
    village.get(&format!("{MODELS}/other")).send().await.problem(404);
}

#[tokio::test]
async fn bytes_make_a_model_ready_and_come_back_as_they_were() {
    let village = Village::start().await;
    village.post(MODELS).key(&village.admin).json(&guide_model()).send().await.ok();
    let bytes = bundle();
    let digest = Digest::of(&bytes).to_string();
    let ready = upload(&village, "test_model", bytes.clone()).await.ok();
    assert_eq!(ready["state"], "ready");
    assert_eq!(ready["blake3"], digest);
    assert_eq!(ready["parameters"], 6);
    upload(&village, "test_model", bytes.clone()).await.ok();
    let down = village.get(&format!("{MODELS}/test_model/content")).send().await;
    assert_eq!(down.bytes, bytes);
    assert_eq!(down.header("etag"), format!("\"{digest}\""));
    assert_eq!(down.header("content-length"), bytes.len().to_string());
}

#[tokio::test]
async fn bytes_that_are_no_bundle_too_many_or_of_nothing_are_refused() {
    let village = Village::configured(GatewayConfig { max_model_bytes: 4096, ..GatewayConfig::default() }).await;
    upload(&village, "test_model", bundle()).await.problem(404);
    village.post(MODELS).key(&village.admin).json(&guide_model()).send().await.ok();
    upload(&village, "test_model", vec![7; 5000]).await.problem(413);
    upload(&village, "test_model", vec![7; 500]).await.problem(400);
    let json = village.put(&format!("{MODELS}/test_model/content")).key(&village.admin).json(&json!({}));
    json.send().await.problem(415);
    upload(&village, "test_model", bundle()).await.ok();
}

#[tokio::test]
async fn a_request_is_accepted_found_again_and_its_faults_are_pointed_at() {
    let village = Village::start().await;
    village.post(MODELS).key(&village.admin).json(&guide_model()).send().await.ok();
    upload(&village, "test_model", bundle()).await.ok();
    let submit = |body: Value| village.post(&format!("{SUBMIT}?client_id=bob")).json(&body);
    let accepted = submit(json!({"model_id": "test_model", "input_data": {"inputs": [1, 2]}})).send().await.ok();
    assert_eq!(accepted["status"], "submitted");
    let id = accepted["request_id"].as_str().unwrap();
    let status = village.get(&format!("/v1/federated/inference/status/{id}")).send().await.ok();
    assert_eq!(status["request_id"], id);
    assert_eq!(status["status"], "queued");
    let result = village.get(&format!("/v1/federated/inference/result/{id}")).send().await.ok();
    assert_eq!((&result["result"], &result["model"]["id"]), (&Value::Null, &json!("test_model")));

    let wrong = submit(json!({"model_id": "test_model", "input_data": {"inputs": [1, "x"]}})).send().await;
    assert!(wrong.problem(400)["errors"][0]["pointer"].as_str().unwrap().starts_with("/input_data/inputs"));
    let private = json!({"model_id": "test_model", "input_data": {"inputs": [1, 2]}, "privacy_level": "ultra"});
    assert_eq!(submit(private).send().await.problem(400)["type"], "/problems/privacy-unsupported");
    let misspelt = json!({"model_id": "test_model", "input_data": {}, "privacy_level": "hihg", "k": 3,
        "max_latency_ms": 0, "prefered_node_types": []});
    let errors = submit(misspelt).send().await.problem(400)["errors"].clone();
    let pointers: Vec<_> = errors.as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/prefered_node_types", "/privacy_level", "/max_latency_ms", "/k"]);
    assert!(errors[1]["detail"].as_str().unwrap().contains("did you mean `high`"), "{errors}");
    submit(json!({"model_id": "nothing", "input_data": {"inputs": [1]}})).send().await.problem(404);
}

#[tokio::test]
async fn participants_are_declared_and_counted_once() {
    let village = Village::start().await;
    let declare = |body: Value| village.post("/v1/federated/participants").json(&body);
    let participant = json!({"participant_id": "test_participant", "node_type": "edge",
        "capabilities": {"compute_gflops": 10.0, "memory_gb": 16.0, "network_mbps": 100.0}});
    let answer = declare(participant.clone()).send().await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.json()["status"], "declared");
    declare(participant).send().await.ok();
    let list = village.get("/v1/federated/participants").send().await.ok();
    assert_eq!(list["participants"][0]["capabilities"]["memory_gb"], 16.0);
    assert_eq!(list["summary"]["total"], 1);
    let status = village.get("/v1/federated/status").send().await.ok();
    assert_eq!(status["training"]["participant_summary"]["total"], 1);
    assert_eq!(village.get("/v1/federated/nodes").send().await.ok()["nodes"], json!([]));
    let wrong = json!({"participant_id": "a/b", "node_type": "egde", "capabilities": {"memory": 1}});
    let problem = declare(wrong).send().await.problem(400);
    assert_eq!(problem["errors"].as_array().unwrap().len(), 3, "{problem}");
    let negative = json!({"participant_id": "a", "node_type": "edge", "capabilities": {"memory_gb": -1}});
    assert_eq!(declare(negative).send().await.problem(400)["errors"][0]["pointer"], "/capabilities/memory_gb");
}
