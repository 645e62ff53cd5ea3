//! From a closed round to its model: block by block, in the memory of one block.
//!
//! Reads the model and every accepted update once, [`BLOCK`] coordinates at a time, sums integers and writes the next
//! bundle through a hashing blob writer. What is read is hashed on the way, so damage is found before the model is stored.
//! Nothing here depends on the order of updates, so the same accepted set gives the same bytes whatever happened before.
//! Memory: one block of the model, one of an update, one of the sum, and a hash state of 2 KB an update.

use aivillage_base::Digest;
use aivillage_base::arch::TensorSpec;
use aivillage_base::bundle;
use aivillage_base::fixed::Grid;
use aivillage_base::partial::Partial;
use aivillage_base::ports::{Blobs, Records, StoreError};
use bytes::Bytes;

use crate::step::{ComputeError, ComputePlan, Made};
use crate::store;
use crate::strategy::{Block, Choice, Contribution, Facts, Geometry};

/// Coordinates a block: 256 KiB of each update, 512 KiB of sums.
pub const BLOCK: usize = 64 * 1024;

/// A run of coordinates of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: usize,
    len: usize,
    grid: Grid,
}

/// Makes and stores the round's model.
///
/// # Errors
/// [`ComputeError::BadUpdate`] names a member whose update cannot be used; [`ComputeError::Store`] may pass.
pub async fn run(plan: &ComputePlan, records: &dyn Records, blobs: &dyn Blobs) -> Result<Made, ComputeError> {
    let broken = |e: &dyn std::fmt::Display| ComputeError::Store(e.to_string());
    let contributions: Vec<Contribution> = plan.accepted.iter().map(|(_, c)| c.contribution(plan.key.round)).collect();
    let geometry = Geometry::default();
    let facts = Facts {
        round: plan.key.round,
        training: &plan.training,
        population: plan.invited,
        contributions: &contributions,
        geometry: &geometry,
    };
    let Choice::Mean { weights: each, divisor, .. } =
        plan.strategy.rule().choose(&facts).map_err(ComputeError::Unusable)?
    else {
        return Err(ComputeError::Unusable("ranks are not built".to_owned()));
    };
    let layout = plan.architecture.layout().map_err(|e| broken(&e))?;
    let header = bundle::header_bytes(&plan.architecture).map_err(|e| broken(&e))?;
    let parameters: usize = layout.iter().map(TensorSpec::len).sum();
    let data_offset = header.len() as u64;
    let front = blobs.read_at(&plan.model_in.digest, 0, header.len()).await.map_err(|e| broken(&e))?;
    let mut model_hash = blake3::Hasher::new();
    model_hash.update(&front);
    let mut hashes = vec![blake3::Hasher::new(); plan.accepted.len()];
    let mut writer = blobs.writer(plan.model_in.bytes).await.map_err(|e| broken(&e))?;
    writer.write(header.into()).await.map_err(|e| broken(&e))?;
    for start in (0..parameters).step_by(BLOCK) {
        let len = BLOCK.min(parameters - start);
        let offset = data_offset + start as u64 * 4;
        let block = blobs.read_at(&plan.model_in.digest, offset, len * 4).await.map_err(|e| broken(&e))?;
        model_hash.update(&block);
        let mut weights: Vec<f32> = block.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if weights.len() != len {
            return Err(ComputeError::Store(format!("model {} is cut", plan.model_in.digest)));
        }
        let segments = segments(&layout, &plan.grids, start, len);
        sum_block(plan, records, blobs, start, &segments, &mut weights, &mut hashes, (&facts, &each, divisor)).await?;
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        writer.write(bytes.into()).await.map_err(|e| broken(&e))?;
    }
    if Digest::from(model_hash.finalize()) != plan.model_in.digest {
        return Err(ComputeError::Store(format!("model {} is damaged", plan.model_in.digest)));
    }
    for ((node, counted), hash) in plan.accepted.iter().zip(&hashes) {
        if Digest::from(hash.finalize()) != counted.payload.digest {
            let detail = format!("the stored update of {node} is not what was sent");
            return Err(ComputeError::BadUpdate { node: node.clone(), reason: "damaged", detail });
        }
    }
    let model = writer.finish().await.map_err(|e| broken(&e))?;
    Ok(Made { model, state: Vec::new() })
}

#[expect(clippy::too_many_arguments, reason = "one call, one block")]
async fn sum_block(
    plan: &ComputePlan,
    records: &dyn Records,
    blobs: &dyn Blobs,
    start: usize,
    segments: &[Segment],
    weights: &mut [f32],
    hashes: &mut [blake3::Hasher],
    (facts, weights_of, divisor): (&Facts<'_>, &[u32], f64),
) -> Result<(), ComputeError> {
    let mut sums: Vec<Partial> = segments.iter().map(|s| Partial::zero(s.len)).collect();
    for (((node, counted), hash), weight) in plan.accepted.iter().zip(hashes).zip(weights_of) {
        let bad = |reason, detail| ComputeError::BadUpdate { node: node.clone(), reason, detail };
        let block =
            read_update(plan, records, blobs, node, counted, start, weights.len()).await.map_err(|e| match e {
                StoreError::Damaged(what) => bad("damaged", what),
                StoreError::Conflict { .. }
                | StoreError::Fenced { .. }
                | StoreError::Full { .. }
                | StoreError::Unavailable(_) => ComputeError::Store(e.to_string()),
            })?;
        hash.update(&block);
        for (segment, sum) in segments.iter().zip(&mut sums) {
            let from = (segment.start - start) * 4;
            sum.add(&block[from..from + segment.len * 4], *weight, segment.grid.bound, &counted.payload.digest)
                .map_err(|e| bad("out_of_range", e.to_string()))?;
        }
    }
    for (segment, sum) in segments.iter().zip(&sums) {
        let from = segment.start - start;
        #[expect(clippy::cast_precision_loss, reason = "rounded once, the same way everywhere")]
        let direction: Vec<f64> = sum.sum.iter().map(|s| *s as f64 / divisor * segment.grid.step()).collect();
        let block = &mut weights[from..from + segment.len];
        plan.strategy.rule().apply(
            facts,
            &mut Block { weights: block, direction: &direction, second: &[], state: &mut [], grid: segment.grid },
        );
    }
    Ok(())
}

/// One block of one update, exactly as long as asked.
async fn read_update(
    plan: &ComputePlan,
    records: &dyn Records,
    blobs: &dyn Blobs,
    node: &aivillage_base::NodeName,
    counted: &crate::record::Counted,
    start: usize,
    len: usize,
) -> Result<Bytes, StoreError> {
    let bytes = if counted.inline {
        let whole = store::payload(records, &plan.key, node).await?;
        let whole = whole.ok_or_else(|| StoreError::Damaged(format!("the update of {node} is missing")))?;
        let end = ((start + len) * 4).min(whole.len());
        whole.slice((start * 4).min(end)..end)
    } else {
        blobs.read_at(&counted.payload.digest, start as u64 * 4, len * 4).await?
    };
    if bytes.len() == len * 4 { Ok(bytes) } else { Err(StoreError::Damaged(format!("the update of {node} is cut"))) }
}

/// The runs of coordinates `start..start + len`, tensor by tensor.
fn segments(layout: &[TensorSpec], grids: &[Grid], start: usize, len: usize) -> Vec<Segment> {
    let end = start + len;
    let mut out = Vec::new();
    let mut at = 0;
    for (tensor, grid) in layout.iter().zip(grids) {
        let (from, to) = (at.max(start), (at + tensor.len()).min(end));
        if from < to {
            out.push(Segment { start: from, len: to - from, grid: *grid });
        }
        at += tensor.len();
    }
    out
}

#[cfg(test)]
mod tests;
