//! Sums of non-negative numbers that do not depend on order.
//!
//! Floating-point addition does: the same updates under other names would make another model in the last bits. Here each
//! number becomes an integer on one power-of-two scale (exact for numbers within 2^-55 of the largest, and rounded once
//! below), and integers are added.

/// Bits of the largest number on the scale; 2^17 numbers of this size fit 128 bits.
const BITS: i32 = 108;

/// A scale on which numbers are integers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    up: f64,
    down: f64,
}

impl Scale {
    /// The scale for numbers from 0 to `largest`, at most 2^17 of them in a sum.
    ///
    /// Below 2^-893 numbers lose bits and become zero; the square of the finest grid's step is 2^-120.
    pub(super) fn new(largest: f64) -> Self {
        let exponent = ((largest.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        let shift = (BITS - 1 - exponent).clamp(-1000, 1000);
        Self { up: two_to(shift), down: two_to(-shift) }
    }

    /// `value`, from 0 to the largest, in units of the scale.
    pub(super) fn units(self, value: f64) -> u128 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^108")]
        let units = (value * self.up).round_ties_even() as u128;
        units
    }

    /// A number of units as a number again, rounded once.
    pub(super) fn number(self, units: u128) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "this is where the sum is rounded")]
        let number = units as f64 * self.down;
        number
    }
}

/// 2^`exponent`, -1000 to 1000.
fn two_to(exponent: i32) -> f64 {
    f64::from_bits(u64::from((exponent + 1023).unsigned_abs()) << 52)
}

/// The sum of at most 2^17 numbers >= 0.
pub(super) fn sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let scale = Scale::new(values.clone().fold(0.0, f64::max));
    scale.number(values.map(|v| scale.units(v)).sum())
}

/// The middle one of the numbers, or the mean of the two in the middle; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// `base` to a whole power, by squaring: the same bits on every machine.
pub(super) fn power(base: f64, exponent: u32) -> f64 {
    let (mut result, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= square;
        }
        square *= square;
        rest >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sum_depends_on_no_order_and_is_right(
            (values, turned) in prop::collection::vec(0.0..1e6_f64, 1..50)
                .prop_flat_map(|v| (Just(v.clone()), Just(v).prop_shuffle())),
            shift in -300..300_i32,
        ) {
            let factor = two_to(shift);
            let of = |v: &[f64]| sum(v.iter().map(|v| v * factor));
            prop_assert_eq!(of(&values).to_bits(), of(&turned).to_bits());
            let naive: f64 = values.iter().sum();
            prop_assert!((of(&values) / factor - naive).abs() <= naive * 1e-14);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_met() {
        assert_eq!(sum([0.0, 0.0].into_iter()), 0.0);
        assert_eq!(sum(std::iter::empty()), 0.0);
        let huge = two_to(900);
        assert_eq!(sum([huge, huge, 1.0].into_iter()), 2.0 * huge);
        assert_eq!(sum([two_to(-890); 4].into_iter()), two_to(-888));
        assert_eq!(median(vec![3.0, 1.0]), 2.0);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!((power(3.0, 5), power(0.5, 0)), (243.0, 1.0));
    }
}
