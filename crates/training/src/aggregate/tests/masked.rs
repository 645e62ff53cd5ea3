//! A sum under masks gives the plain rule's model of the same updates: to the bit, whatever they are and whoever is left.

use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{LocalMetrics, LocalTraining};
use aivillage_privacy::secagg::mask::{MaskKey, Sign};
use proptest::prelude::*;
use serde_json::json;

use super::naive::{Updates, Vector, made, strategy};
use crate::aggregate::masked::{Masked, PackedRows};
use crate::aggregate::{Floats, Tensor, Work, WorkError};
use crate::secure::{Counts, WITHSTANDS, check_terms, masked, terms};
use crate::strategy::Contribution;
use crate::testing::spec;

/// Masked updates in memory.
#[derive(Debug)]
struct Packed(Vec<Vec<u8>>);

impl PackedRows for Packed {
    fn read_packed(&self, row: usize, offset: u64, out: &mut [u8]) -> Result<(), WorkError> {
        let start = usize::try_from(offset).map_err(|e| WorkError::Read(e.to_string()))?;
        let found = self.0[row].get(start..start + out.len());
        out.copy_from_slice(found.ok_or_else(|| WorkError::Read("cut".to_owned()))?);
        Ok(())
    }
}

fn mask_of(node: usize, sign: Sign) -> (MaskKey, Sign) {
    (MaskKey::derive(&[u8::try_from(node).unwrap(); 32], &[1; 32], "a test"), sign)
}

/// What a node has done: its update, its examples, its steps.
type Node = (Vec<i32>, u32, u32);

fn cohort(count: usize, values: usize, examples_max: u32, seed: u64) -> Vec<Node> {
    let mut rng = SeededRng::new("a masked cohort", seed, &[]);
    let bound = Grid::default().bound;
    let mut below = |n: u32| u32::try_from(rng.below(n.into())).unwrap();
    let value = |drawn: u32| i32::try_from(drawn).unwrap() - bound;
    let node = |_| {
        let update = (0..values).map(|_| value(below(2 * bound.unsigned_abs() + 1))).collect();
        (update, 1 + below(examples_max), if below(5) == 0 { u32::MAX } else { 1 + below(5000) })
    };
    (0..count).map(node).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_masked_sum_is_the_plain_sum_of_its_survivors(
        (count, values) in (3..12_usize, 1..60_usize),
        gone in prop::collection::vec(any::<bool>(), 12),
        examples_max in 1..100_000_u32,
        momentum in prop_oneof![Just(0.0), 0.0..0.99_f64],
        mu in prop_oneof![Just(0.0), 0.0..9.0_f64],
        seed in any::<u64>(),
    ) {
        let training = LocalTraining { learning_rate: 0.1, momentum, proximal_mu: mu, ..spec(1, 1, 1).training };
        let invited = u32::try_from(count).unwrap();
        let nodes = cohort(count, values, examples_max, seed);
        let left: Vec<usize> = (0..count).filter(|i| *i < 3 || !gone[*i]).collect();
        let tensors = [Tensor { len: values, grid: Grid::default(), personal: false, variances: false }];
        let model = Vector(vec![0.5; values]);
        let zeros = Vector(vec![0.25; values]);
        for rule in ["fedavg", "fednova", "fedadam", "fedprox"].map(|name| strategy(name, json!({}))) {
            let terms = terms(WITHSTANDS, (3, invited), rule.rule().weighting().unwrap(), examples_max).unwrap();
            let width = check_terms(&terms).unwrap();
            let contribution = |i: &usize| {
                let (_, weight, steps) = nodes[*i];
                Contribution { weight, steps, initial_loss: None, staleness: 0 }
            };
            let contributions: Vec<Contribution> = left.iter().map(contribution).collect();
            let work = Work {
                strategy: &rule,
                round: 3,
                training: &training,
                population: invited,
                examples_max: Some(examples_max),
                contributions: &contributions,
                sums: None,
                tensors: &tensors,
                model: &model,
                state: rule.rule().slots().iter().map(|_| Some(&zeros as &dyn Floats)).collect(),
                threads: 1,
            };
            let updates = Updates(left.iter().map(|i| nodes[*i].0.clone()).collect());
            let plain = made(work.clone(), &updates).unwrap();
            let packed = left.iter().map(|i| {
                let (update, examples, steps) = &nodes[*i];
                let counts = Counts::of(&terms, &training, (*examples, *steps)).unwrap();
                masked(to_bytes(update), counts, &LocalMetrics::default(), &[mask_of(*i, Sign::Add)], width)
            });
            let packed = Packed(packed.collect());
            let masks = left.iter().map(|i| mask_of(*i, Sign::Subtract)).collect();
            let sums = Masked::open(&packed, (left.len(), left.len(), values), masks, &terms, false).unwrap();
            let under_masks = Work { sums: Some(&sums), contributions: &[], ..work };
            prop_assert_eq!(made(under_masks, &updates).unwrap(), plain, "{}", rule.name());
            // Control: with one mask left, the sum is noise, and what lies behind it says so.
            let masks = left[1..].iter().map(|i| mask_of(*i, Sign::Subtract)).collect();
            prop_assert!(Masked::open(&packed, (left.len(), left.len(), values), masks, &terms, false).is_err());
        }
    }
}
