//! The OpenAPI document, its browser, probes, metrics and status.

use aivillage_gateway::{GatewayConfig, openapi_document};
use http::Method;
use serde_json::{Value, json};

use crate::client::Ask;
use crate::village::{Plan, Village};

/// Path and method of every documented operation, with its JSON.
fn operations() -> Vec<(String, String, Value)> {
    let document = serde_json::to_value(openapi_document()).unwrap();
    let mut out = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            out.push((path.clone(), method.to_uppercase(), operation.clone()));
        }
    }
    out
}

fn filled(path: &str) -> String {
    path.replace("{request_id}", "req_00000000000000000000000000000000")
        .replace("{job_id}", "job_none")
        .replace("{model_id}", "none")
        .replace("{name}", "none")
        .replace("{slug}", "none")
        .replace("{digest}", &"0".repeat(64))
        .replace("{id}", "none")
}

#[tokio::test]
async fn every_documented_route_is_served_and_every_issue_route_is_documented() {
    let village = Village::start().await;
    let documented = operations();
    for (path, method, _) in &documented {
        let method: Method = method.parse().unwrap();
        let answer =
            Ask::new(village.address, method.clone(), &filled(path)).key(&village.admin).json(&json!({})).send().await;
        assert_ne!(answer.status, 405, "{method} {path}");
        let unknown_path = answer.status == 404
            && answer.json()["detail"].as_str().is_some_and(|d| d.starts_with("there is nothing at"));
        assert!(!unknown_path, "{method} {path} is documented, but the router does not know it");
    }
    let f = "/v1/federated";
    for (method, path) in [
        ("POST", format!("{f}/inference/submit")),
        ("GET", format!("{f}/inference/result/{{request_id}}")),
        ("GET", format!("{f}/inference/status/{{request_id}}")),
        ("POST", format!("{f}/training/create")),
        ("GET", format!("{f}/training/status/{{job_id}}")),
        ("GET", format!("{f}/training/jobs")),
        ("POST", format!("{f}/training/{{job_id}}/cancel")),
        ("GET", format!("{f}/training/{{job_id}}/events")),
        ("GET", format!("{f}/training/{{job_id}}/model")),
        ("GET", format!("{f}/training/{{job_id}}/record")),
        ("GET", format!("{f}/training/{{job_id}}/updates/{{digest}}")),
        ("POST", format!("{f}/models")),
        ("GET", format!("{f}/models")),
        ("GET", format!("{f}/models/{{model_id}}")),
        ("PUT", format!("{f}/models/{{model_id}}/content")),
        ("GET", format!("{f}/models/{{model_id}}/content")),
        ("POST", format!("{f}/participants")),
        ("GET", format!("{f}/participants")),
        ("GET", format!("{f}/nodes")),
        ("POST", format!("{f}/nodes/{{name}}/revoke")),
        ("POST", format!("{f}/tokens")),
        ("GET", format!("{f}/tokens")),
        ("DELETE", format!("{f}/tokens/{{id}}")),
        ("GET", format!("{f}/status")),
        ("GET", "/healthz".into()),
        ("GET", "/readyz".into()),
        ("GET", "/metrics".into()),
        ("GET", "/openapi.json".into()),
        ("GET", "/problems/{slug}".into()),
    ] {
        let found = documented.iter().any(|(p, m, _)| *p == path && *m == method);
        assert!(found, "{method} {path} is not documented");
    }
    assert_eq!(documented.len(), 29, "a new route belongs into the list above");
}

#[tokio::test]
async fn the_allow_header_of_a_path_names_exactly_its_documented_methods() {
    let village = Village::start().await;
    let documented = operations();
    for (path, ..) in &documented {
        let answer = Ask::new(village.address, Method::PATCH, &filled(path)).key(&village.admin).send().await;
        answer.problem(405);
        let mut allowed: Vec<String> =
            answer.header("allow").split(',').map(|m| m.trim().to_owned()).filter(|m| m != "HEAD").collect();
        let mut wanted: Vec<String> =
            documented.iter().filter(|(p, ..)| p == path).map(|(_, m, _)| m.clone()).collect();
        allowed.sort();
        wanted.sort();
        assert_eq!(allowed, wanted, "{path}");
    }
}

#[tokio::test]
async fn without_a_key_only_probes_and_explanations_answer() {
    let village = Village::configured(GatewayConfig { require_authentication: true, ..GatewayConfig::default() }).await;
    for (path, method, operation) in operations() {
        let method: Method = method.parse().unwrap();
        let answer = Ask::new(village.address, method.clone(), &filled(&path)).json(&json!({})).send().await;
        let public = matches!(path.as_str(), "/healthz" | "/readyz" | "/problems/{slug}");
        assert_eq!(answer.status != 401, public, "{method} {path}: {}", answer.status);
        assert_eq!(operation["security"].is_null(), public, "{method} {path}");
    }
}

#[tokio::test]
async fn every_operation_documents_the_problems_it_can_have() {
    for (path, method, operation) in operations() {
        let responses = operation["responses"].as_object().unwrap();
        let mut wanted = vec!["400", "421", "500"];
        if !operation["security"].is_null() {
            wanted.extend(["401", "403", "429", "503"]);
        }
        if path.contains('{') {
            wanted.push("404");
        }
        if !operation["requestBody"].is_null() {
            wanted.extend(["408", "413", "415"]);
        }
        if method == "POST" {
            wanted.extend(["408", "409", "413", "422"]);
        }
        for status in wanted {
            assert!(responses.contains_key(status), "{method} {path}: {status}");
        }
    }
}

#[test]
fn the_published_document_is_the_generated_one() {
    // UPDATE_EXPECT=1 writes it anew.
    let text = format!("{}\n", openapi_document().to_pretty_json().unwrap());
    expect_test::expect_file!["../../../../docs/api/openapi.json"].assert_eq(&text);
}

#[tokio::test]
async fn references_of_the_document_lead_somewhere() {
    let document = serde_json::to_value(openapi_document()).unwrap();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut seen = 0;
    for part in text.split("\"$ref\":\"").skip(1) {
        let name = part.split('"').next().unwrap().strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas.contains_key(name), "{name}");
        seen += 1;
    }
    assert!(seen > 50, "{seen} references");
}

#[tokio::test]
async fn the_browser_of_the_document_needs_nothing_from_elsewhere() {
    let village = Village::start().await;
    let page = village.get("/docs/").send().await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").contains("default-src 'self'"));
    assert!(!page.text().contains("https://"), "{}", page.text());
    for asset in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        let answer = village.get(&format!("/docs/{asset}")).send().await;
        assert_eq!(answer.status, 200, "{asset}");
        assert!(answer.bytes.len() > 100, "{asset}");
    }
    let initializer = village.get("/docs/swagger-initializer.js").send().await.text();
    assert!(initializer.contains("/openapi.json"), "{initializer}");
    assert_eq!(village.get("/openapi.json").send().await.ok()["openapi"].as_str().unwrap()[..2], *"3.");
}

#[tokio::test]
async fn the_five_metrics_of_the_guide_are_there_from_the_first_day() {
    let village = Village::start().await;
    village.get("/healthz").send().await.ok();
    let text = village.get("/metrics").send().await.text();
    for name in [
        "federated_inference_latency_p95",
        "federated_training_participants",
        "federated_requests_failed",
        "federated_requests_total",
        "federated_privacy_budget_remaining",
    ] {
        let sampled = text.lines().any(|l| l.starts_with(&format!("{name} ")) || l.starts_with(&format!("{name}{{")));
        assert!(sampled, "{name} in\n{text}");
    }
    let counted = "aivillage_http_requests_total{route=\"/healthz\",method=\"GET\",status=\"2xx\"} 1";
    assert!(text.contains(counted), "{text}");
    let off = Village::configured(GatewayConfig { export_metrics: false, ..GatewayConfig::default() }).await;
    off.get("/metrics").send().await.problem(404);
}

#[tokio::test]
async fn status_reads_as_the_guides_tests_read_it() {
    let village = Village::start().await;
    let status = village.get("/v1/federated/status").send().await.ok();
    assert_eq!(status["inference"]["coordinator_id"], "test_inference");
    assert_eq!(status["inference"]["statistics"]["registered_models"], 0);
    assert!(status["inference"]["statistics"]["avg_response_time_ms"].is_number());
    assert_eq!(status["training"]["coordinator_id"], "test_training");
    assert_eq!(status["training"]["participant_summary"]["total"], 0);
    assert!(status["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(status["not_in_effect"][0]["key"], "network.betanet.enabled");
    assert!(status["config"]["source"].as_str().unwrap().contains("defaults"));
}

#[tokio::test]
async fn parts_that_are_off_are_null_in_status_and_503_with_the_reason_elsewhere() {
    let village = Village::planned(Plan { parts: false, ..Plan::default() }).await;
    let status = village.get("/v1/federated/status").send().await.ok();
    assert!(status["inference"].is_null() && status["training"].is_null());
    assert_eq!(status["config"]["parts"]["training"], "training.enabled is false");
    let problem = village.get("/v1/federated/training/jobs").send().await.problem(503);
    assert_eq!(problem["detail"], "Training coordinator not available");
    assert_eq!(problem["errors"][0]["detail"], "training.enabled is false");
    let answer = village
        .post("/v1/federated/inference/submit")
        .json(&json!({"model_id": "m", "input_data": {"inputs": [1]}}))
        .send()
        .await;
    assert_eq!(answer.problem(503)["detail"], "Inference coordinator not available");
    assert!(!answer.header("retry-after").is_empty());
    village.get("/readyz").send().await.ok();
}

#[tokio::test]
async fn public_metrics_open_figures_but_not_the_configuration() {
    let config = GatewayConfig { require_authentication: true, public_metrics: true, ..GatewayConfig::default() };
    let village = Village::configured(config).await;
    let status = village.get("/v1/federated/status").send().await.ok();
    assert!(status["training"].is_object());
    assert!(status.get("config").is_none() && status.get("not_in_effect").is_none());
    assert_eq!(village.get("/metrics").send().await.status, 200);
    village.get("/v1/federated/training/jobs").send().await.problem(401);
    let with_key = village.get("/v1/federated/status").key(&village.client).send().await.ok();
    assert!(with_key["config"].is_object());
}

#[tokio::test]
async fn inference_routes_that_are_not_mounted_are_404_and_undocumented() {
    let village = Village::configured(GatewayConfig { mount_inference: false, ..GatewayConfig::default() }).await;
    let answer = village.post("/v1/federated/inference/submit").json(&json!({})).send().await;
    assert!(answer.problem(404)["detail"].as_str().unwrap().starts_with("there is nothing at"));
    let document = village.get("/openapi.json").send().await.ok();
    let paths = document["paths"].as_object().unwrap();
    assert!(!paths.keys().any(|p| p.contains("/inference/")) && paths.contains_key("/v1/federated/models"));
}
