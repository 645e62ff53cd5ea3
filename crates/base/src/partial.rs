//! The unit that travels upward: a partial sum over some contributors.
//!
//! One update is a [`Partial`] of one contributor; a sum of sums is a `Partial` again, so a tree of aggregators is
//! just another producer of the same message. Merging is associative and commutative to the bit.

use crate::digest::Digest;

/// A weighted sum of quantised updates over one block of coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// Sum over contributors of weight * q, one integer a coordinate.
    pub sum: Vec<i64>,
    /// Sum of the contributors' weights (examples).
    pub weight: u64,
    /// Number of contributors.
    pub count: u32,
    /// XOR of the BLAKE3 of each contribution: independent of order, differs if one is missing, foreign or doubled.
    pub contributors: Digest,
}

/// Why two partial sums cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartialError {
    /// They cover different numbers of coordinates.
    #[error("partial sums of {0} and {1} coordinates cannot be added")]
    Shape(usize, usize),
    /// A sum left the range of 64-bit integers.
    #[error("the sum overflows 64 bits: the job's max_examples, cohort or range is too large")]
    Overflow,
    /// An integer lies outside the grid that the round's plan fixed.
    #[error("a value exceeds the grid's bound")]
    OutOfRange,
}

impl Partial {
    /// The empty sum over `len` coordinates.
    #[must_use]
    pub fn zero(len: usize) -> Self {
        Self { sum: vec![0; len], weight: 0, count: 0, contributors: Digest([0; 32]) }
    }

    /// Adds one contributor's block: little-endian i32 values, its weight, and the digest of its whole update.
    ///
    /// # Errors
    /// [`PartialError::OutOfRange`] for a value beyond `bound` or a sum beyond 64 bits; the sum is then unusable.
    pub fn add(&mut self, block: &[u8], weight: u32, bound: i32, digest: &Digest) -> Result<(), PartialError> {
        if block.len() != self.sum.len() * 4 {
            return Err(PartialError::Shape(self.sum.len(), block.len() / 4));
        }
        if !crate::fixed::add_weighted(&mut self.sum, block, weight, bound) {
            return Err(PartialError::OutOfRange);
        }
        self.weight += u64::from(weight);
        self.count += 1;
        xor(&mut self.contributors, digest);
        Ok(())
    }

    /// Adds another partial sum over the same coordinates.
    ///
    /// # Errors
    /// Different shapes or overflow; `self` is then unusable.
    pub fn merge(&mut self, other: &Self) -> Result<(), PartialError> {
        if self.sum.len() != other.sum.len() {
            return Err(PartialError::Shape(self.sum.len(), other.sum.len()));
        }
        for (a, b) in self.sum.iter_mut().zip(&other.sum) {
            *a = a.checked_add(*b).ok_or(PartialError::Overflow)?;
        }
        self.weight += other.weight;
        self.count += other.count;
        xor(&mut self.contributors, &other.contributors);
        Ok(())
    }
}

fn xor(into: &mut Digest, other: &Digest) {
    for (a, b) in into.0.iter_mut().zip(other.0) {
        *a ^= b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::to_bytes;

    #[test]
    fn any_tree_equals_the_flat_sum() {
        let updates: Vec<_> = (0..5i32).map(|i| (to_bytes(&[i, -i, 3 * i]), 10 + u32::try_from(i).unwrap())).collect();
        let leaf = |(block, weight): &(Vec<u8>, u32)| {
            let mut p = Partial::zero(3);
            p.add(block, *weight, 100, &Digest::of(block)).unwrap();
            p
        };
        let mut flat = Partial::zero(3);
        for (block, weight) in &updates {
            flat.add(block, *weight, 100, &Digest::of(block)).unwrap();
        }
        let mut left = leaf(&updates[3]);
        left.merge(&leaf(&updates[1])).unwrap();
        let mut right = leaf(&updates[4]);
        right.merge(&leaf(&updates[0])).unwrap();
        right.merge(&leaf(&updates[2])).unwrap();
        right.merge(&left).unwrap();
        assert_eq!(right, flat);
    }
}
