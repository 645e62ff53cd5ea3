//! Updates as integers: one grid per tensor, quantised once at the node, summed exactly.
//!
//! A value x becomes q = round-half-even(x / step), |q| <= bound, with step = 2^exponent. Sums of w*q in 64-bit
//! integers do not depend on order, so neither does the model. The grid is part of the round's plan; how its range
//! is chosen is the coordinator's business.

use serde::{Deserialize, Serialize};

/// The grid of one tensor: step 2^`exponent`, integers within ±`bound`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// log2 of the step; -60 to 60.
    pub exponent: i32,
    /// Largest magnitude of an integer; 1 to 2^31 - 1.
    pub bound: i32,
}

/// A value that has no place on any grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("value {index} is not finite: the update has diverged, nothing of it may leave")]
pub struct NotFinite {
    /// Index of the value within the tensor.
    pub index: usize,
}

impl Default for Grid {
    /// Step 2^-20, range ±8: wide enough for one round's change of a weight, 24 bits.
    fn default() -> Self {
        Self { exponent: -20, bound: (1 << 23) - 1 }
    }
}

impl Grid {
    /// The step as a number.
    #[must_use]
    pub fn step(self) -> f64 {
        f64::powi(2.0, self.exponent)
    }

    /// The largest magnitude that is not clipped.
    #[must_use]
    pub fn range(self) -> f64 {
        f64::from(self.bound) * self.step()
    }

    /// Quantises `values` and appends them to `out`; returns how many were clipped to the bound.
    ///
    /// # Errors
    /// [`NotFinite`] at the first NaN or infinity; `out` is then as long as it was.
    pub fn quantise(self, values: &[f32], out: &mut Vec<i32>) -> Result<u64, NotFinite> {
        let inverse = f64::powi(2.0, -self.exponent);
        let bound = f64::from(self.bound);
        let start = out.len();
        let mut clipped = 0;
        out.reserve(values.len());
        for (index, value) in values.iter().enumerate() {
            if !value.is_finite() {
                out.truncate(start);
                return Err(NotFinite { index });
            }
            let q = (f64::from(*value) * inverse).round_ties_even();
            if q.abs() > bound {
                clipped += 1;
            }
            #[expect(clippy::cast_possible_truncation, reason = "clamped to the bound, an i32")]
            out.push(q.clamp(-bound, bound) as i32);
        }
        Ok(clipped)
    }
}

/// Integers as they travel: 4 bytes each, little endian.
#[must_use]
pub fn to_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests;
