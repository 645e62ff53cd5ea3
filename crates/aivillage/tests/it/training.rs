//! Jobs over real nodes: what comes out, that it is the same every time, and what a job's owner can see and do.

use aivillage_base::{Digest, bundle};
use serde_json::{Value, json};

use crate::http;
use crate::village::{Village, job};

async fn one_run(nodes: u32, rounds: u32) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::start(dir.path());
    for index in 0..nodes {
        village.join(&format!("site-{index}"), index, nodes).await;
    }
    let job = village.submit("digits", rounds, nodes).await;
    village.completed(&job).await
}

#[tokio::test]
async fn two_fresh_villages_with_one_seed_end_in_one_digest() {
    let first = one_run(3, 3).await;
    let second = one_run(3, 3).await;
    assert!(first["model"]["blake3"].is_string(), "{first:#}");
    assert_eq!(first["model"]["blake3"], second["model"]["blake3"]);
}

#[tokio::test]
async fn two_jobs_at_once_end_as_each_would_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    let mut other = job("other", 3, 2);
    other["seed"] = 8.into();
    village.submit("one", 3, 2).await;
    village.create(&other).await;
    let (one, other) = (village.completed("one").await, village.completed("other").await);
    village.submit("alone", 3, 2).await;
    let alone = village.completed("alone").await;
    assert_ne!(one["model"]["blake3"], other["model"]["blake3"]);
    assert_eq!(one["model"]["blake3"], alone["model"]["blake3"], "the same job, name for name");
    let listed = village.say(&["train", "ls"]).ok();
    assert!(["one", "other", "alone"].iter().all(|id| listed.contains(id)), "{listed}");
}

#[tokio::test]
async fn a_pulled_model_has_the_printed_blake3_and_is_a_safetensors_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    village.submit("digits", 1, 2).await;
    let status = village.completed("digits").await;
    let said: Value =
        serde_json::from_str(&village.say(&["train", "pull", "digits", "-o", "m.safetensors", "--json"]).ok()).unwrap();
    let bytes = std::fs::read(dir.path().join("m.safetensors")).unwrap();
    assert_eq!(said["blake3"], Digest::of(&bytes).to_string());
    assert_eq!(said["blake3"], status["model"]["blake3"]);
    assert_eq!(said["bytes"], bytes.len());

    // As any reader of the format does it: eight bytes of length, a JSON header, then the tensors without gaps.
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut tensors: Vec<(u64, u64)> = Vec::new();
    for (name, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        assert_eq!(tensor["dtype"], "F32", "{name}");
        let offsets = (tensor["data_offsets"][0].as_u64().unwrap(), tensor["data_offsets"][1].as_u64().unwrap());
        let values: u64 = tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
        assert_eq!(offsets.1 - offsets.0, 4 * values, "{name}");
        tensors.push(offsets);
    }
    tensors.sort_unstable();
    assert_eq!(tensors[0].0, 0);
    assert!(tensors.windows(2).all(|pair| pair[0].1 == pair[1].0), "{tensors:?}");
    assert_eq!(tensors.last().unwrap().1 as usize, bytes.len() - 8 - length);
    let (architecture, values) = bundle::read(&bytes).unwrap();
    assert_eq!(architecture.parameters().unwrap(), values.len());

    // The catalogue serves the same bytes, and takes them back under another name.
    village.say(&["models", "pull", "digits", "-o", "again.safetensors"]).ok();
    assert_eq!(std::fs::read(dir.path().join("again.safetensors")).unwrap(), bytes);
    assert!(village.say(&["models", "register", "again.safetensors"]).ok().contains("again is ready"));
}

#[tokio::test]
async fn a_cancelled_job_stays_cancelled_and_its_nodes_are_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    village.submit("endless", 100_000, 2).await;
    let running = |v: &Value| v["rounds_completed"].as_u64().unwrap() >= 1;
    village.until("training/status/endless", "the first round", running).await;
    village.say(&["train", "cancel", "endless"]).ok();
    let status = village.ended("endless").await;
    assert_eq!(status["status"], "cancelled");
    village.say(&["train", "cancel", "endless"]).ok();
    village.say(&["train", "cancel", "nothing"]).refused(5);
    village.submit("next", 1, 2).await;
    village.completed("next").await;
    let refused = village.say(&["train", "cancel", "next"]).refused(6);
    assert!(refused.contains("next") && refused.contains("completed"), "{refused}");
    let after: Value = village.client.get("training/status/endless").await.unwrap();
    assert_eq!(after["rounds_completed"], status["rounds_completed"], "nothing follows the end");
}

#[tokio::test]
async fn a_jobs_events_tell_its_whole_life() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    // Nobody can take part yet, so nothing is missed between creating and listening.
    let id = village.submit("digits", 2, 2).await;
    let mut stream = village.client.events(&format!("training/{id}/events")).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.name, "state");
    village.join_sites(2).await;
    let mut names = Vec::new();
    let mut last = Value::Null;
    let mut counted = 0;
    while let Some(event) = tokio::time::timeout(crate::process::PATIENCE, stream.next()).await.unwrap().unwrap() {
        last = serde_json::from_str(&event.data).unwrap();
        counted += usize::from(event.name == "member" && last["participant"]["status"] == "counted");
        if event.name == "round_ended" {
            let members = last["participants"].as_array().unwrap();
            assert!(members.iter().all(|m| m["status"] == "counted"), "{last:#}");
        }
        names.push(event.name);
    }
    for name in ["status", "round_opened", "member", "round_ended"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    assert_eq!(names.iter().filter(|n| *n == "round_ended").count(), 2, "{names:?}");
    assert_eq!((names.last().unwrap().as_str(), &last["status"]), ("status", &json!("completed")), "{last:#}");
    assert!(counted <= 4, "an update counts once: {names:?}");
    let watched = village.say(&["train", "watch", "digits"]).ok();
    assert!(watched.contains("BLAKE3"), "{watched}");
}

#[tokio::test]
async fn a_request_repeated_with_its_idempotency_key_makes_one_job() {
    let dir = tempfile::tempdir().unwrap();
    let village = Village::without_node(dir.path());
    let mut body = job("x", 1, 2);
    body.as_object_mut().unwrap().remove("job_id");
    let key = [("Idempotency-Key", "a-key-of-the-client")];
    let create = |body: &Value| http::ask(&village.http, "POST", "/v1/federated/training/create", &key, Some(body));
    let first = create(&body);
    assert_eq!(first.status, 200, "{}", first.json());
    let again = create(&body);
    assert_eq!((again.status, again.json()), (200, first.json()));
    body["total_rounds"] = 2.into();
    let other = create(&body);
    assert_eq!(other.status, 422, "{}", other.header);
    assert_eq!(other.json()["type"], "/problems/idempotency-key-reused");
    let jobs: Value = village.client.get("training/jobs").await.unwrap();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs}");

    // The answer outlives the process.
    body["total_rounds"] = 1.into();
    let mut village = village;
    village.gateway.kill();
    let village = village.again(&["--no-node"]);
    let after = http::ask(&village.http, "POST", "/v1/federated/training/create", &key, Some(&body));
    assert_eq!((after.status, after.json()), (200, first.json()));
}
