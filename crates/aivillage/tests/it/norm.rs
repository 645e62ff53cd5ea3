//! FedBN (Li et al. 2021, <https://arxiv.org/abs/2102.07623>) as its user runs it: nodes that see the same digits through
//! different instruments keep their normalisation layers, and are served better by it.

use std::path::Path;
use std::time::Instant;

use aivillage_base::bundle;
use aivillage_engine::data::{Bundled, Dataset, split};
use aivillage_engine::evaluate;
use serde_json::{Value, json};

use crate::export::{export, replay};
use crate::process::{LOOK, PATIENCE};
use crate::village::{Village, job};

/// What each node's instrument makes of a pixel: times, plus.
const INSTRUMENTS: [(f32, f32); 3] = [(1.0, 0.0), (0.5, 0.5), (4.0, -2.0)];

/// The rows of a data set, as the instrument shows them.
fn seen(data: &Dataset, (times, plus): (f32, f32)) -> Dataset {
    let x = data.x(0..data.rows()).iter().map(|v| v * times + plus).collect();
    Dataset::classification("digits", vec![64], 10, x, data.labels().unwrap().to_vec()).unwrap()
}

fn write_csv(path: &Path, data: &Dataset) {
    let mut text = String::new();
    for (row, label) in data.labels().unwrap().iter().enumerate() {
        for v in data.x(row..row + 1) {
            text.push_str(&format!("{v},"));
        }
        text.push_str(&format!("{label}\n"));
    }
    std::fs::write(path, text).unwrap();
}

fn normalised(id: &str, strategy: &Value) -> Value {
    let mut body = job(id, 12, 3);
    body["strategy"] = strategy.clone();
    body["hyperparameters"] = json!({"hidden": [32], "norm": "batch", "learning_rate": 0.1, "local_epochs": 2});
    body["retain_updates"] = true.into();
    body
}

async fn file(path: &Path) -> Vec<u8> {
    let started = Instant::now();
    loop {
        match std::fs::read(path) {
            Ok(bytes) => return bytes,
            Err(e) if started.elapsed() > PATIENCE => panic!("{}: {e}", path.display()),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

fn accuracy(bytes: &[u8], data: &Dataset) -> f64 {
    let (architecture, values) = bundle::read(bytes).unwrap();
    evaluate(&architecture, &values, data).unwrap().accuracy.unwrap()
}

#[tokio::test]
async fn nodes_with_shifted_features_are_better_served_by_normalisations_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    let dealt = split(Bundled::Digits, 3, 1e6, 1).unwrap();
    let mut tests = Vec::new();
    for (index, (shard, instrument)) in dealt.shards.iter().zip(INSTRUMENTS).enumerate() {
        let name = format!("site-{index}");
        std::fs::create_dir_all(dir.path().join(&name)).unwrap();
        write_csv(&dir.path().join(&name).join("digits.csv"), &seen(shard, instrument));
        let yaml = "data:\n  - {kind: csv, name: digits, path: digits.csv, classes: 10}\n\
                    privacy:\n  retain_updates: if_asked\n";
        village.join_with(&name, yaml).await;
        // Rows that nobody trains on, as this node would see them.
        tests.push(seen(&dealt.test, instrument));
    }
    village.connected(&["site-0", "site-1", "site-2"]).await;

    let own = json!({"name": "fedavg", "config": {"personal_tensors": ["layer001.*"]}});
    for (id, strategy) in [("fedavg", json!({"name": "fedavg"})), ("fedbn", own.clone()), ("again", own)] {
        village.create(&normalised(id, &strategy)).await;
        village.completed(id).await;
    }
    village.say(&["train", "pull", "fedavg", "-o", "fedavg.safetensors"]).ok();
    let common = std::fs::read(dir.path().join("fedavg.safetensors")).unwrap();
    let mut found = Vec::new();
    for (index, test) in tests.iter().enumerate() {
        let mine = dir.path().join(format!("site-{index}/models/personal-fedbn.safetensors"));
        found.push((accuracy(&common, test), accuracy(&file(&mine).await, test)));
    }
    // Not every node need gain much: the mean of all may happen to fit one of them.
    let (plain, fedbn) = found.iter().fold((0.0, 0.0), |(a, b), (plain, fedbn)| (a + plain / 3.0, b + fedbn / 3.0));
    assert!(found.iter().all(|(_, fedbn)| *fedbn > 0.85) && fedbn > plain + 0.2, "(fedavg, fedbn): {found:?}");

    // What is published has the common tensors, and normalisations as nobody trained them.
    village.say(&["train", "pull", "fedbn", "-o", "fedbn.safetensors"]).ok();
    let (architecture, published) =
        bundle::read(&std::fs::read(dir.path().join("fedbn.safetensors")).unwrap()).unwrap();
    let names: Vec<String> = architecture.layout().unwrap().into_iter().map(|t| t.name).collect();
    assert!(names.contains(&"layer001.running_variance".to_owned()), "{names:?}");
    let first = 32 + 64 * 32;
    assert_eq!(published[first..first + 4 * 32], [0.0, 1.0, 1.0, 0.0].map(|v| [v; 32]).concat());
    let blake3 = |status: &Value| status["model"]["blake3"].clone();
    assert_eq!(blake3(&village.completed("fedbn").await), blake3(&village.completed("again").await));

    // An auditor recomputes both, running variances and all.
    for id in ["fedavg", "fedbn"] {
        assert_eq!(export(&village, id)["recomputable"], json!(12));
        let said = replay(&dir.path().join(id)).ok();
        assert_eq!(said.matches("as recorded").count(), 12, "{said}");
    }
}

#[tokio::test]
async fn a_normalised_model_serves_predictions_and_its_job_cannot_ask_for_clipped_examples() {
    let dir = tempfile::tempdir().unwrap();
    let mut village = Village::without_node(dir.path());
    village.join_sites(2).await;
    let mut body = job("cnn", 1, 2);
    body["model_architecture"] = "simple_cnn".into();
    body["hyperparameters"] = json!({"norm": "batch", "learning_rate": 0.05, "local_epochs": 1});
    body["privacy_techniques"] = json!(["differential_privacy"]);
    let refused = village.client.post::<Value>("training/create", &body).await.unwrap_err().to_string();
    assert!(refused.contains("no example has a gradient of its own"), "{refused}");
    body["privacy_techniques"] = json!([]);
    village.create(&body).await;
    village.completed("cnn").await;
    let row = json!({"model_id": "cnn", "input_data": {"inputs": [vec![0.5; 64]]}});
    village.until("models", "the model in the catalogue", |v| v["models"][0]["state"] == "ready").await;
    let answer: Value = village.client.post("inference/submit?wait=20000", &row).await.unwrap();
    assert_eq!(answer["status"], "completed", "{answer:#}");
}
