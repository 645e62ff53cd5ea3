//! What the coordinator takes in and what it keeps, through its door: refusals, updates for auditors, server state, nodes'
//! own state, and rounds that close whenever a buffer is full.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

use aivillage_base::Digest;
use aivillage_base::fixed::to_bytes;
use aivillage_base::ports::Payload;
use aivillage_base::wire::secure::Hex;
use aivillage_base::wire::{BlobRef, Declined, LocalMetrics, RoundKey, UpdateHeader, UpdateReply};
use aivillage_privacy::refusal;
use aivillage_training::participant::NodePolicy;
use aivillage_training::participant::policy::RetainUpdates;
use aivillage_training::view::{JobView, MemberView, Phase};
use aivillage_training::{JobRequest, StrategyChoice, TrainingError, store};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::LARGE;
use crate::village::{Village, peer, request, signer};

fn with(strategy: &str, config: &Value, rounds: u32, min: u32) -> JobRequest {
    let config = config.as_object().unwrap().clone();
    let strategy = Some(StrategyChoice { name: strategy.to_owned(), config });
    JobRequest { strategy, ..request(rounds, min) }
}

/// An update of these integers for the first attempt.
fn update(values: &[i32], weight: u32) -> (UpdateHeader, Bytes) {
    let bytes = Bytes::from(to_bytes(values));
    let payload = BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    let key = RoundKey { job: request(1, 1).job_id.unwrap(), round: 1, attempt: 1 };
    (UpdateHeader::new(key, payload, weight, LocalMetrics::default()), bytes)
}

fn inline((header, bytes): (UpdateHeader, Bytes)) -> (UpdateHeader, Payload) {
    (header, Payload::Inline(bytes))
}

fn member<'a>(view: &'a JobView, name: &str) -> &'a MemberView {
    view.rounds[0].members.iter().find(|m| m.name.as_str() == name).unwrap()
}

#[tokio::test]
async fn what_is_refused_is_named_in_the_status_and_the_cohort_goes_on() {
    let mut village = Village::new(3, &["a", "b"]).await;
    let mute = ["long", "heavy", "light", "idle", "wild", "hidden", "good"];
    for node in mute {
        village.join_mute(node).await;
    }
    let job = village.training().create(request(1, 3)).await.unwrap();
    village.until(&job, |view| view.current.as_ref().is_some_and(|r| r.phase == Phase::Collecting)).await;
    let training = village.training();
    let good = inline(update(&[1, 2, 3, 4], 10));
    // It says that it works: the round waits for it.
    training.answer(&peer("good"), good.0.key.clone(), None).await;
    let send = async |node: &str, header: UpdateHeader, payload: Payload| match training
        .update(&peer(node), header, payload)
        .await
    {
        UpdateReply::Refused { reason, .. } => reason,
        other @ (UpdateReply::Accepted | UpdateReply::Retry { .. }) => format!("{other:?}"),
    };
    let over = request(1, 1).hyperparameters.get("max_examples").map_or(1 << 20, |v| v.as_u64().unwrap()) + 1;
    let cases = [
        ("long", inline(update(&[1; 5], 10)), "wrong_size"),
        ("heavy", inline(update(&[1; 4], u32::try_from(over).unwrap())), "bad_weight"),
        ("light", inline(update(&[1; 4], 0)), "bad_weight"),
        ("idle", (UpdateHeader { steps: 0, ..good.0.clone() }, good.1.clone()), "bad_steps"),
        ("wild", inline(update(&[i32::MAX; 4], 10)), "out_of_range"),
    ];
    for (node, (header, payload), reason) in cases.clone() {
        assert_eq!(send(node, header, payload).await, reason);
    }
    assert_eq!(send("stranger", good.0.clone(), good.1.clone()).await, "not_invited");
    let later = RoundKey { round: 7, ..good.0.key.clone() };
    assert_eq!(send("good", UpdateHeader { key: later, ..good.0.clone() }, good.1.clone()).await, "late");
    // What lies in the blob store is looked at when it is summed.
    let (header, bytes) = update(&[i32::MIN; 4], 10);
    assert_eq!(send("hidden", header, village.store(bytes).await).await, "Accepted");
    assert_eq!(send("good", good.0, good.1).await, "Accepted");
    village.completed(&job).await;
    let view = village.training().status(&job).await.unwrap();
    for (node, _, reason) in cases {
        let member = member(&view, node);
        assert_eq!(member.status, "refused");
        assert!(member.reason.as_ref().unwrap().starts_with(reason), "{member:?}");
    }
    assert!(member(&view, "hidden").reason.as_ref().unwrap().starts_with("out_of_range"));
    let good = member(&view, "good");
    assert_eq!((good.weight, good.steps, good.staleness, good.clipped), (Some(10), Some(1), Some(0), Some(0)));
    // The first model and the round's.
    village.until_blobs(2).await;
}

#[tokio::test]
async fn updates_stay_where_job_and_node_allow_it_and_can_be_had() {
    for (features, blobs) in [(3, 4), (LARGE, 7)] {
        let mut village = Village::new(features, &["b"]).await;
        village.join("a", 10, NodePolicy { retain_updates: RetainUpdates::IfAsked, ..NodePolicy::default() }).await;
        let asked = JobRequest { retain_updates: true, ..request(3, 2) };
        let job = village.training().create(asked).await.unwrap();
        village.until(&job, |view| view.rounds_done >= 1).await;
        village.restart().await;
        village.completed(&job).await;
        village.restart().await;
        village.until_blobs(blobs).await;
        assert_eq!(store::referenced(village.records()).await.unwrap(), village.blobs().await);
        let record = village.training().record(&job).await.unwrap();
        for round in &record.attempts {
            for member in &round.members {
                let digest = member.counted().unwrap().payload.digest;
                let kept = village.training().kept_update(&job, &digest).await;
                match member.peer.name.as_str() {
                    "a" => assert_eq!(kept.unwrap().blob().digest, digest),
                    _ => assert!(matches!(kept, Err(TrainingError::NoUpdate(_)))),
                }
            }
        }
    }
}

#[tokio::test]
async fn of_server_state_the_newest_two_stay() {
    let mut village = Village::new(3, &["a", "b"]).await;
    let job = village.training().create(with("fedadam", &json!({}), 5, 2)).await.unwrap();
    village.until(&job, |view| view.rounds_done >= 2).await;
    village.restart().await;
    village.completed(&job).await;
    // The first model, five rounds', and two vectors of each of the last two rounds.
    village.until_blobs(6 + 4).await;
}

#[tokio::test]
async fn control_variates_survive_restarts_of_the_coordinator_on_both_sides() {
    let asked = || with("scaffold", &json!({}), 4, 3);
    let calm = Village::new(3, &["a", "b", "c"]).await;
    let job = calm.training().create(asked()).await.unwrap();
    let expected = calm.completed(&job).await;
    let mut disturbed = Village::new(3, &["a", "b", "c"]).await;
    let job = disturbed.training().create(asked()).await.unwrap();
    for rounds in 1..=3 {
        disturbed.until(&job, |view| view.rounds_done >= rounds).await;
        disturbed.restart().await;
    }
    assert_eq!(disturbed.completed(&job).await, expected);
    let record = disturbed.training().record(&job).await.unwrap().record;
    assert_eq!(record.receipts.len(), 3);
    assert!(record.receipts.values().all(|receipt| receipt.key.round == 4));
}

#[tokio::test]
async fn a_buffer_makes_models_without_waiting_for_everybody() {
    let mut village = Village::new(3, &["a", "b", "c", "d"]).await;
    let asked = JobRequest { min_participants: None, ..with("fedbuff", &json!({"buffer_size": 2}), 8, 2) };
    let job = village.training().create(asked).await.unwrap();
    village.until(&job, |view| view.rounds_done >= 3).await;
    village.restart().await;
    village.completed(&job).await;
    let view = village.training().status(&job).await.unwrap();
    let published: Vec<_> = view.rounds.iter().filter(|r| r.model.is_some()).collect();
    assert_eq!(published.len(), 8);
    for round in published {
        assert_eq!(round.members.iter().filter(|m| m.status == "counted").count(), 2);
    }
    // The first model and eight rounds'; no update is left.
    village.until_blobs(9).await;
}

#[tokio::test]
async fn only_a_refusal_that_its_node_signed_for_this_attempt_counts() {
    let mut village = Village::new(3, &["a", "b"]).await;
    village.join_mute("m").await;
    let job = village.training().create(request(1, 2)).await.unwrap();
    let view = village.until(&job, |view| view.current.as_ref().is_some_and(|r| r.members.len() == 3)).await;
    let key = RoundKey { job: job.clone(), round: 1, attempt: view.current.unwrap().attempt };
    let said =
        |by: &str, key: &RoundKey, reason: &str| refusal::sign(&signer(by), key, "max_rounds".into(), reason.into());
    let good = said("m", &key, "signed");
    let unsigned = Declined { signature: Hex([0; 64]), reason: "unsigned".into(), ..good.clone() };
    let by_another = said("a", &key, "by another");
    let earlier = said("m", &RoundKey { attempt: key.attempt + 1, ..key.clone() }, "of another attempt");
    let changed = Declined { reason: "changed".into(), ..good.clone() };
    let long = said("m", &key, &"long ".repeat(2_000));
    for declined in [unsigned, by_another, earlier, changed, long] {
        village.training().answer(&peer("m"), key.clone(), Some(declined)).await;
    }
    // Words are taken in their order, and the first refusal that counts stands: it is the signed one.
    village.training().answer(&peer("m"), key, Some(good.clone())).await;
    village.completed(&job).await;
    let view = village.training().status(&job).await.unwrap();
    let m = member(&view, "m");
    assert_eq!((m.status, m.declined.as_ref()), ("declined", Some(&good)));
}
