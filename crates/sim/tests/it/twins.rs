//! Villages with one cure taken away: each must be found broken, or the cure is not tested.

use std::sync::Arc;

use aivillage_base::ports::{Blobs, Fence, Records, put_blob};
use aivillage_base::{NodeName, bundle};
use aivillage_sim::{Conduct, Order};
use aivillage_training::step::{ComputeError, ComputePlan, Made};
use aivillage_training::{aggregate, store, strategy};

use super::*;

/// Seeds within which each twin must be found.
const TWIN_SEEDS: u64 = 200;

/// Some seed must break one of these promises.
#[track_caller]
#[expect(clippy::print_stdout, reason = "how soon a twin is found is worth seeing")]
fn found(conduct: impl Conduct + Clone + 'static, invariants: &[&str]) {
    let plan = |seed| Plan { conduct: Arc::new(conduct.clone()), ..Plan::drawn(seed) };
    let expected = |result: &Result<Report, Violation>| {
        result.as_ref().is_err_and(|violation| invariants.contains(&violation.invariant))
    };
    let results = seeds(TWIN_SEEDS, plan, expected);
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

#[derive(Debug, Clone)]
struct ForgetsWhatItOwes;

impl Conduct for ForgetsWhatItOwes {
    fn resumes(&self) -> bool {
        false
    }
}

#[test]
fn a_coordinator_that_forgets_what_it_owes_when_it_dies_is_found() {
    found(ForgetsWhatItOwes, &["I7"]);
}

#[derive(Debug, Clone)]
struct TrustsItsClock;

impl Conduct for TrustsItsClock {
    fn leases_by_clock(&self) -> bool {
        true
    }
    fn fence(&self, _: Fence) -> Option<Fence> {
        None
    }
}

#[test]
fn a_coordinator_that_judges_leases_by_its_wall_clock_is_found() {
    found(TrustsItsClock, &["I4"]);
}

/// Adds floating-point numbers as they come in, where the strategy is a mean.
#[derive(Debug, Clone)]
struct SumsAsTheyCome;

impl SumsAsTheyCome {
    async fn sum(plan: &ComputePlan, arrived: &[NodeName], records: &dyn Records, blobs: &dyn Blobs) -> Option<Made> {
        let model = blobs.read(&plan.model_in.digest).await.ok()??;
        let (architecture, start) = bundle::read(&model).ok()?;
        let total: u32 = plan.accepted.iter().map(|(_, c)| c.weight).sum();
        let mut accepted: Vec<_> = plan.accepted.iter().collect();
        accepted.sort_by_key(|(name, _)| arrived.iter().position(|a| a == name));
        let mut change = vec![0f32; start.len()];
        for (name, counted) in accepted {
            let bytes = match counted.inline {
                true => store::payload(records, &plan.key, name).await.ok()??,
                false => blobs.read(&counted.payload.digest).await.ok()??,
            };
            for (sum, q) in change.iter_mut().zip(bytes.as_chunks::<4>().0) {
                #[expect(clippy::cast_precision_loss, reason = "the mistake that is shown")]
                let (q, weight) = (i32::from_le_bytes(*q) as f32, counted.weight as f32 / total as f32);
                *sum += q * weight;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "steps are powers of two")]
        let step = plan.grids[0].step() as f32;
        let values: Vec<f32> = start.iter().zip(change).map(|(w, c)| w + c * step).collect();
        let model = put_blob(blobs, bundle::write(&architecture, &values).ok()?.into()).await.ok()?;
        Some(Made { model, state: Vec::new(), totals: None })
    }
}

impl Conduct for SumsAsTheyCome {
    fn make(
        &self,
        plan: &ComputePlan,
        arrived: &[NodeName],
        records: &dyn Records,
        blobs: &dyn Blobs,
    ) -> Result<Made, ComputeError> {
        let mean = matches!(plan.strategy, strategy::Strategy::FedAvg(_)) && plan.personal.is_empty();
        if !mean {
            return aivillage_sim::ready(aggregate::run(plan, records, blobs));
        }
        aivillage_sim::ready(Self::sum(plan, arrived, records, blobs))
            .ok_or_else(|| ComputeError::Store("something is missing".into()))
    }
}

#[test]
fn a_sum_that_depends_on_the_order_of_updates_is_found() {
    found(SumsAsTheyCome, &["I5"]);
}
