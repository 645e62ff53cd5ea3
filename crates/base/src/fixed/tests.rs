//! Fixed point: rounding, clipping, exact sums.

use proptest::prelude::*;

use super::*;

#[test]
fn values_round_to_even_and_clip_at_the_bound() {
    let grid = Grid { exponent: 0, bound: 3 };
    let mut out = Vec::new();
    let clipped = grid.quantise(&[0.5, 1.5, 2.5, -0.5, 9.0, -9.0], &mut out).unwrap();
    assert_eq!((out, clipped), (vec![0, 2, 2, 0, 3, -3], 2));
}

#[test]
fn a_value_that_is_not_finite_is_refused_and_nothing_is_kept() {
    let mut out = vec![7];
    assert_eq!(Grid::default().quantise(&[1.0, f32::NAN], &mut out), Err(NotFinite { index: 1 }));
    assert_eq!(out, [7]);
}

proptest! {
    #[test]
    fn a_value_within_the_range_moves_by_at_most_half_a_step(x in -7.9f32..7.9, exponent in -24i32..-8) {
        let grid = Grid { exponent, bound: i32::MAX };
        let mut out = Vec::new();
        prop_assert_eq!(grid.quantise(&[x], &mut out).unwrap(), 0);
        let back = f64::from(out[0]) * grid.step();
        prop_assert!((back - f64::from(x)).abs() <= grid.step() / 2.0);
    }

    #[test]
    fn a_value_beyond_the_range_becomes_the_bound_and_is_counted(x in prop::num::f32::NORMAL, bound in 1i32..1000) {
        let grid = Grid { exponent: 0, bound };
        let mut out = Vec::new();
        let clipped = grid.quantise(&[x], &mut out).unwrap();
        prop_assert!(out[0].abs() <= bound);
        prop_assert_eq!(clipped == 1, f64::from(x).round_ties_even().abs() > f64::from(bound));
    }
}
