//! One attempt by hand: who counts, who is waited for, what is refused and why.

use super::*;
use crate::testing::{at, blob, key, name, peer, start, stored, update};

/// 60 s, silence 10 s, four parameters, integers up to 1000, weights up to 100.
fn limits(min: usize) -> Limits {
    Limits {
        min,
        timeout_ms: 60_000,
        silence_ms: 10_000,
        parameters: 4,
        bound: 1_000,
        max_examples: 100,
        retain: false,
        buffer: None,
    }
}

fn round(min: usize, members: &[&str]) -> Round {
    let cohort: Vec<Peer> = members.iter().map(|n| peer(n)).collect();
    Round::open(at(0), key(1, 1), start(), &cohort, limits(min))
}

fn send(round: &mut Round, from: &str) -> UpdateReply {
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 10);
    round.update(&peer(from), &header, &payload).0
}

fn yes(round: &mut Round, ms: u64, from: &str) {
    assert_eq!(round.answer(at(ms), &peer(from), None), None, "a yes changes no record");
}

#[track_caller]
fn refused(reply: Option<UpdateReply>, want: &str, says: &str) {
    match reply {
        Some(UpdateReply::Refused { reason, detail }) => {
            assert_eq!(reason, want);
            assert!(detail.contains(says), "{detail}");
        }
        other => panic!("{other:?} is not refused as {want}"),
    }
}

#[track_caller]
fn abandoned(verdict: &Verdict, says: &str, by_members: bool) {
    match verdict {
        Verdict::Abandon { reason, members_failed } => {
            assert!(reason.contains(says), "{reason}");
            assert_eq!(*members_failed, by_members, "{reason}");
        }
        other @ (Verdict::Wait | Verdict::Next | Verdict::Close) => panic!("{other:?} is not given up"),
    }
}

#[test]
fn it_closes_when_all_members_count_and_not_before() {
    let mut round = round(3, &["a", "b", "c"]);
    for from in ["a", "b"] {
        assert_eq!(send(&mut round, from), UpdateReply::Accepted);
        assert_eq!(round.verdict(at(59_999)), Verdict::Wait);
    }
    assert_eq!(send(&mut round, "c"), UpdateReply::Accepted);
    assert_eq!(round.verdict(at(1)), Verdict::Close);
}

#[test]
fn k_of_n_waits_for_members_at_work_until_the_deadline() {
    let mut round = round(2, &["a", "b", "c"]);
    yes(&mut round, 1_000, "c");
    send(&mut round, "a");
    send(&mut round, "b");
    assert_eq!(round.verdict(at(59_999)), Verdict::Wait, "c has said yes and is connected");
    assert_eq!(round.verdict(at(60_000)), Verdict::Close);
    let left_out = round.close(at(0));
    assert_eq!(left_out.len(), 1);
    assert_eq!(left_out[0].state, MemberState::Silent);
    assert_eq!(round.counted().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn k_of_n_does_not_wait_for_a_member_that_never_answers() {
    let mut round = round(2, &["a", "b", "c"]);
    send(&mut round, "a");
    send(&mut round, "b");
    assert_eq!(round.verdict(at(9_999)), Verdict::Wait);
    assert_eq!(round.verdict(at(10_000)), Verdict::Close);
}

#[test]
fn a_member_that_left_is_waited_for_as_long_as_a_silent_one() {
    let mut round = round(2, &["a", "b", "c"]);
    yes(&mut round, 1_000, "c");
    send(&mut round, "a");
    send(&mut round, "b");
    round.left(at(20_000), &peer("c"));
    assert_eq!(round.verdict(at(29_999)), Verdict::Wait);
    assert_eq!(round.verdict(at(30_000)), Verdict::Close);
    assert!(round.joined(at(29_000), &peer("c")), "it is invited again");
    assert_eq!(round.verdict(at(38_999)), Verdict::Wait, "and gets its time again");
}

#[test]
fn too_few_at_the_deadline_is_given_up_in_words() {
    let mut round = round(2, &["a", "b", "c"]);
    send(&mut round, "a");
    assert_eq!(round.verdict(at(59_999)), Verdict::Wait);
    abandoned(&round.verdict(at(60_000)), "at the deadline 1 of the 2 needed updates counted", false);
}

#[test]
fn it_is_given_up_at_once_when_too_few_are_left() {
    let mut round = round(2, &["a", "b"]);
    let no = crate::testing::declined("max_rounds", "100 rounds, at most 5");
    assert!(round.answer(at(5), &peer("b"), Some(no)).is_some());
    abandoned(&round.verdict(at(5)), "b declined by max_rounds: 100 rounds, at most 5", false);
}

#[test]
fn a_failure_of_a_member_is_told_apart_from_absence() {
    let mut round = round(2, &["a", "b"]);
    assert!(round.failed(&peer("b"), "training diverged in epoch 2".into()).is_some());
    abandoned(&round.verdict(at(5)), "b failed: training diverged in epoch 2", true);
}

#[test]
fn a_repeated_update_counts_once_and_another_one_not_at_all() {
    let mut round = round(2, &["a", "b"]);
    assert_eq!(send(&mut round, "a"), UpdateReply::Accepted);
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 10);
    assert_eq!(round.update(&peer("a"), &header, &payload), (UpdateReply::Accepted, None));
    assert_eq!(round.counted().count(), 1);
    let (other, payload) = update(&key(1, 1), [4, 3, 2, 1], 10);
    refused(Some(round.update(&peer("a"), &other, &payload).0), "conflict", "another update of a counts already");
    let (heavier, payload) = update(&key(1, 1), [1, 2, 3, 4], 11);
    refused(Some(round.update(&peer("a"), &heavier, &payload).0), "conflict", "counts already");
}

#[test]
fn strangers_are_refused_by_name_and_by_key() {
    let mut round = round(2, &["a", "b"]);
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 10);
    refused(round.offer(&peer("x"), &header), "not_invited", "x was not invited to job round 1 attempt 1");
    let impostor = Peer { id: peer("x").id, name: name("a") };
    refused(Some(round.update(&impostor, &header, &payload).0), "not_invited", "a was not invited");
    assert_eq!(round.failed(&impostor, "I say so".into()), None);
    assert!(!round.joined(at(1), &impostor));
    round.left(at(1), &impostor);
    assert_eq!(round.offer(&peer("a"), &header), None, "the member itself is still wanted");
}

#[test]
fn what_does_not_fit_the_plan_is_refused_and_stays_refused() {
    let check = |header: &UpdateHeader, payload: &Payload, reason: &str, says: &str| {
        let mut round = round(1, &["a", "b"]);
        let (reply, member) = round.update(&peer("a"), header, payload);
        refused(Some(reply), reason, says);
        assert!(matches!(member.unwrap().state, MemberState::Refused { .. }), "its state is to be persisted");
        let (good, _) = update(&key(1, 1), [1, 2, 3, 4], 10);
        refused(round.offer(&peer("a"), &good), reason, says);
        assert_eq!(round.counted().count(), 0);
    };
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 0);
    check(&header, &payload, "bad_weight", "weight 0 is outside 1 to 100");
    let (header, payload) = update(&key(1, 1), [1, 2, 3, 4], 101);
    check(&header, &payload, "bad_weight", "weight 101 is outside 1 to 100");
    let (header, payload) = update(&key(1, 1), [1, 2, 1_001, 4], 1);
    check(&header, &payload, "out_of_range", "value 2 is outside the grid's ±1000");
    let (header, payload) = update(&key(1, 1), [i32::MIN, 2, 1, 4], 1);
    check(&header, &payload, "out_of_range", "value 0");
    let (mut header, payload) = stored(&key(1, 1), [1, 2, 3, 4], 1);
    header.payload.bytes = 20;
    check(&header, &payload, "wrong_size", "20 bytes were sent, 16 are needed");
}

#[test]
fn what_comes_after_a_final_word_is_late() {
    let (header, _) = update(&key(1, 1), [1, 2, 3, 4], 10);
    let mut round = round(1, &["a", "b", "c", "d"]);
    let no = crate::testing::declined("r", "no");
    round.answer(at(1), &peer("a"), Some(no));
    round.failed(&peer("b"), "broke".into());
    for from in ["a", "b"] {
        refused(round.offer(&peer(from), &header), "late", &format!("no longer waits for {from}"));
    }
    send(&mut round, "c");
    round.close(at(0));
    refused(round.offer(&peer("d"), &header), "late", "no longer waits for d");
    assert_eq!(round.offer(&peer("c"), &header), Some(UpdateReply::Accepted), "its receipt may have been lost");
    assert_eq!(round.answer(at(2), &peer("d"), None), None);
    assert_eq!(round.failed(&peer("d"), "late".into()), None);
    assert!(!round.joined(at(2), &peer("d")));
    assert!(round.to_remind(at(59_000), 5_000).is_empty());
}

#[test]
fn connected_members_without_an_answer_are_reminded() {
    let mut round = round(2, &["a", "b", "c", "d"]);
    yes(&mut round, 100, "a");
    send(&mut round, "b");
    round.left(at(100), &peer("c"));
    assert!(round.to_remind(at(4_999), 5_000).is_empty());
    assert_eq!(round.to_remind(at(5_000), 5_000), [peer("d")]);
    assert!(round.to_remind(at(9_999), 5_000).is_empty(), "once a pause");
    assert_eq!(round.to_remind(at(10_000), 5_000), [peer("d")]);
}

#[test]
fn an_update_found_unusable_later_no_longer_counts() {
    let mut round = round(1, &["a", "b"]);
    send(&mut round, "a");
    send(&mut round, "b");
    round.close(at(0));
    assert!(round.reject(&name("a"), "out_of_range", "value beyond the grid".into()).is_some());
    assert_eq!(round.counted().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["b"]);
    let (header, _) = update(&key(1, 1), [1, 2, 3, 4], 10);
    refused(round.offer(&peer("a"), &header), "out_of_range", "beyond the grid");
}

#[test]
fn a_restart_keeps_the_deadline_and_starts_the_silence_anew() {
    let mut before = round(1, &["a", "b"]);
    send(&mut before, "a");
    yes(&mut before, 100, "b");
    assert_eq!(before.note_time(at(2_999)), None);
    let noted = before.note_time(at(30_000)).expect("half the time has passed since the last write");
    assert_eq!(noted.elapsed_ms, 30_000);
    assert_eq!(before.note_time(at(32_999)), None);
    // The next process's monotonic clock begins at zero.
    let after = Round::restore(at(0), noted, before.members(), limits(1));
    assert_eq!((after.elapsed(at(0)), after.remaining(at(1_000))), (30_000, 29_000));
    assert_eq!(after.verdict(at(9_999)), Verdict::Wait, "b gets its time to come back");
    assert_eq!(after.verdict(at(10_000)), Verdict::Close);
}

#[test]
fn means_for_people_are_weighted_by_examples_and_leave_out_what_is_unknown() {
    let mut round = round(1, &["a", "b", "c"]);
    for (from, weight, loss, accuracy) in [("a", 10, 1.0, Some(0.5)), ("b", 30, 2.0, None), ("c", 1, f64::NAN, None)] {
        let (mut header, payload) = update(&key(1, 1), [1, 2, 3, 4], weight);
        header.metrics.loss = loss;
        header.metrics.accuracy = accuracy;
        round.update(&peer(from), &header, &payload);
    }
    let view = round.record(at(9)).view(&round.members(), 9);
    assert_eq!((view.loss, view.accuracy), (Some(1.75), Some(0.5)));
    assert_eq!(view.bytes, 3 * 16 + 3 * blob("model").bytes);
}
