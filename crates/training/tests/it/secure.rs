//! Secure aggregation through the door: the same model as without, nothing of single updates, refusals by name.

use std::collections::BTreeSet;

use serde_json::{Map, json};

use aivillage_base::ports::Scan;
use aivillage_base::wire::RoundKey;
use aivillage_base::wire::secure::{RegistryHead, SecureUp};
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::signed::Context;
use aivillage_privacy::secagg::threshold::{self, Assumptions};
use aivillage_training::participant::NodePolicy;
use aivillage_training::participant::secure::SystemRandom;
use aivillage_training::secure::{COHORT_MAX, FULL_GRAPH_MAX, WITHSTANDS, terms};
use aivillage_training::strategy::Weighting;
use aivillage_training::view::JobStatus;
use aivillage_training::{JobRequest, StrategyChoice, TrainingError};

use super::LARGE;
use super::village::{Village, peer, request, signer};

fn secure(request: JobRequest) -> JobRequest {
    JobRequest { privacy_techniques: Some(vec!["secure_aggregation".into()]), ..request }
}

fn with(name: &str, request: JobRequest) -> JobRequest {
    JobRequest { strategy: Some(StrategyChoice { name: name.into(), config: Map::new() }), ..request }
}

#[tokio::test]
async fn a_secure_job_ends_in_the_plain_jobs_model_and_shows_no_update() {
    let cases = [
        (3, "fedavg", 0.0),
        (LARGE, "fedavg", 0.0),
        (3, "scaffold", 0.0),
        (LARGE, "fedadam", 0.0),
        (3, "fedprox", 0.0),
        // With momentum, what a step does depends on the steps after it.
        (3, "fednova", 0.9),
        (LARGE, "fednova", 0.5),
    ];
    for (features, strategy, momentum) in cases {
        let request = || {
            let mut request = with(strategy, request(3, 3));
            request.hyperparameters.insert("momentum".into(), json!(momentum));
            request
        };
        let plain = Village::new(features, &["a", "b", "c"]).await;
        let job = plain.training().create(request()).await.unwrap();
        let expected = plain.completed(&job).await;
        let village = Village::new(features, &["a", "b", "c"]).await;
        let job = village.training().create(secure(request())).await.unwrap();
        assert_eq!(village.completed(&job).await, expected, "{strategy} with {features} features");
        let seen = plain.training().status(&job).await.unwrap();
        let view = village.training().status(&job).await.unwrap();
        for (round, plain) in view.rounds.iter().zip(&seen.rounds) {
            assert!(round.secure && round.weight == Some(if strategy == "scaffold" { 3 } else { 33 }));
            let (loss, expected) = (round.loss.unwrap(), plain.loss.unwrap());
            assert!(strategy == "scaffold" || (loss - expected).abs() < 1e-3, "{loss} {expected}");
            for member in &round.members {
                assert_eq!(member.status, "counted");
                assert!(member.weight.is_none() && member.metrics.is_none() && member.steps.is_none());
            }
        }
        for entry in village.logs.values().flat_map(|log| log.0.lock().unwrap().clone()) {
            assert!(!entry.note.contains("weight"), "{entry:?}");
        }
    }
}

#[tokio::test]
async fn a_cohort_too_large_for_all_to_mask_with_all_ends_in_the_plain_jobs_model() {
    const NODES: u32 = FULL_GRAPH_MAX + 2;
    let names: Vec<String> = (0..NODES).map(|i| format!("n{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let all = || {
        let mut request = JobRequest { max_participants: Some(NODES), ..request(1, NODES) };
        request.hyperparameters.insert("round_timeout_s".into(), json!(240));
        request
    };
    let plain = Village::new(3, &names).await;
    let job = plain.training().create(all()).await.unwrap();
    let expected = plain.completed(&job).await;
    let village = Village::new(3, &names).await;
    let job = village.training().create(secure(all())).await.unwrap();
    assert_eq!(village.completed(&job).await, expected);
    let record = village.training().record(&job).await.unwrap();
    assert_eq!(record.attempts.len(), 1, "at the first attempt");
    // Each has revealed a nonce, and shared with some of the others.
    for log in village.logs.values() {
        let said = |kind: &str| log.0.lock().unwrap().iter().filter(|entry| entry.kind == kind).count();
        assert_eq!((said("reveal") > 0, said("alarm")), (true, 0));
    }
    let opened: BTreeSet<String> = village.opened().into_iter().collect();
    let plan = threshold::choose(NODES as usize, &Assumptions::default()).unwrap();
    assert!(plan.neighbours < 100);
    assert_eq!(opened.len(), NODES as usize * plan.neighbours, "a share of each neighbour");
}

#[tokio::test]
async fn a_coordinator_restarted_again_and_again_ends_in_the_same_model() {
    let calm = Village::new(LARGE, &["a", "b", "c"]).await;
    let job = calm.training().create(request(4, 3)).await.unwrap();
    let expected = calm.completed(&job).await;
    let mut disturbed = Village::new(LARGE, &["a", "b", "c"]).await;
    let job = disturbed.training().create(secure(request(4, 3))).await.unwrap();
    for pause in [1, 2, 3, 5, 8, 13, 21, 34] {
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        disturbed.restart().await;
    }
    assert_eq!(disturbed.completed(&job).await, expected);
}

#[tokio::test]
async fn a_node_that_allows_no_plain_update_takes_part_in_secure_jobs_only() {
    let strict = || NodePolicy { require_secure_aggregation: true, ..NodePolicy::default() };
    let mut village = Village::new(3, &["a", "b"]).await;
    village.join("c", 9, strict()).await;
    let job = village.training().create(secure(request(1, 3))).await.unwrap();
    village.completed(&job).await;
    let mut village = Village::new(3, &["a", "b"]).await;
    village.join("c", 9, strict()).await;
    let job = village.training().create(request(1, 3)).await.unwrap();
    let view = village.until(&job, |view| !view.rounds.is_empty()).await;
    let c = view.rounds[0].members.iter().find(|m| m.name.as_str() == "c").unwrap();
    assert_eq!(c.status, "declined");
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_at_submit_with_the_way_out() {
    let village = Village::new(3, &["a", "b", "c"]).await;
    let mut kept = secure(request(1, 3));
    kept.retain_updates = true;
    let mut parameter = secure(request(1, 3));
    parameter.privacy = json!({"corupt": 0.1}).as_object().unwrap().clone();
    let mut hopeless = secure(request(1, 3));
    hopeless.privacy = json!({"corrupt": 0.4, "dropout": 0.4}).as_object().unwrap().clone();
    hopeless.max_participants = Some(20);
    let large = JobRequest { max_participants: Some(COHORT_MAX + 1), ..secure(request(1, 3)) };
    let mut unused = request(1, 3);
    unused.privacy = json!({"clip": 1.0}).as_object().unwrap().clone();
    let cases = [
        (secure(with("median", request(1, 3))), "/strategy/name", "has to see single updates"),
        (secure(with("krum", request(1, 5))), "/strategy/name", "choose fedavg"),
        (secure(with("qfedavg", request(1, 3))), "/strategy/name", "a power of its node's loss"),
        (secure(with("fedbuff", request(1, 10))), "/strategy/name", "a cohort that is agreed on before"),
        (secure(request(1, 2)), "/min_participants", "at least 3 participants, 2 were asked for"),
        (large, "/max_participants", "takes up to 320 participants, 321 were asked for"),
        (kept, "/retain_updates", "nobody has single updates"),
        (parameter, "/privacy/corupt", "did you mean `corrupt`"),
        (hopeless, "/privacy", "participants"),
        (unused, "/privacy/clip", "does not use"),
    ];
    for (mut request, pointer, part) in cases {
        if let Some(choice) = request.strategy.as_mut().filter(|choice| choice.name == "krum") {
            choice.config = json!({"byzantine": 1}).as_object().unwrap().clone();
        }
        let Err(TrainingError::Refused(faults)) = village.training().create(request).await else {
            panic!("{pointer} {part} was accepted");
        };
        let found = faults.iter().any(|fault| fault.pointer == pointer && fault.detail.contains(part));
        assert!(found, "{pointer} {part}: {faults:?}");
    }
}

#[tokio::test]
async fn one_model_gives_one_sum() {
    let village = Village::new(3, &["a", "b", "c", "d"]).await;
    let job = village.training().create(secure(request(1, 4))).await.unwrap();
    village.completed(&job).await;
    // The same seed is the same first model: the sum of three would show the fourth by what it lacks.
    let again = JobRequest { job_id: Some("again".parse().unwrap()), ..secure(request(1, 3)) };
    let fewer = JobRequest { max_participants: Some(3), ..again.clone() };
    let job = village.training().create(fewer).await.unwrap();
    let view = village.ended(&job).await;
    assert_eq!(view.status, JobStatus::Failed);
    assert!(view.reason.as_ref().unwrap().contains("differencing"), "{:?}", view.reason);
    // The same four, counted otherwise, would be a second equation with the same unknowns.
    let mut otherwise = JobRequest { job_id: Some("otherwise".parse().unwrap()), ..secure(request(1, 4)) };
    otherwise.hyperparameters.insert("max_examples".into(), json!(11));
    let job = village.training().create(otherwise).await.unwrap();
    let view = village.ended(&job).await;
    assert!(view.reason.as_ref().unwrap().contains("differencing"), "{:?}", view.reason);
    // Control: another seed, and the same work of the same cohort, are fine.
    let other = JobRequest {
        job_id: Some("other".parse().unwrap()),
        seed: Some(2),
        max_participants: Some(3),
        ..again.clone()
    };
    let job = village.training().create(other).await.unwrap();
    village.completed(&job).await;
    let same = JobRequest { job_id: Some("same".parse().unwrap()), min_participants: Some(4), ..again };
    let job = village.training().create(same).await.unwrap();
    village.completed(&job).await;
}

#[tokio::test]
async fn no_share_of_a_secret_is_left_in_records_views_or_logs() {
    let village = Village::new(3, &["a", "b", "c"]).await;
    let job = village.training().create(secure(request(2, 3))).await.unwrap();
    village.completed(&job).await;
    let needles = village.opened();
    assert!(needles.len() >= 2 * 9, "each of three opens a share of each of three, twice: {}", needles.len());
    let mut written = format!("{:?}", village.training().status(&job).await.unwrap());
    written += &format!("{:?}", village.training().record(&job).await.unwrap());
    for entry in village.logs.values().flat_map(|log| log.0.lock().unwrap().clone()) {
        written += &format!("{entry:?}");
    }
    let mut rows = 0;
    for table in ["training_jobs", "training_rounds", "training_members", "training_payloads"] {
        for row in village.records().scan(table, Scan { limit: 1_000, ..Scan::default() }).await.unwrap() {
            rows += 1;
            written += &String::from_utf8_lossy(&row.value);
        }
    }
    assert!(rows >= 3 && written.contains("survivors"), "control: the records are there");
    for needle in needles {
        assert!(!written.contains(&needle), "a share is left");
    }
}

#[tokio::test]
async fn who_sends_false_keys_is_named_and_left_out_and_the_rest_goes_on() {
    let mut village = Village::new(3, &["a", "b", "c"]).await;
    village.join_mute("m").await;
    let job = village.training().create(secure(request(2, 3))).await.unwrap();
    let view = village.until(&job, |view| view.current.as_ref().is_some_and(|r| r.members.len() == 4)).await;
    let key = RoundKey { job: job.clone(), round: 1, attempt: view.current.unwrap().attempt };
    // Keys for another context than the round's.
    let terms = terms(WITHSTANDS, (3, 4), Weighting::Examples, 16).unwrap();
    let (signer, m) = (signer("m"), peer("m"));
    let machine = Participant::begin(
        Context([1; 32]),
        terms,
        m.name.clone(),
        RegistryHead::default(),
        &signer,
        &mut SystemRandom,
    );
    let advert = SecureUp::Advert(Box::new(machine.advert().clone()));
    village.training().secure(&m, key, Box::new(advert)).await;
    village.completed(&job).await;
    let view = village.training().status(&job).await.unwrap();
    let first = view.rounds[0].members.iter().find(|member| member.name == m.name).unwrap();
    assert_eq!(first.status, "failed");
    assert!(first.reason.as_ref().unwrap().starts_with("signature: "), "{first:?}");
    assert!(view.rounds[1].members.iter().all(|member| member.name != m.name), "it is not asked again");
}
