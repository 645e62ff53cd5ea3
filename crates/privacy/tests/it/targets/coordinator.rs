//! The coordinator's checks against words that are not what their senders signed, and sums that open exactly or not at all.

use std::collections::BTreeSet;

use aivillage_base::wire::secure::{Advert, Hex, MaskedInput, OpenedShare, SealedShares};
use aivillage_privacy::secagg::coordinator::{self, Unopened};
use aivillage_privacy::secagg::roster::{Listed, Roster, advert_is_signed};
use aivillage_privacy::secagg::signed::input_is_signed;

use super::super::cohort::{Cohort, name, values};
use super::{Choices, Reached};

pub(crate) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::of(data);
    let mut reached = Reached::default();
    let count = 4 + choices.below(4);
    let mut cohort = Cohort::new(choices.byte().into(), values(count, 3));
    let spare = count - cohort.roster().quorum();
    let away = |at_most: usize, choices: &mut Choices<'_>| (0..choices.below(at_most + 1)).collect::<BTreeSet<usize>>();
    let (left, silent) = (away(spare, &mut choices), away(count, &mut choices));
    cohort.share(&BTreeSet::new());
    cohort.mask(&left);
    cohort.agree(&BTreeSet::new());
    cohort.open(&silent);
    let roster = cohort.roster();
    for _ in 0..choices.below(12) {
        let from = choices.below(count);
        match choices.below(6) {
            0 => adverts(&cohort, from, &mut choices, &mut reached),
            1 => shares(&cohort, &roster, from, &mut choices, &mut reached),
            2 => agreement(&cohort, &roster, from, &mut choices, &mut reached),
            3 => opening(&cohort, &roster, from, &mut choices, &mut reached),
            4 => input(&cohort, from, &mut choices, &mut reached),
            _ => {
                let words = coordinator::boxes_for(&roster, |name| cohort.shares.get(name), from);
                assert_eq!(words.len(), count - 1);
            }
        }
    }
    open(&mut cohort, &roster, &mut choices, &mut reached);
    reached
}

fn note(reached: &mut Reached, passed: bool, is_the_same: bool, what: &str) {
    assert!(passed == is_the_same, "{what}: passed {passed}, the same {is_the_same}");
    reached.answers += usize::from(passed);
    reached.refusals += usize::from(!passed);
}

fn adverts(cohort: &Cohort, from: usize, choices: &mut Choices<'_>, reached: &mut Reached) {
    let mut advert = cohort.adverts[from].clone();
    change_advert(&mut advert, &cohort.adverts[choices.below(cohort.adverts.len())], choices);
    let same = advert == cohort.adverts[from];
    note(reached, advert_is_signed(cohort.ctx, cohort.terms.graph, &advert), same, "an advert");
    let others: Vec<&Advert> = cohort.adverts.iter().filter(|other| other.peer != advert.peer).collect();
    let checked = coordinator::check_advert(&advert, &others);
    assert!(checked.is_ok() || !same, "{checked:?}");
    let mut list = cohort.adverts.clone();
    list[from] = advert;
    choices.list(&mut list);
    if let Ok(roster) = Listed::new(cohort.ctx, &cohort.terms, list).and_then(|listed| listed.draw(&[])) {
        assert!(roster.adverts().iter().all(|advert| cohort.adverts.contains(advert)), "an advert of nobody");
        assert!(roster.adverts().is_sorted_by(|a, b| a.peer.name < b.peer.name));
    }
}

/// Changes one field of an advert, by a bit or to another's.
pub(crate) fn change_advert(advert: &mut Advert, other: &Advert, choices: &mut Choices<'_>) {
    match choices.below(9) {
        0 => {}
        1 => choices.flip(&mut advert.box_key.0),
        2 => choices.flip(&mut advert.mask_key.0),
        3 => choices.flip(&mut advert.signature.0),
        4 => (advert.box_key, advert.mask_key) = (advert.mask_key, advert.box_key),
        5 => advert.peer = other.peer.clone(),
        6 => advert.mask_key = other.mask_key,
        7 => advert.registry.sequence ^= u64::from(choices.byte()),
        _ => advert.nonce = Hex(choices.bytes()),
    }
}

fn change_boxes(boxes: &mut Vec<SealedShares>, choices: &mut Choices<'_>) {
    choices.list(boxes);
    let at = choices.below(boxes.len());
    if let Some(sealed) = boxes.get_mut(at).filter(|_| choices.byte() & 1 == 1) {
        choices.flip(&mut sealed.sealed.0);
    }
}

fn shares(cohort: &Cohort, roster: &Roster, from: usize, choices: &mut Choices<'_>, reached: &mut Reached) {
    let good = &cohort.shares[&name(from)];
    let mut shares = good.clone();
    change_boxes(&mut shares.boxes, choices);
    match choices.below(4) {
        0 => {}
        1 => choices.flip(&mut shares.commitment.0),
        2 => choices.flip(&mut shares.signature.0),
        _ => choices.flip(&mut shares.roster.0),
    }
    note(reached, coordinator::check_shares(roster, from, &shares).is_ok(), shares == *good, "shares");
}

fn agreement(cohort: &Cohort, roster: &Roster, from: usize, choices: &mut Choices<'_>, reached: &mut Reached) {
    let Some(good) = cohort.agreements.get(&name(from)) else { return };
    let (mut word, mut survivors) = (good.clone(), cohort.survivors());
    match choices.below(4) {
        0 => {}
        1 => choices.flip(&mut word.signature.0),
        2 => choices.list(&mut survivors),
        _ => word.survivors = roster.survivors_hash(&survivors[..choices.below(survivors.len())]),
    }
    let same = word == *good && survivors == cohort.survivors();
    note(reached, coordinator::check_agreement(roster, &survivors, from, &word).is_ok(), same, "a word");
}

fn opening(cohort: &Cohort, roster: &Roster, from: usize, choices: &mut Choices<'_>, reached: &mut Reached) {
    let Some(good) = cohort.openings.get(&name(from)) else { return };
    let mut word = good.clone();
    choices.list(&mut word.shares);
    let at = choices.below(word.shares.len());
    match choices.below(4) {
        0 => {}
        1 => choices.flip(&mut word.signature.0),
        2 => choices.flip(&mut word.survivors.0),
        _ => {
            if let Some(share) = word.shares.get_mut(at) {
                choices.flip(&mut share.share.0.0);
            }
        }
    }
    let checked = coordinator::check_opening(roster, &cohort.sharers(), &cohort.survivors(), from, &word);
    note(reached, checked.is_ok(), word == *good, "an opening");
}

fn input(cohort: &Cohort, from: usize, choices: &mut Choices<'_>, reached: &mut Reached) {
    let Some((bytes, MaskedInput::Roster { roster, signature })) = cohort.inputs.get(&name(from)) else { return };
    let digest = aivillage_base::Digest::of(bytes).0;
    let word = (digest, *roster, *signature);
    let (mut payload, mut masked_for, mut signed) = word;
    match choices.below(4) {
        0 => {}
        1 => choices.flip(&mut payload),
        2 => choices.flip(&mut masked_for.0),
        _ => choices.flip(&mut signed.0),
    }
    let id = &cohort.adverts[from].peer.id;
    let passed = input_is_signed(id, cohort.ctx, &masked_for, &payload, &signed);
    note(reached, passed, (payload, masked_for, signed) == word, "an input");
}

/// Holders sign shares that are wrong: the sum is exact or there is none.
fn open(cohort: &mut Cohort, roster: &Roster, choices: &mut Choices<'_>, reached: &mut Reached) {
    let mut wrong = BTreeSet::new();
    for (holder, opening) in &mut cohort.openings {
        for OpenedShare { of, share } in &mut opening.shares {
            if choices.byte() & 7 == 7 {
                choices.flip(&mut share.0.0);
                wrong.insert((holder.clone(), of.clone()));
            }
        }
    }
    let answered: Vec<_> = cohort.openings.keys().cloned().collect();
    let enough = coordinator::is_enough(roster, &cohort.sharers(), &cohort.survivors(), &answered);
    let threshold = roster.plan().threshold;
    let few = cohort.sharers().iter().all(|of| {
        let bad = wrong.iter().filter(|(_, whose)| whose == of).count();
        answered.len() >= threshold + 2 * bad
    });
    match cohort.unmasking() {
        Ok(unmasking) => {
            assert!(enough, "opened by too few");
            assert_eq!(cohort.sum(&unmasking), cohort.plain());
            if few {
                assert_eq!(unmasking.wrong.iter().cloned().collect::<BTreeSet<_>>(), wrong);
            }
            reached.opened += 1;
        }
        Err(Unopened::TooFew { .. }) => assert!(!enough, "enough had opened"),
        Err(Unopened::Wrong { of, why }) => assert!(!few && !wrong.is_empty(), "{of}: {why}"),
    }
}
