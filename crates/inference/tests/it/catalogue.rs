//! Models through the handle: declared, published, refused, retired, kept.

use aivillage_base::ports::put_blob;
use aivillage_base::wire::BlobRef;
use aivillage_base::{Digest, ErrorKind, ModelId, Recipe, Task, bundle};
use aivillage_inference::{InferenceConfig, ModelInfo, ModelState};
use serde_json::json;

use crate::village::{Village, architecture, ask, info, model_values};

async fn blob(village: &Village, bytes: Vec<u8>) -> BlobRef {
    put_blob(&*village.blobs, bytes.into()).await.unwrap()
}

fn id(name: &str) -> ModelId {
    ModelId::new(name).unwrap()
}

#[tokio::test]
async fn metadata_alone_is_registered_and_counts_but_is_not_served() {
    let village = Village::new(InferenceConfig::default()).await;
    let record = village.inference.register(info("m")).await.unwrap();
    assert_eq!((record.state, record.parameters), (ModelState::Declared, None));
    assert_eq!(village.inference.register(info("m")).await.unwrap(), record, "the same again is fine");
    assert_eq!(village.inference.stats().registered_models, 1);
    let error = village.inference.submit(ask("m", json!([1, 2]), None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("declared by its metadata only"), "{error}");
    let other = ModelInfo { model_name: "Other".into(), ..info("m") };
    assert_eq!(village.inference.register(other).await.unwrap_err().kind(), ErrorKind::Conflict);
    let shown = village.inference.uploading(&id("m"));
    assert_eq!(village.inference.model(&id("m")).unwrap().state, ModelState::Uploading);
    drop(shown);
    assert_eq!(village.inference.models()[0].state, ModelState::Declared);
}

#[tokio::test]
async fn published_bytes_are_checked_counted_and_kept_over_a_restart() {
    let mut village = Village::new(InferenceConfig::default()).await;
    let shaped = ModelInfo { architecture: Some(architecture()), ..info("m") };
    assert_eq!(village.inference.register(shaped).await.unwrap().parameters, Some(9));
    let bytes = village.publish("m").await;
    village.restart().await;
    let record = village.inference.model(&id("m")).unwrap();
    assert_eq!((record.state, record.bundle, record.parameters), (ModelState::Ready, Some(bytes), Some(9)));
    assert_eq!(record.info.architecture, Some(architecture()));
    assert!(village.inference.may_fetch(&aivillage_base::NodeId([1; 32]), &bytes.digest));
    assert!(!village.inference.may_fetch(&aivillage_base::NodeId([1; 32]), &Digest([0; 32])));
}

#[tokio::test]
async fn a_version_is_one_set_of_bytes_for_ever() {
    let village = Village::new(InferenceConfig::default()).await;
    let first = village.publish("m").await;
    village.publish("m").await;
    let mut values = model_values();
    values[0] = 9.0;
    let other = blob(&village, bundle::write(&architecture(), &values).unwrap()).await;
    let error = village.inference.publish(info("m"), other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("choose another model_version"), "{error}");
    let second = ModelInfo { model_version: "2.0".into(), ..info("m") };
    let record = village.inference.publish(second, other).await.unwrap();
    assert_eq!((record.bundle, record.versions.len()), (Some(other), 2));
    assert_eq!(village.inference.publish(info("m"), first).await.unwrap().bundle, Some(other), "an old one again");
}

#[tokio::test]
async fn bad_bytes_are_refused_with_the_reason() {
    let village = Village::new(InferenceConfig::default()).await;
    let good = bundle::write(&architecture(), &model_values()).unwrap();
    let check = async |bytes: Vec<u8>, part: &str| {
        let bytes = blob(&village, bytes).await;
        let error = village.inference.publish(info("m"), bytes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(part), "{part} in {error}");
    };
    check(b"hello".to_vec(), "not a model bundle").await;
    check(good[..good.len() - 4].to_vec(), "needed").await;
    let mut infinite = good.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    check(infinite, "value 8 is not finite").await;
    assert!(village.inference.models().is_empty(), "an unknown id is not taken by bad bytes");

    let absent = BlobRef { digest: Digest([7; 32]), bytes: 100 };
    let error = village.inference.publish(info("m"), absent).await.unwrap_err();
    assert!(error.to_string().contains("no bytes with blake3 0707"), "{error}");

    let other = Recipe::LogisticRegression.build(&[5], Task::Classification { classes: 3 }).unwrap();
    village.inference.register(ModelInfo { architecture: Some(other), ..info("m") }).await.unwrap();
    check(good.clone(), "(input [5], 1 layers)").await;
    let record = village.inference.model(&id("m")).unwrap();
    assert_eq!(record.state, ModelState::Refused);
    let error = village.inference.submit(ask("m", json!([1, 2]), None)).await.unwrap_err();
    assert!(error.to_string().contains("its bytes were refused"), "{error}");
    assert_eq!(village.inference.register(info("m")).await.unwrap().state, ModelState::Declared);
    village.publish("m").await;
}

#[tokio::test]
async fn a_retired_model_is_not_served_and_does_not_come_back() {
    let village = Village::new(InferenceConfig::default()).await;
    let bytes = village.publish("m").await;
    assert_eq!(village.inference.retire(&id("m")).await.unwrap().state, ModelState::Retired);
    village.inference.retire(&id("m")).await.unwrap();
    let error = village.inference.submit(ask("m", json!([1, 2]), None)).await.unwrap_err();
    assert!(error.to_string().contains("it is retired"), "{error}");
    assert_eq!(village.inference.publish(info("m"), bytes).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(village.inference.retire(&id("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(village.inference.model(&id("x")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn impossible_metadata_is_refused_field_by_field() {
    let village = Village::new(InferenceConfig::default()).await;
    let bad =
        ModelInfo { model_name: String::new(), memory_requirements_gb: -1.0, model_size_mb: f64::NAN, ..info("m") };
    let error = village.inference.register(bad).await.unwrap_err();
    let pointers: Vec<_> = error.faults().iter().map(|f| f.pointer.as_str()).collect();
    assert_eq!(pointers, ["/model_name", "/model_size_mb", "/memory_requirements_gb"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_at_one_time_do_not_lose_each_other() {
    let village = Village::new(InferenceConfig::default()).await;
    let bytes = village.publish("m").await;
    let tasks: Vec<_> = (0..4)
        .map(|i| {
            let inference = village.inference.clone();
            let version = ModelInfo { model_version: format!("1.{i}"), ..info("m") };
            tokio::spawn(async move { inference.publish(version, bytes).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(village.inference.model(&id("m")).unwrap().versions.len(), 4);
}
