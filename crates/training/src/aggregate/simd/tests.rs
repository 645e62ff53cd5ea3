//! Each kernel against its scalar twin and against what it should be, on random input.

use aivillage_base::rng::SeededRng;
use proptest::prelude::*;

use super::super::network::network;
use super::*;

/// Equally long rows of integers of 24 bits and small ones.
fn rows(count: usize, lengths: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<i32>>> {
    (lengths, any::<u64>()).prop_map(move |(len, seed)| {
        let mut rng = SeededRng::new("kernel rows", seed, &[]);
        let mut value = move || {
            let width = if rng.below(4) == 0 { 3 } else { 1 << 23 };
            i32::try_from(rng.below(2 * width)).unwrap() - i32::try_from(width).unwrap()
        };
        (0..count).map(|_| (0..len).map(|_| value()).collect()).collect()
    })
}

/// Rows of 64 lanes, with many equal values and the ends of the range.
fn tile(counts: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<[i32; LANES]>> {
    (counts, any::<u64>()).prop_map(|(count, seed)| {
        let mut rng = SeededRng::new("kernel tile", seed, &[]);
        let mut value = move || {
            let bits = rng.next_u64();
            let any =
                i32::from_le_bytes([(bits >> 8) as u8, (bits >> 16) as u8, (bits >> 24) as u8, (bits >> 32) as u8]);
            [any, any % 3, i32::MAX, i32::MIN][[0, 0, 0, 1, 1, 1, 2, 3][(bits & 7) as usize]]
        };
        (0..count).map(|_| std::array::from_fn(|_| value())).collect()
    })
}

fn column(tile: &[[i32; LANES]], lane: usize) -> Vec<i64> {
    let mut column: Vec<i64> = tile.iter().map(|row| i64::from(row[lane])).collect();
    column.sort_unstable();
    column
}

proptest! {
    #[test]
    fn weighted_rows_are_added(rows in rows(4, 0..70), factors in prop::array::uniform4(0..1 << 30), before in -9_i64..9) {
        let slices: [&[i32]; 4] = std::array::from_fn(|k| &rows[k][..]);
        let mut wide = vec![before; rows[0].len()];
        let mut plain = wide.clone();
        let largest = rows.iter().flatten().map(|v| v.abs()).max().unwrap_or(0);
        prop_assert!(add(&mut wide, slices, factors, largest));
        prop_assert!(scalar::add(&mut plain, slices, factors, largest));
        prop_assert_eq!(&wide, &plain);
        for (i, sum) in wide.iter().enumerate() {
            let want: i64 = (0..4).map(|k| i64::from(rows[k][i]) * i64::from(factors[k])).sum();
            prop_assert_eq!(*sum, before + want);
        }
        prop_assert!(largest == 0 || !add(&mut wide, slices, factors, largest - 1));
        prop_assert!(largest == 0 || !scalar::add(&mut plain, slices, factors, largest - 1));
    }

    #[test]
    fn values_beyond_a_bound_are_seen(values in prop::collection::vec(any::<i32>(), 0..70), bound in 0..=i32::MAX) {
        let want = values.iter().all(|v| v.unsigned_abs() <= bound.unsigned_abs());
        prop_assert_eq!(scalar::within(&values, bound), want);
        let ends = (values.iter().copied().fold(0, i32::min), values.iter().copied().fold(0, i32::max));
        prop_assert_eq!(super::ends(&values), ends);
        prop_assert_eq!(scalar::ends(&values), ends);
        let largest = values.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
        if let Ok(largest) = i32::try_from(largest) {
            prop_assert!(scalar::within(&values, largest));
            prop_assert!(largest == 0 || !scalar::within(&values, largest - 1));
        }
    }

    #[test]
    fn products_and_squares_are_exact(rows in rows(6, 0..70)) {
        let (a, b) = (std::array::from_fn(|k| &rows[k][..]), std::array::from_fn(|k| &rows[3 + k][..]));
        let found = products(a, b);
        prop_assert_eq!(found, scalar::products(a, b));
        prop_assert_eq!(found, products_in_floats(a, b));
        for (i, line) in found.iter().enumerate() {
            for (j, product) in line.iter().enumerate() {
                let want: i64 = a[i].iter().zip(b[j]).map(|(x, y)| i64::from(*x) * i64::from(*y)).sum();
                prop_assert_eq!(*product, want);
            }
            prop_assert_eq!(square(a[i]), a[i].iter().map(|x| i64::from(*x).pow(2)).sum::<i64>());
            prop_assert_eq!(square(a[i]), scalar::square(a[i]));
        }
    }

    #[test]
    fn rows_are_ordered(tile in tile(2..=40)) {
        let chains = network(tile.len(), |rank| rank);
        let (mut wide, mut plain) = (tile.clone(), tile.clone());
        sort(&mut wide, &chains);
        scalar::sort(&mut plain, &chains);
        prop_assert_eq!(&wide, &plain);
        for lane in 0..LANES {
            let found: Vec<i64> = wide.iter().map(|row| i64::from(row[lane])).collect();
            prop_assert_eq!(found, column(&tile, lane));
        }
    }

    #[test]
    fn the_middle_is_what_a_sort_leaves(tile in tile(1..=30), part in 0.0..0.5_f64) {
        let cut = ((tile.len() as f64 * part) as usize).min((tile.len() - 1) / 2);
        let (mut wide, mut plain, mut all) = ([0; LANES], [0; LANES], [0; LANES]);
        middle(&tile, cut, &mut wide);
        scalar::middle(&tile, cut, &mut plain);
        total(&tile, &mut all);
        prop_assert_eq!(wide, plain);
        for (lane, (found, all)) in wide.into_iter().zip(all).enumerate() {
            let sorted = column(&tile, lane);
            prop_assert_eq!(found, sorted[cut..sorted.len() - cut].iter().sum::<i64>());
            prop_assert_eq!(all, sorted.iter().sum::<i64>());
        }
    }

    #[test]
    fn the_nearest_to_the_median_are_chosen_one_by_one(tile in tile(1..=30), part in any::<prop::sample::Index>()) {
        let keep = part.index(tile.len()) + 1;
        let mut sorted = tile.clone();
        for lane in 0..LANES {
            for (row, value) in sorted.iter_mut().zip(column(&tile, lane)) {
                row[lane] = i32::try_from(value).unwrap();
            }
        }
        let (mut wide, mut plain) = ([0; LANES], [0; LANES]);
        nearest(&sorted, keep, &mut wide);
        scalar::nearest(&sorted, keep, &mut plain);
        prop_assert_eq!(wide, plain);
        for (lane, found) in wide.into_iter().enumerate() {
            let mut values = column(&tile, lane);
            let median_twice = values[(values.len() - 1) / 2] + values[values.len() / 2];
            values.sort_by_key(|v| ((2 * v - median_twice).abs(), *v));
            prop_assert_eq!(found, values[..keep].iter().sum::<i64>());
        }
    }
}

/// The longest rows of the largest values that are promised to fit, and all of one sign.
#[test]
fn products_in_floats_are_exact_up_to_their_limit() {
    for largest in [(1 << 23) - 1, (1 << 22) + 12_345, (1 << 20) - 3] {
        let len = fit_floats(largest).min(100_000);
        let row = vec![i32::try_from(largest).unwrap(); len];
        let less: Vec<i32> = row.iter().map(|v| v - 2).collect();
        let (a, b) = ([&row[..], &less, &row], [&row[..], &row, &less]);
        assert_eq!(products_in_floats(a, b), scalar::products(a, b), "{len} of {largest}");
    }
    assert_eq!(fit_floats((1 << 23) - 1), 512);
    assert_eq!(fit_floats(i32::MAX.unsigned_abs()), 0);
}

#[test]
fn integers_are_seen_as_bytes() {
    let mut values = [1, -2];
    bytes_mut(&mut values)[..4].copy_from_slice(&7_i32.to_ne_bytes());
    assert_eq!(values, [7, -2]);
}
