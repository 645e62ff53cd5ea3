//! Masks: the published stream, a naive twin, and that pairs cancel.

use proptest::prelude::*;

use super::super::ring::{centre, pack};
use super::*;
use crate::testing::TestRng;

/// The stream, block by block, and the addition, value by value.
fn naive(key: &MaskKey, sign: Sign, width: Width, first: u64, words: &mut [i64]) {
    let per_block = 16 / word_bytes(width) as u64;
    for (i, word) in (first..).zip(words) {
        let mut stream = [[0; BLOCK]; BATCH];
        let mut counters = [[0; BLOCK]; BATCH];
        counters[0] = u128::from(i / per_block).to_be_bytes();
        key.add::<4>(&counters, &mut stream);
        let at = usize::try_from(i % per_block).unwrap() * word_bytes(width);
        let mask = stream[0][at..][..width.bytes()].iter().rev().fold(0, |mask, byte| mask << 8 | i64::from(*byte));
        *word = match sign {
            Sign::Add => word.wrapping_add(mask),
            Sign::Subtract => word.wrapping_sub(mask),
        };
    }
}

/// The same key, in plain Rust.
fn portable(key: &[u8; 16], nonce: [u8; 8]) -> MaskKey {
    MaskKey { cipher: Cipher::Portable(Box::new(portable::Cipher::new(key))), nonce }
}

fn centred(words: &[i64], width: Width) -> Vec<i64> {
    words.iter().map(|word| centre(*word, width)).collect()
}

fn keys(seed: u64, signs: &[Sign]) -> Vec<(MaskKey, Sign)> {
    let mut rng = TestRng::new(seed);
    signs.iter().map(|sign| (MaskKey::derive(&rng.bytes(), &[7; 32], "test"), *sign)).collect()
}

fn signs() -> impl Strategy<Value = Sign> {
    prop::sample::select(vec![Sign::Add, Sign::Subtract])
}

/// NIST SP 800-38A, F.5.1: CTR-AES128.Encrypt; the stream is the plaintext xor the ciphertext.
#[test]
fn the_stream_is_aes_128_ctr_as_published() {
    let bytes = |text: &str| hex::decode(text).unwrap();
    let plain = bytes(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
         30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
    );
    let sealed = bytes(
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff\
         5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
    );
    let stream: Vec<u8> = plain.iter().zip(&sealed).map(|(a, b)| a ^ b).collect();
    let key: [u8; 16] = bytes("2b7e151628aed2a6abf7158809cf4f3c").try_into().unwrap();
    let nonce = [0xF0, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7];
    for make in [MaskKey::of, |key: &_, nonce| portable(key, nonce)] {
        for width in [Width::B32, Width::B64] {
            let (keys, block) = ([(make(&key, nonce), Sign::Add)], 0xF8F9_FAFB_FCFD_FEFF);
            let mut words = vec![0; 64 / word_bytes(width)];
            match width.bytes() {
                4 => apply_from::<4>(&keys, block, &mut words),
                _ => apply_from::<8>(&keys, block, &mut words),
            }
            let mut found = vec![0; 64];
            pack(&words, width, &mut found);
            assert_eq!(found, stream, "{width:?}");
        }
    }
}

#[test]
fn keys_differ_by_secret_context_and_domain_and_from_derived_keys() {
    let stream = |secret, ctx, domain| {
        let mut words = [0; 2];
        apply(&[(MaskKey::derive(&[secret; 32], &[ctx; 32], domain), Sign::Add)], Width::B64, 0, &mut words);
        words
    };
    let all = [stream(1, 2, "a"), stream(9, 2, "a"), stream(1, 9, "a"), stream(1, 2, "b"), stream(1, 2, "")];
    for (at, one) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|other| other != one));
    }
    assert_eq!(format!("{:?}", MaskKey::derive(&[1; 32], &[2; 32], "a")), "MaskKey");
}

#[test]
fn streams_are_fixed_for_ever() {
    let mut words = [0; 2];
    apply(&[(MaskKey::derive(&[1; 32], &[2; 32], "pair"), Sign::Add)], Width::B64, 0, &mut words);
    assert_eq!(words, [-3_468_902_100_832_646_841, 2_781_018_594_615_092_253]);
}

#[test]
#[should_panic(expected = "a piece begins at a multiple of 16 values, not at 8")]
fn a_piece_that_begins_within_a_unit_is_refused() {
    apply(&[], Width::B16, 8, &mut []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streams_are_those_of_the_naive_twin(
        seed: u64, signs in prop::collection::vec(signs(), 0..4), length in 0usize..2100,
        unit in 0u64..1 << 48, width in prop::sample::select(Width::ALL.to_vec()),
    ) {
        let first = unit * UNIT as u64;
        let keys = keys(seed, &signs);
        let mut fast: Vec<i64> = (0..length as i64).map(|i| i.wrapping_mul(0x1234_5678_9ABC_DEF1)).collect();
        let mut slow = fast.clone();
        apply(&keys, width, first, &mut fast);
        keys.iter().for_each(|(key, sign)| naive(key, *sign, width, first, &mut slow));
        prop_assert_eq!(centred(&fast, width), centred(&slow, width));
    }

    #[test]
    fn the_fused_loop_does_what_the_two_do(key: [u8; 16], nonce: [u8; 8], first: u64, batches in 0usize..5) {
        fn check<const WORD: usize>(two: &[MaskKey; 2], first: u64, blocks: usize) -> Result<(), TestCaseError> {
            let counters: Vec<_> = (0..blocks as u64).map(|i| u128::from(first.wrapping_add(i)).to_be_bytes()).collect();
            let [fused, plain] = two.each_ref().map(|key| {
                let mut sums = vec![[0x5A; BLOCK]; blocks];
                key.add::<WORD>(&counters, &mut sums);
                sums
            });
            prop_assert_eq!(fused, plain);
            Ok(())
        }
        let two = [MaskKey::of(&key, nonce), portable(&key, nonce)];
        check::<4>(&two, first, batches * BATCH)?;
        check::<8>(&two, first, batches * BATCH)?;
    }

    #[test]
    fn what_one_adds_in_pieces_the_other_subtracts_at_once(
        seed: u64, cuts in prop::collection::vec(0usize..400, 0..4), length in 0usize..6000,
        width in prop::sample::select(Width::ALL.to_vec()),
    ) {
        let values: Vec<i64> = (0..length as i64).map(|i| centre(i * 7 - 99, width)).collect();
        let mut words = values.clone();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| (cut * UNIT).min(length)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        let ours = keys(seed, &[Sign::Add, Sign::Subtract]);
        for two in cuts.windows(2) {
            if two[0] < two[1] {
                apply(&ours, width, two[0] as u64, &mut words[two[0]..two[1]]);
            }
        }
        if length > 0 {
            prop_assert_ne!(centred(&words, width), values.clone());
        }
        apply(&keys(seed, &[Sign::Subtract, Sign::Add]), width, 0, &mut words);
        prop_assert_eq!(centred(&words, width), values);
    }
}
