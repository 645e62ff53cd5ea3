//! Who is eligible, whose data decides the shape, who is chosen.

use super::*;
use crate::testing::{candidate, linear, name, record, spec};

fn village(nodes: &[Candidate]) -> BTreeMap<NodeName, Candidate> {
    nodes.iter().map(|c| (c.peer.name.clone(), c.clone())).collect()
}

/// Nobody is at work already.
fn cohort(
    job: &JobRecord,
    nodes: &BTreeMap<NodeName, Candidate>,
    selection: Selection,
) -> Result<(Architecture, Vec<Peer>), String> {
    super::cohort(job, nodes, &BTreeSet::new(), selection)
}

fn names(cohort: &[Peer]) -> Vec<&str> {
    cohort.iter().map(|p| p.name.as_str()).collect()
}

fn with_input(text: &str, input: usize) -> Candidate {
    let mut c = candidate(text);
    c.data[0].input = vec![input];
    c
}

const FASTEST: Selection = Selection::CapabilityAware;

#[test]
fn every_requirement_of_the_job_is_looked_at() {
    let data =
        DataSummary { name: "digits".into(), rows: 20, input: vec![64], task: Task::Classification { classes: 10 } };
    let any = DataRequirements::default();
    let check = |need: DataRequirements, fit: bool| assert_eq!(fits(&data, &need), fit, "{need:?}");
    check(any.clone(), true);
    check(DataRequirements { dataset: Some("digits".into()), ..any.clone() }, true);
    check(DataRequirements { dataset: Some("cancer".into()), ..any.clone() }, false);
    check(DataRequirements { input: Some(vec![64]), ..any.clone() }, true);
    check(DataRequirements { input: Some(vec![8, 8]), ..any.clone() }, false);
    check(DataRequirements { classes: Some(10), ..any.clone() }, true);
    check(DataRequirements { classes: Some(2), ..any.clone() }, false);
    check(DataRequirements { min_rows: Some(20), ..any.clone() }, true);
    check(DataRequirements { min_rows: Some(21), ..any.clone() }, false);
    let empty = DataSummary { rows: 0, ..data.clone() };
    assert!(!fits(&empty, &any), "no rows, no training");
    let real = DataSummary { task: Task::Regression, ..data };
    assert!(!fits(&real, &DataRequirements { classes: Some(2), ..any }));
}

#[test]
fn the_shape_that_most_nodes_have_wins_and_others_are_not_invited() {
    let nodes = village(&[with_input("a", 5), with_input("b", 3), with_input("c", 3)]);
    let (architecture, cohort) = cohort(&record(spec(2, 5, 1)), &nodes, FASTEST).unwrap();
    assert_eq!(architecture, linear());
    assert_eq!(names(&cohort), ["b", "c"]);
}

#[test]
fn once_fixed_the_shape_stays() {
    let mut job = record(spec(1, 5, 1));
    job.architecture = Some(linear());
    let nodes = village(&[with_input("a", 5), with_input("b", 5), with_input("c", 3)]);
    assert_eq!(names(&cohort(&job, &nodes, FASTEST).unwrap().1), ["c"]);
}

#[test]
fn what_is_missing_is_said_in_words() {
    let mut job = record(spec(3, 5, 1));
    let nodes = village(&[candidate("a"), candidate("b"), candidate("m")]);
    let no = crate::testing::declined("max_rounds", "no");
    job.declined.insert(name("m"), no);
    let text = cohort(&job, &nodes, FASTEST).unwrap_err();
    assert!(text.contains("3 participants are needed; 2 of"), "{text}");
    assert!(text.contains("declined by themselves: m (max_rounds)"), "{text}");
    let mut labels = candidate("x");
    labels.data[0].task = Task::Classification { classes: 2 };
    let text = cohort(&record(spec(1, 5, 1)), &village(&[labels]), FASTEST).unwrap_err();
    assert!(text.contains("use logistic_regression"), "{text}");
}

#[test]
fn mobile_nodes_stay_out_of_jobs_that_do_not_want_them() {
    let mut phone = candidate("phone");
    phone.node_types = vec![NodeType::Mobile, NodeType::Edge];
    let nodes = village(&[candidate("a"), phone]);
    let mut job = record(spec(1, 5, 1));
    assert_eq!(names(&cohort(&job, &nodes, FASTEST).unwrap().1), ["a", "phone"]);
    job.spec.mobile_friendly = false;
    assert_eq!(names(&cohort(&job, &nodes, FASTEST).unwrap().1), ["a"]);
}

#[test]
fn the_fastest_are_chosen_and_ties_go_by_name() {
    let speeds = [("a", 1.0), ("b", 9.0), ("c", 1.0), ("d", 5.0)];
    let fast = speeds.map(|(n, gflops)| Candidate { compute_gflops: gflops, ..candidate(n) });
    assert_eq!(names(&cohort(&record(spec(1, 3, 1)), &village(&fast), FASTEST).unwrap().1), ["a", "b", "d"]);
}

#[test]
fn random_choice_is_the_same_for_the_same_job_and_round_and_differs_between_rounds() {
    let all: Vec<String> = (0..20).map(|i| format!("n{i:02}")).collect();
    let nodes = village(&all.iter().map(|n| candidate(n)).collect::<Vec<_>>());
    let mut job = record(spec(1, 4, 9));
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..9 {
        job.rounds_done = round;
        let (_, first) = cohort(&job, &nodes, Selection::Random).unwrap();
        job.attempts += 1;
        assert_eq!(cohort(&job, &nodes, Selection::Random).unwrap().1, first, "an attempt more changes nothing");
        assert_eq!(first.len(), 4);
        assert!(first.is_sorted_by(|a, b| a.name < b.name));
        seen.insert(first);
    }
    assert!(seen.len() > 5);
}
