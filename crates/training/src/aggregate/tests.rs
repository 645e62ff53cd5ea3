//! The coordinator's door on memory stores; the arithmetic is proved in [`exact`] against [`naive`].

mod exact;
mod naive;

use std::sync::Arc;

use aivillage_base::arch::Recipe;
use aivillage_base::bundle;
use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::ports::{Blobs as _, Records as _, put_blob};
use aivillage_base::rng::SeededRng;
use aivillage_base::time::{Clock, SystemClock};
use aivillage_base::wire::{LocalMetrics, UpdateHeader};
use aivillage_base::{Architecture, NodeName, Task};
use aivillage_storage::{MemoryBlobs, MemoryRecords};
use bytes::Bytes;

use super::sum::BLOCK;
use super::*;
use crate::record::Counted;
use crate::step::{Change, ComputeError, ComputePlan};
use crate::store;
use crate::strategy::fedavg::FedAvg;
use crate::testing::{key, linear, name, spec};

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
            key: key(1, 1),
            architecture,
            model_in,
            state_in: Vec::new(),
            grids,
            strategy: Strategy::FedAvg(FedAvg {}),
            training: spec(1, 1, 1).training,
            personal: Vec::new(),
            invited: u32::try_from(accepted.len()).unwrap(),
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

/// A model whose first tensors end inside the first block and whose weight crosses two block borders.
fn large() -> Architecture {
    Recipe::Mlp { hidden: vec![1_500] }.build(&[100], Task::Classification { classes: 2 }).unwrap()
}

#[tokio::test]
async fn the_model_equals_a_naive_mean_in_f64_across_blocks() {
    let parameters = large().parameters().unwrap();
    assert!(parameters > 2 * BLOCK && !parameters.is_multiple_of(BLOCK));
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
