//! Every rule through its door: names and settings, the laws that hold for it, and what one dishonest node can do.

use proptest::prelude::{Just, TestCaseError, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;
use serde_json::json;

use super::*;
use reference::{Cohort, GRID, Server, geometry, moved};

mod reference;
mod selection;

/// Settings that are enough.
fn example(name: &str) -> Map<String, Value> {
    let needed = (!WITHOUT_SETTINGS.contains(&name)).then(|| ("byzantine".to_owned(), Value::from(1)));
    needed.into_iter().collect()
}

fn strategy(name: &str, config: &Value) -> Strategy {
    named(name, config.as_object().unwrap()).unwrap().strategy
}

fn by_name(name: &str) -> Strategy {
    named(name, &example(name)).unwrap().strategy
}

#[test]
fn names_are_found_and_slips_are_named() {
    let none = Map::new();
    assert_eq!(named("federated_averaging", &none).unwrap().strategy.name(), "fedavg");
    let Err(StrategyFault::Name(text)) = named("fedavgg", &none) else { panic!("not a name") };
    assert!(text.contains("did you mean `fedavg`"), "{text}");
    for (slip, name) in [("krumm", "krum"), ("trimed_mean", "trimmed_mean"), ("centred_clipping", "centered_clipping")]
    {
        let Err(StrategyFault::Name(text)) = named(slip, &none) else { panic!("not a name") };
        assert!(text.contains(&format!("did you mean `{name}`")), "{text}");
    }
}

#[test]
fn a_record_of_a_strategy_reads_back() {
    for name in BUILT {
        let strategy = by_name(name);
        assert_eq!(strategy.name(), *name);
        let text = serde_json::to_string(&strategy).unwrap();
        assert_eq!(serde_json::from_str::<Strategy>(&text).unwrap(), strategy, "{text}");
    }
}

#[test]
fn only_what_needs_no_setting_can_be_a_default() {
    let alone: Vec<&str> = BUILT.iter().copied().filter(|name| named(name, &Map::new()).is_ok()).collect();
    assert_eq!(alone, WITHOUT_SETTINGS);
    assert!(by_name(ROBUST_DEFAULT).rule().robust() && WITHOUT_SETTINGS.contains(&ROBUST_DEFAULT));
}

#[test]
fn a_setting_out_of_range_or_unknown_is_named_with_what_is_possible() {
    let check = |name: &str, config: Value, key: &str, says: &str| {
        let Err(StrategyFault::Settings(faults)) = named(name, config.as_object().unwrap()) else {
            panic!("{name} {config} is taken");
        };
        assert_eq!((faults.len(), faults[0].key.as_str()), (1, key), "{faults:?}");
        assert!(faults[0].detail.contains(says), "{}", faults[0].detail);
    };
    check("fedavg", json!({"beta": 1}), "beta", "unknown fedavg setting `beta`");
    check("fedavgm", json!({"server_momentum": 1}), "server_momentum", "from 0 to 0.999999");
    check("fedavgm", json!({"server_momentun": 0.5}), "server_momentun", "did you mean `server_momentum`");
    check("fedprox", json!({"mu": -1}), "mu", "from 0 to 1000");
    check("fedadam", json!({"beta1": 0.9}), "beta1", "did you mean `beta_1`");
    check("fedadam", json!({"eta": 0}), "eta", "from 0.000000001 to 1000");
    check("fedyogi", json!({"tau": 0}), "tau", "from 0.000000000001 to 1");
    check("fedadagrad", json!({"beta_2": 0.9}), "beta_2", "did you mean `beta_1`");
    check("qfedavg", json!({"q": "much"}), "q", "from 0 to 5");
    check("scaffold", json!({"population": 0}), "population", "a whole number from 1 to 10000000");
    check("fednova", json!({"mu": 1e9}), "mu", "from 0 to 1000");
    check("fedbuff", json!({"buffer": 3}), "buffer", "did you mean `buffer_size`");
    check("fedbuff", json!({"max_staleness": 1.5}), "max_staleness", "a whole number from 0 to 1000");
    check("median", json!({"beta": 0.1}), "beta", "unknown median setting");
    check("trimmed_mean", json!({"beta": 0.5}), "beta", "from 0 to 0.499999");
    check("krum", json!({"byzantine": 1, "to_keep": 2}), "to_keep", "unknown krum setting");
    check("krum", json!({}), "byzantine", "is missing");
    check("krum", json!({"byzantine": -1}), "byzantine", "a whole number from 0");
    check("multi_krum", json!({"byzantine": 1, "to_keep": 0}), "to_keep", "from 1 to 100000");
    check("bulyan", json!({"byzantin": 1, "byzantine": 2}), "byzantin", "did you mean `byzantine`");
    check("geometric_median", json!({"max_iterations": 0}), "max_iterations", "from 1 to 10000");
    check("norm_clipping", json!({"clipping_norm": 0}), "clipping_norm", "to 1000000000");
    check("centered_clipping", json!({"iterations": 101}), "iterations", "from 1 to 100");
    check("ditto", json!({"lambda": 0}), "lambda", "to 1000");
    check("ditto", json!({"personal_tensors": "last"}), "personal_tensors", "a list");
}

#[test]
fn tensors_can_stay_on_the_nodes_with_every_strategy() {
    for name in BUILT {
        let mut config = example(name);
        config.insert("personal_tensors".into(), json!(["layers.2.*"]));
        assert_eq!(named(name, &config).unwrap().personal_tensors, ["layers.2.*"]);
    }
}

#[test]
fn conditions_on_the_cohort_are_those_of_the_papers() {
    let least = |name: &str, config: Value| strategy(name, &config).rule().cohort_min().0;
    assert_eq!(least("krum", json!({"byzantine": 4})), 11);
    assert_eq!(least("multi_krum", json!({"byzantine": 4, "to_keep": 6})), 11);
    assert_eq!(least("multi_krum", json!({"byzantine": 4, "to_keep": 9})), 13);
    assert_eq!(least("bulyan", json!({"byzantine": 4})), 19);
    for (beta, n) in [(0.0, 1), (0.1, 10), (0.2, 5), (0.3, 4), (0.33, 4), (0.4, 3), (0.499_999, 3)] {
        assert_eq!(least("trimmed_mean", json!({"beta": beta})), n, "{beta}");
    }
    assert_eq!(least("fedbuff", json!({"buffer_size": 3})), 3);
    assert_eq!(least("median", json!({})), 1);
    let cohort = Cohort::plain(vec![vec![1]; 6]);
    let few = Server::new(&by_name("bulyan"), 1).round(&by_name("bulyan"), &cohort);
    assert!(few.unwrap_err().contains("n >= 4f + 3 with byzantine f = 1, and 6 updates are left"));
}

#[test]
fn what_cannot_be_trained_with_or_weighted_is_refused_by_the_rule() {
    let mut training = reference::training(&fedavg::FedAvg {});
    assert!(strategy("fedprox", &json!({"mu": 9.9})).rule().trains_with(&training).is_ok());
    for (name, config) in
        [("fedprox", json!({"mu": 10})), ("fednova", json!({"mu": 10})), ("ditto", json!({"lambda": 10}))]
    {
        let fault = strategy(name, &config).rule().trains_with(&training).unwrap_err();
        assert!(fault.contains("must be less than 1"), "{fault}");
    }
    training.momentum = 0.9;
    assert!(by_name("scaffold").rule().trains_with(&training).unwrap_err().contains("leave momentum out"));
    let of = |initial_loss| Contribution { weight: 1, steps: 1, initial_loss, staleness: 0 };
    let qfedavg = by_name("qfedavg");
    assert!(qfedavg.rule().accepts(&of(Some(0.0))).is_ok());
    assert!(qfedavg.rule().accepts(&of(None)).unwrap_err().contains("is missing"));
    for wrong in [f64::NAN, f64::INFINITY, -1.0, 1e13] {
        assert!(qfedavg.rule().accepts(&of(Some(wrong))).is_err(), "{wrong}");
    }
}

/// A random cohort of 7 to 11 updates of 1 to 5 values.
fn cohort(limit: i32) -> impl proptest::strategy::Strategy<Value = Cohort> {
    cohort_of(7..12, limit)
}

fn cohort_of(size: std::ops::Range<usize>, limit: i32) -> impl proptest::strategy::Strategy<Value = Cohort> {
    (size, 1..6_usize).prop_flat_map(move |(n, d)| {
        let plane = prop::collection::vec(prop::collection::vec(-limit..=limit, d), n);
        let declared = (1..1_000_u32, 1..50_u32, 0.0..10.0_f64, 0..5_u32);
        (plane.clone(), plane, prop::collection::vec(declared, n)).prop_map(|(updates, second, declared)| {
            let contribution =
                |(weight, steps, loss, staleness)| Contribution { weight, steps, initial_loss: Some(loss), staleness };
            Cohort { updates, second, contributions: declared.into_iter().map(contribution).collect() }
        })
    })
}

fn close(a: &[f32], b: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    for (a, b) in a.iter().zip(b) {
        prop_assert!((f64::from(*a) - b).abs() <= tolerance, "{a} is not {b} within {tolerance}");
    }
    Ok(())
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// How far a step leaves the range of the honest values, as a part of that range; 0 within.
fn beyond(honest: &[Vec<i32>], moved: &[f32]) -> f64 {
    let outside = |(i, w): (usize, &f32)| {
        let values = || honest.iter().map(|u| f64::from(u[i]) * GRID.step());
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        let out = (low - f64::from(*w)).max(f64::from(*w) - high).max(0.0);
        // Weights are f32: a value of the grid may be rounded by as much.
        if out < 1e-9 { 0.0 } else { out / (high - low) }
    };
    moved.iter().enumerate().map(outside).fold(0.0, f64::max)
}

#[test]
fn bulyan_may_leave_the_range_of_the_honest_a_little() {
    let honest = [
        [-609, 0, 477],
        [-609, 0, 0],
        [0; 3],
        [-602, 0, 390],
        [704, 494, 796],
        [0; 3],
        [-465, -497, -449],
        [0, 0, -160],
    ];
    let honest: Vec<Vec<i32>> = honest.iter().map(|u| u.to_vec()).collect();
    let updates = honest.iter().cloned().chain([vec![-761, 317, 33]]).collect();
    let step = moved(&by_name("bulyan"), &Cohort::plain(updates));
    // Of the first coordinate -602, twice -609, -465 and the outlier are nearest to the median of those chosen, -602.
    assert!((f64::from(step[0]) + 609.2 * GRID.step()).abs() < 1e-9, "{step:?}");
    assert!(beyond(&honest, &step) > 0.0);
}

proptest! {
    /// Three of 15 or more: with fewer, Krum's last choices see one neighbour only, and two that are nearest to each other
    /// tie; of these the first by name counts.
    #[test]
    fn the_order_of_updates_changes_no_bit(
        (cohort, order) in cohort_of(15..19, 1 << 22).prop_flat_map(|c| {
            let order: Vec<usize> = (0..c.updates.len()).collect();
            (Just(c), Just(order).prop_shuffle())
        }),
    ) {
        let turned = cohort.permuted(&order);
        for name in BUILT {
            let mut config = example(name);
            config.values_mut().for_each(|byzantine| *byzantine = 3.into());
            let strategy = named(name, &config).unwrap().strategy;
            let mut server = Server::new(&strategy, cohort.updates[0].len());
            let mut other = server.clone();
            for _ in 0..3 {
                server.round(&strategy, &cohort).unwrap();
                other.round(&strategy, &turned).unwrap();
            }
            prop_assert_eq!(&server, &other, "{}", name);
            prop_assert!(server.model.iter().all(|w| w.is_finite()), "{}", name);
        }
    }

    #[test]
    fn what_all_updates_have_in_common_moves_the_model_as_it_is(cohort in cohort(1 << 20), shift in -(1 << 20)..(1 << 20)) {
        let shifted = cohort.map(|_, v| v + shift);
        for name in ["fedavg", "fedprox", "ditto", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"] {
            let strategy = by_name(name);
            let expected: Vec<f64> = wide(&moved(&strategy, &cohort)).iter().map(|w| w + f64::from(shift) * GRID.step()).collect();
            close(&moved(&strategy, &shifted), &expected, 1e-6)?;
        }
    }

    #[test]
    fn twice_the_updates_move_the_model_twice_as_far(cohort in cohort(1 << 20)) {
        let doubled = cohort.map(|_, v| 2 * v);
        for name in [
            "fedavg", "fedavgm", "fedprox", "ditto", "fednova", "fedbuff", "scaffold", "median", "trimmed_mean", "krum",
            "multi_krum", "bulyan", "geometric_median", "norm_clipping", "centered_clipping",
        ] {
            let strategy = by_name(name);
            let expected: Vec<f64> = wide(&moved(&strategy, &cohort)).iter().map(|w| 2.0 * w).collect();
            close(&moved(&strategy, &doubled), &expected, 1e-6)?;
        }
    }

    #[test]
    fn updates_that_agree_are_followed(update in prop::collection::vec(-1000..1000_i32, 1..5), n in 7..12_usize) {
        let cohort = Cohort::plain(vec![update.clone(); n]);
        let expected: Vec<f64> = update.iter().map(|v| f64::from(*v) * GRID.step()).collect();
        for name in BUILT {
            if ["fedadam", "fedyogi", "fedadagrad", "qfedavg"].contains(name) {
                continue; // They choose the length of the step themselves.
            }
            close(&moved(&by_name(name), &cohort), &expected, 1e-11)?;
        }
    }

    /// What is on the grid is half a step from what was meant, and so is any mean or rank of it.
    #[test]
    fn fixed_point_costs_half_a_step(
        meant in prop::collection::vec(prop::collection::vec(-1.0..1.0_f32, 3), 5..9),
    ) {
        let quantise = |row: &Vec<f32>| {
            let mut out = Vec::new();
            GRID.quantise(row, &mut out).unwrap();
            out
        };
        let cohort = Cohort::plain(meant.iter().map(quantise).collect());
        let columns: Vec<Vec<f64>> = (0..3).map(|i| {
            let mut column: Vec<f64> = meant.iter().map(|row| f64::from(row[i])).collect();
            column.sort_unstable_by(f64::total_cmp);
            column
        }).collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let bound = GRID.step() / 2.0 + 1e-7;
        close(&moved(&by_name("fedavg"), &cohort), &columns.iter().map(|c| mean(c)).collect::<Vec<_>>(), bound)?;
        close(&moved(&by_name("median"), &cohort), &columns.iter().map(|c| exact::median(c.clone())).collect::<Vec<_>>(), bound)?;
        let trimmed: Vec<f64> = columns.iter().map(|c| mean(&c[1..c.len() - 1])).collect();
        close(&moved(&by_name("trimmed_mean"), &cohort), &trimmed, bound)?;
    }

    #[test]
    fn real_coefficients_are_met_within_their_bound(coefficients in prop::collection::vec(0.0..1e3_f64, 1..300)) {
        let Choice::Mean { weights, divisor, centre } = Choice::combination(&coefficients, 0.25) else { panic!("a mean") };
        let largest = coefficients.iter().copied().fold(0.0, f64::max);
        let sum: f64 = coefficients.iter().sum();
        prop_assert_eq!(centre, 0.25);
        prop_assert!(weights.iter().map(|w| u64::from(*w)).sum::<u64>() <= (1 << 39) + 300);
        let bound = (largest / f64::from(1 << 30)).max(sum / 549_755_813_888.0);
        for (weight, coefficient) in weights.iter().zip(&coefficients) {
            prop_assert!((f64::from(*weight) / divisor - coefficient).abs() <= bound);
        }
    }

    /// One node of nine sends what it likes.
    #[test]
    fn one_outlier_moves_a_robust_rule_less_than_its_bound(
        honest in prop::collection::vec(prop::collection::vec(-1000..=1000_i32, 3), 8),
        outlier in prop::collection::vec(prop_oneof![-(1 << 22)..(1 << 22), -2000..2000_i32], 3),
    ) {
        let clean = Cohort::plain(honest.clone());
        let mut updates = honest.clone();
        updates.push(outlier.clone());
        let attacked = Cohort::plain(updates);
        let step = GRID.step();
        for name in ["median", "trimmed_mean", "bulyan"] {
            let beyond = beyond(&honest, &moved(&by_name(name), &attacked));
            // Bulyan keeps 5 values. More honest ones than that are among the chosen, so the outlier is kept only if it is no
            // farther from their median, which lies among the honest, than an honest one can be.
            prop_assert!(beyond <= if name == "bulyan" { 1.0 / 5.0 } else { 0.0 } + 1e-9, "{} {}", name, beyond);
        }
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let radius = 1000.0 * step * 3.0_f64.sqrt();
        // RFA, section 3: |z - c| <= 2 (1 - g) / (1 - 2 g) max |x_i - c| for outliers of share g, here 1/9 and c = 0.
        let z = wide(&moved(&by_name("geometric_median"), &attacked));
        prop_assert!(norm(&z) <= 2.0 * (8.0 / 9.0) / (7.0 / 9.0) * radius + 1e-6);
        // Each node moves the model by C / n at most.
        let clip = json!({"clipping_norm": radius});
        let clipped = strategy("norm_clipping", &clip);
        let (with, without) = (wide(&moved(&clipped, &attacked)), wide(&moved(&clipped, &clean)));
        let difference: Vec<f64> = with.iter().zip(&without).map(|(a, b)| a * 9.0 - b * 8.0).collect();
        prop_assert!(norm(&difference) <= radius * 1.0001 + 1e-6);
        let centred = strategy("centered_clipping", &json!({"tau": radius}));
        let (with, without) = (wide(&moved(&centred, &attacked)), wide(&moved(&centred, &clean)));
        let difference: Vec<f64> = with.iter().zip(&without).map(|(a, b)| a * 9.0 - b * 8.0).collect();
        prop_assert!(norm(&difference) <= radius * 1.0001 + 1e-6);
        // An update that is far from all is not chosen.
        if outlier.iter().any(|v| v.abs() > 100_000) {
            for name in ["krum", "multi_krum"] {
                prop_assert!(norm(&wide(&moved(&by_name(name), &attacked))) <= radius + 1e-9, "{}", name);
            }
            prop_assert!(norm(&wide(&moved(&by_name("fedavg"), &attacked))) > 2.0 * radius, "the twin: a mean gives way");
        }
    }

    #[test]
    fn distances_from_a_combination_are_those_of_the_point(
        cohort in cohort(1 << 20), raw in prop::collection::vec(0.01..1.0_f64, 12),
    ) {
        let n = cohort.updates.len();
        let total: f64 = raw[..n].iter().sum();
        let shares: Vec<f64> = raw[..n].iter().map(|r| r / total).collect();
        let found = affine::distances(&geometry(&cohort.updates, None), &shares);
        let d = cohort.updates[0].len();
        let point: Vec<f64> = (0..d).map(|i| shares.iter().zip(&cohort.updates).map(|(s, u)| s * f64::from(u[i])).sum()).collect();
        for (update, found) in cohort.updates.iter().zip(found) {
            let squared: f64 = update.iter().zip(&point).map(|(u, p)| (f64::from(*u) - p).powi(2)).sum();
            prop_assert!((found - squared.sqrt() * GRID.step()).abs() <= 1e-7, "{} {}", found, squared.sqrt() * GRID.step());
        }
    }
}

#[test]
fn the_median_of_distances_is_found_though_three_of_seven_are_far_away() {
    let mut updates = vec![vec![100, 0], vec![0, 100], vec![-100, 0], vec![0, -100]];
    updates.extend(vec![vec![1_000_000, 1_000_000]; 3]);
    let z = wide(&moved(&by_name("geometric_median"), &Cohort::plain(updates.clone())));
    assert!(z.iter().all(|v| v.abs() < 500.0 * GRID.step()), "{z:?}");
    let mean = wide(&moved(&by_name("fedavg"), &Cohort::plain(updates)));
    assert!(mean.iter().all(|v| *v > 400_000.0 * GRID.step()), "{mean:?}");
}

#[test]
fn a_thousand_updates_are_chosen_from_in_no_more_than_n_squared_log_n() {
    let mut rng = aivillage_base::rng::SeededRng::new("strategies", 1, &[]);
    let mut value = || i32::try_from(rng.below(1 << 20)).unwrap() - (1 << 19);
    let updates: Vec<Vec<i32>> = (0..1_000).map(|_| vec![value(), value(), value()]).collect();
    let strategy = strategy("bulyan", &json!({"byzantine": 249}));
    let choice = Server::new(&strategy, 3).round(&strategy, &Cohort::plain(updates)).unwrap();
    let Choice::NearMedian { rows, keep } = choice else { panic!("{choice:?}") };
    assert_eq!((rows.len(), keep), (502, 4));
}
