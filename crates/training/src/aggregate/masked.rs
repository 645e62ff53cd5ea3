//! The sum of masked updates: added up in the ring as they were sent, freed of the masks that are left, read as integers.
//!
//! Values are streamed: a block of each update is added to the block's sums, then the key streams of the same block. Nothing
//! scales with participants x model. Behind the values of an update lie a few more
//! ([`Behind`]), which say with what factors the updates were multiplied and what their nodes measured, in sum.

use std::fmt::Debug;

use aivillage_base::NodeName;
use aivillage_base::wire::secure::SecureTerms;
use aivillage_privacy::secagg::coordinator::{self, Unopened};
use aivillage_privacy::secagg::mask::{self, MaskKey, Sign};
use aivillage_privacy::secagg::ring::{self, Width};
use aivillage_privacy::secagg::roster::Listed;
use aivillage_privacy::secagg::signed::Context;
use serde::{Deserialize, Serialize};

use super::{Sums, WorkError};
use crate::secure::{self, Behind};
use crate::step::{ComputeError, ComputePlan, Opened};

/// What is learnt of a masked round beside its model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Sum of what the updates count: of examples, or of nodes where all count the same.
    pub weight: u64,
    /// More, where the weights are not the factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepTotals>,
    /// Mean loss over the last local epoch, weighted by factors.
    pub loss: f64,
    /// Mean share of rows that the received model classified right, weighted by factors; None for regression.
    pub accuracy: Option<f64>,
}

/// What is learnt of the steps behind a sum that is normalised by them: see [`fednova`](crate::strategy::fednova).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTotals {
    /// Sum of the factors of the updates.
    pub factors: u64,
    /// Sum of their coefficients.
    pub coefficients: u64,
}

/// Bytes of masked updates, wherever they lie.
pub(super) trait PackedRows: Sync + Debug {
    /// Fills `out` with bytes of update `row` from `offset`.
    fn read_packed(&self, row: usize, offset: u64, out: &mut [u8]) -> Result<(), WorkError>;
}

/// A sum of masked updates.
#[derive(Debug)]
pub(super) struct Masked<'a> {
    rows: &'a dyn PackedRows,
    /// Summands: of these updates, and of the helper's answer.
    summands: usize,
    count: usize,
    masks: Vec<(MaskKey, Sign)>,
    width: Width,
    totals: Totals,
    divisor: f64,
}

impl<'a> Masked<'a> {
    /// The sum of `count` updates of `values` values, and of what else is among the `summands`; reads what lies behind them.
    ///
    /// # Errors
    /// What lies behind cannot be true: a mask is missing, or a node lied.
    pub(super) fn open(
        rows: &'a dyn PackedRows,
        (summands, count, values): (usize, usize, usize),
        masks: Vec<(MaskKey, Sign)>,
        terms: &SecureTerms,
        classifies: bool,
    ) -> Result<Self, WorkError> {
        let width = secure::width(terms).ok_or_else(|| WorkError::Unusable(no_ring(terms)))?;
        let totals = Totals { weight: 1, steps: None, loss: 0.0, accuracy: None };
        let mut masked = Self { rows, summands, count, masks, width, totals, divisor: 1.0 };
        let mut behind = vec![0; Behind::len(terms.weighting)];
        masked.read(values, &mut behind)?;
        masked.totals = Behind::totals(&behind, count as u64, terms, classifies).map_err(WorkError::Unusable)?;
        masked.divisor = secure::divisor(terms, &masked.totals);
        Ok(masked)
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }
}

impl Sums for Masked<'_> {
    fn count(&self) -> u32 {
        u32::try_from(self.count).unwrap_or(u32::MAX)
    }

    fn factors(&self) -> u64 {
        self.totals.steps.map_or(self.totals.weight, |steps| steps.factors)
    }

    fn divisor(&self) -> f64 {
        self.divisor
    }

    fn read(&self, start: usize, out: &mut [i64]) -> Result<(), WorkError> {
        let before = start % mask::UNIT;
        if before > 0 {
            let mut longer = vec![0; before + out.len()];
            self.read(start - before, &mut longer)?;
            out.copy_from_slice(&longer[before..]);
            return Ok(());
        }
        out.fill(0);
        let size = self.width.bytes();
        let mut bytes = vec![0; out.len() * size];
        for row in 0..self.summands {
            self.rows.read_packed(row, (start * size) as u64, &mut bytes)?;
            ring::unpack_add(&bytes, self.width, out);
        }
        mask::apply(&self.masks, self.width, start as u64, out);
        ring::centre_all(out, self.width);
        Ok(())
    }
}

/// Bytes of a masked update of `values` values.
pub(super) fn payload_bytes(values: usize, terms: &SecureTerms) -> Result<u64, ComputeError> {
    secure::payload_bytes(values, terms).ok_or_else(|| ComputeError::Unusable(no_ring(terms)))
}

fn no_ring(terms: &SecureTerms) -> String {
    format!("there is no ring of {} bits", terms.bits)
}

/// The masks that the survivors' sum still has.
pub(super) fn unmasking(plan: &ComputePlan, opened: &Opened) -> Result<Vec<(MaskKey, Sign)>, ComputeError> {
    if opened.help.is_some() {
        return Ok(Vec::new());
    }
    let unusable = |why: String| ComputeError::Unusable(format!("the sum cannot be opened: {why}"));
    let listed = Listed::new(Context(opened.ctx.0), &opened.terms, opened.adverts.clone());
    let roster = listed.and_then(|listed| listed.draw(&opened.reveals));
    let roster = roster.map_err(|alarm| unusable(alarm.to_string()))?;
    let survivors: Vec<NodeName> = plan.accepted.iter().map(|(name, _)| name.clone()).collect();
    let commitments = opened.commitments.iter().map(|(name, hash)| (name.clone(), hash.0)).collect();
    let found = coordinator::unmask(&roster, &opened.sharers, &survivors, &commitments, &opened.openings);
    let found = found.map_err(|e| match e {
        Unopened::Wrong { of, why } => ComputeError::BadShares { node: of, detail: why },
        Unopened::TooFew { .. } => unusable(e.to_string()),
    })?;
    for (holder, of) in &found.wrong {
        tracing::warn!(key = %plan.key, %holder, dealer = %of, "a share was wrong, as dealt or as passed on; the secret was rebuilt without it");
    }
    Ok(found.masks)
}
