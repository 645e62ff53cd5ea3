//! Thresholds: the published tables, exact fractions, and the attack itself where it can be tried out.

use num_bigint::BigUint;

use super::*;

const CURIOUS: Assumptions = Assumptions {
    corrupt: 0.2,
    dropout: 0.25,
    adversary: Adversary::Curious,
    security_bits: 40.0,
    correctness_bits: 30.0,
};
const SEMI: Assumptions = Assumptions { adversary: Adversary::SemiMalicious, ..CURIOUS };

fn pair(plan: Result<Plan, NoThreshold>) -> (usize, usize) {
    plan.map(|plan| (plan.neighbours, plan.threshold)).unwrap()
}

#[test]
fn random_graphs_have_the_parameters_of_the_design() {
    let tenth = Assumptions { corrupt: 0.1, dropout: 0.1, ..SEMI };
    let table = [
        (CURIOUS, [(10, 6, 3), (32, 16, 7), (100, 46, 21), (320, 96, 47), (1000, 134, 66)].as_slice()),
        (SEMI, &[(320, 220, 143), (1000, 486, 317)]),
        (tenth, &[(100, 32, 22), (320, 80, 55), (1000, 114, 78)]),
    ];
    for (assumptions, rows) in table {
        for &(n, k, t) in rows {
            assert_eq!(pair(sparse(n, &assumptions)), (k, t), "{n} {assumptions:?}");
            assert_eq!(pair(with_neighbours(n, k, &assumptions)), (k, t));
            with_neighbours(n, k - 2, &assumptions).unwrap_err();
        }
    }
}

#[test]
fn full_graphs_have_the_thresholds_of_the_design() {
    for (n, t) in [(10, 7), (32, 20), (100, 61)] {
        assert_eq!(pair(full(n, &SEMI)), (n - 1, t));
        assert_eq!(pair(choose(n, &SEMI)), (n - 1, t));
        assert_eq!(pair(with_neighbours(n, n - 1, &SEMI)), (n - 1, t));
    }
    assert_eq!(pair(choose(3, &SEMI)), (2, 2));
    assert_eq!(pair(choose(128, &SEMI)).0, 127);
    assert!(pair(choose(129, &SEMI)).0 < 128);
}

/// Vectors of Google's `graph_parameter_finder_test.cc` (federated-compute), 40 and 20 bits. In three rows ours is larger:
/// it draws neighbours from n, the participant among them, and finds 822/417 and 228/115 where n - 1 others need more; and
/// once (4/2) it raises the threshold to 2 without asking whether two stay.
#[test]
fn random_graphs_have_the_parameters_that_google_published() {
    let rows = [
        (100, 0.45, 0.45, Adversary::Curious, 92, 46),
        (1000, 0.45, 0.45, Adversary::Curious, 824, 418),
        (10, 0.05, 0.33, Adversary::Curious, 6, 2),
        (10, 0.33, 0.33, Adversary::Curious, 8, 4),
        (100, 0.33, 0.33, Adversary::Curious, 68, 34),
        (1000, 0.33, 0.33, Adversary::Curious, 286, 150),
        (10_000, 0.33, 0.33, Adversary::Curious, 422, 221),
        (100, 0.3, 0.3, Adversary::SemiMalicious, 92, 62),
        (1000, 0.3, 0.3, Adversary::SemiMalicious, 872, 584),
        (100, 0.05, 0.33, Adversary::Curious, 28, 6),
        (10_000, 0.05, 0.33, Adversary::Curious, 86, 29),
        (10, 0.05, 0.33, Adversary::SemiMalicious, 8, 5),
        (1000, 0.05, 0.33, Adversary::SemiMalicious, 398, 223),
        (10, 0.33, 0.05, Adversary::Curious, 4, 4),
        (100, 0.33, 0.05, Adversary::SemiMalicious, 42, 37),
        (10_000, 0.33, 0.05, Adversary::SemiMalicious, 178, 146),
        (100_000, 0.33, 0.05, Adversary::Curious, 102, 77),
        (100_000, 0.05, 0.05, Adversary::SemiMalicious, 68, 48),
        (1000, 0.33, 0.0, Adversary::SemiMalicious, 38, 37),
        (1000, 0.0, 0.33, Adversary::Curious, 38, 2),
        (1000, 0.0, 0.33, Adversary::SemiMalicious, 230, 116),
        (1000, 0.0, 0.0, Adversary::SemiMalicious, 2, 2),
    ];
    for (n, corrupt, dropout, adversary, k, t) in rows {
        let assumptions = Assumptions { corrupt, dropout, adversary, correctness_bits: 20.0, ..SEMI };
        assert_eq!(pair(sparse(n, &assumptions)), (k, t), "{n} {assumptions:?}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_numbers() {
    assert_eq!(full(2, &SEMI), Err(NoThreshold::TooFew { participants: 2 }));
    assert_eq!(sparse(0, &SEMI), Err(NoThreshold::TooFew { participants: 0 }));
    let half = Assumptions { dropout: 0.5, ..SEMI };
    let error = full(10, &half).unwrap_err();
    let numbers =
        NoThreshold::Contradiction { participants: 10, corrupt: 2, dropped: 5, neighbours: 9, needed: 7, available: 5 };
    assert_eq!(error, numbers);
    assert!(error.to_string().contains("it would have to be 7, and only 5 shares"), "{error}");
    sparse(1000, &half).unwrap_err();
    for k in [0, 1, 7, 11, 12] {
        assert!(matches!(with_neighbours(11, k, &SEMI), Err(NoThreshold::Neighbours { .. })), "{k}");
    }
    // 2 neighbours: two bad ones tear the ring.
    assert!(matches!(with_neighbours(1000, 2, &CURIOUS), Err(NoThreshold::Neighbours { .. })));
}

#[test]
fn fractions_that_are_none_are_never_safe() {
    for bad in [f64::NAN, -0.1, 1.0, f64::INFINITY] {
        for assumptions in [Assumptions { corrupt: bad, ..SEMI }, Assumptions { dropout: bad, ..SEMI }] {
            for n in [3, 10, 200] {
                full(n, &assumptions).unwrap_err();
                sparse(n, &assumptions).unwrap_err();
                with_neighbours(n, n / 2 * 2 - 2, &assumptions).unwrap_err();
            }
        }
        sparse(200, &Assumptions { security_bits: f64::NAN, ..SEMI })
            .map(|plan| assert_eq!(plan.neighbours, 199))
            .unwrap();
    }
}

#[test]
fn products_just_below_a_whole_number_count_as_whole() {
    assert_eq!((count(100, 0.29), count(30, 0.1), count(10, 0.25), count(7, 0.0)), (29, 3, 2, 0));
}

#[test]
fn the_full_graph_withstands_every_split_view_that_it_admits() {
    for n in 3..60 {
        for (corrupt, dropout) in [(0.0, 0.3), (0.2, 0.25), (0.3, 0.1), (0.33, 0.33)] {
            let assumptions = Assumptions { corrupt, dropout, ..SEMI };
            let Ok(Plan { threshold, .. }) = full(n, &assumptions) else { continue };
            let (corrupt, dropped) = (count(n, corrupt), count(n, dropout));
            // Each honest holder answers one question, each corrupt one both.
            assert!((n - corrupt) + 2 * corrupt < 2 * threshold);
            assert!(threshold <= n - dropped);
        }
    }
}

/// C(n, k), exactly.
fn binomial(n: usize, k: usize) -> BigUint {
    if k > n {
        return BigUint::ZERO;
    }
    (0..k).fold(BigUint::from(1u8), |product, i| product * (n - i) / (i + 1))
}

/// Whether the definition holds, in exact fractions.
fn holds(n: usize, k: usize, t: usize, assumptions: &Assumptions) -> bool {
    let (corrupt, dropped) = (count(n, assumptions.corrupt), count(n, assumptions.dropout));
    let ways_at_least = |marked: usize, x: usize| -> BigUint {
        (x..=k).map(|x| binomial(marked, x) * binomial(n - 1 - marked, k - x)).sum()
    };
    let seen = match assumptions.adversary {
        Adversary::Curious => t,
        Adversary::SemiMalicious => (2 * t).saturating_sub(k),
    };
    let all = binomial(n - 1, k);
    let (security, correctness) = (assumptions.security_bits as usize + 1, assumptions.correctness_bits as usize);
    let even = k / 2 * 2;
    let pairs = binomial(corrupt + dropped, even) * n * (n - even - 1);
    ((ways_at_least(corrupt, seen) * n) << security) <= all
        && ((ways_at_least(dropped, k + 1 - t) * n) << correctness) <= all
        && (pairs << security) <= binomial(n, even) * 2u8
}

#[test]
fn tails_agree_with_exact_fractions() {
    let mut both = [0, 0];
    for n in [4, 5, 8, 11, 16, 21, 30, 45] {
        for k in (2..n - 1).filter(|k| k % 2 == 0 || n % 2 == 0) {
            for (corrupt, dropout, bits) in [(0.2, 0.25, 40.0), (0.1, 0.1, 10.0), (0.0, 0.3, 5.0), (0.3, 0.2, 3.0)] {
                for adversary in [Adversary::Curious, Adversary::SemiMalicious] {
                    let assumptions =
                        Assumptions { corrupt, dropout, adversary, security_bits: bits, correctness_bits: bits / 2.0 };
                    let expected = (2..=k).find(|t| holds(n, k, *t, &assumptions));
                    let found = with_neighbours(n, k, &assumptions).ok().map(|plan| plan.threshold);
                    assert_eq!(found, expected, "{n} {k} {assumptions:?}");
                    both[usize::from(found.is_some())] += 1;
                }
            }
        }
    }
    assert!(both.iter().all(|count| *count > 100), "both outcomes were seen: {both:?}");
}
