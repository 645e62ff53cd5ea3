//! Villages with one cure taken away: each must be found broken, or the cure is not tested.

use std::sync::Arc;

use aivillage_base::ports::Fence;
use aivillage_sim::village::{Conduct, Order};
use aivillage_training::step::ComputePlan;

use super::*;

/// Some seed must break one of these promises.
#[track_caller]
#[expect(clippy::print_stdout, reason = "how soon a twin is found is worth seeing")]
fn found(conduct: impl Conduct + Clone + 'static, invariants: &[&str]) {
    let plan = |seed| Plan { conduct: Arc::new(conduct.clone()), ..Plan::drawn(seed) };
    let expected = |result: &Result<Report, Violation>| {
        result.as_ref().is_err_and(|violation| invariants.contains(&violation.invariant))
    };
    let results = seeds(plan, expected);
    match results.iter().find(|r| expected(r)) {
        Some(Err(violation)) => println!("found in {} seeds: {violation}", results.len()),
        Some(Ok(_)) | None => panic!("{conduct:?} breaks none of {invariants:?} in {} seeds", results.len()),
    }
}

#[derive(Debug, Clone)]
struct AnswersBeforeCommit;

impl Conduct for AnswersBeforeCommit {
    fn order(&self) -> Order {
        Order::SpeakFirst
    }
}

#[test]
fn a_coordinator_that_gives_receipts_before_it_has_stored_is_found() {
    found(AnswersBeforeCommit, &["I3"]);
}

#[derive(Debug, Clone)]
struct ActsBeforeCommit;

impl Conduct for ActsBeforeCommit {
    fn order(&self) -> Order {
        Order::ActFirst
    }
}

#[test]
fn a_coordinator_that_sends_and_deletes_before_it_has_stored_is_found() {
    found(ActsBeforeCommit, &["I1", "I6"]);
}

#[derive(Debug, Clone)]
struct CountsTwice;

impl Conduct for CountsTwice {
    fn compute(&self, mut plan: ComputePlan) -> ComputePlan {
        plan.accepted.extend(plan.accepted.first().cloned());
        plan
    }
}

#[test]
fn a_coordinator_that_counts_an_update_twice_is_found() {
    found(CountsTwice, &["I5"]);
}

#[derive(Debug, Clone)]
struct ShowsNoLease;

impl Conduct for ShowsNoLease {
    fn fence(&self, _: Fence) -> Option<Fence> {
        None
    }
}

#[test]
fn a_coordinator_that_acts_without_showing_its_lease_is_found() {
    found(ShowsNoLease, &["I4"]);
}

#[derive(Debug, Clone)]
struct GoesOnWithWhatItKnew;

impl Conduct for GoesOnWithWhatItKnew {
    fn reads_after_lease(&self) -> bool {
        false
    }
}

#[test]
fn a_coordinator_that_read_the_job_before_it_had_the_lease_is_found() {
    found(GoesOnWithWhatItKnew, &["I1", "I2", "I3"]);
}

#[derive(Debug, Clone)]
struct PromisesBeforeCommit;

impl Conduct for PromisesBeforeCommit {
    fn promises_after_commit(&self) -> bool {
        false
    }
}

#[test]
fn a_request_promised_before_it_is_stored_is_missed() {
    found(PromisesBeforeCommit, &["I1"]);
}
