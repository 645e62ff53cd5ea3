//! The fuzz targets in every test run: each over its committed seeds, and over seeds that are changed a few thousand times.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

use super::targets::{Reached, coordinator, messages, participant, sharing};

type Target = fn(&[u8]) -> Reached;

/// The seeds of one target, in name order.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// One change of a seed: bytes of another one, of none or of chance in the place of some of its own.
type Edit = (Index, usize, Option<(Index, Index, usize)>, Vec<u8>);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let other = prop::option::of((any::<Index>(), any::<Index>(), 0usize..40));
    prop::collection::vec((any::<Index>(), 0usize..20, other, prop::collection::vec(any::<u8>(), 0..4)), 1..4)
}

fn changed(seeds: &[Vec<u8>], first: Index, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = first.get(seeds).clone();
    for (at, gone, other, chance) in edits {
        let at = at.index(bytes.len() + 1);
        let end = (at + gone).min(bytes.len());
        let mut new = chance.clone();
        if let Some((seed, from, len)) = other {
            let seed = seed.get(seeds);
            let from = from.index(seed.len() + 1);
            new.extend_from_slice(&seed[from..(from + len).min(seed.len())]);
        }
        bytes.splice(at..end, new);
    }
    bytes
}

/// Runs a target over its seeds and `cases` changed ones; returns what the seeds came to, all together.
fn check(name: &str, target: Target, cases: u32) -> Reached {
    let seeds = seeds(name);
    let mut reached = Reached::default();
    for seed in &seeds {
        let Reached { answers, refusals, opened } = target(seed);
        reached.answers += answers;
        reached.refusals += refusals;
        reached.opened += opened;
    }
    proptest!(ProptestConfig::with_cases(cases), |(first: Index, edits in edits())| {
        target(&changed(&seeds, first, &edits));
    });
    reached
}

#[test]
fn messages_decode_the_same_or_not_at_all() {
    for seed in seeds("messages") {
        let text = String::from_utf8_lossy(&seed);
        assert!(messages::run(&seed).answers > 0, "no message any more: {text}");
    }
    let all: Vec<u8> = seeds("messages").concat();
    let all = String::from_utf8_lossy(&all);
    let steps = [
        "advert",
        "reveal",
        "shares",
        "agreement",
        "opening",
        "alarm",
        "roster",
        "reveals",
        "boxes",
        "survivors",
        "agreements",
    ];
    for step in steps {
        assert!(all.contains(&format!("\"step\":\"{step}\"")), "no seed of {step}");
    }
    assert!(check("messages", messages::run, 3_000).answers > steps.len());
}

#[test]
fn participants_answer_once_or_never_again() {
    let reached = check("participant", participant::run, 60);
    assert!(reached.answers > 60 && reached.refusals > 10 && reached.opened > 10, "{reached:?}");
}

#[test]
fn coordinators_take_what_was_signed_and_open_the_exact_sum_or_none() {
    let reached = check("coordinator", coordinator::run, 30);
    assert!(reached.answers > 5 && reached.refusals > 5 && reached.opened > 1, "{reached:?}");
}

#[test]
fn shares_boxes_masks_and_graphs_hold() {
    let reached = check("sharing", sharing::run, 3_000);
    assert!(reached.answers > 1 && reached.refusals > 1 && reached.opened > 3, "{reached:?}");
}
