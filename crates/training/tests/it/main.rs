//! Training through its door: a real coordinator, real participants, memory stores, an in-memory link that sends every
//! update twice.

use std::time::Duration;

use aivillage_base::JobId;
use aivillage_training::participant::NodePolicy;
use aivillage_training::view::JobStatus;
use aivillage_training::{TrainingError, store};

mod helper;
mod keeping;
mod oracle;
mod secure;
mod strategies;
mod village;

use village::{Village, request};

/// More than fits inline: updates become blobs.
const LARGE: usize = 5_000;

#[tokio::test]
async fn a_job_runs_to_its_model_and_leaves_nothing_but_models() {
    for features in [3, LARGE] {
        let village = Village::new(features, &["a", "b", "c"]).await;
        let job = village.training().create(request(3, 3)).await.unwrap();
        let model = village.completed(&job).await;
        let view = village.training().status(&job).await.unwrap();
        assert_eq!((view.rounds.len(), view.model.unwrap().digest), (3, model));
        assert!(view.rounds.iter().all(|r| r.members.iter().all(|m| m.status == "counted")));
        let (first, last) = (view.rounds[0].loss.unwrap(), view.rounds[2].loss.unwrap());
        assert!(last < first, "it learns: {first} -> {last}");
        // The first model and three rounds'; no update is left.
        village.until_blobs(4).await;
        assert_eq!(store::referenced(village.records()).await.unwrap(), village.blobs().await);
        for log in village.logs.values() {
            assert_eq!(log.0.lock().unwrap().iter().filter(|e| e.kind == "update").count(), 3);
        }
    }
}

#[tokio::test]
async fn two_fresh_villages_and_one_that_was_restarted_end_in_one_digest() {
    let calm = Village::new(LARGE, &["a", "b", "c"]).await;
    let job = calm.training().create(request(4, 3)).await.unwrap();
    let expected = calm.completed(&job).await;
    let mut disturbed = Village::new(LARGE, &["c", "b", "a"]).await;
    // Rows follow names, not the order of arrival.
    disturbed.join("a", 10, NodePolicy::default()).await;
    disturbed.join("c", 12, NodePolicy::default()).await;
    let job = disturbed.training().create(request(4, 3)).await.unwrap();
    for rounds in 1..=3 {
        disturbed.until(&job, |view| view.rounds_done >= rounds).await;
        disturbed.restart().await;
    }
    assert_eq!(disturbed.completed(&job).await, expected);
    disturbed.until_blobs(5).await;
}

#[tokio::test]
async fn a_machine_that_slept_past_its_lease_goes_on() {
    let mut village = Village::new(3, &["a"]).await;
    let job = village.training().create(request(2, 2)).await.unwrap();
    village.until(&job, |view| view.reason.is_some() && view.status == JobStatus::Running).await;
    village.clock.jump(Duration::from_secs(3_600));
    // The task notices at its next tick that its tenure is over; the job must still find its second node.
    tokio::time::sleep(Duration::from_millis(700)).await;
    village.join("b", 11, NodePolicy::default()).await;
    village.completed(&job).await;
}

#[tokio::test]
async fn a_node_whose_policy_refuses_is_named_and_the_rest_goes_on() {
    let mut village = Village::new(3, &["a", "b"]).await;
    let strict = NodePolicy { max_rounds: Some(1), ..NodePolicy::default() };
    village.join("z", 9, strict).await;
    let job = village.training().create(request(2, 2)).await.unwrap();
    village.completed(&job).await;
    let view = village.training().status(&job).await.unwrap();
    let z = view.rounds[0].members.iter().find(|m| m.name.as_str() == "z").unwrap();
    assert_eq!(z.status, "declined");
    assert!(z.reason.as_ref().unwrap().contains("at most 1 are allowed"));
    assert!(view.rounds[1].members.iter().all(|m| m.name.as_str() != "z"), "it is not asked again");
}

#[tokio::test]
async fn a_job_can_be_cancelled_once_and_its_id_is_taken_for_good() {
    let village = Village::new(3, &["a"]).await;
    let job = village.training().create(request(2, 2)).await.unwrap();
    village.training().cancel(&job).await.unwrap();
    village.training().cancel(&job).await.unwrap();
    assert_eq!(village.ended(&job).await.status, JobStatus::Cancelled);
    assert!(matches!(village.training().create(request(2, 2)).await, Err(TrainingError::Taken(_))));
    let absent = JobId::new("absent").unwrap();
    assert!(matches!(village.training().cancel(&absent).await, Err(TrainingError::NotFound)));
    assert!(matches!(village.training().status(&absent).await, Err(TrainingError::NotFound)));
    let stored = store::job(village.records(), &job).await.unwrap().unwrap();
    assert_eq!(stored.life.status(), JobStatus::Cancelled);
}
