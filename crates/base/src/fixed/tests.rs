//! Fixed point: rounding, clipping, exact sums.

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

#[test]
fn weighted_sums_are_exact_and_bounded() {
    let bytes = to_bytes(&[1, -2, 3]);
    let mut sum = vec![10, 10, 10];
    assert!(add_weighted(&mut sum, &bytes, 5, 3));
    assert_eq!(sum, [15, 0, 25]);
    assert!(!add_weighted(&mut sum, &bytes, 1, 2), "3 exceeds the bound of 2");
    assert!(!add_weighted(&mut [i64::MAX], &to_bytes(&[1]), 1, 2), "overflow is seen");
}
