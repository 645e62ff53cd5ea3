//! An asynchronous job by hand: a model whenever the buffer is full, whoever is still at work.

use super::*;

fn yes(bench: &mut Bench, node: &str, key: &RoundKey) {
    bench.step(Input::Answer(peer(node), key.clone(), None));
}

fn stale(step: &Step) {
    match &step.reply {
        Some(UpdateReply::Refused { reason, detail }) => {
            assert_eq!(reason, "stale");
            assert!(detail.contains("invited anew"), "{detail}");
        }
        other => panic!("{other:?} is not refused as stale"),
    }
}

/// Two of three updates make a model; `c` is slow.
fn with_a_slow_node() -> Bench {
    let mut bench = Bench::buffered(2, 4).run(&["a", "b", "c"]);
    for node in ["a", "b", "c"] {
        yes(&mut bench, node, &key(1, 1));
    }
    bench.update("a", &key(1, 1));
    bench
}

fn publish(bench: &mut Bench, round: u32) -> Step {
    bench.step(Input::Computed(key(round, 1), Ok(made(&format!("model {round}")))))
}

#[test]
fn a_full_buffer_closes_and_a_member_at_work_is_neither_silent_nor_stopped() {
    let mut bench = with_a_slow_node();
    let step = bench.update("b", &key(1, 1));
    assert_eq!(plan(&step).unwrap().accepted.len(), 2);
    assert!(!step.effects.iter().any(|e| matches!(e, Effect::Send(..))), "nobody is told to stop");
    let waits = bench.update("c", &key(1, 1)).reply;
    assert!(matches!(waits, Some(UpdateReply::Retry { .. })), "{waits:?}");
    let step = publish(&mut bench, 1);
    assert_eq!(invited(&step), [("a", key(2, 1)), ("b", key(2, 1))], "c is at work");
    let ended = &bench.store.saved.attempts[0];
    assert_eq!(ended.members[2].state, MemberState::Carried);
    assert_eq!(bench.update("c", &key(1, 1)).reply, Some(UpdateReply::Accepted));
    let step = bench.update("a", &key(2, 1));
    let plan = plan(&step).unwrap();
    let staleness: Vec<u32> = plan.accepted.iter().map(|(_, c)| c.contribution(2).staleness).collect();
    assert_eq!(staleness, [0, 1]);
    assert!(
        bench.store.payloads.keys().all(|(key, _)| *key == plan.key),
        "small updates lie under the round they count in"
    );
    publish(&mut bench, 2);
    assert_eq!(bench.update("c", &key(1, 1)).reply, Some(UpdateReply::Accepted), "its receipt was lost");
    let step = publish(&mut bench, 3);
    assert!(step.changes.is_empty(), "an update counts in one round");
}

#[test]
fn an_update_that_is_too_old_is_stale_and_its_node_was_invited_anew() {
    let mut bench = with_a_slow_node();
    bench.update("b", &key(1, 1));
    publish(&mut bench, 1);
    for round in 2..=2 + STALENESS {
        bench.update("a", &key(round, 1));
        bench.update("b", &key(round, 1));
        let step = publish(&mut bench, round);
        let anew = invited(&step).iter().any(|(name, _)| *name == "c");
        assert_eq!(anew, round > STALENESS, "at most {STALENESS} rounds late");
    }
    stale(&bench.update("c", &key(1, 1)));
}

#[test]
fn a_member_that_comes_back_is_given_the_newest_model() {
    let mut bench = with_a_slow_node();
    bench.update("b", &key(1, 1));
    publish(&mut bench, 1);
    assert!(bench.job.offers_to(&peer("c"), &blob("first").digest), "it may still fetch what it works on");
    assert!(bench.store.saved.members[2].base.is_some());
    bench.step(Input::Left(peer("c")));
    let step = bench.step(Input::Joined(candidate("c")));
    assert_eq!(invited(&step), [("c", key(2, 1))]);
    assert_eq!(bench.store.saved.members[2].base, None, "stored before it is said");
    assert!(!bench.job.offers_to(&peer("c"), &blob("first").digest));
    stale(&bench.update("c", &key(1, 1)));
    assert_eq!(bench.update("c", &key(2, 1)).reply, Some(UpdateReply::Accepted));
}

#[test]
fn a_restart_goes_on_with_what_members_work_on() {
    let mut bench = with_a_slow_node();
    bench.update("b", &key(1, 1));
    publish(&mut bench, 1);
    bench.restart();
    assert_eq!(bench.update("c", &key(1, 1)).reply, Some(UpdateReply::Accepted), "it works on, as the records say");
    let step = bench.step(Input::Joined(candidate("a")));
    assert_eq!(invited(&step), [("a", key(2, 1))]);
    assert!(plan(&bench.update("a", &key(2, 1))).is_some());
}

#[test]
fn a_node_that_comes_late_is_taken_in_at_once() {
    let mut bench = Bench::buffered(2, 4).run(&["a", "b"]);
    let step = bench.step(Input::Joined(candidate("d")));
    assert_eq!(invited(&step), [("d", key(1, 1))]);
    assert_eq!(bench.store.saved.members.len(), 3);
    bench.update("a", &key(1, 1));
    assert!(plan(&bench.update("d", &key(1, 1))).is_some());
}

#[test]
fn every_update_earns_the_attempt_another_timeout_and_silence_ends_it() {
    let mut bench = Bench::buffered(3, 4).run(&["a", "b", "c"]);
    bench.step_at(50_000, Input::Tick);
    bench.update("a", &key(1, 1));
    bench.step_at(100_000, Input::Tick);
    assert_eq!(*bench.job.round().unwrap().key(), key(1, 1));
    bench.step_at(120_100, Input::Tick);
    assert_eq!(*bench.job.round().unwrap().key(), key(1, 2));
    assert_eq!(bench.job.record().failures_in_row, 0, "nobody failed");
}

#[test]
fn a_member_whose_own_time_is_up_is_invited_anew() {
    let mut bench = with_a_slow_node();
    let step = bench.step_at(60_100, Input::Tick);
    assert!(invited(&step).contains(&("c", key(1, 1))), "{:?}", invited(&step));
    bench.update("b", &key(1, 1));
    let step = publish(&mut bench, 1);
    assert!(invited(&step).contains(&("c", key(2, 1))), "it did not say again that it works");
}
