//! Requests through the handle: answered, re-planned, kept, refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aivillage_base::ErrorKind;
use aivillage_base::wire::NodeType;
use aivillage_inference::request::Prediction;
use aivillage_inference::{
    Inference, InferenceConfig, InferenceError, LoadBalancingStrategy, Metrics, PrivacyLevel, RequestStatus, Submit,
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::village::{Manner, Village, ask, info, until};

const REQUESTS: &str = "inference_requests";

fn labels(view: &aivillage_inference::RequestView) -> Vec<usize> {
    let result = view.result.as_ref().expect("a result");
    result
        .predictions
        .iter()
        .map(|p| match p {
            Prediction::Class { label, probabilities, .. } => {
                assert_eq!(probabilities.len(), 3);
                *label
            }
            Prediction::Value { .. } => unreachable!("a classifier"),
        })
        .collect()
}

async fn village(nodes: &[(&str, Manner)]) -> Village {
    with(InferenceConfig::default(), nodes).await
}

async fn with(config: InferenceConfig, nodes: &[(&str, Manner)]) -> Village {
    let village = Village::new(config).await;
    for (name, manner) in nodes {
        village.node(name, manner.clone()).await;
    }
    until("nodes serve", || village.inference.stats().serving_nodes == nodes.len()).await;
    village.publish("corners").await;
    village
}

fn round_robin() -> InferenceConfig {
    InferenceConfig { load_balancing_strategy: LoadBalancingStrategy::RoundRobin, ..InferenceConfig::default() }
}

#[tokio::test]
async fn a_request_with_wait_is_answered_by_a_node_and_leaves_nothing_behind() {
    let village = village(&[("north", Manner::Honest)]).await;
    let asked = ask("corners", json!([[1, 0], [0, 1], [0, 0]]), Some(5_000));
    let view = village.inference.submit(asked).await.unwrap().finished.unwrap();
    assert_eq!((view.status, labels(&view)), (RequestStatus::Completed, vec![0, 1, 2]));
    assert_eq!(view.metadata.nodes_used[0].as_str(), "north");
    assert_eq!(view.metadata.privacy_level_achieved, PrivacyLevel::Medium);
    assert_eq!((view.model.version.as_str(), view.metadata.attempts), ("1.0", 1));
    assert!(village.rows(REQUESTS).await.is_empty());
    assert_eq!(village.hub.hints.load(Ordering::SeqCst), 1, "the node was told of the model");
    let text = serde_json::to_value(&view).unwrap();
    assert_eq!(text["result"]["predictions"][1]["label"], 1);
    village.books_balance();
}

#[tokio::test]
async fn a_request_without_wait_is_kept_and_its_input_forgotten_with_the_outcome() {
    let gate = Arc::new(Semaphore::new(0));
    let village = village(&[("north", Manner::Held(Arc::clone(&gate)))]).await;
    let id = village.inference.submit(ask("corners", json!([0.125, 1]), None)).await.unwrap().request_id;
    assert_eq!(village.rows(REQUESTS).await[0]["rows"], json!([[0.125, 1.0]]));
    assert_eq!(village.inference.request(&id).await.unwrap().status, RequestStatus::Processing);
    gate.add_permits(1);
    let view = village.outcome(id).await;
    assert_eq!(labels(&view), [1]);
    let row = &village.rows(REQUESTS).await[0];
    assert_eq!(row["state"], "finished");
    assert!(!row.to_string().contains("0.125"), "{row}");
}

#[tokio::test]
async fn a_request_not_answered_within_wait_becomes_durable() {
    let gate = Arc::new(Semaphore::new(0));
    let village = village(&[("north", Manner::Held(Arc::clone(&gate)))]).await;
    let submitted = village.inference.submit(ask("corners", json!([1, 0]), Some(20))).await.unwrap();
    assert_eq!(submitted.finished, None);
    assert_eq!(village.rows(REQUESTS).await.len(), 1);
    gate.add_permits(1);
    assert_eq!(labels(&village.outcome(submitted.request_id).await), [0]);
    village.books_balance();
}

#[tokio::test]
async fn a_failing_a_lying_and_a_lost_node_are_each_replaced() {
    let village = with(round_robin(), &[("a", Manner::Failing), ("b", Manner::Lying), ("d", Manner::Honest)]).await;
    let lost = village.node("c", Manner::Silent).await;
    until("c serves", || village.inference.stats().serving_nodes == 4).await;
    let id = village.inference.submit(ask("corners", json!([1, 0]), None)).await.unwrap().request_id;
    until("c has it", || village.hub.sent.load(Ordering::SeqCst) == 3).await;
    village.lose(&lost);
    let view = village.outcome(id).await;
    assert_eq!((view.metadata.attempts, view.metadata.nodes_used[0].as_str()), (4, "d"));
    village.books_balance();
}

#[tokio::test]
async fn a_silent_node_is_given_up_within_the_deadline() {
    let village = with(round_robin(), &[("a", Manner::Silent), ("b", Manner::Honest)]).await;
    let asked = Submit { max_latency_ms: Some(2_000), ..ask("corners", json!([1, 0]), Some(5_000)) };
    let view = village.inference.submit(asked).await.unwrap().finished.unwrap();
    assert_eq!((view.status, view.metadata.attempts), (RequestStatus::Completed, 2));
    assert!((1_000..2_000).contains(&view.metadata.processing_time_ms), "{view:?}");
}

#[tokio::test]
async fn without_an_answer_in_time_a_request_expires_and_says_why() {
    let village = village(&[("north", Manner::Silent)]).await;
    let asked = Submit { max_latency_ms: Some(150), ..ask("corners", json!([1, 0]), Some(5_000)) };
    let view = village.inference.submit(asked).await.unwrap().finished.unwrap();
    assert_eq!(view.status, RequestStatus::Expired);
    assert!(view.error.unwrap().contains("node north was still at it"));
    let stats = village.inference.stats();
    assert_eq!((stats.expired, stats.active), (1, 0));
    village.books_balance();
}

#[tokio::test]
async fn the_configured_timeout_bounds_what_a_client_asks_for() {
    let config = InferenceConfig { request_timeout_ms: 30, ..InferenceConfig::default() };
    let village = with(config, &[]).await;
    let view = village.inference.submit(ask("corners", json!([1, 0]), Some(5_000))).await.unwrap().finished.unwrap();
    assert!(view.error.unwrap().contains("within 30 ms: no node that takes requests is connected"));
}

#[tokio::test]
async fn a_node_that_says_unfit_ends_the_request() {
    let village = village(&[("a", Manner::Unfit), ("b", Manner::Unfit)]).await;
    let view = village.inference.submit(ask("corners", json!([1, 0]), Some(5_000))).await.unwrap().finished.unwrap();
    assert_eq!((view.status, view.error.as_deref()), (RequestStatus::Failed, Some("does not fit")));
    assert_eq!(view.metadata.attempts, 1);
}

#[tokio::test]
async fn a_request_waits_for_a_node_to_come() {
    let village = village(&[]).await;
    let id = village.inference.submit(ask("corners", json!([1, 0]), None)).await.unwrap().request_id;
    let view = village.inference.request(&id).await.unwrap();
    assert_eq!(view.status, RequestStatus::Queued);
    assert!(view.error.unwrap().contains("no node"));
    village.node("late", Manner::Twice).await;
    assert_eq!(labels(&village.outcome(id).await), [0]);
    assert_eq!(village.inference.stats().ok, 1, "its second answer did not count");
}

#[tokio::test]
async fn unfinished_requests_are_planned_again_after_a_restart() {
    let mut village = village(&[("north", Manner::Silent)]).await;
    let id = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap().request_id;
    village.restart().await;
    assert_eq!(village.inference.request(&id).await.unwrap().status, RequestStatus::Queued);
    village.node("south", Manner::Honest).await;
    assert_eq!(labels(&village.outcome(id).await), [1]);
    village.restart().await;
    assert_eq!(labels(&village.outcome(id).await), [1], "the outcome survives, too");
    village.books_balance();
}

#[tokio::test]
async fn a_request_whose_time_passed_while_nothing_ran_is_expired() {
    let mut village = village(&[("north", Manner::Silent)]).await;
    let id = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap().request_id;
    village.stop().await;
    village.clock.forward(60_000);
    village.restart().await;
    let view = village.outcome(id).await;
    assert_eq!(view.status, RequestStatus::Expired);
    assert!(view.metadata.processing_time_ms >= 60_000);
    village.books_balance();
}

#[tokio::test]
async fn results_expire_and_are_swept() {
    let config = InferenceConfig { result_retention: Duration::from_millis(500), ..InferenceConfig::default() };
    let village = with(config, &[("north", Manner::Honest)]).await;
    let id = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap().request_id;
    village.outcome(id).await;
    village.clock.forward(600);
    let gone = village.inference.request(&id).await.unwrap_err();
    assert_eq!((gone.kind(), gone.to_string()), (ErrorKind::NotFound, "Request not found".to_owned()));
    let swept = async {
        while !village.rows(REQUESTS).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), swept).await.expect("the row is removed");
}

#[tokio::test]
async fn beyond_the_bounds_requests_are_shed_with_a_time_to_come_back() {
    let config = InferenceConfig { max_concurrent_requests: 2, stored_requests_max: 1, ..InferenceConfig::default() };
    let village = with(config, &[("north", Manner::Silent)]).await;
    village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap();
    let full = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap_err();
    assert!(full.to_string().contains("1 requests and results are kept"), "{full}");
    let inference = village.inference.clone();
    let waiting = tokio::spawn(async move { inference.submit(ask("corners", json!([0, 1]), Some(60_000))).await });
    until("two in work", || village.inference.stats().active == 2).await;
    let full = village.inference.submit(ask("corners", json!([0, 1]), Some(1))).await.unwrap_err();
    assert!(matches!(full, InferenceError::Overloaded { retry_after_s: 1.., .. }), "{full}");
    assert_eq!(full.kind(), ErrorKind::Overloaded);
    assert_eq!(village.inference.stats().shed, 2);

    // A client that goes away frees its place, and the books know.
    waiting.abort();
    until("withdrawn", || village.inference.stats().failed == 1).await;
    assert_eq!(village.inference.stats().active, 1);
    village.books_balance();
    let mut registry = prometheus_client::registry::Registry::default();
    village.inference.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["federated_requests_total 4", "federated_requests_failed 3", "aivillage_inference_active 1"] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_promised_and_outcomes_are_stored_in_the_end() {
    let village = village(&[("north", Manner::Honest)]).await;
    village.records.refuse_next("request_accepted", 1);
    let error = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!((village.inference.stats().failed, village.inference.stats().active), (1, 0));
    village.records.refuse_next("request_finished", 1);
    let id = village.inference.submit(ask("corners", json!([0, 1]), None)).await.unwrap().request_id;
    assert_eq!(labels(&village.outcome(id).await), [1]);
    assert_eq!(village.records.refused.load(Ordering::SeqCst), 2);
    village.books_balance();
}

#[tokio::test]
async fn privacy_that_cannot_be_given_is_refused_with_the_way_out() {
    let village = village(&[("north", Manner::Honest)]).await;
    for level in [PrivacyLevel::High, PrivacyLevel::Ultra] {
        let asked = Submit { privacy_level: Some(level), ..ask("corners", json!([0, 1]), Some(1)) };
        let error = village.inference.submit(asked).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PrivacyUnsupported);
        assert!(error.to_string().contains("ask for `medium`"), "{error}");
    }
    let bytes = village.publish("other").await;
    let strict = |id: &str, level| aivillage_inference::ModelInfo { privacy_requirements: level, ..info(id) };
    village.inference.publish(strict("careful", PrivacyLevel::Medium), bytes).await.unwrap();
    let low = Submit { privacy_level: Some(PrivacyLevel::Low), ..ask("careful", json!([0, 1]), Some(5_000)) };
    let error = village.inference.submit(low.clone()).await.unwrap_err();
    assert_eq!(error.faults()[0].pointer, "/privacy_level");
    village.inference.publish(strict("secret", PrivacyLevel::Ultra), bytes).await.unwrap();
    let error = village.inference.submit(ask("secret", json!([0, 1]), Some(1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PrivacyUnsupported);
    let open = Submit { model_id: aivillage_base::ModelId::new("corners").unwrap(), ..low };
    let view = village.inference.submit(open).await.unwrap().finished.unwrap();
    assert_eq!(view.metadata.privacy_level_achieved, PrivacyLevel::Low);
    assert_eq!(village.inference.stats().total_requests, 1, "refused at the door is not a request");
}

#[tokio::test]
async fn wrong_inputs_are_refused_at_their_place() {
    let village = village(&[("north", Manner::Honest)]).await;
    let error = village.inference.submit(ask("corners", json!([1, 2, 3]), None)).await.unwrap_err();
    assert_eq!((error.kind(), error.faults()[0].pointer.as_str()), (ErrorKind::Invalid, "/input_data/inputs"));
    let hasty = Submit { max_latency_ms: Some(0), ..ask("corners", json!([1, 2]), None) };
    assert_eq!(village.inference.submit(hasty).await.unwrap_err().faults()[0].pointer, "/max_latency_ms");
    let unknown = village.inference.submit(ask("nothing", json!([1, 2]), None)).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_model_goes_only_to_kinds_it_supports() {
    let village = village(&[("north", Manner::Honest)]).await;
    let bytes = village.publish("other").await;
    let gpu = aivillage_inference::ModelInfo { supported_node_types: vec![NodeType::Gpu], ..info("gpu_only") };
    village.inference.publish(gpu, bytes).await.unwrap();
    let asked = Submit { max_latency_ms: Some(20), ..ask("gpu_only", json!([1, 2]), Some(5_000)) };
    let view = village.inference.submit(asked).await.unwrap().finished.unwrap();
    assert!(view.error.unwrap().contains("of a kind that the model supports (gpu)"));
}

#[tokio::test]
async fn a_strategy_that_is_not_built_does_not_start() {
    let village = village(&[]).await;
    let deps = aivillage_inference::Deps {
        records: Arc::<crate::village::Moody>::clone(&village.records),
        blobs: Arc::<aivillage_storage::MemoryBlobs>::clone(&village.blobs),
        transport: Arc::<crate::village::Hub>::clone(&village.hub),
        inventory: village.inventory.clone(),
        clock: Arc::<crate::village::Shifted>::clone(&village.clock),
        config: InferenceConfig {
            load_balancing_strategy: LoadBalancingStrategy::Sticky,
            ..InferenceConfig::default()
        },
    };
    let error = Inference::start(deps, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("`sticky` is known, but this version does not build it"), "{error}");
    let _families_exist_without_the_part = Metrics::new(Arc::<crate::village::Shifted>::clone(&village.clock));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_each_answered_right_over_good_and_bad_nodes() {
    let nodes = [("a", Manner::Honest), ("b", Manner::Failing), ("c", Manner::Twice), ("d", Manner::Lying)];
    let config = InferenceConfig { per_node_in_flight: 4, ..round_robin() };
    let village = with(config, &nodes).await;
    let asks: Vec<_> = (0..200_usize)
        .map(|i| {
            let inference = village.inference.clone();
            let row = [json!([1, 0]), json!([0, 1]), json!([0, 0])][i % 3].clone();
            let wait = (i % 2 == 0).then_some(10_000);
            tokio::spawn(async move { (i, inference.submit(ask("corners", row, wait)).await.unwrap()) })
        })
        .collect();
    for asked in asks {
        let (i, submitted) = asked.await.unwrap();
        let view = match submitted.finished {
            Some(view) => view,
            None => village.outcome(submitted.request_id).await,
        };
        assert_eq!(labels(&view), [i % 3], "{view:?}");
    }
    let stats = village.inference.stats();
    assert_eq!((stats.ok, stats.total_requests), (200, 200));
    village.books_balance();
}
