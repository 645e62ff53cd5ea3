//! The ring Z_2^b in which masked updates are summed, and its packed bytes.
//!
//! A number of the ring is any `i64` congruent to it mod 2^b: sums wrap mod 2^64, of which 2^b is a divisor, so nothing is
//! reduced before [`pack`], which writes the low b bits, little endian, b/8 bytes a value and nothing between them. A sum
//! that fits (|s| <= 2^(b-1) - 1, see [`Width::for_sum`]) is read back by [`centre`].

/// The width b of the ring, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 16 bits.
    B16,
    /// 24 bits.
    B24,
    /// 32 bits.
    B32,
    /// 40 bits.
    B40,
    /// 48 bits.
    B48,
    /// 64 bits.
    B64,
}

/// A sum that no ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{participants} participants of weight up to {weight_max} with values up to ±{bound} can sum to more than ±(2^63 - 1): \
     lower the weights, the bound or the number of participants"
)]
pub struct Overflow {
    /// Number of summands.
    pub participants: u64,
    /// Largest weight of one.
    pub weight_max: u64,
    /// Largest magnitude of a value before it is weighted.
    pub bound: u64,
}

impl Width {
    /// All widths, narrow to wide.
    pub const ALL: [Self; 6] = [Self::B16, Self::B24, Self::B32, Self::B40, Self::B48, Self::B64];

    /// The smallest b with `participants` · `weight_max` · `bound` <= 2^(b-1) - 1.
    ///
    /// # Errors
    /// [`Overflow`] if 64 bits do not suffice.
    pub fn for_sum(participants: u64, weight_max: u64, bound: u64) -> Result<Self, Overflow> {
        let weighted = u128::from(participants) * u128::from(weight_max);
        let largest = weighted.saturating_mul(u128::from(bound));
        Self::ALL.into_iter().find(|width| largest < 1 << (width.bits() - 1)).ok_or(Overflow {
            participants,
            weight_max,
            bound,
        })
    }

    /// Bits of a value: 16, 24, 32, 40, 48 or 64.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::B16 => 16,
            Self::B24 => 24,
            Self::B32 => 32,
            Self::B40 => 40,
            Self::B48 => 48,
            Self::B64 => 64,
        }
    }

    /// Bytes of a value: 2, 3, 4, 5, 6 or 8.
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.bits() / 8) as usize
    }
}

/// Writes the low b bits of each value to `out`.
///
/// # Panics
/// Unless `out` has [`Width::bytes`] bytes a value.
pub fn pack(values: &[i64], width: Width, out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * width.bytes(), "pack: {} values of {} bits", values.len(), width.bits());
    match width {
        Width::B16 => pack_by::<2>(values, out),
        Width::B24 => pack_by::<3>(values, out),
        Width::B32 => pack_by::<4>(values, out),
        Width::B40 => pack_by::<5>(values, out),
        Width::B48 => pack_by::<6>(values, out),
        Width::B64 => pack_by::<8>(values, out),
    }
}

/// Adds packed numbers, as 0 to 2^b - 1, to `sums`, wrapping mod 2^64.
///
/// # Panics
/// Unless `bytes` has [`Width::bytes`] bytes for each of the `sums`: whoever receives them refuses other lengths first.
pub fn unpack_add(bytes: &[u8], width: Width, sums: &mut [i64]) {
    assert_eq!(bytes.len(), sums.len() * width.bytes(), "unpack: {} values of {} bits", sums.len(), width.bits());
    match width {
        Width::B16 => add_by::<2>(bytes, sums),
        Width::B24 => add_by::<3>(bytes, sums),
        Width::B32 => add_by::<4>(bytes, sums),
        Width::B40 => add_by::<5>(bytes, sums),
        Width::B48 => add_by::<6>(bytes, sums),
        Width::B64 => add_by::<8>(bytes, sums),
    }
}

/// The number congruent to `value` mod 2^b that is nearest to zero; of the two at distance 2^(b-1) the negative one.
#[must_use]
pub const fn centre(value: i64, width: Width) -> i64 {
    let spare = 64 - width.bits();
    (value << spare) >> spare
}

/// [`centre`] for each value, in place.
pub fn centre_all(values: &mut [i64], width: Width) {
    for value in values {
        *value = centre(*value, width);
    }
}

fn pack_by<const BYTES: usize>(values: &[i64], out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        out.copy_from_slice(&value.to_le_bytes()[..BYTES]);
    }
}

fn add_by<const BYTES: usize>(bytes: &[u8], sums: &mut [i64]) {
    for (bytes, sum) in bytes.as_chunks::<BYTES>().0.iter().zip(sums) {
        let mut word = [0; 8];
        word[..BYTES].copy_from_slice(bytes);
        *sum = sum.wrapping_add(i64::from_le_bytes(word));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(values: &[i64], width: Width) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * width.bytes()];
        pack(values, width, &mut bytes);
        bytes
    }

    fn widths() -> impl Strategy<Value = Width> {
        prop::sample::select(Width::ALL.to_vec())
    }

    #[test]
    fn the_width_is_the_smallest_that_holds_the_sum() {
        let check = |n, weight, bound| Width::for_sum(n, weight, bound).map(Width::bits);
        assert_eq!(check(1, 1, (1 << 15) - 1), Ok(16));
        assert_eq!(check(1, 1, 1 << 15), Ok(24));
        assert_eq!(check(100, 1, 1 << 20), Ok(32));
        assert_eq!(check(1000, 1, 1 << 20), Ok(32));
        assert_eq!(check(1 << 11, 1, 1 << 20), Ok(40));
        assert_eq!(check(0, 7, 7), Ok(16));
        assert_eq!(check(1, 1, (1 << 63) - 1), Ok(64));
        let overflow = check(1, 1, 1 << 63).unwrap_err();
        assert_eq!(overflow, Overflow { participants: 1, weight_max: 1, bound: 1 << 63 });
        assert!(overflow.to_string().contains("9223372036854775808"), "{overflow}");
        check(u64::MAX, u64::MAX, u64::MAX).unwrap_err();
    }

    #[test]
    fn the_edges_of_each_width_come_back() {
        for width in Width::ALL {
            let most = i64::MAX >> (64 - width.bits());
            let values = [most, -most, 0, -1, 1];
            let mut sums = [0; 5];
            unpack_add(&packed(&values, width), width, &mut sums);
            centre_all(&mut sums, width);
            assert_eq!(sums, values, "{width:?}");
            assert_eq!(centre(most.wrapping_add(1), width), -most - 1, "one more wraps: {width:?}");
        }
    }

    #[test]
    fn bytes_are_little_endian_and_close_together() {
        assert_eq!(packed(&[0x0102_0304, -2], Width::B24), [4, 3, 2, 0xFE, 0xFF, 0xFF]);
    }

    #[test]
    #[should_panic(expected = "unpack: 2 values of 24 bits")]
    fn bytes_of_another_length_are_refused() {
        unpack_add(&[0; 5], Width::B24, &mut [0; 2]);
    }

    proptest! {
        #[test]
        fn values_come_back_mod_the_ring(values: Vec<i64>, width in widths()) {
            let mut sums = vec![0; values.len()];
            unpack_add(&packed(&values, width), width, &mut sums);
            for (sum, value) in sums.iter().zip(&values) {
                prop_assert_eq!(centre(*sum, width), centre(*value, width));
                prop_assert_eq!(*sum, value & (-1i64).cast_unsigned().wrapping_shr(64 - width.bits()).cast_signed());
            }
        }

        #[test]
        fn sums_of_any_order_and_any_masks_are_equal(
            values in prop::collection::vec(-1000i64..1000, 1..20), masks: [i64; 20], width in widths(),
        ) {
            let sum_of = |order: &mut dyn Iterator<Item = usize>| {
                let mut sum = [0];
                for at in order {
                    unpack_add(&packed(&[values[at].wrapping_add(masks[at])], width), width, &mut sum);
                    unpack_add(&packed(&[masks[at].wrapping_neg()], width), width, &mut sum);
                }
                centre(sum[0], width)
            };
            let expected: i64 = values.iter().sum();
            prop_assert_eq!(sum_of(&mut (0..values.len())), expected);
            prop_assert_eq!(sum_of(&mut (0..values.len()).rev()), expected);
        }
    }
}
