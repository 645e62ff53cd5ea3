//! Attacks that must fail. Each has a control: the same check finds the leak where there is one.

use std::collections::BTreeSet;

use aivillage_base::wire::secure::{Advert, Hex, RegistryHead, Reveal, Revealed, Secret};
use aivillage_privacy::secagg::coordinator::{self, Unopened};
use aivillage_privacy::secagg::draw;
use aivillage_privacy::secagg::mask;
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::ring;
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::{Context, KeyInMemory, Signer as _};

use super::cohort::{CTX, Cohort, SHOWN, drawn, name, signer, terms, values};
use super::testing::TestRng;

fn nobody() -> BTreeSet<usize> {
    BTreeSet::new()
}

/// Chi-square of the low bytes of words against the uniform distribution over 256 values.
fn chi_square(words: &[i64]) -> f64 {
    let mut counts = [0.0; 256];
    for word in words {
        counts[usize::from(word.to_le_bytes()[0])] += 1.0;
    }
    let expected = words.len() as f64 / 256.0;
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

/// Beyond this a uniform source comes once in 10^9 times (255 degrees of freedom).
const UNIFORM_MAX: f64 = 420.0;

#[test]
fn a_recording_coordinator_learns_nothing_of_one_update_from_any_subset() {
    let len = 20_000;
    let mut cohort = Cohort::new(10, vec![vec![5; len]; 4]);
    cohort.run();
    let unmasking = cohort.unmasking().unwrap();
    let inputs: Vec<&Vec<u8>> = cohort.inputs.values().map(|(bytes, _)| bytes).collect();
    // Every proper subset of inputs, freed of every own mask it has learnt.
    for subset in 1..15_u32 {
        let mut sums = vec![0; len];
        for (i, bytes) in inputs.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1) {
            ring::unpack_add(bytes, cohort.width, &mut sums);
            mask::apply(&unmasking.masks[i..=i], cohort.width, 0, &mut sums);
        }
        assert!(chi_square(&sums) < UNIFORM_MAX, "subset {subset:04b}: {}", chi_square(&sums));
    }
    // Control: with everything the sum is there, and far from uniform.
    assert!(chi_square(&cohort.sum(&unmasking)) > 1e6);
}

#[test]
fn replaced_swapped_and_resigned_keys_are_refused() {
    let cohort = Cohort::new(11, values(4, 1));
    let honest = cohort.adverts.clone();
    let mut replaced = honest.clone();
    replaced[2].mask_key = Hex([9; 32]);
    let mut swapped = honest.clone();
    (swapped[1].mask_key, swapped[2].mask_key) = (honest[2].mask_key, honest[1].mask_key);
    let mut stranger = honest.clone();
    let impostor = KeyInMemory::new(&[42; 32]);
    stranger[2] =
        Participant::begin(CTX, cohort.terms, name(2), SHOWN, &impostor, &mut TestRng::new(5)).advert().clone();
    for (adverts, check) in [(replaced, "signature"), (swapped, "signature")] {
        let mut fresh = Cohort::new(11, values(4, 1));
        assert_eq!(fresh.show(0, adverts).unwrap_err().check, check);
        assert_eq!(fresh.show(0, honest.clone()).unwrap_err().check, check, "silent for ever");
    }
    let mut fresh = Cohort::new(11, values(4, 1));
    let enrolled = |adverts: &[Advert]| {
        let known = |advert: &Advert| advert.peer.id == signer(2).id() || advert.peer.name != name(2);
        let changed = || Alarm::new("changed_key", "another key than before");
        if adverts.iter().all(known) { Ok(()) } else { Err(changed()) }
    };
    let Cohort { machines, signers, .. } = &mut fresh;
    assert_eq!(machines[0].roster(stranger, &enrolled, &signers[0]).unwrap_err().check, "changed_key");
    // Control.
    let mut fresh = Cohort::new(11, values(4, 1));
    fresh.show(0, honest).unwrap();
}

#[test]
fn participants_who_were_shown_different_registries_find_it_out() {
    let honest = Cohort::new(11, values(4, 1)).adverts;
    let other = RegistryHead { hash: Hex([8; 32]), ..SHOWN };
    for shown in [other, RegistryHead::default(), RegistryHead { sequence: 0, ..SHOWN }] {
        let mut forked = honest.clone();
        let (terms, rng) = (terms(4), &mut TestRng::new(5));
        forked[2] = Participant::begin(CTX, terms, name(2), shown, &signer(2), rng).advert().clone();
        assert_eq!(Cohort::new(11, values(4, 1)).show(0, forked.clone()).unwrap_err().check, "fork", "{shown:?}");
        // Who hands it on cannot make them agree: the head is signed.
        forked[2].registry = SHOWN;
        assert_eq!(Cohort::new(11, values(4, 1)).show(0, forked).unwrap_err().check, "signature");
    }
    // Control: one may have seen more than the others.
    let mut later = honest;
    let shown = RegistryHead { sequence: SHOWN.sequence + 1, ..other };
    later[2] = Participant::begin(CTX, terms(4), name(2), shown, &signer(2), &mut TestRng::new(5)).advert().clone();
    Cohort::new(11, values(4, 1)).show(0, later).unwrap();
}

#[test]
fn a_participants_own_entry_may_not_change_or_vanish() {
    let honest = Cohort::new(12, values(5, 1)).adverts;
    let mut other = Cohort::new(99, values(5, 1)).adverts;
    let mut without = honest.clone();
    without.remove(0);
    let mut with_old = honest;
    with_old[0] = other.remove(0);
    for adverts in [without, with_old] {
        assert_eq!(Cohort::new(12, values(5, 1)).show(0, adverts).unwrap_err().check, "own_entry");
    }
}

#[test]
fn two_survivor_sets_never_yield_both_secrets_of_one_participant() {
    let mut cohort = Cohort::new(13, values(7, 2));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    let all = cohort.survivors();
    let without: Vec<_> = all.iter().filter(|n| **n != name(6)).cloned().collect();
    // Half is told that 6 survived, half that it left; each half vouches for what it was shown.
    let (mut told_all, mut told_without) = (Vec::new(), Vec::new());
    for i in 0..7 {
        let (set, words) = if i < 3 || i == 6 { (&all, &mut told_all) } else { (&without, &mut told_without) };
        let agreement = cohort.machines[i].survivors(set, &cohort.signers[i]).unwrap();
        words.push((i, agreement));
        let other = if set.len() == all.len() { &without } else { &all };
        assert_eq!(cohort.machines[i].survivors(other, &cohort.signers[i]).unwrap_err().check, "equivocation");
    }
    // Neither half is as large as the threshold, so nobody opens anything.
    let threshold = cohort.roster().plan().threshold;
    assert!(told_all.len() < threshold && told_without.len() < threshold);
}

#[test]
fn agreements_that_were_not_given_open_nothing() {
    let mut cohort = Cohort::new(14, values(5, 2));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    cohort.agree(&nobody());
    let good = cohort.agreed();
    let open = |cohort: &mut Cohort, words: &[_]| cohort.machines[0].agreements(words, &cohort.signers[0]);
    let mut forged = good.clone();
    forged[1].signature = forged[2].signature;
    assert_eq!(open(&mut cohort, &forged).unwrap_err().check, "agreements");
    assert_eq!(open(&mut cohort, &good).unwrap_err().check, "agreements", "silent for ever");
    let mut cohort = Cohort::new(14, values(5, 2));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    cohort.agree(&nobody());
    let doubled = vec![good[0].clone(); 5];
    assert_eq!(open(&mut cohort, &doubled).unwrap_err().check, "agreements");
    let mut cohort = Cohort::new(14, values(5, 2));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    cohort.agree(&nobody());
    let few = cohort.agreed()[..cohort.roster().plan().threshold - 1].to_vec();
    assert_eq!(open(&mut cohort, &few).unwrap_err().check, "agreements");
    // Control.
    let mut cohort = Cohort::new(14, values(5, 2));
    cohort.run();
    cohort.unmasking().unwrap();
}

#[test]
fn shares_of_another_round_or_pair_do_not_open() {
    let mut cohort = Cohort::new(15, values(4, 1));
    cohort.share(&nobody());
    let mut boxes = cohort.boxes(0);
    boxes.swap(0, 1);
    (boxes[0].with, boxes[1].with) = (boxes[1].with.clone(), boxes[0].with.clone());
    let sharers = cohort.sharers();
    assert_eq!(cohort.machines[0].boxes(&sharers, &boxes).unwrap_err().check, "forged_box");

    let mut earlier = Cohort::new(16, values(4, 1));
    earlier.share(&nobody());
    let mut cohort = Cohort::new(15, values(4, 1));
    cohort.share(&nobody());
    assert_eq!(cohort.machines[0].boxes(&sharers, &earlier.boxes(0)).unwrap_err().check, "forged_box");
    // Control.
    let mut cohort = Cohort::new(15, values(4, 1));
    cohort.share(&nobody());
    let boxes = cohort.boxes(0);
    cohort.machines[0].boxes(&sharers, &boxes).unwrap();
}

#[test]
fn wrong_shares_are_found_and_the_round_completes_with_good_ones() {
    let mut cohort = Cohort::new(17, values(9, 3));
    cohort.share(&nobody());
    cohort.mask(&BTreeSet::from([8]));
    cohort.agree(&nobody());
    cohort.open(&nobody());
    let threshold = cohort.roster().plan().threshold;
    assert!(threshold < 8);
    let bad = cohort.openings.get_mut(&name(1)).unwrap();
    bad.shares[4].share = Secret(Hex([1; 32]));
    let unmasking = cohort.unmasking().unwrap();
    assert_eq!(unmasking.wrong, [(name(1), name(4))]);
    assert_eq!(cohort.sum(&unmasking), cohort.plain());
    // Nobody could have slipped it past the coordinator's first look: it is not what its sender signed.
    let opening = &cohort.openings[&name(1)];
    let checked = coordinator::check_opening(&cohort.roster(), &cohort.sharers(), &cohort.survivors(), 1, opening);
    assert!(checked.is_err());
    // Control: with too many wrong ones there is no sum, and no wrong one either.
    for i in 0..6 {
        cohort.openings.get_mut(&name(i)).unwrap().shares[4].share = Secret(Hex([1 + i as u8; 32]));
    }
    assert!(matches!(cohort.unmasking(), Err(Unopened::Wrong { of, .. }) if of == name(4)));
}

#[test]
fn small_foreign_and_false_survivor_sets_are_refused() {
    let all: Vec<_> = (0..5).map(name).collect();
    let strangers = [&all[..], &[name(7)]].concat();
    for set in [vec![], vec![name(0)], vec![name(0), name(1)], strangers, all[1..].to_vec()] {
        let mut cohort = Cohort::new(18, values(5, 1));
        cohort.share(&nobody());
        cohort.mask(&nobody());
        assert_eq!(cohort.machines[0].survivors(&set, &cohort.signers[0]).unwrap_err().check, "survivors", "{set:?}");
    }
    // One that is declared to have survived, and never sent shares.
    let mut cohort = Cohort::new(18, values(5, 1));
    cohort.share(&BTreeSet::from([4]));
    cohort.mask(&nobody());
    assert_eq!(cohort.machines[0].survivors(&all, &cohort.signers[0]).unwrap_err().check, "survivors");
    // An own input that was delivered and is declared dropped.
    let mut cohort = Cohort::new(18, values(5, 1));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    assert_eq!(cohort.machines[4].survivors(&all[..4], &cohort.signers[4]).unwrap_err().check, "survivors");
}

#[test]
fn another_model_is_another_context() {
    let mut cohort = Cohort::new(19, values(4, 1));
    let mut rng = TestRng::new(1);
    let other = Participant::begin(Context([1; 32]), terms(4), name(3), SHOWN, &signer(3), &mut rng);
    let mut adverts = cohort.adverts.clone();
    adverts[3] = other.advert().clone();
    assert_eq!(cohort.show(0, adverts).unwrap_err().check, "signature");
}

#[test]
fn a_second_roster_sharer_set_or_input_silences() {
    let mut cohort = Cohort::new(20, values(5, 1));
    cohort.show(0, cohort.adverts.clone()).unwrap();
    let fewer = cohort.adverts[..4].to_vec();
    assert_eq!(cohort.show(0, fewer).unwrap_err().check, "equivocation");

    let mut cohort = Cohort::new(20, values(5, 1));
    cohort.share(&nobody());
    let (sharers, boxes) = (cohort.sharers(), cohort.boxes(0));
    cohort.machines[0].boxes(&sharers, &boxes).unwrap();
    assert_eq!(cohort.machines[0].boxes(&sharers[..4], &boxes[..3]).unwrap_err().check, "equivocation");

    let mut cohort = Cohort::new(20, values(5, 1));
    cohort.share(&nobody());
    cohort.mask(&nobody());
    assert_eq!(cohort.machines[0].input([1; 32], &cohort.signers[0]).unwrap_err().check, "two_inputs");
    assert_eq!(cohort.machines[0].masks().unwrap_err().check, "two_inputs", "silent for ever");
}

#[test]
fn an_input_after_the_survivors_are_fixed_changes_nothing() {
    let mut cohort = Cohort::new(21, values(6, 2));
    cohort.share(&nobody());
    cohort.mask(&BTreeSet::from([5]));
    cohort.agree(&nobody());
    let (survivors, plain) = (cohort.survivors(), cohort.plain());
    cohort.open(&nobody());
    let sum = cohort.sum(&cohort.unmasking().unwrap());
    assert_eq!(sum, plain);
    // It comes now: whoever has answered answers for no other set.
    cohort.send(5);
    let wider = cohort.survivors();
    assert_ne!(survivors, wider);
    assert_eq!(cohort.machines[0].survivors(&wider, &cohort.signers[0]).unwrap_err().check, "equivocation");
}

#[test]
fn values_at_the_bound_and_beyond_are_summed_mod_the_ring() {
    let most = (1_i64 << 39) - 1;
    let each = most / 4;
    let mut cohort = Cohort::new(22, vec![vec![each, -each, each]; 4]);
    cohort.run();
    assert_eq!(cohort.sum(&cohort.unmasking().unwrap()), [each * 4, -each * 4, each * 4]);
    // One at twice its bound wraps: the coordinator's bound on sums is what finds it.
    let mut cohort = Cohort::new(22, vec![vec![most], vec![most], vec![0]]);
    cohort.run();
    assert_eq!(cohort.sum(&cohort.unmasking().unwrap()), [-2]);
}

#[test]
fn sizes_of_messages_say_nothing_of_values() {
    let sizes = |values: Vec<Vec<i64>>| {
        let mut cohort = Cohort::new(23, values);
        cohort.run();
        let inputs: Vec<usize> = cohort.inputs.values().map(|(bytes, _)| bytes.len()).collect();
        let shares: Vec<usize> = cohort.shares.values().map(|s| serde_json::to_string(s).unwrap().len()).collect();
        let openings: Vec<usize> = cohort.openings.values().map(|o| serde_json::to_string(o).unwrap().len()).collect();
        (inputs, shares, openings)
    };
    assert_eq!(sizes(vec![vec![0; 9]; 4]), sizes(vec![vec![-123_456_789; 9]; 4]));
}

#[test]
fn nothing_secret_is_printed() {
    let mut cohort = Cohort::new(24, values(4, 2));
    cohort.run();
    let printed = format!("{:?} {:?} {:?}", cohort.machines, cohort.openings, cohort.unmasking().unwrap());
    for opening in cohort.openings.values() {
        for share in &opening.shares {
            assert!(!printed.contains(&share.share.0.to_string()), "a share is printed");
        }
    }
    // Control: what is public is there.
    assert!(printed.contains(cohort.roster().hash().to_string().as_str()));
}

/// A cohort whose graph is drawn, and whose nonces are revealed.
fn revealed(seed: u64) -> Cohort {
    let mut cohort = Cohort::with(seed, drawn(5), values(5, 1));
    cohort.reveal();
    cohort
}

#[test]
fn a_nonce_that_was_not_committed_to_is_refused() {
    let honest = revealed(25).reveals;
    let mut forged = honest.clone();
    forged[2].nonce = Hex([9; 32]);
    let mut swapped = honest.clone();
    (swapped[1].nonce, swapped[2].nonce) = (honest[2].nonce, honest[1].nonce);
    // One that its owner itself signs, now that it knows the others'.
    let mut cohort = revealed(25);
    let listed = cohort.listed();
    let mut late = honest.clone();
    let chosen = Cohort::with(99, drawn(5), values(5, 1)).show(3, listed.adverts().to_vec());
    assert_eq!(chosen.unwrap_err().check, "own_entry");
    late[3].nonce = revealed(99).reveals[3].nonce;
    for reveals in [forged, swapped, late] {
        let mut cohort = revealed(25);
        assert_eq!(cohort.show_nonces(0, &reveals).unwrap_err().check, "reveals");
        assert_eq!(cohort.show_nonces(0, &honest).unwrap_err().check, "reveals", "silent for ever");
    }
    // Control.
    cohort.show_nonces(0, &honest).unwrap();
}

#[test]
fn without_everybodys_nonce_there_is_no_graph() {
    let honest = revealed(26).reveals;
    // Whoever picks which nonces count would pick the graph: all subsets but the whole are refused.
    for subset in 0..31_u32 {
        let kept = honest.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1);
        let reveals: Vec<Revealed> = kept.map(|(_, revealed)| revealed.clone()).collect();
        assert_eq!(revealed(26).show_nonces(0, &reveals).unwrap_err().check, "reveals", "{subset:05b}");
    }
    // Nor may one count twice in the place of another, or the roster shrink to those that suit.
    let doubled = [&honest[..4], &honest[..1]].concat();
    assert_eq!(revealed(26).show_nonces(0, &doubled).unwrap_err().check, "reveals");
    let mut cohort = revealed(26);
    let fewer = cohort.adverts[..4].to_vec();
    assert_eq!(cohort.show(0, fewer).unwrap_err().check, "equivocation");
    // Control.
    revealed(26).show_nonces(0, &honest).unwrap();
}

#[test]
fn nonces_shown_to_two_rosters_draw_no_graph() {
    let mut cohort = Cohort::with(27, drawn(5), values(5, 1));
    // Two are shown a roster without the last one, three the whole: neither half has signed for the other's.
    let (all, without) = (cohort.adverts.clone(), cohort.adverts[..4].to_vec());
    let mut reveals = Vec::new();
    for i in 0..5 {
        let shown = if i < 2 { without.clone() } else { all.clone() };
        let Reveal { nonce, signature, .. } = cohort.show(i, shown).unwrap().unwrap();
        reveals.push(Revealed { name: name(i), nonce, signature });
    }
    assert_eq!(cohort.show_nonces(0, &reveals[..4]).unwrap_err().check, "reveals");
    assert_eq!(cohort.show_nonces(4, &reveals).unwrap_err().check, "reveals");
    // Control: one roster, one graph, and what is shared is bound to it.
    let mut cohort = revealed(27);
    let reveals = cohort.reveals.clone();
    let shares = cohort.show_nonces(0, &reveals).unwrap();
    assert_eq!(shares.roster, cohort.show_nonces(4, &reveals).unwrap().roster);
    assert_ne!(shares.roster, cohort.listed().hash());
}

#[test]
fn anothers_commitment_is_of_no_use() {
    let mut cohort = Cohort::with(28, drawn(5), values(5, 1));
    let (victim, copier) = (cohort.adverts[0].nonce, &mut cohort.adverts[1]);
    // Who copies a commitment could copy the nonce once it is known, and the two would say nothing new.
    copier.nonce = victim;
    assert_eq!(cohort.show(0, cohort.adverts.clone()).unwrap_err().check, "duplicate_key");
    // A commitment names its owner: under the copier's name the same nonce is another one.
    let nonce = revealed(28).reveals[0].nonce;
    let of = |i: usize| draw::commitment(CTX, &signer(i).id(), &nonce);
    assert_eq!((of(0) == victim, of(1) == victim), (true, false));
    // An advert that was signed with a nonce is none that was signed with a commitment.
    let mut plain = Cohort::with(28, drawn(5), values(5, 1));
    plain.adverts[1] = Cohort::new(28, values(5, 1)).adverts[1].clone();
    assert_eq!(plain.show(0, plain.adverts.clone()).unwrap_err().check, "signature");
}

#[test]
fn no_nonce_leaves_before_the_roster_is_fixed() {
    let mut cohort = Cohort::with(29, drawn(5), values(5, 1));
    let said = format!("{:?} {}", cohort.machines, serde_json::to_string(&cohort.adverts).unwrap());
    assert_eq!(cohort.show_nonces(0, &[]).unwrap_err().check, "order");
    let nonces = revealed(29).reveals;
    for revealed in &nonces {
        assert!(!said.contains(&revealed.nonce.to_string()));
    }
    // Control: on the full graph, where nothing depends on it, the advert says it.
    let full = Cohort::new(29, values(5, 1));
    assert!(nonces.iter().zip(&full.adverts).all(|(revealed, advert)| revealed.nonce == advert.nonce));
}
