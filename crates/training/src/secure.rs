//! What secure aggregation means for a round: terms, the values behind an update, masking. The protocol itself, its keys and
//! its checks are in the crate `privacy`; this says what it is applied to.
//!
//! A masked update is the plain one, value by value times the factor that the strategy gives its node, so the sum over the
//! survivors is the very integer that a plain round adds up: same bits, same model.

use aivillage_base::fixed::Grid;
use aivillage_base::wire::LocalMetrics;
use aivillage_base::wire::secure::{GraphKind, SecureTerms, Withstands};
use aivillage_privacy::secagg::mask::{self, MaskKey, Sign};
use aivillage_privacy::secagg::ring::{self, Overflow, Width};
use aivillage_privacy::secagg::roster::COHORT_MIN;
pub use aivillage_privacy::secagg::threshold::FULL_GRAPH_MAX;

use crate::aggregate::Totals;
use crate::strategy::Weighting;

/// Version of the protocol that this program speaks.
pub const VERSION: u32 = 1;
/// Name of the technique in a job.
pub const TECHNIQUE: &str = "secure_aggregation";
/// Values behind an update: its factor, and the node's measurements times the factor.
pub const BEHIND: usize = 3;
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
    let weight_max = factor(weighting, examples_max);
    let bound = u64::from(Grid::default().bound.unsigned_abs());
    let width = Width::for_sum(u64::from(cohort), u64::from(weight_max), bound)?;
    Ok(SecureTerms {
        version: VERSION,
        cohort_min: min,
        cohort_max: cohort,
        bits: width.bits(),
        by_examples: weighting == Weighting::Examples,
        weight_max,
        graph: graph(cohort, FULL_GRAPH_MAX),
        withstands,
    })
}

/// Bytes of a masked update of `values` values.
#[must_use]
pub fn payload_bytes(values: usize, width: Width) -> u64 {
    ((values + BEHIND) * width.bytes()) as u64
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
    let bound = u64::from(Grid::default().bound.unsigned_abs());
    let needed = Width::for_sum(u64::from(terms.cohort_max), u64::from(terms.weight_max), bound);
    let needed = needed.map_err(|e| e.to_string())?;
    match width(terms) {
        Some(width) if width >= needed => Ok(width),
        Some(_) | None => {
            Err(format!("a ring of {} bits does not hold the sum, which needs {}", terms.bits, needed.bits()))
        }
    }
}

/// What an update of `examples` examples is multiplied by under these terms.
#[must_use]
pub fn factor_of(terms: &SecureTerms, examples: u32) -> u32 {
    let weighting = if terms.by_examples { Weighting::Examples } else { Weighting::Equal };
    factor(weighting, examples).clamp(1, terms.weight_max)
}

/// What an update of `examples` examples is multiplied by.
fn factor(weighting: Weighting, examples: u32) -> u32 {
    match weighting {
        Weighting::Examples => examples,
        Weighting::Equal => 1,
    }
}

/// The values behind an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind;

impl Behind {
    /// Of one node, before the factor is applied.
    #[must_use]
    fn of(metrics: &LocalMetrics) -> [i64; BEHIND] {
        let bound = f64::from(Grid::default().bound);
        let on_grid = |value: f64, scale: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "clamped to 24 bits; NaN becomes 0")]
            let units = (value * scale).round_ties_even().clamp(0.0, bound) as i64;
            units
        };
        [1, on_grid(metrics.loss, LOSS_SCALE), on_grid(metrics.accuracy.unwrap_or(0.0), ACCURACY_SCALE)]
    }

    /// What the sums say, if the factors can add up to `least` to `most`.
    ///
    /// # Errors
    /// One sentence: they cannot be true.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn totals(sums: [i64; BEHIND], (least, most): (u64, u64), classifies: bool) -> Result<Totals, String> {
        let [factors, loss, accuracy] = sums;
        let possible = |factors: &u64| (least..=most).contains(factors);
        let Some(factors) = u64::try_from(factors).ok().filter(possible) else {
            return Err(format!(
                "the opened sum of weights is not what honest nodes give ({least} to {most}): a mask is missing, or a node \
                 sent values beyond the round's bound"
            ));
        };
        let bound = i128::from(Grid::default().bound) * i128::from(factors);
        if !(0..=bound).contains(&i128::from(loss)) || !(0..=bound).contains(&i128::from(accuracy)) {
            return Err("the opened sums of losses and accuracies are not what honest nodes give".to_owned());
        }
        let mean = |sum: i64, scale: f64| sum as f64 / scale / factors as f64;
        let accuracy = classifies.then(|| mean(accuracy, ACCURACY_SCALE));
        Ok(Totals { factors, loss: mean(loss, LOSS_SCALE), accuracy })
    }
}

/// The bytes of a masked update: values times factor, then what lies behind them, under these masks.
///
/// `values` are the plain update's integers, little endian, 4 bytes each.
#[must_use]
pub fn masked(values: &[u8], factor: u32, metrics: &LocalMetrics, masks: &[(MaskKey, Sign)], width: Width) -> Vec<u8> {
    let (values, size) = (values.as_chunks::<4>().0, width.bytes());
    let behind = Behind::of(metrics);
    let total = values.len() + BEHIND;
    let mut out = vec![0; total * size];
    let mut words = Vec::with_capacity(BLOCK);
    for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
        let (start, len) = (i * BLOCK, out.len() / size);
        let inside = &values[start.min(values.len())..(start + len).min(values.len())];
        words.clear();
        words.extend(inside.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes)) * i64::from(factor)));
        let first = (start + inside.len()).saturating_sub(values.len());
        words.extend(behind[first..].iter().take(len - inside.len()).map(|value| value * i64::from(factor)));
        mask::apply(masks, width, start as u64, &mut words);
        ring::pack(&words, width, out);
    }
    out
}
