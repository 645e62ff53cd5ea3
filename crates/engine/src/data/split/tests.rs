//! The deal: complete, disjoint, unequal as asked, and the same for everybody.

use super::*;

fn rows_of(data: &Dataset) -> Vec<Vec<u32>> {
    (0..data.rows()).map(|r| data.x(r..r + 1).iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn every_row_is_dealt_once_or_tested() {
    for (which, nodes) in [(Bundled::Digits, 6), (Bundled::BreastCancer, 5)] {
        let split = split(which, nodes, 0.3, 1).unwrap();
        let mut all = rows_of(&split.test);
        all.extend(split.shards.iter().flat_map(rows_of));
        let mut want = rows_of(&bundled(which));
        all.sort();
        want.sort();
        assert_eq!(all, want);
        assert_eq!(split.test.rows(), bundled(which).rows() / 5);
        for (shard, counts) in split.shards.iter().zip(&split.table.counts) {
            assert!(shard.rows() >= SHARD_ROWS_MIN);
            assert_eq!(counts.iter().sum::<usize>(), shard.rows());
        }
    }
}

#[test]
fn the_same_seed_deals_the_same_and_another_does_not() {
    let deal = |seed| split(Bundled::Digits, 6, 0.3, seed).unwrap();
    assert_eq!(deal(1), deal(1));
    assert_ne!(deal(1).table, deal(2).table);
    assert_ne!(rows_of(&deal(1).test), rows_of(&deal(2).test));
}

#[test]
fn small_alpha_is_unequal_and_large_alpha_is_equal() {
    let spread = |alpha| {
        let counts = split(Bundled::Digits, 6, alpha, 3).unwrap().table.counts;
        let label = |l: usize| counts.iter().map(move |c| c[l]);
        (0..10).map(|l| label(l).max().unwrap() - label(l).min().unwrap()).sum::<usize>()
    };
    assert!(spread(0.1) > spread(1.0) && spread(1.0) > spread(1000.0), "{} {}", spread(0.1), spread(1000.0));
    assert!(spread(1e6) <= 20, "{}", spread(1e6));
}

#[test]
fn what_cannot_be_dealt_is_refused_with_the_way_out() {
    let text = |nodes, alpha| split(Bundled::Digits, nodes, alpha, 1).unwrap_err().to_string();
    assert!(text(0, 0.3).contains("1 to 71 nodes"));
    assert!(text(72, 0.3).contains("1 to 71 nodes"));
    assert!(text(60, 0.3).contains("fewer nodes or a larger alpha"));
    assert!(text(6, 0.0).contains("alpha 0"));
    assert!(text(6, f64::NAN).contains("alpha NaN"));
}

#[test]
fn gamma_variates_have_the_moments_of_their_shape() {
    let mut rng = SeededRng::new("test", 1, &[]);
    for shape in [0.3, 1.0, 4.5] {
        let draws: Vec<f64> = (0..40_000).map(|_| libm::exp(ln_gamma_variate(shape, &mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / 40_000.0;
        let variance = draws.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / 40_000.0;
        assert!((mean / shape - 1.0).abs() < 0.03, "shape {shape}: mean {mean}");
        assert!((variance / shape - 1.0).abs() < 0.08, "shape {shape}: variance {variance}");
    }
    assert!(dirichlet(6, 1e-3, &mut rng).iter().all(|p| p.is_finite()));
}
