//! Rounds with a helper: the sum is the plain one, and every tampering is refused.

use std::collections::BTreeMap;

use aivillage_base::Digest;
use aivillage_base::wire::Peer;
use aivillage_base::wire::helper::{HelpedInput, HelpedSum, HelperKey, SealedSeed};
use aivillage_base::wire::secure::{Hex, SecureTerms};
use aivillage_privacy::rand_core::Rng as _;
use aivillage_privacy::secagg::helper::{
    SealPair, Seed, answer, answer_is_signed, commitment, input_is_signed, input_text, inputs_hash, is_vouched_for,
    open, sign_answer,
};
use aivillage_privacy::secagg::mask;
use aivillage_privacy::secagg::ring::{self, Width};
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::{Context, KeyInMemory, Signer as _};
use proptest::prelude::*;

use super::cohort::{CTX, name, signer, terms};
use super::testing::TestRng;

const OTHER: Context = Context([8; 32]);

fn helper() -> SealPair {
    SealPair::of(&KeyInMemory::new(&[99; 32]))
}

fn helped(count: u32, key: HelperKey) -> SecureTerms {
    SecureTerms { helper: Some(key), ..terms(count) }
}

/// What one node sends: its masked values, and what the helper is shown of them.
fn send(
    i: usize,
    ctx: Context,
    key: &HelperKey,
    values: &[i64],
    width: Width,
    rng: &mut TestRng,
) -> (Vec<u8>, HelpedInput) {
    let seed = Seed::generate(rng);
    let mut words = values.to_vec();
    mask::apply(&[seed.mask(ctx)], width, 0, &mut words);
    let mut bytes = vec![0; words.len() * width.bytes()];
    ring::pack(&words, width, &mut bytes);
    let (signer, digest) = (signer(i), Digest::of(&bytes));
    let sealed = seed.seal(ctx, key, &digest, &signer, rng).unwrap();
    let payload = commitment(ctx, &digest, &sealed.blind);
    (bytes, HelpedInput { peer: Peer { id: signer.id(), name: name(i) }, payload, seed: sealed.seed })
}

/// The helper knows nodes 0 to 49 by their keys.
fn vouch(inputs: &[HelpedInput]) -> Result<(), Alarm> {
    let known: BTreeMap<_, _> = (0..50).map(|i| (name(i), signer(i).id())).collect();
    match inputs.iter().all(|input| known.get(&input.peer.name) == Some(&input.peer.id)) {
        true => Ok(()),
        false => Err(Alarm::new("changed_key", "a stranger")),
    }
}

fn inputs(count: usize) -> Vec<HelpedInput> {
    let mut rng = TestRng::new(5);
    (0..count).map(|i| send(i, CTX, &helper().word(), &[1, 2, 3], Width::B40, &mut rng).1).collect()
}

/// Which check refuses these inputs; the same without the change are taken.
fn refused(count: usize, change: impl FnOnce(&mut Vec<HelpedInput>)) -> &'static str {
    let (terms, mut all) = (helped(9, helper().word()), inputs(count));
    open(CTX, &terms, &all, &helper(), &vouch).unwrap();
    change(&mut all);
    open(CTX, &terms, &all, &helper(), &vouch).unwrap_err().check
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_sum_is_the_plain_one(
        seed: u64, count in 3usize..12, len in 1usize..300, width in prop::sample::select(Width::ALL.to_vec()),
    ) {
        let (mut rng, pair) = (TestRng::new(seed), helper());
        let bound = i64::MAX >> (64 - width.bits());
        let largest = bound / count as i64;
        let value = |rng: &mut TestRng| rng.next_u64().cast_signed() % (largest + 1);
        let values: Vec<Vec<i64>> = (0..count).map(|_| (0..len).map(|_| value(&mut rng)).collect()).collect();
        let sent: Vec<_> = values.iter().enumerate()
            .map(|(i, values)| send(i, CTX, &pair.word(), values, width, &mut rng)).collect();
        let shown: Vec<HelpedInput> = sent.iter().map(|(_, input)| input.clone()).collect();
        let masks = open(CTX, &helped(12, pair.word()), &shown, &pair, &vouch).unwrap();
        let answered = answer(&masks, width, len);
        prop_assert_eq!(&answered, &answer(&masks, width, len), "the same request has the same answer");
        let mut sums = vec![0; len];
        for bytes in sent.iter().map(|(bytes, _)| bytes).chain([&answered]) {
            ring::unpack_add(bytes, width, &mut sums);
        }
        ring::centre_all(&mut sums, width);
        let plain: Vec<i64> = (0..len).map(|at| values.iter().map(|v| v[at]).sum()).collect();
        prop_assert_eq!(sums, plain);
    }
}

#[test]
fn long_answers_are_made_in_pieces_of_the_same_stream() {
    let pair = helper();
    let masks = || open(CTX, &helped(9, pair.word()), &inputs(3), &pair, &vouch).unwrap();
    let values = 40_000;
    let mut words = vec![0; values];
    mask::apply(&masks(), Width::B24, 0, &mut words);
    let mut whole = vec![0; values * 3];
    ring::pack(&words, Width::B24, &mut whole);
    assert!(answer(&masks(), Width::B24, values) == whole);
}

#[test]
fn a_changed_or_swapped_box_is_refused() {
    assert_eq!(refused(3, |all| all[1].seed.sealed.0[20] ^= 1), "signature");
    assert_eq!(refused(3, |all| all[1].payload.0[0] ^= 1), "signature");
    assert_eq!(
        refused(3, |all| {
            let first = all[0].seed.clone();
            all[0].seed = std::mem::replace(&mut all[1].seed, first);
        }),
        "signature"
    );
    // One that signs somebody else's box as its own does not get it opened.
    assert_eq!(
        refused(3, |all| {
            let stolen = all[0].clone();
            let seed = resigned(&stolen);
            all[1] = HelpedInput { peer: all[1].peer.clone(), seed, ..stolen };
        }),
        "box"
    );
}

/// The first node's box with a signature of the second.
fn resigned(input: &HelpedInput) -> SealedSeed {
    let mut seed = input.seed.clone();
    seed.signature = sign_as(1, CTX, &helper().word(), input);
    seed
}

/// The signature of node `i` over somebody's box: found by sealing nothing, as the text is public.
fn sign_as(i: usize, ctx: Context, key: &HelperKey, input: &HelpedInput) -> Hex<64> {
    let signature = Hex(signer(i).sign(&input_text(ctx, key, &input.payload, (&input.seed.key, &input.seed.sealed))));
    let vouched = SealedSeed { signature, ..input.seed.clone() };
    assert!(input_is_signed(&signer(i).id(), ctx, key, &input.payload, &vouched));
    signature
}

#[test]
fn a_box_of_another_round_is_refused() {
    let mut rng = TestRng::new(6);
    let old = send(1, OTHER, &helper().word(), &[1, 2, 3], Width::B40, &mut rng).1;
    assert_eq!(refused(3, |all| all[1] = old.clone()), "signature");
    // Signed anew for this round it does not open either: the box is bound to its own.
    assert_eq!(
        refused(3, |all| {
            let signature = sign_as(1, CTX, &helper().word(), &old);
            let mut seed = old.seed.clone();
            seed.signature = signature;
            all[1] = HelpedInput { seed, ..old.clone() };
        }),
        "box"
    );
}

#[test]
fn strangers_duplicates_and_small_sums_are_refused() {
    assert_eq!(refused(3, |all| drop(all.remove(2))), "cohort");
    assert_eq!(refused(9, |all| all.extend(inputs(10).split_off(9))), "cohort");
    assert_eq!(refused(4, |all| all[2] = all[1].clone()), "order");
    assert_eq!(refused(4, |all| all.swap(1, 2)), "order");
    // The same key under two names; the helper's own.
    let (mut rng, key) = (TestRng::new(6), helper().word());
    let mut twice = send(1, CTX, &key, &[1, 2, 3], Width::B40, &mut rng).1;
    twice.peer.name = name(2);
    assert_eq!(refused(4, |all| all[2] = twice), "duplicate");
    // Somebody who is not enrolled, and somebody's key that has changed.
    let stranger = send(60, CTX, &key, &[1, 2, 3], Width::B40, &mut rng).1;
    assert_eq!(refused(4, |all| all[3] = stranger.clone()), "changed_key");
    let mut changed = stranger;
    changed.peer.name = name(3);
    assert_eq!(refused(4, |all| all[3] = changed), "changed_key");
}

#[test]
fn another_helper_opens_nothing() {
    let other = SealPair::of(&KeyInMemory::new(&[98; 32]));
    let all = inputs(3);
    let terms = helped(9, helper().word());
    open(CTX, &terms, &all, &helper(), &vouch).unwrap();
    assert_eq!(open(CTX, &terms, &all, &other, &vouch).unwrap_err().check, "helper");
    // Nor under terms that name it: the nodes signed for another.
    let renamed = helped(9, other.word());
    assert_eq!(open(CTX, &renamed, &all, &other, &vouch).unwrap_err().check, "signature");
    assert_eq!(open(CTX, &SecureTerms { helper: None, ..terms }, &all, &helper(), &vouch).unwrap_err().check, "helper");
}

#[test]
fn a_seal_key_that_the_helper_does_not_vouch_for_gets_no_seed() {
    let (mut rng, digest) = (TestRng::new(7), Digest::of(b"y"));
    let word = helper().word();
    assert!(is_vouched_for(&word));
    let coordinators = SealPair::of(&KeyInMemory::new(&[97; 32])).word();
    for wrong in [
        HelperKey { seal_key: coordinators.seal_key, ..word },
        HelperKey { signature: Hex([0; 64]), ..word },
        HelperKey { signature: coordinators.signature, seal_key: coordinators.seal_key, ..word },
        HelperKey { id: coordinators.id, ..word },
    ] {
        assert!(!is_vouched_for(&wrong));
        let refused = Seed::generate(&mut rng).seal(CTX, &wrong, &digest, &signer(0), &mut rng);
        assert_eq!(refused.unwrap_err().check, "helper");
    }
    Seed::generate(&mut rng).seal(CTX, &word, &digest, &signer(0), &mut rng).unwrap();
}

#[test]
fn an_answer_is_the_helpers_for_these_inputs_and_bytes_only() {
    let (signer, all) = (KeyInMemory::new(&[99; 32]), inputs(4));
    let (asked, fewer) = (inputs_hash(CTX, &all), inputs_hash(CTX, &all[..3]));
    assert_ne!(asked, fewer);
    let digest = Digest::of(b"answer");
    let word = sign_answer(&signer, CTX, asked, &digest);
    assert!(answer_is_signed(&signer.id(), CTX, &digest, &word));
    assert!(!answer_is_signed(&signer.id(), OTHER, &digest, &word));
    assert!(!answer_is_signed(&signer.id(), CTX, &Digest::of(b"other"), &word));
    assert!(!answer_is_signed(&super::cohort::signer(1).id(), CTX, &digest, &word));
    let moved = HelpedSum { inputs: fewer, ..word };
    assert!(!answer_is_signed(&signer.id(), CTX, &digest, &moved));
}

#[test]
fn the_helper_cannot_try_guesses_of_an_update() {
    let (mut rng, digest) = (TestRng::new(8), Digest::of(b"y"));
    let one = Seed::generate(&mut rng).seal(CTX, &helper().word(), &digest, &signer(0), &mut rng).unwrap();
    let two = Seed::generate(&mut rng).seal(CTX, &helper().word(), &digest, &signer(0), &mut rng).unwrap();
    let shown = |blind| commitment(CTX, &digest, blind);
    assert_ne!(shown(&one.blind), shown(&two.blind), "what it is shown of the same update differs");
    assert_ne!(shown(&one.blind), commitment(CTX, &Digest::of(b"z"), &one.blind), "and binds to the update");
}

#[test]
fn nothing_secret_of_a_helper_is_printed() {
    let seed = Seed::generate(&mut TestRng::new(9));
    assert_eq!(format!("{seed:?}"), "Seed(..)");
    let text = format!("{:?}", helper());
    assert!(text.contains("seal_key") && !text.contains("secret"), "{text}");
}
