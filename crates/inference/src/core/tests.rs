//! The machine by hand, then any sequence of inputs.

use super::*;
use crate::config::Strategy;
use crate::plan::Needs;
use crate::request::{ModelRef, Prediction, PrivacyLevel};
use aivillage_base::wire::{NodeType, Peer};
use aivillage_base::{Digest, ModelId, NodeId};
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;

fn core(active_max: usize, per_node_in_flight: usize) -> Core {
    Core::new(CoreConfig { active_max, per_node_in_flight, strategy: Strategy::RoundRobin })
}

fn node(key: u8) -> Candidate {
    let name = char::from(b'a' + key).to_string();
    Candidate {
        peer: Peer { id: NodeId([key; 32]), name: NodeName::new(name).unwrap() },
        node_types: vec![NodeType::Edge],
        gflops: 1.0,
        memory_gb: 1.0,
        in_flight: 0,
        failures: 0,
    }
}

fn id(n: u8) -> RequestId {
    RequestId::from_bits(u128::from(n))
}

fn admission(n: u8, left_ms: u64, durable: bool) -> Admission {
    let model = ModelRef { id: ModelId::new("m").unwrap(), version: "1".into(), blake3: Digest([0; 32]) };
    Admission {
        request: id(n),
        model,
        needs: Needs::default(),
        privacy: PrivacyLevel::Low,
        within_ms: left_ms,
        elapsed_ms: 0,
        durable,
    }
}

fn done() -> Answer {
    Answer::Done(Predictions { predictions: vec![Prediction::Value { value: 1.0 }] })
}

fn broken() -> Answer {
    Answer::Failed { reason: "out of memory".into(), permanent: false }
}

fn answered(from: u8, n: u8, attempt: u32, answer: Answer) -> Input {
    Input::Answered { from: NodeId([from; 32]), request: id(n), attempt, answer }
}

/// (node name, request, attempt) of every send.
fn sends(out: &[Output]) -> Vec<(String, RequestId, u32)> {
    out.iter()
        .filter_map(|o| match o {
            Output::Send { to, request, attempt, .. } => Some((to.name.to_string(), *request, *attempt)),
            Output::Shed(_) | Output::Replanned { .. } | Output::Finished { .. } => None,
        })
        .collect()
}

fn outcome(out: &[Output]) -> Option<&RequestView> {
    out.iter().find_map(|o| match o {
        Output::Finished { view, .. } => Some(&**view),
        Output::Shed(_) | Output::Replanned { .. } | Output::Send { .. } => None,
    })
}

fn with_nodes(keys: &[u8]) -> Core {
    let mut core = core(10, 2);
    core.step(0, Input::Nodes(keys.iter().map(|k| node(*k)).collect()));
    core
}

fn start(core: &mut Core, now: u64, admission: Admission) -> Vec<Output> {
    let request = admission.request;
    assert_eq!(core.step(now, Input::Admit(admission)), []);
    core.step(now, Input::Start(request))
}

#[test]
fn an_answer_is_delivered_once_and_a_repeated_one_is_ignored() {
    let mut core = with_nodes(&[0]);
    let out = start(&mut core, 0, admission(1, 100, false));
    assert_eq!(sends(&out), [("a".into(), id(1), 1)]);
    let out = core.step(30, answered(0, 1, 1, done()));
    let view = outcome(&out).unwrap();
    assert_eq!((view.status, view.metadata.processing_time_ms), (RequestStatus::Completed, 30));
    assert_eq!(view.metadata.nodes_used[0].as_str(), "a");
    assert_eq!(core.step(31, answered(0, 1, 1, done())), []);
    assert_eq!((core.books().ok, core.active(), core.nodes()[0].in_flight), (1, 0, 0));
}

#[test]
fn an_answer_from_a_node_that_was_not_asked_is_ignored() {
    let mut core = with_nodes(&[0, 1]);
    start(&mut core, 0, admission(1, 100, false));
    for answer in [done(), broken(), Answer::Failed { reason: "unfit".into(), permanent: true }] {
        assert_eq!(core.step(1, answered(1, 1, 1, answer)), []);
    }
    assert!(core.is_active(&id(1)));
    assert!(outcome(&core.step(2, answered(0, 1, 1, done()))).is_some());
}

#[test]
fn a_durable_outcome_is_not_shown_before_it_is_stored() {
    let mut core = with_nodes(&[0]);
    start(&mut core, 0, admission(1, 100, true));
    let out = core.step(5, answered(0, 1, 1, done()));
    assert!(matches!(out[..], [Output::Finished { durable: true, .. }]));
    assert_eq!(core.view(6, &id(1)).unwrap().status, RequestStatus::Processing);
    assert_eq!(core.unstored().len(), 1);
    core.step(7, Input::Stored(id(1)));
    assert_eq!(core.view(8, &id(1)), None);
}

#[test]
fn a_failed_node_is_left_out_until_all_have_failed_then_all_get_another_try() {
    let mut core = with_nodes(&[0, 1]);
    start(&mut core, 0, admission(1, 10_000, false));
    let out = core.step(1, answered(0, 1, 1, broken()));
    assert_eq!(sends(&out), [("b".into(), id(1), 2)]);
    let out = core.step(2, answered(1, 1, 2, broken()));
    assert_eq!(sends(&out), [], "both have failed: a pause");
    let wake = core.next_wake().unwrap();
    assert_eq!(wake, 2 + PAUSE_MS);
    let out = core.step(wake, Input::Tick);
    assert_eq!(sends(&out), [("a".into(), id(1), 3)]);
    assert_eq!(core.step(wake + 1, answered(1, 1, 2, done())), [], "late, from an earlier attempt");
    assert!(outcome(&core.step(wake + 2, answered(0, 1, 3, done()))).is_some());
}

#[test]
fn a_silent_node_costs_half_of_what_is_left() {
    let mut core = with_nodes(&[0, 1]);
    start(&mut core, 0, admission(1, 1_000, false));
    assert_eq!(core.next_wake(), Some(500));
    let out = core.step(500, Input::Tick);
    assert_eq!(sends(&out), [("b".into(), id(1), 2)]);
    assert_eq!(core.next_wake(), Some(1_000), "nobody else is left to ask");
    let out = core.step(1_000, Input::Tick);
    let view = outcome(&out).unwrap();
    assert_eq!(view.status, RequestStatus::Expired);
    assert!(view.error.as_ref().unwrap().contains("node b was still at it"));
}

#[test]
fn a_lost_node_may_serve_again_but_an_input_that_kills_nodes_fails() {
    let mut core = with_nodes(&[0]);
    start(&mut core, 0, admission(1, 60_000, false));
    for attempt in 2..=ATTEMPTS_MAX {
        core.step(0, Input::Nodes(vec![]));
        let out = core.step(0, Input::Nodes(vec![node(0)]));
        assert_eq!(sends(&out), [("a".into(), id(1), attempt)]);
    }
    let out = core.step(0, Input::Lost(NodeId([0; 32])));
    let error = outcome(&out).unwrap().error.clone().unwrap();
    assert_eq!(error, "8 attempts failed; the last: node a was lost");
}

#[test]
fn a_permanent_failure_is_not_carried_to_other_nodes() {
    let mut core = with_nodes(&[0, 1]);
    start(&mut core, 0, admission(1, 1_000, false));
    let answer = Answer::Failed { reason: "bad bundle".into(), permanent: true };
    let out = core.step(1, answered(0, 1, 1, answer));
    assert_eq!(outcome(&out).unwrap().error.as_deref(), Some("bad bundle"));
    assert_eq!(core.books().failed, 1);
}

#[test]
fn beyond_the_bound_is_shed_and_beyond_a_nodes_bound_waits() {
    let mut core = core(3, 2);
    core.step(0, Input::Nodes(vec![node(0)]));
    for n in 1..=3 {
        start(&mut core, 0, admission(n, 1_000, false));
    }
    assert_eq!((core.queued(), core.nodes()[0].in_flight), (1, 2));
    assert_eq!(core.view(0, &id(3)).unwrap().error.as_deref(), Some("every node that would do is busy"));
    assert_eq!(core.step(0, Input::Admit(admission(4, 1_000, false))), [Output::Shed(id(4))]);
    let out = core.step(1, answered(0, 1, 1, done()));
    assert_eq!(sends(&out), [("a".into(), id(3), 1)]);
}

#[test]
fn waiting_for_nobody_ends_at_the_deadline_with_the_reason() {
    let mut core = core(3, 2);
    start(&mut core, 0, admission(1, 100, false));
    let out = core.step(100, Input::Tick);
    assert!(outcome(&out).unwrap().error.as_ref().unwrap().contains("no node that takes requests is connected"));
}

#[test]
fn a_message_that_cannot_be_handed_over_goes_to_another_node() {
    let mut core = with_nodes(&[0, 1]);
    start(&mut core, 0, admission(1, 100, false));
    let out = core.step(0, Input::Unsent { request: id(1), attempt: 1, reason: "its queue is full".into() });
    assert_eq!(sends(&out), [("b".into(), id(1), 2)]);
}

#[derive(Debug, Clone)]
enum Op {
    Admit(u8, u64, bool),
    Recover(u8),
    Refuse(u8),
    Start(u8),
    Abandon(u8),
    MakeDurable(u8),
    Stored(u8),
    Nodes(Vec<u8>),
    Lost(u8),
    Unsent(u8, u32),
    Answer(u8, u8, u32, u8),
    Pass(u64),
}

fn op() -> impl proptest::strategy::Strategy<Value = Op> {
    let n = 0u8..12;
    let key = 0u8..4;
    prop_oneof![
        4 => (n.clone(), 1u64..400, any::<bool>()).prop_map(|(n, t, d)| Op::Admit(n, t, d)),
        1 => n.clone().prop_map(Op::Recover),
        1 => n.clone().prop_map(Op::Refuse),
        5 => n.clone().prop_map(Op::Start),
        1 => n.clone().prop_map(Op::Abandon),
        1 => n.clone().prop_map(Op::MakeDurable),
        2 => n.clone().prop_map(Op::Stored),
        2 => prop::collection::vec(key.clone(), 0..5).prop_map(Op::Nodes),
        1 => key.clone().prop_map(Op::Lost),
        1 => (n.clone(), 1u32..4).prop_map(|(n, a)| Op::Unsent(n, a)),
        6 => (key, n, 1u32..4, 0u8..3).prop_map(|(k, n, a, w)| Op::Answer(k, n, a, w)),
        3 => (0u64..200).prop_map(Op::Pass),
    ]
}

fn input(op: Op, now: &mut u64) -> Input {
    match op {
        Op::Admit(n, left, durable) => Input::Admit(admission(n, left, durable)),
        Op::Recover(n) => Input::Recover(admission(n, 100, true)),
        Op::Refuse(n) => Input::Refuse(id(n)),
        Op::Start(n) => Input::Start(id(n)),
        Op::Abandon(n) => Input::Abandon { request: id(n), reason: "withdrawn".into() },
        Op::MakeDurable(n) => Input::MakeDurable(id(n)),
        Op::Stored(n) => Input::Stored(id(n)),
        Op::Nodes(keys) => Input::Nodes(keys.into_iter().map(node).collect()),
        Op::Lost(k) => Input::Lost(NodeId([k; 32])),
        Op::Unsent(n, attempt) => Input::Unsent { request: id(n), attempt, reason: "full".into() },
        Op::Answer(k, n, attempt, 0) => answered(k, n, attempt, broken()),
        Op::Answer(k, n, attempt, 1) => {
            answered(k, n, attempt, Answer::Failed { reason: "unfit".into(), permanent: true })
        }
        Op::Answer(k, n, attempt, _) => answered(k, n, attempt, done()),
        Op::Pass(ms) => {
            *now += ms;
            Input::Tick
        }
    }
}

/// What must hold after every step.
fn holds(core: &Core, now: u64, ticked: bool) {
    let books = core.books();
    let closed = books.ok + books.failed + books.shed + books.expired;
    assert_eq!(books.total, closed + u64::try_from(core.active()).unwrap(), "{books:?}");
    let running = |key: &NodeId| {
        core.requests.values().filter(|a| matches!(&a.phase, Phase::Running { peer } if peer.id == *key)).count()
    };
    for node in &core.nodes {
        assert_eq!(node.in_flight, running(&node.peer.id));
        assert!(node.in_flight <= core.config.per_node_in_flight);
    }
    let with_node = core.requests.values().filter(|a| matches!(a.phase, Phase::Running { .. })).count();
    assert_eq!(with_node, core.nodes.iter().map(|n| n.in_flight).sum::<usize>());
    let queued = core.requests.values().filter(|a| matches!(a.phase, Phase::Queued { .. })).count();
    assert_eq!(queued, core.queue.len());
    let timed = core.requests.values().filter(|a| a.due.is_some()).count();
    assert_eq!((timed, timed), (core.timers.len(), core.active()));
    if ticked {
        assert!(core.next_wake().is_none_or(|at| at > now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_sequence_keeps_the_books_and_finishes_each_request_once(ops in prop::collection::vec(op(), 1..120)) {
        let mut core = core(6, 2);
        let mut now = 0;
        for op in ops {
            let was_active: Vec<RequestId> = (0..12).map(id).filter(|i| core.is_active(i)).collect();
            let input = input(op, &mut now);
            let ticked = input == Input::Tick;
            for output in core.step(now, input) {
                if let Output::Finished { view, .. } = output {
                    prop_assert!(view.status.is_final());
                    prop_assert_eq!(view.status == RequestStatus::Completed, view.result.is_some());
                    prop_assert_eq!(view.status == RequestStatus::Completed, view.error.is_none());
                    prop_assert!(was_active.contains(&view.request_id), "finished though not active");
                }
            }
            holds(&core, now, ticked);
        }
        // After a long time without news nothing is left in work.
        let late = now + 100_000;
        core.step(late, Input::Tick);
        prop_assert_eq!(core.active(), 0);
    }
}
