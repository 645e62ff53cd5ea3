//! Rounds with a helper, through the door: the plain round's model, one sum a model, and a helper that goes and comes.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, json};

use aivillage_base::ports::Scan;
use aivillage_privacy::secagg::signed::Signer as _;
use aivillage_training::participant::{MemoryContexts, MemoryPins, NodePolicy};
use aivillage_training::view::{JobStatus, JobView, Phase};
use aivillage_training::{JobRequest, StrategyChoice, TrainingError};

use super::LARGE;
use super::village::{Village, request, signer};

const HELPER: &str = "notary";

fn helped(request: JobRequest) -> JobRequest {
    let privacy = json!({"variant": "two_helper", "helper": HELPER}).as_object().unwrap().clone();
    JobRequest { privacy_techniques: Some(vec!["secure_aggregation".into()]), privacy, ..request }
}

fn with(name: &str, request: JobRequest) -> JobRequest {
    JobRequest { strategy: Some(StrategyChoice { name: name.into(), config: Map::new() }), ..request }
}

/// Nodes that trust the helper, which is not there yet.
async fn village(features: usize, nodes: &[&str]) -> Village {
    let mut village = Village::new(features, &[]).await;
    for (node, rows) in nodes.iter().zip(10..) {
        village.join(node, rows, NodePolicy { helpers: vec![signer(HELPER).id()], ..NodePolicy::default() }).await;
    }
    village
}

async fn helper(village: &Village) -> Arc<MemoryContexts> {
    let contexts = Arc::<MemoryContexts>::default();
    village.join_helper(HELPER, contexts.clone(), Arc::default()).await;
    contexts
}

#[tokio::test]
async fn a_job_with_a_helper_ends_in_the_plain_jobs_model_and_shows_no_update() {
    for (features, strategy) in [(3, "fedavg"), (LARGE, "fedavg"), (3, "scaffold"), (LARGE, "fedadam")] {
        let plain = Village::new(features, &["a", "b", "c"]).await;
        let job = plain.training().create(with(strategy, request(3, 3))).await.unwrap();
        let expected = plain.completed(&job).await;
        let village = village(features, &["a", "b", "c"]).await;
        helper(&village).await;
        let job = village.training().create(helped(with(strategy, request(3, 3)))).await.unwrap();
        assert_eq!(village.completed(&job).await, expected, "{strategy} with {features} features");
        let view = village.training().status(&job).await.unwrap();
        for member in view.rounds.iter().flat_map(|round| &round.members) {
            assert!(member.status == "counted" && member.weight.is_none() && member.metrics.is_none());
        }
        // Models only: updates and answers have gone.
        let models: Vec<_> = view.rounds.iter().filter_map(|round| round.model).collect();
        let kept = village.blobs().await;
        assert!(models.iter().all(|model| kept.contains(&model.digest)));
        let rest = village.records().scan("training_payloads", Scan { prefix: "", after: None, limit: 10 }).await;
        assert_eq!(rest.unwrap().len(), 0, "{strategy}: small updates and answers are forgotten");
    }
}

#[tokio::test]
async fn who_does_not_answer_is_left_out_without_asking_anybody() {
    let plain = Village::new(3, &["a", "b", "c"]).await;
    let job = plain.training().create(request(2, 3)).await.unwrap();
    let expected = plain.completed(&job).await;
    let mut village = village(3, &["a", "b", "c"]).await;
    for mute in ["d", "e", "f", "g"] {
        village.join_mute(mute).await;
    }
    helper(&village).await;
    let job = village.training().create(helped(request(2, 3))).await.unwrap();
    let ahead = async {
        loop {
            village.clock.jump(Duration::from_millis(300));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let made = tokio::select! {
        made = village.completed(&job) => made,
        () = ahead => unreachable!("invariant: the clock runs for ever"),
    };
    assert_eq!(made, expected, "four of seven have left");
}

#[tokio::test]
async fn a_coordinator_restarted_again_and_again_ends_in_the_same_model() {
    let calm = Village::new(LARGE, &["a", "b", "c"]).await;
    let job = calm.training().create(request(4, 3)).await.unwrap();
    let expected = calm.completed(&job).await;
    let mut disturbed = village(LARGE, &["a", "b", "c"]).await;
    helper(&disturbed).await;
    let job = disturbed.training().create(helped(request(4, 3))).await.unwrap();
    for pause in [1, 2, 3, 5, 8, 13, 21, 34] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        disturbed.restart().await;
    }
    assert_eq!(disturbed.completed(&job).await, expected);
    disturbed.until_blobs(5).await;
}

#[tokio::test]
async fn a_round_waits_for_its_helper_and_a_helper_that_comes_back_remembers() {
    let plain = Village::new(LARGE, &["a", "b", "c"]).await;
    let job = plain.training().create(request(2, 3)).await.unwrap();
    let expected = plain.completed(&job).await;
    let mut village = village(LARGE, &["a", "b", "c"]).await;
    let job = village.training().create(helped(request(2, 3))).await.unwrap();
    let missing = "helper notary is not connected";
    let waits = |view: &JobView| view.reason.as_ref().is_some_and(|reason| reason.contains(missing));
    village.until(&job, waits).await;
    village.announce_helper(HELPER).await;
    village.until(&job, |view| view.current.as_ref().is_some_and(|r| r.phase == Phase::Unmasking)).await;
    village.restart().await;
    village.until(&job, |view| view.current.as_ref().is_some_and(|r| r.phase == Phase::Unmasking)).await;
    let contexts = helper(&village).await;
    village.until(&job, |view| view.rounds_done > 0).await;
    village.lose_helper(HELPER).await;
    village.join_helper(HELPER, contexts, Arc::default()).await;
    assert_eq!(village.completed(&job).await, expected);
}

#[tokio::test]
async fn a_node_that_has_not_listed_the_helper_takes_no_part() {
    let mut village = village(3, &["a", "b"]).await;
    helper(&village).await;
    let other = vec![signer("other").id()];
    village.join("c", 9, NodePolicy { helpers: other, ..NodePolicy::default() }).await;
    village.join("d", 9, NodePolicy::default()).await;
    let job = village.training().create(helped(request(1, 3))).await.unwrap();
    let view = village.until(&job, |view| view.rounds.first().is_some_and(|r| r.phase == Phase::Abandoned)).await;
    for name in ["c", "d"] {
        let member = view.rounds[0].members.iter().find(|m| m.name.as_str() == name).unwrap();
        assert_eq!(member.declined.as_ref().map(|d| d.rule.as_str()), Some("helpers"), "{member:?}");
    }
    assert!(village.logs.values().all(|log| {
        log.0.lock().unwrap().iter().all(|entry| entry.kind != "update" || entry.note.starts_with("masked"))
    }));
}

#[tokio::test]
async fn one_model_gives_one_sum_whoever_opens_it() {
    let village = village(3, &["a", "b", "c", "d"]).await;
    helper(&village).await;
    let job = village.training().create(helped(request(1, 4))).await.unwrap();
    village.completed(&job).await;
    // The same seed is the same first model: the sum of three would show the fourth by what it lacks.
    let again = JobRequest { job_id: Some("again".parse().unwrap()), ..helped(request(1, 3)) };
    let fewer = JobRequest { max_participants: Some(3), ..again.clone() };
    let job = village.training().create(fewer).await.unwrap();
    let view = village.ended(&job).await;
    assert_eq!(view.status, JobStatus::Failed);
    let reason = view.reason.unwrap();
    assert!(reason.contains("the helper notary refuses") && reason.contains("differencing"), "{reason}");
    // Nor do the nodes open among themselves what they have given to the helper.
    let secure = Some(vec!["secure_aggregation".to_owned()]);
    let among = JobRequest { job_id: Some("among".parse().unwrap()), privacy_techniques: secure, ..request(1, 4) };
    let job = village.training().create(among).await.unwrap();
    let reason = village.ended(&job).await.reason.unwrap();
    assert!(reason.contains("differencing"), "{reason}");
    // Control: another seed is another model.
    let other = JobRequest { job_id: Some("other".parse().unwrap()), seed: Some(2), ..again };
    let job = village.training().create(other).await.unwrap();
    village.completed(&job).await;
}

#[tokio::test]
async fn a_helper_knows_nodes_by_their_keys() {
    let village = village(3, &["a", "b", "c"]).await;
    let pins = Arc::<MemoryPins>::default();
    let strange = aivillage_base::wire::Peer { id: signer("stranger").id(), ..super::village::peer("b") };
    aivillage_training::participant::Pins::check(&*pins, &[&strange]).unwrap();
    village.join_helper(HELPER, Arc::default(), pins).await;
    let job = village.training().create(helped(request(1, 3))).await.unwrap();
    let reason = village.ended(&job).await.reason.unwrap();
    assert!(reason.contains("changed_key") && reason.contains("b has the key"), "{reason}");
}

#[tokio::test]
async fn a_helper_is_asked_for_as_docs_say_and_proposed_where_cohorts_cannot() {
    let village = village(3, &["a", "b", "c"]).await;
    let privacy = |value: serde_json::Value| {
        let privacy = value.as_object().unwrap().clone();
        JobRequest { privacy, ..helped(request(1, 3)) }
    };
    let cases = [
        (privacy(json!({"variant": "two_helpers", "helper": "n"})), "/privacy/variant", "did you mean `two_helper`"),
        (privacy(json!({"variant": "two_helper"})), "/privacy/helper", "privacy.helpers"),
        (privacy(json!({"helper": "n"})), "/privacy/helper", "add `variant: two_helper`"),
        (privacy(json!({"variant": "two_helper", "helper": "n", "dropout": 0.3})), "/privacy/dropout", "any number"),
        (privacy(json!({"dropout": 0.6})), "/privacy/dropout", "variant: two_helper"),
        (privacy(json!({"dropout": 0.45})), "/privacy", "variant: two_helper"),
        (helped(with("fedbuff", request(1, 10))), "/strategy/name", "weigh masks by how old each is"),
        (helped(with("median", request(1, 3))), "/strategy/name", "has to see single updates"),
    ];
    for (request, pointer, part) in cases {
        let Err(TrainingError::Refused(faults)) = village.training().create(request).await else {
            panic!("{pointer} {part} was accepted");
        };
        let found = faults.iter().any(|fault| fault.pointer == pointer && fault.detail.contains(part));
        assert!(found, "{pointer} {part}: {faults:?}");
    }
}
