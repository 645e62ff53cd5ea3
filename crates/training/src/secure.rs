//! What secure aggregation means for a round: terms, the values behind an update, masking. The protocol itself, its keys and
//! its checks are in the crate `privacy`; this says what it is applied to.
//!
//! A masked update is the plain one, value by value times the factor that the strategy gives its node, so the sum over the
//! survivors is the very integer that a plain round adds up: same bits, same model. It is masked where it lies: no second copy
//! of it is made.

use aivillage_base::fixed::Grid;
use aivillage_base::wire::secure::{GraphKind, SecureTerms, Weighting, Withstands};
use aivillage_base::wire::{LocalMetrics, LocalTraining};
use aivillage_privacy::secagg::helper::{self, HELPED_MAX};
use aivillage_privacy::secagg::mask::{self, MaskKey, Sign};
use aivillage_privacy::secagg::ring::{self, Overflow, Width};
use aivillage_privacy::secagg::roster::COHORT_MIN;
pub use aivillage_privacy::secagg::threshold::FULL_GRAPH_MAX;

use crate::aggregate::{StepTotals, Totals};
use crate::strategy::fednova::{PART_MAX, Part, Scale};

/// Version of the protocol that this program speaks.
pub const VERSION: u32 = 1;
/// Name of the technique in a job.
pub const TECHNIQUE: &str = "secure_aggregation";
/// Most bytes that a masked update has beyond 4 a value, in a ring of up to 32 bits.
pub(crate) const BEHIND_BYTES: usize = 5 * PLAIN;
/// Bytes of a value of a plain update.
const PLAIN: usize = 4;
/// Values masked at a time.
const BLOCK: usize = 16 * 1024;
/// Steps of a loss a unit; losses of 2,047 and more look like 2,047.
const LOSS_SCALE: f64 = 4096.0;
/// Steps of an accuracy a unit.
const ACCURACY_SCALE: f64 = 1_048_576.0;

/// Largest cohort: what is kept and sent of keys grows with its square, and the gateway has to hold it.
pub const COHORT_MAX: u32 = 320;

/// What a job withstands if it does not say, and what each node asks for at least: a fifth of the cohort works with the coordinator, a quarter leaves, and the
/// coordinator lies about who is left.
pub const WITHSTANDS: Withstands =
    Withstands { corrupt: 0.2, dropout: 0.25, lying_coordinator: true, neighbours: None };

/// The ring of these terms.
#[must_use]
pub fn width(terms: &SecureTerms) -> Option<Width> {
    Width::ALL.into_iter().find(|width| width.bits() == terms.bits)
}

/// Who masks with whom in a cohort of this size.
#[must_use]
pub fn graph(cohort: u32, full_max: u32) -> GraphKind {
    if cohort <= full_max { GraphKind::Full } else { GraphKind::Drawn }
}

/// The terms of a round of `cohort` nodes, of which at least `min` must survive, none with more than `examples_max` examples.
///
/// # Errors
/// [`Overflow`] with the numbers if no ring holds the sum.
pub fn terms(
    withstands: Withstands,
    (min, cohort): (u32, u32),
    weighting: Weighting,
    examples_max: u32,
) -> Result<SecureTerms, Overflow> {
    let examples_max = if weighting == Weighting::Equal { 1 } else { examples_max };
    let (version, cohort_min, cohort_max, bits) = (VERSION, min, cohort, 0);
    let graph = graph(cohort, FULL_GRAPH_MAX);
    let terms =
        SecureTerms { version, cohort_min, cohort_max, bits, weighting, examples_max, graph, withstands, helper: None };
    Ok(SecureTerms { bits: needed(&terms)?.bits(), ..terms })
}

/// The narrowest ring that holds the sums of these terms.
fn needed(terms: &SecureTerms) -> Result<Width, Overflow> {
    let (cohort, bound) = (u64::from(terms.cohort_max), u64::from(Grid::default().bound.unsigned_abs()));
    let values = Width::for_sum(cohort, factor_max(terms), bound)?;
    match terms.weighting {
        Weighting::Equal | Weighting::Examples => Ok(values),
        Weighting::Steps => Ok(values.max(Width::for_sum(cohort, 1, PART_MAX)?)),
    }
}

/// Largest factor.
fn factor_max(terms: &SecureTerms) -> u64 {
    match terms.weighting {
        Weighting::Equal => 1,
        Weighting::Examples => u64::from(terms.examples_max),
        Weighting::Steps => scale(terms).factor_max(),
    }
}

/// The scale of factors that depend on steps.
fn scale(terms: &SecureTerms) -> Scale {
    Scale::new(terms.examples_max, terms.cohort_max)
}

/// What, beside a node's training, an update is multiplied by: terms that differ here make another sum of the same updates.
pub(crate) fn multiplied(terms: &SecureTerms) -> (Weighting, u32) {
    let bits = if terms.weighting == Weighting::Steps { scale(terms).bits() } else { 0 };
    (terms.weighting, bits)
}

/// What the sum of updates is divided by.
#[must_use]
pub(crate) fn divisor(terms: &SecureTerms, totals: &Totals) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 examples")]
    let weight = totals.weight as f64;
    let steps = |steps: StepTotals| scale(terms).divisor(totals.weight, steps.coefficients.into());
    totals.steps.map_or(weight, steps)
}

/// Bytes of a masked update of `values` values; None if there is no such ring.
#[must_use]
pub fn payload_bytes(values: usize, terms: &SecureTerms) -> Option<u64> {
    Some(((values + Behind::len(terms.weighting)) * width(terms)?.bytes()) as u64)
}

/// Are these terms safe? Asked by each node for itself: the coordinator's word is not enough.
///
/// # Errors
/// One sentence: another version, a threshold that withstands less than [`WITHSTANDS`] asks of it, a cohort too small or too
/// large, a ring that does not hold the sum.
pub fn check_terms(terms: &SecureTerms) -> Result<Width, String> {
    if terms.version != VERSION {
        return Err(format!("the terms are of version {}, this node speaks {VERSION}", terms.version));
    }
    if terms.helper.is_some() {
        return check_helped(terms);
    }
    let Withstands { corrupt, lying_coordinator, neighbours, .. } = terms.withstands;
    if !lying_coordinator || corrupt.is_nan() || corrupt < WITHSTANDS.corrupt || neighbours.is_some() {
        return Err(format!(
            "the terms let the coordinator off too lightly: this node asks for a threshold against one that lies and has {} of \
             the cohort on its side, and itself computes how many neighbours that takes",
            WITHSTANDS.corrupt
        ));
    }
    if terms.cohort_min < COHORT_MIN || terms.cohort_max > COHORT_MAX {
        let (min, max) = (terms.cohort_min, terms.cohort_max);
        return Err(format!("a cohort of {min} to {max} is outside {COHORT_MIN} to {COHORT_MAX}"));
    }
    // A drawn graph is as safe in a small cohort: its threshold is computed for each size. The full one costs too much.
    if terms.graph == GraphKind::Full && terms.cohort_max > FULL_GRAPH_MAX {
        let max = terms.cohort_max;
        return Err(format!("all of {max} would mask with all, which is more work than {FULL_GRAPH_MAX} may ask for"));
    }
    check_ring(terms)
}

/// [`check_terms`] where a helper takes the masks away: there is no threshold to look at. Whether the node trusts the helper
/// is its owner's to say.
fn check_helped(terms: &SecureTerms) -> Result<Width, String> {
    if !terms.helper.is_some_and(|key| helper::is_vouched_for(&key)) {
        return Err("the helper's key does not vouch for the key that seeds are to be sealed to".to_owned());
    }
    if terms.cohort_min < COHORT_MIN || terms.cohort_max > HELPED_MAX {
        let (min, max) = (terms.cohort_min, terms.cohort_max);
        return Err(format!("a cohort of {min} to {max} with a helper is outside {COHORT_MIN} to {HELPED_MAX}"));
    }
    check_ring(terms)
}

fn check_ring(terms: &SecureTerms) -> Result<Width, String> {
    let needed = needed(terms).map_err(|e| e.to_string())?;
    match width(terms) {
        Some(width) if width >= needed => Ok(width),
        Some(_) | None => {
            Err(format!("a ring of {} bits does not hold the sum, which needs {}", terms.bits, needed.bits()))
        }
    }
}

/// What one update counts in a masked sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// What its values are multiplied by.
    factor: u32,
    /// What its measurements are multiplied by.
    weight: u32,
    /// Where the factor depends on steps.
    coefficients: Option<u64>,
}

impl Counts {
    /// What an update of so many examples and steps counts under these terms.
    ///
    /// # Errors
    /// One sentence: the round's sums have no place for it.
    pub fn of(terms: &SecureTerms, training: &LocalTraining, (examples, steps): (u32, u32)) -> Result<Self, String> {
        let most = terms.examples_max;
        // With fewer examples than it has, the sum would be another than the plain one.
        if terms.weighting != Weighting::Equal && examples > most {
            return Err(format!(
                "trained on {examples} rows, and the round counts at most {most}: report the data anew"
            ));
        }
        Ok(match terms.weighting {
            Weighting::Equal => Self { factor: 1, weight: 1, coefficients: None },
            Weighting::Examples => Self { factor: examples.max(1), weight: examples.max(1), coefficients: None },
            Weighting::Steps => {
                let part = Part::of(examples, steps, training, scale(terms))?;
                Self { factor: part.factor, weight: part.examples, coefficients: Some(part.coefficients) }
            }
        })
    }
}

/// The values behind an update: what it counts, the node's measurements times that, and where they depend on steps its
/// coefficients and its factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind;

impl Behind {
    /// How many there are.
    #[must_use]
    pub fn len(weighting: Weighting) -> usize {
        match weighting {
            Weighting::Equal | Weighting::Examples => 3,
            Weighting::Steps => 5,
        }
    }

    /// Of one node.
    fn of(metrics: &LocalMetrics, counts: Counts) -> Vec<i64> {
        let bound = f64::from(Grid::default().bound);
        let weight = i64::from(counts.weight);
        let on_grid = |value: f64, scale: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "clamped to 24 bits; NaN becomes 0")]
            let units = (value * scale).round_ties_even().clamp(0.0, bound) as i64;
            units * weight
        };
        let loss = on_grid(metrics.loss, LOSS_SCALE);
        let mut behind = vec![weight, loss, on_grid(metrics.accuracy.unwrap_or(0.0), ACCURACY_SCALE)];
        if let Some(coefficients) = counts.coefficients {
            behind.extend([coefficients.cast_signed(), i64::from(counts.factor)]);
        }
        behind
    }

    /// What the sums over `count` updates say.
    ///
    /// # Errors
    /// One sentence: they cannot be true.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn totals(sums: &[i64], count: u64, terms: &SecureTerms, classifies: bool) -> Result<Totals, String> {
        let [weight, loss, accuracy, rest @ ..] = sums else {
            return Err("there is nothing behind the sum".to_owned());
        };
        let possible = |sum: &i64, (least, most): (u64, u64), what: &str| {
            u64::try_from(*sum).ok().filter(|sum| (least..=most).contains(sum)).ok_or_else(|| {
                format!(
                    "the opened sum of {what} is not what honest nodes give ({least} to {most}): a mask is missing, or a node \
                     sent values beyond the round's bound"
                )
            })
        };
        let weight = possible(weight, (count, count * u64::from(terms.examples_max)), "weights")?;
        let bound = i128::from(Grid::default().bound) * i128::from(weight);
        if !(0..=bound).contains(&i128::from(*loss)) || !(0..=bound).contains(&i128::from(*accuracy)) {
            return Err("the opened sums of losses and accuracies are not what honest nodes give".to_owned());
        }
        let steps = match rest {
            [coefficients, factors] => {
                // No update counts more than its examples at one step, and none has smaller coefficients.
                let one_step = weight << scale(terms).bits();
                Some(StepTotals {
                    factors: possible(factors, (count, one_step), "factors")?,
                    coefficients: possible(coefficients, (one_step, count * PART_MAX), "coefficients of steps")?,
                })
            }
            _ => None,
        };
        let mean = |sum: i64, scale: f64| sum as f64 / scale / weight as f64;
        let accuracy = classifies.then(|| mean(*accuracy, ACCURACY_SCALE));
        Ok(Totals { weight, steps, loss: mean(*loss, LOSS_SCALE), accuracy })
    }
}

/// The bytes of a masked update: values times factor, then what lies behind them, under these masks.
///
/// `values` are the plain update's integers, little endian, 4 bytes each. They are masked where they lie: in a narrower ring
/// from the front, in a wider one from the back, so that a block is always read before anything is written over it. With
/// `BEHIND_BYTES` to spare, a ring of up to 32 bits takes no more memory than the plain update.
#[must_use]
pub fn masked(
    mut values: Vec<u8>,
    counts: Counts,
    metrics: &LocalMetrics,
    masks: &[(MaskKey, Sign)],
    width: Width,
) -> Vec<u8> {
    let (count, size) = (values.len() / PLAIN, width.bytes());
    let behind = Behind::of(metrics, counts);
    let mut words = Vec::with_capacity(BLOCK);
    if size > PLAIN {
        values.reserve_exact((count + behind.len()) * size - values.len());
        values.resize(count * size, 0);
    }
    let blocks = count.div_ceil(BLOCK);
    for block in 0..blocks {
        let start = if size > PLAIN { blocks - 1 - block } else { block } * BLOCK;
        let len = BLOCK.min(count - start);
        words.clear();
        let plain = values[start * PLAIN..(start + len) * PLAIN].as_chunks::<PLAIN>().0;
        words.extend(plain.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes)) * i64::from(counts.factor)));
        mask::apply(masks, width, start as u64, &mut words);
        ring::pack(&words, width, &mut values[start * size..(start + len) * size]);
    }
    values.resize((count + behind.len()) * size, 0);
    // Masks begin at whole units of their streams.
    let before = count % mask::UNIT;
    words.clear();
    words.resize(before, 0);
    words.extend(&behind);
    mask::apply(masks, width, (count - before) as u64, &mut words);
    ring::pack(&words[before..], width, &mut values[count * size..]);
    values
}

#[cfg(test)]
mod tests;
