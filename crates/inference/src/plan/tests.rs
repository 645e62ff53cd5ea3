//! The planner as a function: examples, then properties over any village.

use super::*;
use proptest::prelude::{prop, prop_assert, proptest};
use proptest::strategy::Strategy as _;

fn node(name: &str, key: u8) -> Candidate {
    Candidate {
        peer: Peer { id: NodeId([key; 32]), name: NodeName::new(name).unwrap() },
        node_types: vec![NodeType::Edge],
        gflops: 10.0,
        memory_gb: 8.0,
        in_flight: 0,
        failures: 0,
    }
}

fn rules(strategy: Strategy) -> Rules<'static> {
    Rules { strategy, per_node_in_flight: 2, last: None }
}

fn chosen(plan: Plan) -> String {
    match plan {
        Plan::Choice(peer) => peer.name.to_string(),
        other @ (Plan::Busy | Plan::Exhausted | Plan::Nobody) => format!("{other:?}"),
    }
}

fn pick(needs: &Needs, nodes: &[Candidate], strategy: Strategy) -> String {
    chosen(plan(needs, nodes, &BTreeSet::new(), rules(strategy)))
}

#[test]
fn capability_aware_prefers_kind_then_speed_then_load_per_speed() {
    let fast = Candidate { gflops: 100.0, in_flight: 1, ..node("fast", 1) };
    let slow = Candidate { gflops: 10.0, ..node("slow", 2) };
    let mobile = Candidate { node_types: vec![NodeType::Mobile], gflops: 1.0, ..node("phone", 3) };
    let nodes = [fast, slow, mobile];
    let strategy = Strategy::CapabilityAware;
    assert_eq!(pick(&Needs::default(), &nodes, strategy), "fast");
    let needs = Needs { preferred_node_types: vec![NodeType::Mobile], ..Needs::default() };
    assert_eq!(pick(&needs, &nodes, strategy), "phone");
    let failing = [Candidate { failures: 1, ..nodes[0].clone() }, nodes[1].clone()];
    assert_eq!(pick(&Needs::default(), &failing, strategy), "slow");
}

#[test]
fn least_loaded_counts_requests_in_work() {
    let nodes = [Candidate { in_flight: 1, gflops: 1e6, ..node("a", 1) }, node("b", 2)];
    assert_eq!(pick(&Needs::default(), &nodes, Strategy::LeastLoaded), "b");
}

#[test]
fn round_robin_goes_around_by_name() {
    let nodes = [node("b", 2), node("a", 1), node("c", 3)];
    let mut last: Option<NodeName> = None;
    let mut order = Vec::new();
    for _ in 0..4 {
        let rules = Rules { last: last.as_ref(), ..rules(Strategy::RoundRobin) };
        let name = chosen(plan(&Needs::default(), &nodes, &BTreeSet::new(), rules));
        last = Some(NodeName::new(name.clone()).unwrap());
        order.push(name);
    }
    assert_eq!(order, ["a", "b", "c", "a"]);
}

#[test]
fn what_is_missing_is_said() {
    let nodes = [node("a", 1)];
    let gpu = Needs { node_types: vec![NodeType::Gpu, NodeType::Cloud], ..Needs::default() };
    assert_eq!(pick(&gpu, &nodes, Strategy::LeastLoaded), "Nobody");
    assert!(missing(&gpu, &nodes).contains("(gpu, cloud)"));
    let large = Needs { memory_gb: 64.0, ..Needs::default() };
    assert_eq!(pick(&large, &nodes, Strategy::RoundRobin), "Nobody");
    assert!(missing(&large, &nodes).contains("64 GB of memory"));
    assert!(missing(&large, &[]).contains("no node that takes requests is connected"));
    let failed = BTreeSet::from([NodeId([1; 32])]);
    assert_eq!(plan(&Needs::default(), &nodes, &failed, rules(Strategy::LeastLoaded)), Plan::Exhausted);
    let full = [Candidate { in_flight: 2, ..node("a", 1) }];
    assert_eq!(plan(&Needs::default(), &full, &BTreeSet::new(), rules(Strategy::LeastLoaded)), Plan::Busy);
}

fn kinds() -> impl proptest::strategy::Strategy<Value = Vec<NodeType>> {
    prop::sample::subsequence(NodeType::ALL.map(|(_, t)| t).to_vec(), 0..=4)
}

fn candidates() -> impl proptest::strategy::Strategy<Value = Vec<Candidate>> {
    let one = (kinds(), 0.0..100.0, 0.0..16.0, 0usize..4, 0u32..3);
    prop::collection::vec(one, 0..8).prop_map(|nodes| {
        let make = |(i, (node_types, gflops, memory_gb, in_flight, failures))| {
            let i = u8::try_from(i).unwrap();
            Candidate { node_types, gflops, memory_gb, in_flight, failures, ..node(&format!("n{i}"), i) }
        };
        nodes.into_iter().enumerate().map(make).collect()
    })
}

proptest! {
    #[test]
    fn a_choice_is_always_able_free_and_new_and_a_refusal_is_always_true(
        nodes in candidates(),
        node_types in kinds(),
        preferred_node_types in kinds(),
        memory_gb in 0.0..16.0,
        failed in prop::collection::btree_set(0u8..8, 0..8),
        which in 0usize..3,
    ) {
        let strategy = [Strategy::CapabilityAware, Strategy::LeastLoaded, Strategy::RoundRobin][which];
        let needs = Needs { node_types, preferred_node_types, memory_gb, compute_gflops: 20.0 };
        let failed: BTreeSet<NodeId> = failed.into_iter().map(|k| NodeId([k; 32])).collect();
        let able: Vec<_> = nodes.iter().filter(|c| able(&needs, c)).collect();
        let new: Vec<_> = able.iter().filter(|c| !failed.contains(&c.peer.id)).collect();
        let free: Vec<_> = new.iter().filter(|c| c.in_flight < 2).collect();
        match plan(&needs, &nodes, &failed, rules(strategy)) {
            Plan::Choice(peer) => {
                let best = free.iter().find(|c| c.peer == peer);
                prop_assert!(best.is_some());
                // Nobody of a preferred kind is passed over for one who is not.
                prop_assert!(preferred(&needs, best.unwrap()) || !free.iter().any(|c| preferred(&needs, c)));
            }
            Plan::Busy => prop_assert!(free.is_empty() && !new.is_empty()),
            Plan::Exhausted => prop_assert!(new.is_empty() && !able.is_empty()),
            Plan::Nobody => prop_assert!(able.is_empty()),
        }
    }
}
