//! Sorting networks: which pairs of places to order so that every rank that matters stands in its place.
//!
//! Knuth, The Art of Computer Programming vol. 3, section 5.2.2, algorithm M (Batcher's merge exchange): about
//! n/4 log2(n)^2 comparisons, the same for all columns, so that many columns are sorted at once without a branch. Comparisons
//! that cannot change the result are left out: what two places hold in the end may be swapped if both belong to one class.

/// Pairs (a, b), a < b: the smaller value goes to place a. `class` says what a rank counts for: ranks of one class are only
/// known together.
pub(super) fn network(count: usize, class: impl Fn(usize) -> usize) -> Vec<(u16, u16)> {
    let all = merge_exchange(u16::try_from(count).unwrap_or(u16::MAX));
    let mut classes: Vec<Option<usize>> = (0..count).map(|rank| Some(class(rank))).collect();
    let mut kept: Vec<(u16, u16)> = Vec::with_capacity(all.len());
    for (a, b) in all.into_iter().rev() {
        let (i, j) = (usize::from(a), usize::from(b));
        if classes[i].is_some() && classes[i] == classes[j] {
            continue;
        }
        (classes[i], classes[j]) = (None, None);
        kept.push((a, b));
    }
    kept.reverse();
    kept
}

fn merge_exchange(count: u16) -> Vec<(u16, u16)> {
    let mut pairs = Vec::new();
    let top = count.max(1).next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            let from = (0..count - d).filter(|i| i & p == r);
            pairs.extend(from.map(|i| (i, i + d)));
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network sorts everything if it sorts all zeros and ones (Knuth, theorem Z).
    #[test]
    fn every_row_of_zeros_and_ones_is_sorted() {
        for count in 1..=12 {
            let pairs = network(count, |rank| rank);
            for bits in 0..1_u32 << count {
                let mut values: Vec<u32> = (0..count).map(|i| bits >> i & 1).collect();
                for (a, b) in &pairs {
                    let (a, b) = (usize::from(*a), usize::from(*b));
                    (values[a], values[b]) = (values[a].min(values[b]), values[a].max(values[b]));
                }
                assert!(values.is_sorted(), "{count} values {bits:b} became {values:?}");
            }
        }
    }

    #[test]
    fn what_counts_together_costs_less() {
        let of = |class: &dyn Fn(usize) -> usize| network(100, class).len();
        assert_eq!(of(&|rank| rank), 1077);
        assert_eq!(of(&|rank| usize::from((49..51).contains(&rank))), 888);
        assert_eq!(of(&|rank| usize::from((10..90).contains(&rank))), 860);
        assert_eq!(of(&|_| 0), 0);
        assert_eq!(network(1, |rank| rank), []);
    }
}
