//! The unit that travels upward: a partial sum over some contributors.
//!
//! One update is a [`Partial`] of one contributor; a sum of sums is a `Partial` again, so a tree of aggregators is
//! just another producer of the same message. Merging is associative and commutative to the bit.

use aivillage_base::Digest;

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
}

impl Partial {
    /// A sum of the updates with these digests, whose weights add up to `weight`.
    #[must_use]
    pub fn of(sum: Vec<i64>, weight: u64, contributors: impl Iterator<Item = Digest>) -> Self {
        let mut partial = Self { sum, weight, count: 0, contributors: Digest([0; 32]) };
        for digest in contributors {
            partial.count += 1;
            xor(&mut partial.contributors, &digest);
        }
        partial
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
    use proptest::prelude::*;

    use super::*;

    /// A partial sum of one contributor.
    fn leaf(sum: Vec<i64>, weight: u64, name: u8) -> Partial {
        Partial::of(sum, weight, std::iter::once(Digest::of(&[name])))
    }

    proptest! {
        /// Joins two of the sums again and again, whichever come next, until one is left.
        #[test]
        fn any_tree_equals_the_flat_sum(
            values in prop::collection::vec((prop::collection::vec(-(1_i64 << 50)..1 << 50, 3), 1..1_000_u64), 1..20),
            turns in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let leaves = (0..).zip(&values).map(|(name, (sum, weight))| leaf(sum.clone(), *weight, name));
            let mut left: Vec<Partial> = leaves.collect();
            let flat = Partial::of(
                (0..3).map(|i| values.iter().map(|(sum, _)| sum[i]).sum()).collect(),
                values.iter().map(|(_, weight)| weight).sum(),
                (0..).zip(&values).map(|(name, _)| Digest::of(&[name])),
            );
            let mut turns = turns.iter();
            while left.len() > 1 {
                let a = left.swap_remove(turns.next().unwrap().index(left.len()));
                let b = turns.next().unwrap().index(left.len());
                left[b].merge(&a).unwrap();
            }
            prop_assert_eq!(&left[0], &flat);
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let mut one = leaf(vec![i64::MAX], 1, 1);
        assert_eq!(one.merge(&leaf(vec![0, 0], 1, 2)), Err(PartialError::Shape(1, 2)));
        assert_eq!(one.merge(&leaf(vec![1], 1, 2)), Err(PartialError::Overflow));
    }
}
