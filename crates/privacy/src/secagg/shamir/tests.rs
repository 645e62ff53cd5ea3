//! Sharing: any threshold of shares rebuilds, fewer say nothing, wrong ones are found.

use std::convert::Infallible;

use proptest::prelude::*;
use rand_core::{TryCryptoRng, TryRng};

use super::*;
use crate::testing::TestRng;

/// Indices 1 to `n`.
fn indices(n: usize) -> Vec<u16> {
    (1..=u16::try_from(n).unwrap()).collect()
}

/// `n` shares of a secret, shuffled, with `wrong` of them changed; also the secret and the changed indices.
fn shared(n: usize, threshold: usize, wrong: usize, seed: u64) -> (Vec<Share>, [u8; 32], Vec<u16>) {
    let mut rng = TestRng::new(seed);
    let secret = rng.bytes();
    let mut shares = split(&secret, threshold, &indices(n), &mut rng).unwrap();
    for at in (1..n).rev() {
        shares.swap(at, rng.below(at + 1));
    }
    for share in &mut shares[..wrong] {
        // All elements, or one: a liar may be careful.
        let changed = if rng.below(2) == 0 { 0..32 } else { 6..7 };
        share.value[changed].iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    let mut changed: Vec<u16> = shares[..wrong].iter().map(|share| share.index).collect();
    changed.sort_unstable();
    (shares, secret, changed)
}

/// A generator that deals the same 16-bit number for ever.
struct Constant(u16);

impl TryRng for Constant {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from(self.0) * 0x1_0001)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.0) * 0x0001_0001_0001_0001)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.as_chunks_mut::<2>().0.fill(self.0.to_le_bytes());
        Ok(())
    }
}

impl TryCryptoRng for Constant {}

#[test]
fn fewer_shares_than_the_threshold_say_nothing() {
    // Threshold 2: over all 2^16 random coefficients each value of a share occurs exactly once, whatever the secret.
    for secret in [[0; 32], [0xFF; 32], *b"thirty-two bytes, all different!"] {
        for index in [1, 2, 777] {
            let mut seen = vec![[false; 16]; 1 << 16];
            for random in 0..=u16::MAX {
                let shares = split(&secret, 2, &[index, 9], &mut Constant(random)).unwrap();
                for (lane, value) in lanes(&shares[0].value).iter().enumerate() {
                    assert!(!std::mem::replace(&mut seen[usize::from(*value)][lane], true));
                }
            }
        }
    }
}

#[test]
fn shares_are_values_of_the_polynomial_by_hand() {
    // f(x) = secret + 3x; 3·2 = 6.
    let shares = split(&[0; 32], 2, &[1, 2], &mut Constant(3)).unwrap();
    assert_eq!((shares[0].value[..4].to_vec(), shares[1].value[..4].to_vec()), (vec![3, 0, 3, 0], vec![6, 0, 6, 0]));
}

#[test]
fn bad_indices_and_thresholds_are_refused() {
    let split = |threshold, indices: &[u16]| split(&[1; 32], threshold, indices, &mut TestRng::new(1)).unwrap_err();
    assert_eq!(split(2, &[1, 0, 2]), ShareError::IndexZero);
    assert_eq!(split(2, &[1, 7, 3, 7]), ShareError::IndexTwice(7));
    assert_eq!(split(0, &[1, 2]), ShareError::Threshold { threshold: 0, shares: 2 });
    assert_eq!(split(3, &[1, 2]), ShareError::Threshold { threshold: 3, shares: 2 });

    let (shares, ..) = shared(4, 3, 0, 1);
    let error = |shares: &[Share], threshold| {
        let error = combine(shares, threshold).unwrap_err();
        assert_eq!(combine_checked(shares, threshold, |_| true).unwrap_err(), error);
        error
    };
    assert_eq!(error(&shares[..2], 3), ShareError::TooFew { have: 2, need: 3 });
    assert_eq!(error(&shares, 0), ShareError::Threshold { threshold: 0, shares: 4 });
    let twice = [&shares[..], &shares[..1]].concat();
    assert_eq!(error(&twice, 3), ShareError::IndexTwice(shares[0].index));
    let mut zero = shares.clone();
    zero[3].index = 0;
    assert_eq!(error(&zero, 3), ShareError::IndexZero);
}

#[test]
fn a_share_is_not_printed() {
    let text = format!("{:?}", Share { index: 7, value: [0xAB; 32] });
    assert_eq!(text, "Share { index: 7, .. }");
}

#[test]
fn more_wrong_shares_than_a_code_corrects_are_found_by_leaving_some_out() {
    // n - t = 3: decoding alone corrects one; two and three wrong shares need sets of one and three.
    for (wrong, seed) in [(1, 1), (2, 2), (3, 3), (3, 4)] {
        let (shares, secret, changed) = shared(10, 7, wrong, seed);
        assert_eq!(combine_checked(&shares, 7, |found| *found == secret), Ok((secret, changed)));
    }
}

#[test]
fn errors_that_cancel_blame_nobody_else() {
    // Two shares rebuild; w_1·e_1 = w_2·e_2 cancels.
    let secret = [5; 32];
    let mut shares = split(&secret, 2, &indices(6), &mut TestRng::new(6)).unwrap();
    let weights = Places::new(vec![Element(1), Element(2)]).weights(Element(0));
    for (share, factor) in shares.iter_mut().zip([weights[1], weights[0]]) {
        share.value = bytes(&lanes(&share.value).map(|lane| lane ^ (factor * Element(77)).0));
    }
    assert_eq!(combine(&shares, 2), Ok(secret), "wrong shares, the right secret");
    assert_eq!(combine_checked(&shares, 2, |found| *found == secret), Ok((secret, vec![1, 2])));
}

#[test]
fn shares_of_no_secret_are_refused() {
    let (shares, secret, _) = shared(10, 7, 4, 5);
    let error = combine_checked(&shares, 7, |found| *found == secret).unwrap_err();
    assert_eq!(error, ShareError::Irreparable { have: 10, need: 7 });
    let (shares, ..) = shared(40, 20, 0, 5);
    combine_checked(&shares, 20, |_| false).unwrap_err();
}

#[test]
fn sets_to_leave_out_come_by_size_and_each_once() {
    let mut set = Vec::new();
    let mut seen = Vec::new();
    while next_set(&mut set, 4, 2) {
        seen.push(set.clone());
    }
    let pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]].map(|pair| pair.to_vec());
    assert_eq!(seen, [(0..4).map(|one| vec![one]).collect(), pairs.to_vec()].concat());
    assert!(!next_set(&mut Vec::new(), 4, 0));
}

proptest! {
    #[test]
    fn any_threshold_of_shares_rebuilds_the_secret(n in 1usize..40, part in 0.0f64..1.0, seed: u64) {
        let threshold = 1 + (part * n as f64) as usize;
        let (shares, secret, _) = shared(n, threshold, 0, seed);
        prop_assert_eq!(combine(&shares[n - threshold..], threshold), Ok(secret));
        prop_assert_eq!(combine_checked(&shares, threshold, |found| *found == secret), Ok((secret, vec![])));
        if threshold > 1 {
            // One share fewer, taken as if it were enough, gives something else.
            prop_assert_ne!(combine(&shares[..threshold - 1], threshold - 1), Ok(secret));
        }
    }

    #[test]
    fn wrong_shares_are_found_and_named(threshold in 1usize..12, spare in 0usize..12, part in 0.0f64..1.0, seed: u64) {
        let n = threshold + spare;
        let wrong = (part * (spare / 2 + 1) as f64) as usize;
        let (shares, secret, changed) = shared(n, threshold, wrong, seed);
        prop_assert_eq!(combine_checked(&shares, threshold, |found| *found == secret), Ok((secret, changed)));
    }

    #[test]
    fn wrong_shares_at_the_end_are_named_too(seed: u64, wrong in 0usize..5) {
        // The plain case: the first shares are right, the last ones are only compared.
        let (mut shares, secret, changed) = shared(12, 7, wrong, seed);
        shares.reverse();
        prop_assert_eq!(combine_checked(&shares, 7, |found| *found == secret), Ok((secret, changed)));
    }

    #[test]
    fn large_indices_serve_as_well(set in prop::collection::hash_set(1u16.., 5), seed: u64) {
        let indices: Vec<u16> = set.into_iter().collect();
        let mut rng = TestRng::new(seed);
        let secret = rng.bytes();
        let shares = split(&secret, 3, &indices, &mut rng).unwrap();
        prop_assert_eq!(combine(&shares[2..], 3), Ok(secret));
    }
}

/// The same polynomials over GF(2^8), which another library shares over.
mod oracle {
    use vsss_rs::Gf256;

    use super::super::decode::{Places, Points, evaluate};
    use super::*;

    impl Field for Gf256 {
        const ZERO: Self = Self(0);
        const ONE: Self = Self(1);

        fn inverse(self) -> Self {
            // self^254; the library's own `pow` overflows where overflows are checked.
            (0..253).fold(self, |power, _| power * self)
        }
    }

    proptest! {
        #[test]
        fn the_shares_of_another_library_rebuild_its_secret(secret: [u8; 4], threshold in 2usize..9, seed: u64) {
            let shares = Gf256::split_bytes(threshold, threshold + 4, secret, TestRng::new(seed)).unwrap();
            let column = |at: usize| -> Vec<Gf256> { shares.iter().map(|share| Gf256(share[at])).collect() };
            let (places, points) = (Places::new(column(0)[..threshold].to_vec()), Points::new(column(0)));
            for (at, byte) in secret.iter().enumerate() {
                let mut values = column(at + 1);
                let weights = places.weights(Gf256(0));
                let found = weights.iter().zip(&values).fold(Gf256(0), |sum, (weight, value)| sum + *weight * *value);
                prop_assert_eq!(found.0, *byte);

                values[0] += Gf256(7);
                values[threshold] += Gf256(9);
                let polynomial = points.decode(&values, threshold).unwrap();
                prop_assert_eq!(evaluate(&polynomial, Gf256(0)).0, *byte);
            }
        }

        #[test]
        fn another_library_rebuilds_the_secret_of_our_polynomials(bytes: [u8; 5]) {
            let polynomial = bytes.map(Gf256);
            let share = |index| vec![index, evaluate(&polynomial, Gf256(index)).0];
            let shares: Vec<Vec<u8>> = (9..14).map(share).collect();
            prop_assert_eq!(Gf256::combine_bytes(&shares).unwrap(), vec![bytes[0]]);
        }
    }
}
