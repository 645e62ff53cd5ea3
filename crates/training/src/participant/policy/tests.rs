//! Each rule of an owner: what it refuses, what it lets pass, at both moments.

use aivillage_base::Digest;
use aivillage_base::wire::secure::{GraphKind, Hex, MaskedInput, SecureTerms};
use aivillage_base::wire::{BlobRef, LocalMetrics};

use super::*;
use crate::participant::hours;
use crate::secure::{COHORT_MAX, FULL_GRAPH_MAX, WITHSTANDS};
use crate::strategy::Weighting;

/// Noon in UTC.
const NOON: u64 = (20_000 * 24 + 12) * 3_600_000;

/// A secure round of at least three, bounded by a norm of 1, for a job of ten rounds that asks to keep nothing.
fn secure_round() -> Invitation {
    let terms = crate::secure::terms(WITHSTANDS, (3, 10), Weighting::Examples, 100).unwrap();
    Invitation {
        max_examples: 100,
        clip: Some(1.0),
        privacy_techniques: vec![secure::TECHNIQUE.into()],
        secure: Some(terms),
        total_rounds: 10,
        ..crate::testing::invitation()
    }
}

fn plain_round() -> Invitation {
    Invitation { privacy_techniques: Vec::new(), secure: None, clip: None, ..secure_round() }
}

fn update(invitation: &Invitation, masked: bool, retain: bool) -> UpdateHeader {
    let payload = BlobRef { digest: Digest::of(b"update"), bytes: 6 };
    let input = MaskedInput::Roster { roster: Hex([1; 32]), signature: Hex([2; 64]) };
    UpdateHeader {
        retain,
        secure: masked.then_some(input),
        ..UpdateHeader::new(invitation.key.clone(), payload, 1, LocalMetrics::default())
    }
}

/// Both moments give the same verdict on an update that is what the round asked for.
fn check(policy: &NodePolicy, invitation: &Invitation, rule: Option<Rule>) {
    let header = update(invitation, invitation.secure.is_some(), false);
    for moment in [Moment::Asked, Moment::Leaving(&header)] {
        let refusing = judge(policy, NOON, invitation, moment).err().map(|refusal| refusal.rule);
        assert_eq!(refusing, rule, "{policy:?} {moment:?}");
    }
}

fn names(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn a_node_without_rules_takes_part_in_everything_that_it_can_do() {
    check(&NodePolicy::default(), &secure_round(), None);
    check(&NodePolicy::default(), &plain_round(), None);
    check(&NodePolicy::default(), &Invitation { retain_updates: true, ..plain_round() }, None);
    let unknown = Invitation { privacy_techniques: vec!["betanet_routing".into()], ..plain_round() };
    check(&NodePolicy::default(), &unknown, Some(Rule::PrivacyTechniques));
    let claimed = Invitation { secure: None, ..secure_round() };
    check(&NodePolicy::default(), &claimed, Some(Rule::PrivacyTechniques));
    let mut narrow = secure_round();
    narrow.secure.as_mut().unwrap().bits = 16;
    check(&NodePolicy::default(), &narrow, Some(Rule::PrivacyTechniques));
}

#[test]
fn each_rule_refuses_what_its_owner_did_not_allow_and_nothing_else() {
    let p = NodePolicy::default;
    let rule = Rule::RequireSecureAggregation;
    check(&NodePolicy { require_secure_aggregation: true, ..p() }, &plain_round(), Some(rule));
    check(&NodePolicy { require_secure_aggregation: true, ..p() }, &secure_round(), None);
    for (least, invitation, rule) in [
        (3, secure_round(), None),
        (4, secure_round(), Some(Rule::MinCohort)),
        (3, plain_round(), Some(Rule::MinCohort)),
    ] {
        check(&NodePolicy { min_cohort: Some(least), ..p() }, &invitation, rule);
    }
    for (known, rule) in
        [(&["ada", "bob"][..], None), (&["bob"], Some(Rule::AllowedPublishers)), (&[], Some(Rule::AllowedPublishers))]
    {
        check(&NodePolicy { allowed_publishers: names(known), ..p() }, &plain_round(), rule);
    }
    for (known, rule) in [(&["standard"][..], None), (&["statistics"], Some(Rule::AllowedJobTypes))] {
        check(&NodePolicy { allowed_job_types: names(known), ..p() }, &plain_round(), rule);
    }
    for (known, rule) in [(&["linear_regression"][..], None), (&["mlp"], Some(Rule::AllowedRecipes))] {
        check(&NodePolicy { allowed_recipes: names(known), ..p() }, &plain_round(), rule);
    }
    for (most, invitation, rule) in [
        (1.0, secure_round(), None),
        (0.5, secure_round(), Some(Rule::MaxClip)),
        (9.0, plain_round(), Some(Rule::MaxClip)),
    ] {
        check(&NodePolicy { max_clip: Some(most), ..p() }, &invitation, rule);
    }
    for (most, rule) in [(10, None), (9, Some(Rule::MaxRounds))] {
        check(&NodePolicy { max_rounds: Some(most), ..p() }, &plain_round(), rule);
    }
    let mut longer = plain_round();
    longer.key.round = 11;
    check(&NodePolicy { max_rounds: Some(10), ..p() }, &longer, Some(Rule::MaxRounds));
    let asks = Invitation { retain_updates: true, ..plain_round() };
    for (retain_updates, rule) in [
        (RetainUpdates::Never, Some(Rule::RetainUpdates)),
        (RetainUpdates::Withheld, None),
        (RetainUpdates::IfAsked, None),
    ] {
        check(&NodePolicy { retain_updates, ..p() }, &asks, rule);
        check(&NodePolicy { retain_updates, ..p() }, &plain_round(), None);
    }
    for (open, rule) in [("11:00-13:00", None), ("22:00-06:00", Some(Rule::Hours))] {
        check(&NodePolicy { hours: hours::parse(open).map(|h| vec![h]), ..p() }, &plain_round(), rule);
    }
}

#[test]
fn an_invitation_that_does_not_say_who_asks_for_what_is_refused_where_that_matters() {
    let mute = Invitation { publisher: String::new(), job_type: String::new(), ..plain_round() };
    let lists = [
        (NodePolicy { allowed_publishers: names(&["ada"]), ..NodePolicy::default() }, Rule::AllowedPublishers),
        (NodePolicy { allowed_job_types: names(&["standard"]), ..NodePolicy::default() }, Rule::AllowedJobTypes),
    ];
    for (policy, rule) in lists {
        check(&policy, &mute, Some(rule));
    }
}

#[test]
fn what_leaves_has_to_be_what_was_judged() {
    let leaving = |policy: &NodePolicy, invitation: &Invitation, header: &UpdateHeader| {
        judge(policy, NOON, invitation, Moment::Leaving(header)).err().map(|refusal| refusal.rule)
    };
    let strict = NodePolicy { require_secure_aggregation: true, ..NodePolicy::default() };
    let (secure, plain) = (secure_round(), plain_round());
    assert_eq!(leaving(&strict, &secure, &update(&secure, false, false)), Some(Rule::RequireSecureAggregation));
    let lax = NodePolicy::default();
    assert_eq!(leaving(&lax, &secure, &update(&secure, false, false)), Some(Rule::PrivacyTechniques));
    assert_eq!(leaving(&lax, &plain, &update(&plain, true, false)), Some(Rule::PrivacyTechniques));
    let other = Invitation { key: RoundKey { attempt: 2, ..plain.key.clone() }, ..plain.clone() };
    assert_eq!(leaving(&lax, &plain, &update(&other, false, false)), Some(Rule::PrivacyTechniques));
    let asks = Invitation { retain_updates: true, ..plain.clone() };
    assert_eq!(leaving(&lax, &asks, &update(&asks, false, true)), Some(Rule::RetainUpdates));
    let willing = NodePolicy { retain_updates: RetainUpdates::IfAsked, ..NodePolicy::default() };
    assert_eq!(leaving(&willing, &asks, &update(&asks, false, true)), None);
    assert_eq!(leaving(&willing, &plain, &update(&plain, false, true)), Some(Rule::RetainUpdates), "nobody asked");
}

#[test]
fn a_reason_is_no_longer_than_a_status_shows() {
    let signer = aivillage_privacy::secagg::signed::KeyInMemory::new(&[1; 32]);
    let key = plain_round().key;
    let declined = Refusal::new(Rule::MaxRounds, "x".repeat(2 * REASON_MAX)).signed(&signer, &key);
    assert_eq!(declined.reason.len(), REASON_MAX);
    assert!(refusal::is_signed(&signer.id(), &key, &declined));
}

#[test]
fn a_node_takes_the_graph_that_fits_the_cohort_and_chooses_no_neighbours_on_request() {
    let of = |cohort: u32, change: &dyn Fn(&mut SecureTerms)| {
        let mut terms = crate::secure::terms(WITHSTANDS, (3, cohort), Weighting::Equal, 100).unwrap();
        change(&mut terms);
        Invitation { secure: Some(terms), ..secure_round() }
    };
    let refused = Some(Rule::PrivacyTechniques);
    let policy = NodePolicy::default();
    for cohort in [FULL_GRAPH_MAX, FULL_GRAPH_MAX + 1, COHORT_MAX] {
        check(&policy, &of(cohort, &|_| {}), None);
        check(&policy, &of(cohort, &|terms| terms.withstands.neighbours = Some(40)), refused);
        check(&policy, &of(cohort, &|terms| terms.graph = GraphKind::Drawn), None);
        let full = (cohort > FULL_GRAPH_MAX).then_some(Rule::PrivacyTechniques);
        check(&policy, &of(cohort, &|terms| terms.graph = GraphKind::Full), full);
    }
    check(&policy, &of(COHORT_MAX + 1, &|_| {}), refused);
}
