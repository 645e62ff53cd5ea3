//! The coordinator's door on memory stores; the arithmetic is proved in [`exact`] against [`naive`].

mod exact;
mod faulty;
mod masked;
mod naive;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aivillage_base::arch::{Norm, Recipe, TensorKind};
use aivillage_base::bundle;
use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::ports::{Blobs as _, Records as _, put_blob};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::{LocalMetrics, UpdateHeader};
use aivillage_base::{Architecture, NodeName, Task};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use bytes::Bytes;

use super::*;
use crate::record::Counted;
use crate::step::{Change, ComputeError, ComputePlan};
use crate::store;
use crate::strategy::fedavg::FedAvg;
use crate::testing::{key, linear, name, spec};
use faulty::FaultyBlobs;

/// A closed round with its stores.
struct Closed {
    plan: ComputePlan,
    records: MemoryRecords,
    blobs: MemoryBlobs,
    model: Vec<f32>,
    updates: Vec<(Vec<i32>, u32)>,
}

impl Closed {
    async fn new(architecture: Architecture, updates: Vec<(Vec<i32>, u32)>, inline: bool) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (records, blobs) = (MemoryRecords::new(clock), MemoryBlobs::new());
        let mut rng = SeededRng::new("aggregate test", 3, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "a test's weights")]
        let model: Vec<f32> = (0..architecture.parameters().unwrap()).map(|_| rng.unit() as f32 - 0.5).collect();
        let bundle = bundle::write(&architecture, &model).unwrap();
        let model_in = put_blob(&blobs, bundle.into()).await.unwrap();
        let mut accepted = Vec::new();
        for (i, (values, weight)) in updates.iter().enumerate() {
            let node = name(&format!("n{i}"));
            let bytes = Bytes::from(to_bytes(values));
            let payload = put_blob(&MemoryBlobs::new(), bytes.clone()).await.unwrap();
            if inline {
                let change = Change::Payload(key(1, 1), node.clone(), bytes);
                records.commit(store::batch(vec![change], None)).await.unwrap();
            } else {
                put_blob(&blobs, bytes).await.unwrap();
            }
            let metrics = LocalMetrics::default();
            let header = UpdateHeader::new(key(1, 1), payload, *weight, metrics);
            accepted.push((node, Counted::new(&header, inline)));
        }
        let grids = vec![Grid::default(); architecture.layout().unwrap().len()];
        let plan = ComputePlan {
            opened: None,
            key: key(1, 1),
            architecture,
            model_in,
            state_in: Vec::new(),
            grids,
            strategy: Strategy::FedAvg(FedAvg {}),
            training: spec(1, 1, 1).training,
            personal: Vec::new(),
            invited: u32::try_from(accepted.len()).unwrap(),
            examples_max: None,
            accepted,
        };
        Self { plan, records, blobs, model, updates }
    }

    async fn run(&self, plan: &ComputePlan) -> Result<Vec<f32>, ComputeError> {
        let made = run(plan, &self.records, &self.blobs).await?;
        let bytes = self.blobs.read(&made.model.digest).await.unwrap().unwrap();
        let (architecture, values) = bundle::read(&bytes).unwrap();
        assert_eq!(architecture, plan.architecture);
        Ok(values)
    }

    /// The same in plain f64, coordinate by coordinate.
    fn naive(&self) -> Vec<f32> {
        let weight: f64 = self.updates.iter().map(|(_, w)| f64::from(*w)).sum();
        let mean = |i: usize| {
            let sum: f64 = self.updates.iter().map(|(v, w)| f64::from(v[i]) * f64::from(*w)).sum();
            sum / weight * Grid::default().step()
        };
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        let next = |(i, w): (usize, &f32)| (f64::from(*w) + mean(i)) as f32;
        self.model.iter().enumerate().map(next).collect()
    }
}

fn random_updates(parameters: usize, count: u64) -> Vec<(Vec<i32>, u32)> {
    (0..count)
        .map(|node| {
            let mut rng = SeededRng::new("aggregate test", node, &[]);
            let value = |rng: &mut SeededRng| i32::try_from(rng.below(1 << 24)).unwrap() - (1 << 23) + 1;
            let values = (0..parameters).map(|_| value(&mut rng).clamp(-(1 << 23) + 1, (1 << 23) - 1)).collect();
            (values, u32::try_from(rng.below(1_000)).unwrap() + 1)
        })
        .collect()
}

/// A model whose first tensors end inside the first wave and whose weight crosses the borders of waves.
fn large() -> Architecture {
    Recipe::Mlp { hidden: vec![1_500] }.build(&[100], Task::Classification { classes: 2 }).unwrap()
}

#[tokio::test]
async fn the_model_equals_a_naive_mean_in_f64_across_blocks() {
    let parameters = large().parameters().unwrap();
    assert!(parameters > 2 * WAVE && !parameters.is_multiple_of(WAVE));
    let closed = Closed::new(large(), random_updates(parameters, 3), false).await;
    assert_eq!(closed.run(&closed.plan).await.unwrap(), closed.naive());
    let small = Closed::new(linear(), random_updates(4, 5), true).await;
    assert_eq!(small.run(&small.plan).await.unwrap(), small.naive());
}

#[tokio::test]
async fn the_order_of_the_accepted_set_changes_no_bit() {
    let closed = Closed::new(linear(), random_updates(4, 6), true).await;
    let expected = run(&closed.plan, &closed.records, &closed.blobs).await.unwrap();
    let mut plan = closed.plan.clone();
    for turn in 0..6 {
        plan.accepted.rotate_left(1);
        plan.accepted.swap(0, turn % 5 + 1);
        assert_eq!(run(&plan, &closed.records, &closed.blobs).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn one_heavy_and_one_light_update_move_the_model_by_their_weights() {
    let step = 1 << 20;
    let closed = Closed::new(linear(), vec![(vec![step; 4], 30), (vec![-step; 4], 10)], true).await;
    let moved = closed.run(&closed.plan).await.unwrap();
    for (new, old) in moved.iter().zip(&closed.model) {
        assert!((new - old - 0.5).abs() < 1e-6, "(30 - 10) / 40 of 1.0, but {old} became {new}");
    }
}

#[track_caller]
fn bad(result: Result<Vec<f32>, ComputeError>, of: &str, because: &str) {
    match result {
        Err(ComputeError::BadUpdate { node, reason, .. }) => {
            assert_eq!((node, reason), (NodeName::new(of).unwrap(), because));
        }
        other => panic!("{other:?} does not blame {of}"),
    }
}

#[tokio::test]
async fn an_unusable_update_is_named_and_nothing_is_left_behind() {
    let mut updates = random_updates(4, 3);
    updates[1].0[2] = 1 << 23;
    for inline in [true, false] {
        let closed = Closed::new(linear(), updates.clone(), inline).await;
        let before = closed.blobs.list().await.unwrap();
        bad(closed.run(&closed.plan).await, "n1", "out_of_range");
        assert_eq!(closed.blobs.list().await.unwrap(), before);
    }
    let closed = Closed::new(linear(), random_updates(4, 3), true).await;
    let forget = Change::Forget(key(1, 1), vec![name("n2")]);
    closed.records.commit(store::batch(vec![forget], None)).await.unwrap();
    bad(closed.run(&closed.plan).await, "n2", "damaged");
    let cut = Closed::new(linear(), vec![(vec![1; 4], 1), (vec![1; 3], 1)], false).await;
    bad(cut.run(&cut.plan).await, "n1", "damaged");
}

#[tokio::test]
async fn an_update_that_changed_in_the_store_is_named() {
    let closed = Closed::new(linear(), random_updates(4, 2), true).await;
    let other = Change::Payload(key(1, 1), name("n1"), Bytes::from(to_bytes(&[1, 2, 3, 4])));
    closed.records.commit(store::batch(vec![other], None)).await.unwrap();
    bad(closed.run(&closed.plan).await, "n1", "damaged");
}

#[tokio::test]
async fn a_missing_model_is_a_fault_of_the_store_not_of_a_member() {
    let closed = Closed::new(linear(), random_updates(4, 2), true).await;
    closed.blobs.delete(&closed.plan.model_in.digest).await.unwrap();
    assert!(matches!(closed.run(&closed.plan).await, Err(ComputeError::Store(_))));
}

#[tokio::test]
async fn a_cohort_beyond_the_limit_of_open_files_is_summed_and_ranked() {
    let closed = Closed::new(linear(), random_updates(4, 1_200), false).await;
    let scarce = FaultyBlobs::new(closed.blobs.clone(), 300);
    for name in ["fedavg", "median", "norm_clipping"] {
        let plan = ComputePlan { strategy: naive::strategy(name, serde_json::json!({})), ..closed.plan.clone() };
        let made = run(&plan, &closed.records, &scarce).await.unwrap();
        assert_eq!(made, run(&plan, &closed.records, &closed.blobs).await.unwrap(), "{name}");
        assert_eq!(scarce.open.load(Ordering::SeqCst), 0, "what was opened is closed");
    }
    assert!(scarce.opened.load(Ordering::SeqCst) > 1_200);
}

#[tokio::test]
async fn stored_updates_are_hashed_unless_this_process_has_done_so() {
    let closed = Closed::new(linear(), random_updates(4, 3), false).await;
    let digest = closed.plan.accepted[1].1.payload.digest;
    let rotten = FaultyBlobs { damaged: Some(digest), ..FaultyBlobs::new(closed.blobs.clone(), 300) };
    let found = run(&closed.plan, &closed.records, &rotten).await;
    assert!(matches!(&found, Err(ComputeError::BadUpdate { node, reason: "damaged", .. }) if *node == name("n1")));
    let options = Options { trusted: closed.plan.blobs().collect(), ..Options::default() };
    let made = run_with(&closed.plan, &closed.records, &rotten, &options).await.unwrap();
    assert_ne!(made, run(&closed.plan, &closed.records, &closed.blobs).await.unwrap(), "it was read as it is");
    let model = FaultyBlobs { damaged: Some(closed.plan.model_in.digest), ..rotten.clone() };
    assert!(matches!(run(&closed.plan, &closed.records, &model).await, Err(ComputeError::Store(_))));
}

/// State comes from the last round's blobs, personal tensors stay as they are, small and large updates may be mixed.
#[tokio::test]
async fn state_goes_from_round_to_round_and_personal_tensors_stay() {
    let closed = Closed::new(linear(), random_updates(4, 3), true).await;
    let mut plan = ComputePlan { strategy: naive::strategy("fedavgm", serde_json::json!({})), ..closed.plan.clone() };
    let tensor = plan.architecture.layout().unwrap()[0].clone();
    assert_eq!(tensor.len(), 1, "the bias comes first");
    let mut personal = ComputePlan { personal: vec![tensor.name], ..plan.clone() };
    assert!(matches!(closed.run(&personal).await, Err(ComputeError::BadUpdate { reason: "damaged", .. })));
    for (i, (_, counted)) in personal.accepted.iter_mut().enumerate() {
        let bytes = Bytes::from(to_bytes(&closed.updates[i].0[1..]));
        *counted = Counted { payload: put_blob(&closed.blobs, bytes).await.unwrap(), inline: false, ..counted.clone() };
    }
    let (whole, part) = (closed.run(&plan).await.unwrap(), closed.run(&personal).await.unwrap());
    assert_eq!(part[..1], closed.model[..1]);
    assert_eq!(part[1..], whole[1..]);

    let first = run(&plan, &closed.records, &closed.blobs).await.unwrap();
    assert_eq!(first.state.len(), 1);
    (plan.model_in, plan.state_in) = (first.model, first.state);
    let second = run(&plan, &closed.records, &closed.blobs).await.unwrap();
    assert_ne!(plan.state_in, second.state);
    plan.state_in[0].name = "another".to_owned();
    assert!(matches!(closed.run(&plan).await, Err(ComputeError::Unusable(_))));
}

#[tokio::test]
async fn small_updates_are_read_in_parts_where_they_are_many() {
    let closed = Closed::new(large(), random_updates(large().parameters().unwrap(), 3), true).await;
    let expected = closed.run(&closed.plan).await.unwrap();
    assert_eq!(expected, closed.naive());
    let bytes = closed.plan.accepted[0].1.payload.bytes;
    let options = Options { inline_bytes_max: usize::try_from(3 * bytes).unwrap() - 1, ..Options::default() };
    for name in ["fedavg", "median", "krum"] {
        let settings = if name == "krum" { serde_json::json!({"byzantine": 0}) } else { serde_json::json!({}) };
        let plan = ComputePlan { strategy: naive::strategy(name, settings), ..closed.plan.clone() };
        let made = run_with(&plan, &closed.records, &closed.blobs, &options).await.unwrap();
        assert_eq!(made, run(&plan, &closed.records, &closed.blobs).await.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn no_update_takes_a_running_variance_below_zero() {
    let recipe = Recipe::Mlp { hidden: vec![3] }.with_norm(Norm::Batch).unwrap();
    let architecture = recipe.build(&[2], Task::Classification { classes: 2 }).unwrap();
    let lowest = vec![-(1 << 23) + 1; architecture.parameters().unwrap()];
    let closed = Closed::new(architecture, vec![(lowest, 5)], true).await;
    let (mut want, mut at) = (closed.naive(), 0);
    let mut variances = 0;
    for tensor in closed.plan.architecture.layout().unwrap() {
        let values = &mut want[at..at + tensor.len()];
        assert!(values.iter().all(|v| *v < 0.0), "plain sums take all of {} below zero", tensor.name);
        if tensor.kind == TensorKind::RunningVariance {
            values.fill(0.0);
            variances += values.len();
        }
        at += tensor.len();
    }
    assert_eq!(variances, 3);
    assert_eq!(closed.run(&closed.plan).await.unwrap(), want);
}
