//! API keys and tokens over HTTP, and the admin key's file.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use aivillage_base::time::SystemClock;
use aivillage_gateway::{ApiKeys, Scope};
use aivillage_storage::MemoryRecords;
use serde_json::json;

use crate::village::Village;

const TOKENS: &str = "/v1/federated/tokens";

#[tokio::test]
async fn a_key_works_from_its_making_to_its_revocation() {
    let village = Village::start().await;
    let answer = village.post(TOKENS).key(&village.admin).json(&json!({"role": "client", "owner": "bob"})).send().await;
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("cache-control"), "no-store");
    let made = answer.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    assert!(secret.starts_with("avk1."));
    assert!(made["expires_at"].is_null());
    village.get("/v1/federated/training/jobs").key(secret).send().await.ok();
    let list = village.get(TOKENS).key(&village.admin).send().await;
    assert!(list.text().contains(id) && !list.text().contains(secret));
    let revoked = village.delete(&format!("{TOKENS}/{id}")).key(&village.admin).send().await;
    assert_eq!(revoked.status, 204);
    village.get("/v1/federated/training/jobs").key(secret).send().await.problem(401);
    village.delete(&format!("{TOKENS}/{id}")).key(&village.admin).send().await.problem(404);
}

#[tokio::test]
async fn the_environments_key_is_an_admin_and_cannot_be_revoked_here() {
    let village = Village::start().await;
    village.get(TOKENS).key("env-secret").send().await.ok();
    village.delete(&format!("{TOKENS}/key_environment")).key("env-secret").send().await.problem(409);
}

#[tokio::test]
async fn node_tokens_come_from_enrolment_and_live_as_long_as_asked() {
    let village = Village::start().await;
    let make = |body: serde_json::Value| village.post(TOKENS).key(&village.admin).json(&body);
    let made = make(json!({"role": "node", "owner": "hospital-a", "ttl_s": 3600})).send().await.ok();
    assert_eq!(made["role"], "node");
    assert!(made["token"].as_str().unwrap().starts_with("avt1."));
    assert!(made["expires_at"].as_str().unwrap().ends_with('Z'));
    make(json!({"role": "node", "owner": "a", "ttl_s": 1})).send().await.problem(400);
    make(json!({"role": "admin", "owner": "a", "ttl_s": 100})).send().await.problem(400);
    make(json!({"role": "amdin", "owner": "../a"})).send().await.problem(400);
    make(json!({"role": "node", "owner": "a", "ttl_s": 2_592_000})).send().await.problem(409);
    let nodes = village.get("/v1/federated/nodes").send().await.ok();
    assert_eq!(nodes["nodes"][0]["name"], "hospital-a");
    assert_eq!(nodes["nodes"][0]["status"], "offline");
    let revoke = |name: &str| village.post(&format!("/v1/federated/nodes/{name}/revoke")).key(&village.admin);
    assert_eq!(revoke("hospital-a").send().await.ok()["status"], "revoked");
    assert_eq!(village.get("/v1/federated/nodes").send().await.ok()["nodes"][0]["status"], "revoked");
    revoke("nobody").send().await.problem(404);
}

#[tokio::test]
async fn the_admin_file_is_private_stays_and_heals_a_fresh_store() {
    let clock = Arc::new(SystemClock::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.key");
    let open = async || ApiKeys::open(Arc::new(MemoryRecords::new(clock.clone())), clock.clone(), None).await.unwrap();
    let first = open().await;
    first.ensure_admin(&path).await.unwrap();
    let secret = std::fs::read_to_string(&path).unwrap().trim().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(first.verify(&secret).unwrap().scope, Scope::Admin);
    first.ensure_admin(&path).await.unwrap();
    assert_eq!(first.list().len(), 1, "the second start makes no second key");
    let fresh = open().await;
    assert!(fresh.verify(&secret).is_none());
    fresh.ensure_admin(&path).await.unwrap();
    assert_eq!(fresh.verify(&secret).unwrap().scope, Scope::Admin);
    std::fs::write(&path, "not a key").unwrap();
    assert!(fresh.ensure_admin(&path).await.unwrap_err().to_string().contains("remove the file"));
}

#[tokio::test]
async fn keys_survive_a_restart_and_are_not_stored_in_the_clear() {
    let village = Village::start().await;
    let secret = &village.client;
    let clock = Arc::new(SystemClock::new());
    let again = ApiKeys::open(village.records.clone(), clock, None).await.unwrap();
    assert_eq!(again.verify(secret).unwrap().name, "alice");
    let scan = aivillage_base::ports::Scan { prefix: "", after: None, limit: 100 };
    for row in village.records.scan("gateway_keys", scan).await.unwrap() {
        let text = String::from_utf8(row.value.to_vec()).unwrap();
        assert!(!text.contains(&secret[5..]), "{text}");
    }
}
