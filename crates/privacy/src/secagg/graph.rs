//! Who masks and shares with whom: the Harary graph H(k, n) on a random order of the participants.
//!
//! Participants sit on a ring in the order drawn from a public seed; each has the k/2 nearest on either side as neighbours,
//! for odd k (n is even then) also the one opposite. Promises: symmetric, without loops, each has exactly k, connected even
//! after any k - 1 have left; k = n - 1 is the full graph. The order is an unbiased Fisher-Yates shuffle of BLAKE3's
//! extendable output, the same on every machine.
//!
//! The graph is safe only if nobody can choose the seed after they know who is who: it is a hash of everybody's nonces.

use aivillage_base::rng::SeededRng;

/// Who sits where on the ring: two numbers a participant, since a graph of a thousand with a hundred neighbours each is a
/// megabyte, and every participant has one.
#[derive(Debug, Clone)]
pub struct Graph {
    ring: Vec<u32>,
    places: Vec<u32>,
    k: usize,
}

impl Graph {
    /// The graph of the participants 0 to `n` - 1, each with `k` neighbours, for the `order` that all of them computed.
    ///
    /// # Panics
    /// Unless 2 <= `k` < `n` < 2^32, and `k` is even if `n` is odd: for others
    /// [`with_neighbours`](super::threshold::with_neighbours) gives no plan, because there is no such graph.
    #[must_use]
    pub fn new(n: usize, k: usize, order: &[u8; 32]) -> Self {
        assert!(
            2 <= k && k < n && (k.is_multiple_of(2) || n.is_multiple_of(2)),
            "no graph of {n} with {k} neighbours each"
        );
        let count = u32::try_from(n).expect("invariant: a roster has at most 65,534 places");
        let mut ring: Vec<u32> = (0..count).collect();
        SeededRng::new("secure aggregation graph", 0, &[order]).shuffle(&mut ring);
        let mut places = vec![0; n];
        for (place, participant) in (0..count).zip(&ring) {
            places[*participant as usize] = place;
        }
        Self { ring, places, k }
    }

    /// The neighbours of one participant, ascending.
    #[must_use]
    pub fn neighbours(&self, participant: usize) -> Vec<usize> {
        let (n, place) = (self.ring.len(), self.places[participant] as usize);
        let ahead = (1..=self.k / 2).map(|step| place + step);
        let behind = (1..=self.k / 2).map(|step| place + n - step);
        let opposite = (self.k % 2 == 1).then_some(place + n / 2);
        let at = |place: usize| self.ring[place % n] as usize;
        let mut mine: Vec<usize> = ahead.chain(behind).chain(opposite).map(at).collect();
        mine.sort_unstable();
        mine
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn neighbours(n: usize, k: usize, order: &[u8; 32]) -> Vec<Vec<usize>> {
        let graph = Graph::new(n, k, order);
        (0..n).map(|one| graph.neighbours(one)).collect()
    }

    /// Participants that hang together with `from` when the others have `left`.
    fn reached(graph: &[Vec<usize>], from: usize, left: &[usize]) -> usize {
        let mut seen: Vec<bool> = (0..graph.len()).map(|one| left.contains(&one)).collect();
        let mut queue = vec![from];
        seen[from] = true;
        let mut count = 0;
        while let Some(one) = queue.pop() {
            count += 1;
            for other in &graph[one] {
                if !std::mem::replace(&mut seen[*other], true) {
                    queue.push(*other);
                }
            }
        }
        count
    }

    #[test]
    fn the_graph_is_fixed_for_ever() {
        assert_eq!(neighbours(6, 3, &[0; 32]), GRAPH_6_3);
        assert_ne!(neighbours(6, 3, &[1; 32]), GRAPH_6_3);
    }

    const GRAPH_6_3: [[usize; 3]; 6] = [[1, 3, 5], [0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [0, 2, 4]];

    #[test]
    fn everybody_is_a_neighbour_in_the_full_graph() {
        for n in 3..20 {
            for (one, mine) in neighbours(n, n - 1, &[9; 32]).iter().enumerate() {
                assert_eq!(*mine, (0..n).filter(|other| *other != one).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn graphs_that_do_not_exist_are_refused() {
        for (n, k) in [(5, 3), (4, 4), (4, 1), (4, 0), (0, 0)] {
            std::panic::catch_unwind(|| neighbours(n, k, &[0; 32])).unwrap_err();
        }
    }

    #[test]
    fn every_pair_is_joined_equally_often() {
        let mut counts: HashMap<(usize, usize), u32> = HashMap::new();
        for seed in 0u32..8000 {
            let mut order = [0; 32];
            order[..4].copy_from_slice(&seed.to_le_bytes());
            for (one, mine) in neighbours(9, 4, &order).into_iter().enumerate() {
                mine.into_iter().for_each(|other| *counts.entry((one, other)).or_default() += 1);
            }
        }
        // 4 of 8 others: 4000 expected, standard deviation 45.
        assert_eq!(counts.len(), 72);
        assert!(counts.values().all(|count| (3775..4225).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn graphs_are_regular_symmetric_and_hang_together(n in 4usize..80, part in 0.0f64..1.0, order: [u8; 32]) {
            let k = 2 + (part * (n - 2) as f64) as usize;
            let k = if n % 2 == 1 { k / 2 * 2 } else { k };
            let graph = neighbours(n, k, &order);
            prop_assert_eq!(graph.len(), n);
            for (one, mine) in graph.iter().enumerate() {
                prop_assert_eq!(mine.len(), k);
                prop_assert!(mine.windows(2).all(|two| two[0] < two[1]), "sorted, none twice");
                prop_assert!(mine.iter().all(|other| *other != one && graph[*other].contains(&one)));
            }
            prop_assert_eq!(reached(&graph, 0, &[]), n);
        }

        #[test]
        fn the_graph_outlives_any_leavers_fewer_than_the_neighbours(
            n in 4usize..40, k in 2usize..10, order: [u8; 32], leavers in prop::collection::vec(any::<prop::sample::Index>(), 9),
        ) {
            let k = k.min(n - 1);
            let k = if n % 2 == 1 { k / 2 * 2 } else { k };
            let mut left: Vec<usize> = leavers.iter().take(k - 1).map(|leaver| leaver.index(n)).collect();
            left.sort_unstable();
            left.dedup();
            let from = (0..n).find(|one| !left.contains(one)).unwrap();
            prop_assert_eq!(reached(&neighbours(n, k, &order), from, &left), n - left.len());
        }
    }
}
