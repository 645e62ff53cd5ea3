//! Each loop at each level of the processor, against its definition in f64.

use aivillage_base::rng::SeededRng;
use proptest::prelude::*;

use super::*;

const LEVELS: [Level; 3] = [Level::Any, Level::Avx2, Level::Avx512];

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SeededRng::new("test numbers", seed, &[]);
    #[expect(clippy::cast_possible_truncation, reason = "test data")]
    let numbers = (0..n).map(|_| (2.0 * rng.unit() - 1.0) as f32).collect();
    numbers
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Each level is close to `want`, those with fused multiply-add agree to the bit, and the same level gives the same twice.
fn check(want: &[f64], terms: usize, mut at: impl FnMut(Level) -> Vec<f32>) {
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let allowed = 1e-6 * (terms as f64 + 2.0);
    for level in LEVELS {
        let got = at(level);
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*got) - want).abs() <= allowed, "{level:?} {i}: {got} {want}");
        }
        assert_eq!(bits(&got), bits(&at(level)));
    }
    if Level::here() == Level::Avx512 {
        assert_eq!(bits(&at(Level::Avx2)), bits(&at(Level::Avx512)));
    }
}

proptest! {
    #[test]
    fn a_product_is_its_definition(rows in 1usize..40, inner in 1usize..30, columns in 1usize..40, start: bool, seed: u64) {
        let (left, right) = (numbers(rows * inner, seed), numbers(inner * columns, seed ^ 1));
        let first = if start { numbers(columns, seed ^ 2) } else { Vec::new() };
        let left_at = |m: usize, k: usize| f64::from(left[m * inner + k]);
        let mut want = Vec::new();
        for m in 0..rows {
            for n in 0..columns {
                let sum: f64 = (0..inner).map(|k| left_at(m, k) * f64::from(right[k * columns + n])).sum();
                want.push(sum + first.get(n).map_or(0.0, |v| f64::from(*v)));
            }
        }
        let mut transposed = vec![0.0; left.len()];
        for m in 0..rows {
            for k in 0..inner {
                transposed[k * rows + m] = left[m * inner + k];
            }
        }
        let product = |left, how| Product {
            left, how, rows, inner, right: &right, right_row: columns, start: &first, columns, result_row: columns,
        };
        for product in [
            product(left.as_slice(), Left::Pieces { row: inner, run: inner, line: 0 }),
            product(transposed.as_slice(), Left::Transposed { line: rows }),
        ] {
            check(&want, inner, |level| {
                let mut result = vec![f32::NAN; rows * columns];
                product_at(level, &product, &mut result);
                result
            });
        }
    }

    #[test]
    fn rows_may_overlap_and_come_in_pieces(
        rows in 1usize..35, step in 1usize..4, run in 1usize..9, lines in 1usize..4, columns in 1usize..20, seed: u64,
    ) {
        let line = (rows - 1) * step + run;
        let (image, right) = (numbers(line * lines, seed), numbers(run * lines * columns, seed ^ 1));
        let mut want = vec![0.0; rows * columns];
        for m in 0..rows {
            for k in 0..run * lines {
                for n in 0..columns {
                    let x = f64::from(image[m * step + k / run * line + k % run]);
                    want[m * columns + n] += x * f64::from(right[k * columns + n]);
                }
            }
        }
        let product = Product {
            left: &image, how: Left::Pieces { row: step, run, line }, rows, inner: run * lines, right: &right,
            right_row: columns, start: &[], columns, result_row: columns,
        };
        check(&want, run * lines, |level| {
            let mut result = vec![f32::NAN; rows * columns];
            product_at(level, &product, &mut result);
            result
        });
    }

    #[test]
    fn both_halves_of_a_sparse_gradient_are_their_definitions(
        lines in 1usize..6, chunks in 1usize..4, slack in 0usize..9, places in prop::collection::vec(0usize..40, 0..30), seed: u64,
    ) {
        let window = Window { lines, stride: chunks * LANES + slack, chunks };
        let image = numbers(40 + lines * window.stride + LANES, seed);
        let weight = numbers(window.len(), seed ^ 1);
        let values = numbers(places.len(), seed ^ 2);
        let spikes: Vec<_> = places.iter().zip(&values).map(|(at, value)| Spike { at: *at, value: *value }).collect();
        let place = |unit: usize| unit / (chunks * LANES) * window.stride + unit % (chunks * LANES);
        let mut sums = vec![0.5; window.len()];
        let mut scattered: Vec<f64> = image.iter().map(|v| f64::from(*v)).collect();
        for spike in &spikes {
            for (unit, sum) in sums.iter_mut().enumerate() {
                *sum += f64::from(spike.value) * f64::from(image[spike.at + place(unit)]);
                scattered[spike.at + place(unit)] += f64::from(spike.value) * f64::from(weight[unit]);
            }
        }
        check(&sums, places.len(), |level| {
            let mut sums = vec![0.5; window.len()];
            gather_at(level, &spikes, &image, window, &mut sums);
            sums
        });
        check(&scattered, places.len(), |level| {
            let mut image = image.clone();
            scatter_at(level, &spikes, &weight, window, &mut image);
            image
        });
    }
}
