//! Sorting networks: which pairs of places to order so that every rank that matters stands in its place.
//!
//! Knuth, The Art of Computer Programming vol. 3, section 5.2.2, algorithm M (Batcher's merge exchange): about
//! n/4 log2(n)^2 comparisons, the same for all columns, so that many columns are sorted at once without a branch. Comparisons
//! that cannot change the result are left out: what two places hold in the end may be swapped if both belong to one class.

/// One pair of a chain. One of its values is at hand; the other is in row `load`. Of both ordered, one goes to row `store`,
/// the other stays at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) load: u16,
    pub(super) store: u16,
    /// The smaller one stays at hand.
    pub(super) keep_low: bool,
}

/// Pairs each of which shares a place with the one before: a kernel loads and stores once a pair instead of twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Row at hand in the beginning.
    pub(super) first: u16,
    /// Row of what is at hand in the end.
    pub(super) last: u16,
    pub(super) steps: Vec<Step>,
}

/// What puts each rank of `count` values that matters into its place. `class` says what a rank counts for: ranks of one class
/// are only known together.
pub(super) fn network(count: usize, class: impl Fn(usize) -> usize) -> Vec<Chain> {
    chains(count, &pairs(count, class))
}

/// Pairs (a, b), a < b: the smaller value goes to place a.
fn pairs(count: usize, class: impl Fn(usize) -> usize) -> Vec<(u16, u16)> {
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

/// The same pairs in another order that keeps the order on each place.
fn chains(count: usize, pairs: &[(u16, u16)]) -> Vec<Chain> {
    let mut waiting = Waiting::new(count, pairs);
    let mut chains = Vec::new();
    for pair in 0..pairs.len() {
        if !waiting.is_next(pair) {
            continue;
        }
        let mut chain = Chain { first: pairs[pair].0, last: pairs[pair].0, steps: Vec::new() };
        let mut next = Some(pair);
        while let Some(pair) = next {
            let (low, high) = pairs[pair];
            waiting.take(pair);
            next = waiting.follower(pair);
            // What goes on, or the smaller one where nothing does.
            let keep_low = next.is_none_or(|next| pairs[next].0 == low || pairs[next].1 == low);
            let (kept, store) = if keep_low { (low, high) } else { (high, low) };
            chain.steps.push(Step { load: if chain.last == low { high } else { low }, store, keep_low });
            chain.last = kept;
        }
        chains.push(chain);
    }
    chains
}

/// Pairs that are left, by place.
struct Waiting<'p> {
    pairs: &'p [(u16, u16)],
    /// Of each place the pairs that are left, the next one last.
    places: Vec<Vec<usize>>,
}

impl<'p> Waiting<'p> {
    fn new(count: usize, pairs: &'p [(u16, u16)]) -> Self {
        let mut places = vec![Vec::new(); count];
        for (i, (a, b)) in pairs.iter().enumerate().rev() {
            places[usize::from(*a)].push(i);
            places[usize::from(*b)].push(i);
        }
        Self { pairs, places }
    }

    fn ends(&self, pair: usize) -> [usize; 2] {
        let (a, b) = self.pairs[pair];
        [a, b].map(usize::from)
    }

    /// Is nothing before it on both places?
    fn is_next(&self, pair: usize) -> bool {
        self.ends(pair).iter().all(|place| self.places[*place].last() == Some(&pair))
    }

    fn take(&mut self, pair: usize) {
        for place in self.ends(pair) {
            self.places[place].pop();
        }
    }

    /// A pair that can come right after this one, which was taken: rather one that has a follower itself.
    fn follower(&mut self, pair: usize) -> Option<usize> {
        let next = |w: &Self, pair| {
            let last = w.ends(pair).map(|place| w.places[place].last().copied().filter(|next| w.is_next(*next)));
            last.into_iter().flatten().collect::<Vec<usize>>()
        };
        let found = next(self, pair);
        let goes_on = found.iter().copied().find(|candidate| {
            self.take(*candidate);
            let goes_on = !next(self, *candidate).is_empty();
            for place in self.ends(*candidate) {
                self.places[place].push(*candidate);
            }
            goes_on
        });
        goes_on.or_else(|| found.first().copied())
    }
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
            let chains = network(count, |rank| rank);
            for bits in 0..1_u32 << count {
                let mut values: Vec<u32> = (0..count).map(|i| bits >> i & 1).collect();
                for chain in &chains {
                    let mut hand = values[usize::from(chain.first)];
                    for step in &chain.steps {
                        let other = values[usize::from(step.load)];
                        let (low, high) = (hand.min(other), hand.max(other));
                        hand = if step.keep_low { low } else { high };
                        values[usize::from(step.store)] = if step.keep_low { high } else { low };
                    }
                    values[usize::from(chain.last)] = hand;
                }
                assert!(values.is_sorted(), "{count} values {bits:b} became {values:?}");
            }
        }
    }

    #[test]
    fn what_counts_together_costs_less() {
        let of = |class: &dyn Fn(usize) -> usize| pairs(100, class).len();
        assert_eq!(of(&|rank| rank), 1077);
        assert_eq!(of(&|rank| usize::from((49..51).contains(&rank))), 888);
        assert_eq!(of(&|rank| usize::from((10..90).contains(&rank))), 860);
        assert_eq!(of(&|_| 0), 0);
        assert_eq!(network(1, |rank| rank), []);
    }

    #[test]
    fn chains_leave_no_pair_out_and_have_three_or_more_on_average() {
        for middle in [49..51, 10..90] {
            let pairs = pairs(100, |rank| usize::from(middle.contains(&rank)));
            let chains = chains(100, &pairs);
            assert_eq!(chains.iter().map(|chain| chain.steps.len()).sum::<usize>(), pairs.len());
            assert!(chains.len() * 3 < pairs.len(), "{} chains of {} pairs", chains.len(), pairs.len());
        }
    }
}
