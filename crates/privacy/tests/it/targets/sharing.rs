//! The mathematics below the messages: shares, boxes, masks in pieces, packed numbers, thresholds and graphs.

use aivillage_base::wire::secure::GraphKind;
use aivillage_privacy::secagg::graph::Graph;
use aivillage_privacy::secagg::keys;
use aivillage_privacy::secagg::mask::{self, MaskKey, Sign, UNIT};
use aivillage_privacy::secagg::ring::{self, Width};
use aivillage_privacy::secagg::roster;
use aivillage_privacy::secagg::shamir::{self, Share};

use super::super::cohort::terms;
use super::super::testing::TestRng;
use super::{Choices, Reached};

pub(crate) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::of(data);
    let mut reached = Reached::default();
    match choices.below(5) {
        0 => shares(&mut choices, &mut reached),
        1 => loose_shares(&mut choices, &mut reached),
        2 => boxes(&mut choices, &mut reached),
        3 => masks(&mut choices, &mut reached),
        _ => graphs(&mut choices, &mut reached),
    }
    reached
}

/// A secret is shared, some shares are changed and some lost: what comes back is the secret or an error, and the secret for
/// certain while the wrong shares are few.
fn shares(choices: &mut Choices<'_>, reached: &mut Reached) {
    // All sets of so few can be left out: of more, a thousand sets are tried, which takes a second.
    let count = 1 + choices.below(9);
    let threshold = 1 + choices.below(count);
    let indices: Vec<u16> = (1..=count as u16).map(|at| at * (1 + u16::from(choices.byte()) % 3)).collect();
    let secret: [u8; 32] = choices.bytes();
    let Ok(mut shares) = shamir::split(&secret, threshold, &indices, &mut TestRng::new(choices.byte().into())) else {
        reached.refusals += 1;
        return;
    };
    let lost = choices.below(count);
    shares.drain(..lost);
    let mut wrong = Vec::new();
    for share in &mut shares {
        if choices.byte() & 3 == 3 {
            let before = share.value;
            choices.flip(&mut share.value);
            choices.flip(&mut share.value);
            if share.value != before {
                wrong.push(share.index);
            }
        }
    }
    wrong.sort_unstable();
    match shamir::combine_checked(&shares, threshold, |found| *found == secret) {
        Ok((found, named)) => {
            reached.opened += 1;
            assert_eq!(found, secret);
            if shares.len() >= threshold + 2 * wrong.len() {
                assert_eq!(named, wrong);
            }
        }
        Err(_) => {
            reached.refusals += 1;
            assert!(shares.len() < threshold + 2 * wrong.len() || shares.len() < threshold, "good ones were enough");
        }
    }
}

/// Shares that belong to nothing.
fn loose_shares(choices: &mut Choices<'_>, reached: &mut Reached) {
    let threshold = choices.below(8);
    let count = choices.below(8);
    let share =
        |choices: &mut Choices<'_>| Share { index: u16::from_le_bytes(choices.bytes()), value: choices.bytes() };
    let shares: Vec<Share> = (0..count).map(|_| share(choices)).collect();
    let plain = shamir::combine(&shares, threshold);
    let checked = shamir::combine_checked(&shares, threshold, |_| true);
    assert_eq!(plain.is_ok(), checked.is_ok(), "{checked:?}");
    assert!(shamir::combine_checked(&shares, threshold, |_| false).is_err());
    reached.answers += usize::from(plain.is_ok());
    reached.refusals += usize::from(plain.is_err());
}

/// A box opens as it was sealed, and not otherwise.
fn boxes(choices: &mut Choices<'_>, reached: &mut Reached) {
    let (key, aad, text): ([u8; 32], [u8; 8], [u8; 64]) = (choices.bytes(), choices.bytes(), choices.bytes());
    let sealed = keys::seal(&key, &aad, &text, &mut TestRng::new(choices.byte().into()));
    let (mut changed, mut bound) = (sealed.clone(), aad);
    choices.list(&mut changed);
    if choices.byte() & 1 == 1 {
        choices.flip(&mut changed);
        choices.flip(&mut bound);
    }
    let opened = keys::open(&key, &bound, &changed);
    assert_eq!(opened.is_ok(), changed == sealed && bound == aad);
    assert!(opened.as_ref().is_ok_and(|found| found[..] == text) || opened.is_err());
    reached.opened += usize::from(opened.is_ok());
    reached.refusals += usize::from(opened.is_err());
}

/// A mask laid on in pieces is the mask laid on at once, its packed words come back, and taken away nothing is left of it.
fn masks(choices: &mut Choices<'_>, reached: &mut Reached) {
    let width = Width::ALL[choices.below(Width::ALL.len())];
    let (secret, ctx): ([u8; 32], [u8; 32]) = (choices.bytes(), choices.bytes());
    let key = |sign| [(MaskKey::derive(&secret, &ctx, "fuzz"), sign)];
    // No vector is longer than the counter of its blocks.
    let first = (u64::from_le_bytes(choices.bytes()) >> 16) / UNIT as u64 * UNIT as u64;
    let values: Vec<i64> = (0..choices.below(100)).map(|_| i64::from_le_bytes(choices.bytes())).collect();
    let cut = values.len() / UNIT * UNIT / (1 + choices.below(3)) / UNIT * UNIT;
    let mut whole = values.clone();
    mask::apply(&key(Sign::Add), width, first, &mut whole);
    let mut pieces = values.clone();
    let (head, tail) = pieces.split_at_mut(cut);
    mask::apply(&key(Sign::Add), width, first + cut as u64, tail);
    mask::apply(&key(Sign::Add), width, first, head);
    let centred = |mut words: Vec<i64>| {
        ring::centre_all(&mut words, width);
        words
    };
    assert_eq!(centred(pieces), centred(whole.clone()));
    let mut bytes = vec![0; whole.len() * width.bytes()];
    ring::pack(&whole, width, &mut bytes);
    let mut sums = vec![0; whole.len()];
    ring::unpack_add(&bytes, width, &mut sums);
    mask::apply(&key(Sign::Subtract), width, first, &mut sums);
    assert_eq!(centred(sums), centred(values));
    reached.opened += 1;
}

/// Terms that nobody would think of give a threshold that can be met, on a graph that is one, or a sentence.
fn graphs(choices: &mut Choices<'_>, reached: &mut Reached) {
    let mut terms = terms(u32::from_le_bytes(choices.bytes()) >> choices.below(32));
    let number = |choices: &mut Choices<'_>| match choices.below(3) {
        0 => f64::from(choices.byte()) / 255.0,
        1 => f64::from(choices.byte()) / 2550.0,
        _ => f64::from_bits(u64::from_le_bytes(choices.bytes())),
    };
    (terms.withstands.corrupt, terms.withstands.dropout) = (number(choices), number(choices));
    terms.withstands.lying_coordinator = choices.byte() & 1 == 0;
    if choices.byte() & 1 == 1 {
        terms.graph = GraphKind::Drawn;
    }
    terms.withstands.neighbours = (choices.byte() & 1 == 1).then(|| u32::from(choices.byte()));
    let count = choices.below(200);
    let Ok(plan) = roster::plan(&terms, count) else {
        reached.refusals += 1;
        return;
    };
    let full = plan.neighbours + 1 == count;
    assert!(plan.neighbours < count && (1..=plan.neighbours + usize::from(full)).contains(&plan.threshold), "{plan:?}");
    let graph = Graph::new(count, plan.neighbours, &choices.bytes());
    let all: Vec<Vec<usize>> = (0..count).map(|one| graph.neighbours(one)).collect();
    for (one, mine) in all.iter().enumerate() {
        assert!(mine.len() == plan.neighbours && mine.is_sorted_by(|a, b| a < b) && !mine.contains(&one));
        assert!(mine.iter().all(|other| all[*other].binary_search(&one).is_ok()));
    }
    reached.answers += 1;
}
