//! Each status of the error list, by a request that causes it.

use std::time::Duration;

use aivillage_gateway::GatewayConfig;
use aivillage_storage::contract::ManualClock;
use http::Method;
use serde_json::json;

use crate::client::Ask;
use crate::village::{Plan, Village};

const CREATE: &str = "/v1/federated/training/create";
const SUBMIT: &str = "/v1/federated/inference/submit";

#[tokio::test]
async fn a_bad_body_is_400_with_every_fault_and_the_nearest_names() {
    let village = Village::start().await;
    let body = json!({
        "job_nam": "x",
        "model_architecture": "mpl",
        "total_rounds": "ten",
        "privacy_techniques": ["secure_agregation"],
        "hyperparameters": {"learning_rat": 0.1},
        "strategy": {"name": "fedavgg", "confg": {}},
    });
    let problem = village.post(CREATE).json(&body).send().await.problem(400);
    assert_eq!(problem["type"], "/problems/invalid-request");
    assert_eq!(problem["instance"], CREATE);
    let errors = problem["errors"].as_array().unwrap();
    for (pointer, suggestion) in [
        ("/job_nam", "did you mean `job_name`"),
        ("/job_name", "required"),
        ("/model_architecture", "did you mean `mlp`"),
        ("/total_rounds", "expected u32"),
        ("/privacy_techniques/0", "did you mean `secure_aggregation`"),
        ("/hyperparameters/learning_rat", "did you mean `learning_rate`"),
        ("/strategy/confg", "did you mean `config`"),
        ("/strategy/name", "did you mean `fedavg`"),
    ] {
        let found = errors
            .iter()
            .any(|e| e["pointer"] == pointer && e["detail"].as_str().is_some_and(|d| d.contains(suggestion)));
        assert!(found, "{pointer} ({suggestion}) in {errors:#?}");
    }
}

#[tokio::test]
async fn privacy_that_cannot_be_given_is_400_of_its_own_kind_with_the_way_out() {
    let village = Village::start().await;
    let body = json!({"job_name": "x", "model_architecture": "mlp", "privacy_techniques": ["secure_aggregation"]});
    let problem = village.post(CREATE).json(&body).send().await.problem(400);
    assert_eq!(problem["type"], "/problems/privacy-unsupported");
    assert!(problem["detail"].as_str().unwrap().contains("[]"), "{problem}");
}

#[tokio::test]
async fn nesting_beyond_32_levels_is_refused_before_it_is_parsed() {
    let village = Village::start().await;
    for depth in [33, 5_000] {
        let text = format!("{{\"input_data\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        let answer = village.post(SUBMIT).header("content-type", "application/json").body(text).send().await;
        let problem = answer.problem(400);
        assert!(problem["detail"].as_str().unwrap().contains("nested deeper than 32"), "{problem}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_and_other_kinds_of_body_are_415() {
    let village = Village::configured(GatewayConfig { max_body_bytes: 1000, ..GatewayConfig::default() }).await;
    let body = json!({"job_name": "x".repeat(2000)});
    village.post(CREATE).json(&body).send().await.problem(413);
    village.post(CREATE).body("job_name=x").send().await.problem(415);
    let form = village.post(CREATE).header("content-type", "application/x-www-form-urlencoded");
    form.body("job_name=x").send().await.problem(415);
    village.post(CREATE).header("content-type", "application/json").body("{]").send().await.problem(400);
    village.post(CREATE).header("content-type", "application/json").body("[]").send().await.problem(400);
}

#[tokio::test]
async fn what_is_not_there_is_404_in_the_guides_words() {
    let village = Village::start().await;
    for (path, detail) in [
        ("/v1/federated/training/status/job_00000000", "Job not found"),
        ("/v1/federated/training/status/..%2F..", "Job not found"),
        ("/v1/federated/inference/result/req_00000000000000000000000000000000", "Request not found"),
        ("/v1/federated/inference/result/nonsense", "Request not found"),
        ("/v1/federated/inference/status/nonsense", "Request not found"),
        ("/v1/federated/training/job_00000000/model", "Job not found"),
        ("/v1/federated/training/job_00000000/events", "Job not found"),
    ] {
        assert_eq!(village.get(path).send().await.problem(404)["detail"], detail, "{path}");
    }
    village.get("/nothing/here").send().await.problem(404);
    village.get("/docs/nothing.js").send().await.problem(404);
    village.get("/v1/federated/training/status/%ff").send().await.problem(400);
    village.post("/v1/federated/training/job_00000000/cancel").send().await.problem(404);
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow() {
    let village = Village::start().await;
    let answer = Ask::new(village.address, Method::DELETE, CREATE).send().await;
    answer.problem(405);
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn a_client_may_not_do_what_admins_do() {
    let village = Village::start().await;
    let token = json!({"role": "node", "owner": "x"});
    for key in ["", village.client.as_str()] {
        let mut ask = village.post("/v1/federated/tokens").json(&token);
        if !key.is_empty() {
            ask = ask.key(key);
        }
        ask.send().await.problem(403);
    }
    village.post("/v1/federated/models").json(&json!({"model_id": "m"})).send().await.problem(403);
    village.post("/v1/federated/nodes/x/revoke").send().await.problem(403);
}

#[tokio::test]
async fn a_wrong_key_is_401_even_where_none_is_needed() {
    let village = Village::start().await;
    for wrong in ["Bearer avk1.wrong", "Basic YTpi", "Bearer"] {
        let answer = village.get("/v1/federated/training/jobs").header("authorization", wrong).send().await;
        answer.problem(401);
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
    }
    village.get("/v1/federated/training/jobs").header("x-api-key", "nope").send().await.problem(401);
    village.get("/v1/federated/training/jobs").header("x-api-key", &village.client).send().await.ok();
}

#[tokio::test]
async fn other_names_and_foreign_pages_are_not_served() {
    let village = Village::start().await;
    let status = "/v1/federated/status";
    village.get(status).header("host", "evil.example").send().await.problem(421);
    village.get(status).header("host", "evil.example:80").key(&village.admin).send().await.problem(421);
    village.get(status).header("origin", "http://evil.example").send().await.problem(403);
    village.get("/healthz").header("host", "evil.example").send().await.problem(421);
    let port = village.address.port();
    village.get(status).header("host", &format!("localhost:{port}")).send().await.ok();
    let own = format!("http://127.0.0.1:{port}");
    village.get(status).header("origin", &own).send().await.ok();
}

#[tokio::test]
async fn listed_pages_get_their_preflight_and_others_do_not() {
    let config = GatewayConfig { cors_origins: vec!["https://dash.example".into()], ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    let preflight = |origin: &str| {
        Ask::new(village.address, Method::OPTIONS, CREATE)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
    };
    let answer = preflight("https://dash.example").send().await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://dash.example");
    let answer = preflight("https://evil.example").send().await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    answer.problem(403);
}

#[tokio::test]
async fn callers_who_come_too_often_are_429_with_retry_after_and_others_are_not() {
    let config = GatewayConfig { rate_limit_per_second: 1, rate_limit_burst: 2, ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    let ask = || village.get("/v1/federated/training/jobs").key(&village.client);
    ask().send().await.ok();
    ask().send().await.ok();
    let answer = ask().send().await;
    answer.problem(429);
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    village.get("/v1/federated/training/jobs").key(&village.admin).send().await.ok();
    village.get("/healthz").send().await.ok();
}

#[tokio::test]
async fn wrong_keys_are_429_after_twenty_and_valid_ones_never() {
    let clock = ManualClock::at(1_700_000_000_000);
    let village = Village::planned(Plan { clock: clock.clone(), ..Plan::default() }).await;
    let jobs = || village.get("/v1/federated/training/jobs");
    for i in 0..20 {
        jobs().key(&format!("wrong-{i}")).send().await.problem(401);
    }
    for wrong in
        [jobs().key("wrong"), jobs().header("x-api-key", "wrong"), jobs().header("authorization", "Basic YTpi")]
    {
        let answer = wrong.send().await;
        let problem = answer.problem(429);
        assert!(problem["detail"].as_str().unwrap().contains("API key"), "{problem}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    for _ in 0..30 {
        jobs().key(&village.client).send().await.ok();
    }
    jobs().send().await.ok();
    clock.advance(Duration::from_secs(1));
    jobs().key("wrong").send().await.problem(401);
    jobs().key("wrong").send().await.problem(429);
}

#[tokio::test]
async fn a_request_without_fields_takes_an_empty_body_or_an_empty_object_and_nothing_else() {
    let village = Village::start().await;
    let job = json!({"job_name": "x", "job_id": "j", "model_architecture": "mlp", "privacy_techniques": []});
    village.post(CREATE).json(&job).send().await.ok();
    let cancel = || village.post("/v1/federated/training/j/cancel");
    let answer = cancel().json(&json!({"reason": "changed my mind"})).send().await.problem(400);
    let fault = &answer["errors"][0];
    assert_eq!(fault["pointer"], "/reason", "{answer}");
    assert!(fault["detail"].as_str().unwrap().contains("takes no fields"), "{answer}");
    let nodes = || village.post("/v1/federated/nodes/site-a/revoke").key(&village.admin);
    nodes().json(&json!({"for": "a day"})).send().await.problem(400);
    for bad in ["[]", "null", "true", "{", "cancel", "{}{}", "{\"a\": {}}"] {
        cancel().body(bad).send().await.problem(400);
        nodes().body(bad).send().await.problem(400);
    }
    // None of them has ended the job.
    assert_ne!(village.get("/v1/federated/training/status/j").send().await.ok()["status"], "cancelled");
    for good in ["{}", "", " { } \n"] {
        assert_eq!(cancel().body(good).send().await.ok()["status"], "cancelled", "{good}");
        nodes().body(good).send().await.problem(404);
    }
    cancel().json(&json!({})).send().await.ok();
}

#[tokio::test]
async fn unknown_query_parameters_are_400() {
    let village = Village::start().await;
    let answer = village.get("/v1/federated/training/job_x/model?rund=1").send().await;
    assert!(answer.problem(400)["detail"].as_str().unwrap().contains("rund"));
}
