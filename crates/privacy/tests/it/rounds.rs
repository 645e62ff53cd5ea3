//! Whole rounds: the sum of the survivors, exactly, or a named reason.

use std::collections::BTreeSet;

use aivillage_privacy::secagg::coordinator::{Unopened, all_held, is_enough};
use proptest::prelude::*;

use super::cohort::{Cohort, drawn, terms, values};

#[test]
fn the_sum_of_the_smallest_cohort_is_exact() {
    let mut cohort = Cohort::new(1, values(3, 10));
    cohort.run();
    assert_eq!(cohort.sum(&cohort.unmasking().unwrap()), cohort.plain());
}

#[test]
fn a_sparse_graph_gives_the_same_sum() {
    let mut terms = drawn(40);
    terms.withstands.neighbours = Some(24);
    terms.withstands.corrupt = 0.05;
    terms.withstands.dropout = 0.05;
    let mut cohort = Cohort::with(2, terms, values(40, 5));
    cohort.share(&BTreeSet::from([3]));
    cohort.mask(&BTreeSet::from([9]));
    cohort.agree(&BTreeSet::new());
    cohort.open(&BTreeSet::new());
    assert!(!cohort.roster().holds_own());
    assert_eq!(cohort.sum(&cohort.unmasking().unwrap()), cohort.plain());
}

#[test]
fn too_few_openings_open_nothing() {
    let mut cohort = Cohort::new(3, values(5, 4));
    let nobody = BTreeSet::new();
    cohort.share(&nobody);
    cohort.mask(&nobody);
    cohort.agree(&nobody);
    let threshold = cohort.roster().plan().threshold;
    cohort.open(&(threshold - 1..5).collect());
    assert!(matches!(cohort.unmasking(), Err(Unopened::TooFew { have, need, .. }) if have + 1 == need));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whoever leaves, and when: with enough left the sum is exact, with too few it is refused by name.
    #[test]
    fn dropouts_in_every_step_leave_the_exact_sum_or_a_reason(
        seed: u64,
        count in 3usize..14,
        len in 1usize..40,
        leaves in prop::collection::vec(0usize..12, 14),
        by_lot: bool,
    ) {
        let size = count as u32;
        let terms = if by_lot { drawn(size) } else { terms(size) };
        let mut cohort = Cohort::with(seed, terms, values(count, len));
        let gone = |step: usize| (0..count).filter(|i| leaves[*i] < step).collect::<BTreeSet<usize>>();
        cohort.share(&gone(1));
        let quorum = cohort.roster().quorum();
        prop_assume!(cohort.shares.len() >= quorum && all_held(&cohort.roster(), &cohort.sharers()));
        cohort.mask(&gone(2));
        prop_assume!(cohort.inputs.len() >= quorum);
        cohort.agree(&gone(3));
        let agreed: Vec<_> = cohort.agreements.keys().cloned().collect();
        prop_assume!(is_enough(&cohort.roster(), &cohort.sharers(), &cohort.survivors(), &agreed));
        cohort.open(&gone(4));
        let answered: Vec<_> = cohort.openings.keys().cloned().collect();
        let enough = is_enough(&cohort.roster(), &cohort.sharers(), &cohort.survivors(), &answered);
        match cohort.unmasking() {
            Ok(unmasking) => {
                prop_assert!(enough);
                prop_assert_eq!(cohort.sum(&unmasking), cohort.plain());
            }
            Err(Unopened::TooFew { .. }) => prop_assert!(!enough),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
