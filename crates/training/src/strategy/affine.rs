//! Distances from a point that exists only as a combination of others.
//!
//! For z = sum_j a_j x_j with sum_j a_j = 1:  |x_i - z|^2 = sum_j a_j d_ij^2 - 1/2 sum_jk a_j a_k d_jk^2.
//! So an iteration over updates of any length needs their distances only: O(n^2) a step, and no weight of the model.

use super::Geometry;
use super::exact::Scale;

/// Distances of each point from the combination with these shares (>= 0, of sum 1), one share a point.
///
/// Do not depend on the order of the points. Cancellation makes a distance below 2^-26 of the largest one unreliable;
/// none is negative.
pub(super) fn distances(geometry: &Geometry, shares: &[f64]) -> Vec<f64> {
    let all = &geometry.distances_squared;
    let scale = Scale::new(all.iter().copied().fold(0.0, f64::max));
    let mean = |distances: &mut dyn Iterator<Item = f64>| {
        scale.number(distances.zip(shares).map(|(d, share)| scale.units(d * share)).sum())
    };
    let to_each: Vec<f64> = all.chunks_exact(shares.len()).map(|row| mean(&mut row.iter().copied())).collect();
    let spread = mean(&mut to_each.iter().copied()) / 2.0;
    to_each.into_iter().map(|d| (d - spread).max(0.0).sqrt()).collect()
}

/// `radius` / `distance`, at most 1: what shortens a vector of this length to the radius.
pub(super) fn shrink(radius: f64, distance: f64) -> f64 {
    if distance <= radius { 1.0 } else { radius / distance }
}
