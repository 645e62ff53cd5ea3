//! Krum, Multi-Krum and Bulyan choose exactly what their definitions say: against O(n^3) code on whole numbers.

use proptest::prelude::{Just, prop, prop_assert_eq, proptest};
use proptest::strategy::Strategy as _;
use serde_json::json;

use super::super::*;
use super::reference::{Cohort, Server};
use super::strategy;

/// Krum's order of the updates `left`: by score, then by index; scores straight from the definition.
fn order(updates: &[Vec<i32>], left: &[usize], byzantine: usize) -> Vec<usize> {
    let near = left.len().saturating_sub(byzantine + 2).max(1);
    let score = |of: usize| -> i128 {
        let squared = |other: usize| -> i128 {
            updates[of].iter().zip(&updates[other]).map(|(a, b)| (i128::from(*a) - i128::from(*b)).pow(2)).sum()
        };
        let mut others: Vec<i128> = left.iter().filter(|other| **other != of).map(|other| squared(*other)).collect();
        others.sort_unstable();
        others.iter().take(near).sum()
    };
    let mut order = left.to_vec();
    order.sort_by_key(|of| (score(*of), *of));
    order
}

/// Updates of small numbers, so that equal distances and equal updates are common.
fn crowded() -> impl proptest::strategy::Strategy<Value = (Vec<Vec<i32>>, u32)> {
    (1..4_u32, 0..9_usize, 1..4_usize).prop_flat_map(|(byzantine, more, d)| {
        let n = 4 * byzantine as usize + 3 + more;
        (prop::collection::vec(prop::collection::vec(-4..=4_i32, d), n), Just(byzantine))
    })
}

fn choice(name: &str, config: &Value, updates: &[Vec<i32>]) -> Choice {
    let strategy = strategy(name, config);
    Server::new(&strategy, updates[0].len()).round(&strategy, &Cohort::plain(updates.to_vec())).unwrap()
}

proptest! {
    #[test]
    fn the_definition_chooses_the_same((updates, byzantine) in crowded()) {
        let (n, f) = (updates.len(), byzantine as usize);
        let all: Vec<usize> = (0..n).collect();
        let best = order(&updates, &all, f);

        let krum = choice("krum", &json!({"byzantine": byzantine}), &updates);
        let only = |kept: &[usize]| all.iter().map(|i| u32::from(kept.contains(i))).collect::<Vec<u32>>();
        prop_assert_eq!(krum, Choice::Mean { weights: only(&best[..1]), divisor: 1.0, centre: 0.0 });

        for keep in [1, n - f - 2, n - f] {
            let found = choice("multi_krum", &json!({"byzantine": byzantine, "to_keep": keep}), &updates);
            let Choice::Mean { weights, divisor, .. } = found else { panic!("a mean") };
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let expected = keep as f64;
            prop_assert_eq!((weights, divisor), (only(&best[..keep]), expected));
        }

        let mut left = all.clone();
        let mut rows = Vec::new();
        while rows.len() < n - 2 * f {
            let next = order(&updates, &left, f)[0];
            left.retain(|i| *i != next);
            rows.push(next);
        }
        rows.sort_unstable();
        let bulyan = choice("bulyan", &json!({"byzantine": byzantine}), &updates);
        prop_assert_eq!(bulyan, Choice::NearMedian { rows, keep: n - 4 * f });
    }
}
