//! Every kind of choice against the naive twin, bit for bit, whatever the shapes, the grids, the threads and the order.

use aivillage_base::fixed::Grid;
use aivillage_base::rng::SeededRng;
use proptest::prelude::*;
use serde_json::json;

use super::naive::{Updates, Vector, expected, made, strategy};
use crate::aggregate::{Tensor, WAVE, Work, WorkError};
use crate::strategy::{Contribution, Strategy as Rule};
use crate::testing::spec;

/// One of each kind: sums, planes, states, ranks, distances, the centre.
fn rules() -> Vec<Rule> {
    vec![
        strategy("fedavg", json!({})),
        strategy("fedadam", json!({})),
        strategy("fednova", json!({})),
        strategy("scaffold", json!({})),
        strategy("median", json!({})),
        strategy("trimmed_mean", json!({"beta": 0.3})),
        strategy("krum", json!({"byzantine": 1})),
        strategy("multi_krum", json!({"byzantine": 2})),
        strategy("bulyan", json!({"byzantine": 1})),
        strategy("geometric_median", json!({})),
        strategy("norm_clipping", json!({})),
        strategy("centered_clipping", json!({"iterations": 3})),
    ]
}

/// A closed round in memory.
#[derive(Debug, Clone)]
struct Round {
    tensors: Vec<Tensor>,
    updates: Updates,
    contributions: Vec<Contribution>,
    model: Vector,
    state: Vec<Vector>,
}

impl Round {
    /// A random one: small and large values, some updates alike; the state lies on the grid.
    fn new(tensors: Vec<Tensor>, count: usize, planes: usize, slots: usize, seed: u64) -> Self {
        let mut rng = SeededRng::new("exact aggregation", seed, &[]);
        let mut value = |bound: i32| {
            let bound = u64::from(bound.unsigned_abs().min(if rng.below(4) == 0 { u32::MAX } else { 5 }));
            i32::try_from(i64::try_from(rng.below(2 * bound + 1)).unwrap() - i64::try_from(bound).unwrap()).unwrap()
        };
        let travels: Vec<Tensor> = tensors.iter().copied().filter(|t| !t.personal).collect();
        let mut update = || -> Vec<i32> {
            let plane = |_| travels.iter().flat_map(|t| vec![t.grid.bound; t.len]).collect::<Vec<_>>();
            (0..planes).flat_map(plane).map(&mut value).collect()
        };
        let updates = Updates((0..count).map(|_| update()).collect());
        let mut vector = |on_grid: bool| {
            let of = |t: &Tensor| {
                let values: Vec<f32> = (0..t.len).map(|_| (f64::from(value(999)) * t.grid.step()) as f32).collect();
                if t.personal && on_grid { vec![0.0; t.len] } else { values }
            };
            Vector(tensors.iter().flat_map(of).collect())
        };
        let model = vector(false);
        let state = (0..slots).map(|_| vector(true)).collect();
        let contribution = |i: usize| Contribution {
            weight: if i % 5 == 4 { u32::MAX } else { 1 + u32::try_from(i * i).unwrap() },
            steps: 1 + u32::try_from(i).unwrap(),
            initial_loss: Some(1.0),
            staleness: 0,
        };
        let contributions = (0..count).map(contribution).collect();
        Self { tensors, updates, contributions, model, state }
    }

    fn work<'a>(
        &'a self,
        rule: &'a Rule,
        training: &'a aivillage_base::wire::LocalTraining,
        threads: usize,
    ) -> Work<'a> {
        Work {
            strategy: rule,
            round: 3,
            training,
            population: 40,
            examples_max: None,
            contributions: &self.contributions,
            sums: None,
            tensors: &self.tensors,
            model: &self.model,
            state: self.state.iter().map(|s| Some(s as &dyn crate::aggregate::Floats)).collect(),
            threads,
        }
    }
}

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let grid = (-3..-1_i32, prop_oneof![Just(1000), Just((1 << 23) - 1)]);
    let tensor = (1..40_usize, grid, prop::bool::weighted(0.2));
    let tensor = tensor.prop_map(|(len, (e, bound), personal)| Tensor {
        len,
        grid: Grid { exponent: 8 * e, bound },
        personal,
        variances: false,
    });
    prop::collection::vec(tensor, 1..6).prop_filter("something travels", |all| all.iter().any(|t| !t.personal))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_rule_equals_its_naive_twin(tensors in tensors(), count in 7..30_usize, seed in any::<u64>()) {
        let training = spec(1, 1, 1).training;
        for rule in rules() {
            let round = Round::new(tensors.clone(), count, rule.rule().planes(), rule.rule().slots().len(), seed);
            let found = made(round.work(&rule, &training, 2), &round.updates).unwrap();
            prop_assert_eq!(found, expected(&round.work(&rule, &training, 1), &round.updates), "{}", rule.name());
        }
    }

    #[test]
    fn the_order_of_updates_changes_no_bit(tensors in tensors(), count in 7..30_usize, seed in any::<u64>()) {
        let training = spec(1, 1, 1).training;
        // The rules that choose whole updates break ties by name, so another order of names may make another model.
        for rule in rules().into_iter().filter(|r| !["krum", "multi_krum", "bulyan"].contains(&r.name())) {
            let round = Round::new(tensors.clone(), count, rule.rule().planes(), rule.rule().slots().len(), seed);
            let mut turned = round.clone();
            let mut order: Vec<usize> = (0..count).collect();
            SeededRng::new("turned", seed, &[]).shuffle(&mut order);
            turned.updates = Updates(order.iter().map(|i| round.updates.0[*i].clone()).collect());
            turned.contributions = order.iter().map(|i| round.contributions[*i]).collect();
            let found = made(turned.work(&rule, &training, 1), &turned.updates);
            prop_assert_eq!(found, made(round.work(&rule, &training, 1), &round.updates), "{}", rule.name());
        }
    }
}

/// Larger than a wave, so that blocks, waves and threads meet everywhere.
#[test]
fn waves_and_threads_change_no_bit() {
    let training = spec(1, 1, 1).training;
    let tensor =
        |len, exponent, personal| Tensor { len, grid: Grid { exponent, bound: 1 << 22 }, personal, variances: false };
    let tensors = vec![tensor(WAVE - 7, -20, false), tensor(20_000, -20, true), tensor(70_001, -12, false)];
    for rule in [strategy("fedavg", json!({})), strategy("median", json!({})), strategy("centered_clipping", json!({}))]
    {
        let round = Round::new(tensors.clone(), 3, 1, rule.rule().slots().len(), 5);
        let one = made(round.work(&rule, &training, 1), &round.updates).unwrap();
        for threads in [2, 3, 7] {
            assert!(made(round.work(&rule, &training, threads), &round.updates).unwrap() == one, "{}", rule.name());
        }
        assert!(one == expected(&round.work(&rule, &training, 1), &round.updates), "{}", rule.name());
    }
}

/// More updates than the network takes, and more than one group.
#[test]
fn large_cohorts_equal_the_naive_twin() {
    let training = spec(1, 1, 1).training;
    let tensors = vec![Tensor { len: 3, grid: Grid::default(), personal: false, variances: false }];
    for rule in rules() {
        let count = if rule.rule().needs() == crate::strategy::Needs::Nothing { 1_100 } else { 150 };
        let round = Round::new(tensors.clone(), count, rule.rule().planes(), rule.rule().slots().len(), 11);
        let found = made(round.work(&rule, &training, 0), &round.updates).unwrap();
        assert_eq!(found, expected(&round.work(&rule, &training, 1), &round.updates), "{}", rule.name());
    }
}

#[test]
fn the_widest_grid_is_measured_without_overflow() {
    let training = spec(1, 1, 1).training;
    let tensors =
        vec![Tensor { len: 50, grid: Grid { exponent: -30, bound: i32::MAX }, personal: false, variances: false }];
    let rule = strategy("krum", json!({"byzantine": 1}));
    let mut round = Round::new(tensors, 7, 1, 0, 11);
    for (i, update) in round.updates.0.iter_mut().enumerate() {
        update.fill(if i % 2 == 0 { i32::MAX } else { -i32::MAX });
        update[i] = 0;
    }
    let found = made(round.work(&rule, &training, 1), &round.updates).unwrap();
    assert_eq!(found, expected(&round.work(&rule, &training, 1), &round.updates));
}

#[test]
fn what_cannot_be_used_is_named() {
    let training = spec(1, 1, 1).training;
    let tensors = vec![Tensor { len: 3, grid: Grid { exponent: 0, bound: 9 }, personal: false, variances: false }; 2];
    for rule in rules() {
        let (planes, slots) = (rule.rule().planes(), rule.rule().slots().len());
        let good = Round::new(tensors.clone(), 11, planes, slots, 11);
        let refused = |round: &Round| made(round.work(&rule, &training, 1), &round.updates).unwrap_err();
        let mut bad = good.clone();
        for row in &mut bad.updates.0[..5] {
            row[5 * planes] = 10;
        }
        let all = matches!(refused(&bad), WorkError::Update { row: 0, reason: "out_of_range", .. });
        assert!(all, "{}: {:?}", rule.name(), refused(&bad));
        let mut cut = good.clone();
        cut.updates.0[6].pop();
        let cut = made(cut.work(&rule, &training, 1), &cut.updates);
        // Krum reads all updates to choose one.
        assert!(matches!(cut, Err(WorkError::Update { row: 6, reason: "damaged", .. })), "{}: {cut:?}", rule.name());
        let mut none = good.clone();
        none.contributions.clear();
        assert!(matches!(refused(&none), WorkError::Unusable(_)));
        let mut more = good.clone();
        more.state.push(more.model.clone());
        assert!(matches!(refused(&more), WorkError::Unusable(_)));
        let mut unread = good.clone();
        unread.model.0.pop();
        assert!(matches!(refused(&unread), WorkError::Read(_)));
    }
}

#[test]
fn a_sum_that_could_overflow_is_refused_with_the_numbers() {
    let training = spec(1, 1, 1).training;
    let tensors =
        vec![Tensor { len: 1, grid: Grid { exponent: 0, bound: i32::MAX }, personal: false, variances: false }];
    let rule = strategy("fedavg", json!({}));
    let mut round = Round::new(tensors, 2, 1, 0, 1);
    for contribution in &mut round.contributions {
        contribution.weight = u32::MAX;
    }
    let fits = (u64::MAX >> 1) / u64::from(i32::MAX.unsigned_abs()) / u64::from(u32::MAX);
    assert_eq!(fits, 1, "so two do not fit");
    let refused = made(round.work(&rule, &training, 1), &round.updates);
    let Err(WorkError::Unusable(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("8589934590") && why.contains("2147483647"), "{why}");
}
