//! Masking where an update lies equals masking in one piece; what honest nodes count is possible; terms and scales.

use proptest::prelude::*;

use super::*;

fn training(momentum: f64, pull: f64) -> LocalTraining {
    LocalTraining { epochs: 1, batch_size: 1, learning_rate: 0.5, momentum, weight_decay: 0.0, proximal_mu: pull / 0.5 }
}

fn keys(count: u8) -> Vec<(MaskKey, Sign)> {
    let sign = |i: u8| if i.is_multiple_of(2) { Sign::Add } else { Sign::Subtract };
    let key = |i: u8| (MaskKey::derive(&[i; 32], &[9; 32], "a test"), sign(i));
    (0..count).map(key).collect()
}

/// The same in one piece, from a copy.
fn at_once(plain: &[i32], counts: Counts, metrics: &LocalMetrics, masks: &[(MaskKey, Sign)], width: Width) -> Vec<u8> {
    let mut words: Vec<i64> = plain.iter().map(|v| i64::from(*v) * i64::from(counts.factor)).collect();
    words.extend(Behind::of(metrics, counts));
    mask::apply(masks, width, 0, &mut words);
    let mut out = vec![0; words.len() * width.bytes()];
    ring::pack(&words, width, &mut out);
    out
}

fn values(count: usize, seed: u64) -> Vec<i32> {
    let mut rng = aivillage_base::rng::SeededRng::new("values", seed, &[]);
    (0..count).map(|_| i32::try_from(rng.below(1 << 24)).unwrap() - (1 << 23)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_update_is_masked_where_it_lies_as_it_would_be_in_one_piece(
        blocks in 0..4_usize,
        beyond in -20..20_i32,
        factor in 1..1000_u32,
        by_steps in any::<bool>(),
        width in prop::sample::select(Width::ALL.to_vec()),
    ) {
        let count = usize::try_from(i32::try_from(blocks * BLOCK).unwrap() + beyond).unwrap_or(0);
        let plain = values(count, u64::from(factor));
        let counts = Counts { factor, weight: factor, coefficients: by_steps.then_some(77) };
        let metrics = LocalMetrics { loss: 0.25, accuracy: Some(0.5), train_ms: 3 };
        let mut bytes = Vec::with_capacity(count * PLAIN + BEHIND_BYTES);
        bytes.extend(plain.iter().flat_map(|v| v.to_le_bytes()));
        let place = bytes.as_ptr();
        let out = masked(bytes, counts, &metrics, &keys(3), width);
        prop_assert!(out == at_once(&plain, counts, &metrics, &keys(3), width), "{count} values of {width:?}");
        prop_assert!(width.bytes() > PLAIN || out.as_ptr() == place, "{count} values of {width:?} have moved");
        prop_assert!(out.capacity() <= (count * PLAIN + BEHIND_BYTES).max(out.len()), "no more than is needed");
    }

    #[test]
    fn what_honest_nodes_count_adds_up_to_what_is_possible(
        weighting in prop::sample::select(vec![Weighting::Equal, Weighting::Examples, Weighting::Steps]),
        nodes in prop::collection::vec((1..=5000_u32, 1..100_000_u32, 0.0..4000.0_f64), 3..20),
        momentum in 0.0..0.99_f64,
        pull in 0.0..0.5_f64,
    ) {
        let cohort = u32::try_from(nodes.len()).unwrap();
        let terms = terms(WITHSTANDS, (3, cohort), weighting, 5000).unwrap();
        let width = check_terms(&terms).unwrap();
        let mut sums = vec![0_i64; Behind::len(weighting)];
        for (examples, steps, loss) in &nodes {
            let counts = Counts::of(&terms, &training(momentum, pull), (*examples, *steps)).unwrap();
            prop_assert!(u64::from(counts.factor) <= factor_max(&terms));
            let metrics = LocalMetrics { loss: *loss, accuracy: Some(1.0), train_ms: 0 };
            for (sum, value) in sums.iter_mut().zip(Behind::of(&metrics, counts)) {
                *sum += value;
            }
        }
        prop_assert!(sums.iter().all(|sum| ring::centre(*sum, width) == *sum), "the ring holds them");
        let totals = Behind::totals(&sums, nodes.len() as u64, &terms, true).unwrap();
        let weight: u64 = nodes.iter().map(|node| u64::from(node.0)).sum();
        prop_assert_eq!(totals.weight, if weighting == Weighting::Equal { nodes.len() as u64 } else { weight });
        prop_assert!((totals.accuracy.unwrap() - 1.0).abs() < 1e-9);
        // Control: of one node more, or with a mask left, they are not.
        prop_assert!(Behind::totals(&sums, 6000 * nodes.len() as u64, &terms, true).is_err());
        for place in 0..sums.len() {
            let mut wrong = sums.clone();
            wrong[place] = -(1 << 40);
            prop_assert!(Behind::totals(&wrong, nodes.len() as u64, &terms, true).is_err());
        }
    }
}

#[test]
fn a_node_that_has_more_examples_than_the_round_counts_sends_nothing() {
    for weighting in [Weighting::Examples, Weighting::Steps] {
        let terms = terms(WITHSTANDS, (3, 5), weighting, 16).unwrap();
        let of = |examples| Counts::of(&terms, &training(0.0, 0.0), (examples, 4));
        assert!(of(16).is_ok() && of(17).unwrap_err().contains("at most 16"));
    }
    let equal = terms(WITHSTANDS, (3, 5), Weighting::Equal, 16).unwrap();
    assert!(Counts::of(&equal, &training(0.0, 0.0), (17, 4)).is_ok());
}

#[test]
fn terms_whose_ring_is_too_narrow_for_their_weighting_are_refused() {
    let by_steps = terms(WITHSTANDS, (3, 5), Weighting::Steps, 16).unwrap();
    assert_eq!(check_terms(&by_steps), Ok(Width::B64));
    let narrow = SecureTerms { bits: 48, ..by_steps };
    assert!(check_terms(&narrow).unwrap_err().contains("needs 64"));
    let by_examples = SecureTerms { weighting: Weighting::Examples, ..narrow };
    assert_eq!(check_terms(&by_examples), Ok(Width::B48), "control: wide enough for another weighting");
}

#[test]
fn another_scale_is_another_sum() {
    let of = |examples| multiplied(&terms(WITHSTANDS, (3, 5), Weighting::Steps, examples).unwrap());
    assert_ne!(of(16), of(32));
    let of = |examples| multiplied(&terms(WITHSTANDS, (3, 5), Weighting::Examples, examples).unwrap());
    assert_eq!(of(16), of(32), "control: these factors are the examples themselves");
}
