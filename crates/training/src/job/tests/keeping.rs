//! What a job keeps beside models: receipts for its nodes, updates for auditors, server state; and shapes that do not fit.

use serde_json::{Map, Value, json};

use super::*;
use crate::step::Made;
use crate::strategy;

fn job(name: &str, config: &Value, min: u32) -> JobSpec {
    let config: &Map<String, Value> = config.as_object().unwrap();
    let strategy::Chosen { strategy, personal_tensors } = strategy::named(name, config).unwrap();
    JobSpec { strategy, personal_tensors, ..spec(min, 10, 2) }
}

/// An update of so many values.
fn sized(key: &RoundKey, values: usize) -> (UpdateHeader, Payload) {
    let bytes = aivillage_base::fixed::to_bytes(&vec![1; values]);
    let payload = BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    let metrics = aivillage_base::wire::LocalMetrics::default();
    (UpdateHeader::new(key.clone(), payload, 10, metrics), Payload::Inline(bytes.into()))
}

fn said(bench: &mut Bench, from: &str, update: (UpdateHeader, Payload)) -> String {
    match bench.step(Input::Update(peer(from), update.0, update.1)).reply {
        Some(UpdateReply::Accepted) => "accepted".into(),
        Some(UpdateReply::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_update_is_as_long_as_planes_and_shared_tensors_make_it() {
    let personal = json!({"personal_tensors": ["layer000.bias"]});
    for (name, config, values) in [
        ("fedavg", json!({}), 4),
        ("scaffold", json!({}), 8),
        ("fedavg", personal.clone(), 3),
        ("scaffold", personal, 6),
    ] {
        let mut bench = Bench::of(job(name, &config, 1)).run(&["a", "b"]);
        assert_eq!(said(&mut bench, "a", sized(&key(1, 1), values + 1)), "wrong_size", "{name}");
        assert_eq!(said(&mut bench, "b", sized(&key(1, 1), values)), "accepted", "{name} {config}");
    }
}

#[test]
fn names_that_mean_no_tensor_end_the_job_with_the_list_of_those_that_are_there() {
    for (names, says) in [
        (json!(["layer000.bais"]), "did you mean `layer000.bias`"),
        (json!(["*"]), "nothing would be trained together"),
    ] {
        let mut bench = Bench::of(job("fedavg", &json!({ "personal_tensors": names }), 1));
        bench.step(Input::Started);
        bench.step(Input::Joined(candidate("a")));
        let Life::Failed { reason } = &bench.store.saved.record.life else { panic!("{:?}", bench.job.status()) };
        assert!(reason.contains(says) && reason.contains("layer000.weight"), "{reason}");
    }
}

#[test]
fn receipts_are_stored_with_the_round_and_told_with_the_next_invitation_and_the_end() {
    let mut bench = Bench::of(job("ditto", &json!({}), 2)).run(&["a", "b"]);
    bench.update("a", &key(1, 1));
    bench.update("b", &key(1, 1));
    assert!(bench.store.saved.record.receipts.is_empty(), "not before the round is published");
    let step = bench.step(Input::Computed(key(1, 1), Ok(made("model 1"))));
    let (header, _) = update(&key(1, 1), [1, 2, 3, 4], 10);
    let receipt = aivillage_base::wire::Receipt { key: key(1, 1), digest: header.payload.digest };
    let told = |e: &Effect| {
        if let Effect::Send(_, Down::Invite(i)) = e {
            i.receipt.clone()
        } else if let Effect::Send(_, Down::JobEnded { receipt, .. }) = e {
            receipt.clone()
        } else {
            None
        }
    };
    assert_eq!(step.effects.iter().filter_map(told).collect::<Vec<_>>(), [receipt.clone(), receipt.clone()]);
    let step = bench.step(Input::Cancel);
    assert_eq!(step.effects.iter().filter_map(told).collect::<Vec<_>>(), [receipt.clone(), receipt.clone()]);
    assert_eq!(bench.store.saved.record.receipts.len(), 2);
}

#[test]
fn updates_are_kept_where_job_and_node_allow_it_and_only_of_published_rounds() {
    let mut bench = Bench::of(JobSpec { retain_updates: true, ..job("fedavg", &json!({}), 3) }).run(&["a", "b", "c"]);
    let keep = |(header, payload)| (UpdateHeader { retain: true, ..header }, payload);
    let small = keep(update(&key(1, 1), [1, 1, 1, 1], 10));
    let large = keep(stored(&key(1, 1), [2, 2, 2, 2], 10));
    let shy = stored(&key(1, 1), [3, 3, 3, 3], 10);
    for (node, update) in [("a", small), ("b", large), ("c", shy.clone())] {
        assert_eq!(said(&mut bench, node, update), "accepted");
    }
    let step = bench.step(Input::Computed(key(1, 1), Ok(made("model 1"))));
    assert_eq!(deleted(&step), [shy.0.payload.digest]);
    assert_eq!(bench.store.payloads.len(), 1);
    let kept = bench.store.saved.attempts[0].retained().map(|(name, _)| name.as_str().to_owned());
    assert_eq!(kept.collect::<Vec<_>>(), ["a", "b"]);
    said(&mut bench, "a", keep(update(&key(2, 1), [1, 1, 1, 1], 10)));
    let step = bench.step(Input::Cancel);
    assert_eq!(bench.store.payloads.len(), 1, "an attempt that was given up leaves nothing");
    assert!(deleted(&step).is_empty());
}

#[test]
fn a_node_cannot_make_a_job_keep_what_it_did_not_ask_for() {
    let mut bench = Bench::of(job("fedavg", &json!({}), 1)).run(&["a"]);
    let (header, payload) = update(&key(1, 1), [1, 1, 1, 1], 10);
    said(&mut bench, "a", (UpdateHeader { retain: true, ..header }, payload));
    bench.step(Input::Computed(key(1, 1), Ok(made("model 1"))));
    assert!(bench.store.payloads.is_empty() && bench.store.saved.attempts[0].retained().next().is_none());
}

#[test]
fn too_few_updates_for_the_rule_are_told_in_its_words_and_what_it_cannot_use_ends_the_attempt() {
    let mut bench = Bench::of(job("krum", &json!({"byzantine": 1}), 5)).run(&["a", "b", "c", "d", "e"]);
    for node in ["a", "b", "c", "d", "e"] {
        bench.update(node, &key(1, 1));
    }
    let bad = ComputeError::BadUpdate { node: name("b"), reason: "damaged", detail: "damaged".into() };
    bench.step(Input::Computed(key(1, 1), Err(bad)));
    let Stage::Abandoned { reason } = &bench.store.saved.attempts[0].stage else { panic!("it goes on") };
    assert!(reason.contains("4 usable updates, 5 needed") && reason.contains("2f + 3"), "{reason}");
    for node in ["a", "b", "c", "d", "e"] {
        bench.update(node, &key(1, 2));
    }
    bench.step(Input::Computed(key(1, 2), Err(ComputeError::Unusable("all losses are zero".into()))));
    let Stage::Abandoned { reason } = &bench.store.saved.attempts[1].stage else { panic!("it goes on") };
    assert_eq!(reason, "all losses are zero");
}

#[test]
fn a_declaration_that_the_rule_cannot_use_is_refused_and_the_cohort_goes_on() {
    let mut bench = Bench::of(job("qfedavg", &json!({"q": 1.0}), 1)).run(&["a", "b"]);
    assert_eq!(said(&mut bench, "a", update(&key(1, 1), [1, 2, 3, 4], 10)), "unusable");
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 10);
    let (none, whole) =
        (UpdateHeader { steps: 0, ..header.clone() }, UpdateHeader { initial_loss: Some(0.5), ..header });
    assert_eq!(said(&mut bench, "b", (UpdateHeader { initial_loss: Some(0.5), ..none }, payload.clone())), "bad_steps");
    assert_eq!(*bench.job.round().unwrap().key(), key(1, 2), "nobody is left, so it is tried again");
    let whole = UpdateHeader { key: key(1, 2), ..whole };
    assert_eq!(said(&mut bench, "b", (whole, payload)), "accepted");
    let view = bench.store.saved.members.iter().find(|m| m.peer.name == name("b")).unwrap().view(1);
    assert_eq!((view.weight, view.steps, view.staleness), (Some(10), Some(1), Some(0)));
}

#[test]
fn server_state_goes_from_round_to_round_by_the_records() {
    let mut bench = Bench::of(job("scaffold", &json!({}), 1)).run(&["a"]);
    said(&mut bench, "a", sized(&key(1, 1), 8));
    let slot = crate::record::StateSlot { name: "control".into(), blob: blob("control 1") };
    let step = bench
        .step(Input::Computed(key(1, 1), Ok(Made { model: blob("model 1"), state: vec![slot.clone()], totals: None })));
    assert!(bench.job.offers_to(&peer("a"), &blob("control 1").digest), "members fetch the control variate");
    assert!(!bench.job.offers_to(&peer("z"), &blob("control 1").digest));
    let control = aivillage_base::wire::LocalRule::Scaffold { control: Some(blob("control 1")) };
    let told = |e: &Effect| matches!(e, Effect::Send(_, Down::Invite(i)) if i.local == control);
    assert!(step.effects.iter().any(told));
    bench.restart();
    bench.step(Input::Joined(candidate("a")));
    let step = bench.step(Input::Update(peer("a"), sized(&key(2, 1), 8).0, sized(&key(2, 1), 8).1));
    assert_eq!(plan(&step).unwrap().state_in, [slot]);
}
