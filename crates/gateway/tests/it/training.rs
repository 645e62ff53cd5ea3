//! Jobs through the door: create, list, watch, cancel.

use aivillage_base::wire::policy::NodePolicy;
use serde_json::{Value, json};

use crate::client::PATIENCE;
use crate::events::parse;
use crate::village::Village;

const CREATE: &str = "/v1/federated/training/create";

fn job() -> Value {
    json!({"job_name": "Test Training Job", "job_id": "test_job_001", "job_type": "standard",
        "model_architecture": "simple_cnn", "dataset_requirements": {}, "total_rounds": 5,
        "min_participants": 1, "privacy_techniques": [], "mobile_friendly": true,
        "strategy": {"name": "fedavg"}, "hyperparameters": {"local_epochs": 2, "learning_rate": 0.1}, "seed": 7})
}

#[tokio::test]
async fn the_guides_job_is_created_and_found_again() {
    let village = Village::start().await;
    let created = village.post(CREATE).json(&job()).send().await.ok();
    assert_eq!(created, json!({"job_id": "test_job_001", "status": "created"}));
    let status = village.get("/v1/federated/training/status/test_job_001").send().await.ok();
    assert_eq!(status["job_id"], "test_job_001");
    assert!(matches!(status["status"].as_str().unwrap(), "created" | "running"), "{status}");
    assert_eq!(status["total_rounds"], 5);
    assert_eq!(status["hyperparameters"]["local_epochs"], 2);
    assert_eq!(status["seed"], 7);
    let list = village.get("/v1/federated/training/jobs").send().await.ok();
    assert_eq!(list["jobs"][0]["job_name"], "Test Training Job");
    village.post(CREATE).json(&job()).send().await.problem(409);
    village.get("/v1/federated/training/test_job_001/model").send().await.problem(404);
}

#[tokio::test]
async fn a_job_without_an_id_gets_one() {
    let village = Village::start().await;
    let body = json!({"job_name": "x", "model_architecture": "mlp", "privacy_techniques": []});
    let id = village.post(CREATE).json(&body).send().await.ok()["job_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("job_") && id.len() == 12, "{id}");
    // A job that names no strategy is told which one it got.
    let status = village.get(&format!("/v1/federated/training/status/{id}")).send().await.ok();
    assert_eq!(status["strategy"], "fedavg");
}

#[tokio::test]
async fn a_job_names_who_created_it_whatever_the_body_says() {
    let village = Village::start().await;
    let callers = [
        ("anonymous", None, "anonymous"),
        ("client", Some(&village.client), "alice"),
        ("admin", Some(&village.admin), "operator"),
        ("environment", Some(&"env-secret".to_owned()), "environment"),
    ];
    for (id, key, name) in callers {
        let mut body = job();
        body["job_id"] = id.into();
        let mut request = village.post(CREATE);
        if let Some(key) = key {
            request = request.key(key);
        }
        request.json(&body).send().await.ok();
        let status = village.get(&format!("/v1/federated/training/status/{id}")).send().await.ok();
        assert_eq!(status["publisher"], name);
    }
    let mut body = job();
    body["publisher"] = "somebody".into();
    village.post(CREATE).json(&body).send().await.problem(400);
}

#[tokio::test]
async fn a_job_that_too_few_nodes_would_accept_is_told_so_and_waits() {
    let village = Village::start().await;
    let strict = NodePolicy { require_secure_aggregation: true, max_rounds: Some(2), ..NodePolicy::default() };
    village.node.arrive_with(Some(strict)).await;
    let answer = village.post(CREATE).json(&job()).send().await.ok();
    let rules: Vec<_> = answer["warnings"].as_array().unwrap().iter().map(|w| (&w["rule"], &w["nodes"])).collect();
    assert_eq!(
        rules,
        [(&json!("max_rounds"), &json!(1)), (&json!("require_secure_aggregation"), &json!(1))],
        "{answer}"
    );
    let detail = answer["warnings"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("0 would accept, and 1 are needed"), "{detail}");
    let mut short = job();
    short["job_id"] = "short".into();
    village.node.arrive_with(Some(NodePolicy::default())).await;
    let answer = village.post(CREATE).json(&short).send().await.ok();
    assert_eq!(answer, json!({"job_id": "short", "status": "created"}), "enough would");
}

#[tokio::test]
async fn only_its_creator_or_an_admin_cancels_a_job() {
    let village = Village::start().await;
    village.post(CREATE).key(&village.client).json(&job()).send().await.ok();
    let cancel = || village.post("/v1/federated/training/test_job_001/cancel");
    cancel().send().await.problem(403);
    let answer = cancel().key(&village.client).send().await.ok();
    assert_eq!(answer, json!({"job_id": "test_job_001", "status": "cancelled"}));
    let status = village.get("/v1/federated/training/status/test_job_001").send().await.ok();
    assert_eq!(status["status"], "cancelled");
    assert!(status["ended_at"].is_string());
    cancel().key(&village.admin).send().await.ok();
}

#[tokio::test]
async fn rounds_are_told_member_by_member_and_their_models_can_be_fetched() {
    let village = Village::start().await;
    village.node.arrive().await;
    let body = json!({"job_name": "x", "job_id": "j", "model_architecture": "logistic_regression",
        "total_rounds": 2, "min_participants": 1, "privacy_techniques": []});
    let ask = |path: &str| village.get(&format!("/v1/federated/training/{path}"));
    village.post(CREATE).json(&body).send().await.ok();
    let events = tokio::spawn(ask("j/events").send());
    tokio::time::timeout(PATIENCE, village.node.work()).await.expect("the job ends");

    let status = ask("status/j").send().await.ok();
    assert_eq!((&status["status"], &status["rounds_completed"]), (&json!("completed"), &json!(2)), "{status}");
    let round = &status["rounds"][0];
    assert_eq!((&round["round"], &round["phase"]), (&json!(1), &json!("done")));
    let member = &round["participants"][0];
    assert_eq!(
        (&member["name"], &member["status"], &member["weight"]),
        (&json!("site-a"), &json!("counted"), &json!(10))
    );
    assert_eq!(member["metrics"]["train_ms"], 3);
    assert_eq!(ask("status/j?rounds=1").send().await.ok()["rounds"].as_array().unwrap().len(), 1);

    let newest = ask("j/model").send().await;
    assert_eq!(newest.header("etag"), format!("\"{}\"", status["model"]["blake3"].as_str().unwrap()));
    assert_eq!(aivillage_base::Digest::of(&newest.bytes).to_string(), status["model"]["blake3"].as_str().unwrap());
    aivillage_base::bundle::read(&newest.bytes).unwrap();
    assert_eq!(ask("j/model?round=2").send().await.bytes, newest.bytes);
    ask("j/model?round=9").send().await.problem(404);

    let text = tokio::time::timeout(PATIENCE, events).await.unwrap().unwrap().text();
    let last = parse(&text).pop().unwrap();
    assert!(last.data["status"] == "completed", "{text}");
}
