//! The loops that count: written once as plain Rust, compiled twice, with AVX2 where the processor has it and without.
//!
//! Each kernel is a body (`mod scalar`) that a door of the same name calls, either as it stands or inside a function with
//! the target feature `avx2`, where the compiler makes eight lanes of the same loop. Integers only, so both give the same
//! bits. The only `unsafe` of the room is here: calling the second one after asking the processor, and the view of integers
//! as bytes.
#![expect(unsafe_code, reason = "target features after a check at run time; a view of i32 as bytes")]

/// Columns sorted side by side: eight registers of eight integers.
pub(super) const LANES: usize = 64;
/// Rows by columns of the tile of products that stays in registers.
pub(super) const PRODUCTS: (usize, usize) = (4, 3);

macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if std::is_x86_feature_detected!("avx2") {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    scalar::$name($($arg),*)
                }
                // SAFETY: the processor has just said that it has AVX2; `wide` asks nothing else of its caller.
                return unsafe { wide($($arg),*) };
            }
            scalar::$name($($arg),*)
        }
    )*};
}

kernels! {
    /// Adds `factors[k]` * `rows[k]` to `sums`; all are equally long. Wraps: the caller has bounded the sums.
    fn add(sums: &mut [i64], rows: [&[i32]; 4], factors: [i32; 4]);
    /// Is every magnitude at most `bound` (>= 0)?
    fn within(values: &[i32], bound: i32) -> bool;
    /// Products of each of four rows with each of three; all are equally long. Wraps: the caller has bounded the length.
    fn products(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0];
    /// The square of a row. Wraps: the caller has bounded the length.
    fn square(values: &[i32]) -> i64;
    /// Orders each pair of rows in turn, lane by lane: the smaller value goes to the first row. a < b in every pair.
    fn sort(tile: &mut [[i32; LANES]], pairs: &[(u16, u16)]);
    /// Sums of all rows, lane by lane.
    fn total(rows: &[[i32; LANES]], out: &mut [i64; LANES]);
    /// Sums of the `keep` values nearest to the median of sorted rows, lane by lane; of two equally near the smaller one.
    fn nearest(sorted: &[[i32; LANES]], keep: usize, out: &mut [i64; LANES]);
    /// Sums without the `cut` smallest and largest values of rows in any order, lane by lane; `cut` is less than half.
    fn middle(rows: &[[i32; LANES]], cut: usize, out: &mut [i64; LANES]);
}

/// Integers as bytes in the order of this machine.
pub(super) fn bytes_mut(values: &mut [i32]) -> &mut [u8] {
    let len = std::mem::size_of_val(values);
    // SAFETY: the same memory, borrowed as long; u8 has no alignment and no invalid value, and neither has i32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// The bodies. `inline(always)`: that is how they take over the target feature of their caller.
mod scalar {
    use super::{LANES, PRODUCTS};

    #[inline(always)]
    pub(super) fn add(sums: &mut [i64], rows: [&[i32]; 4], factors: [i32; 4]) {
        let len = sums.len();
        let [a, b, c, d] = rows.map(|row| &row[..len]);
        let [p, q, r, s] = factors.map(i64::from);
        for i in 0..len {
            let first = (i64::from(a[i]) * p).wrapping_add(i64::from(b[i]) * q);
            let second = (i64::from(c[i]) * r).wrapping_add(i64::from(d[i]) * s);
            sums[i] = sums[i].wrapping_add(first.wrapping_add(second));
        }
    }

    #[inline(always)]
    pub(super) fn within(values: &[i32], bound: i32) -> bool {
        let (mut low, mut high) = (0, 0);
        for value in values {
            low = low.min(*value);
            high = high.max(*value);
        }
        low >= -bound && high <= bound
    }

    #[inline(always)]
    pub(super) fn products(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
        const WIDE: usize = 4;
        let len = b[0].len();
        let (a, b) = (a.map(|row| &row[..len]), b.map(|row| &row[..len]));
        let mut lanes = [[[0_i64; WIDE]; PRODUCTS.1]; PRODUCTS.0];
        let whole = len / WIDE;
        let (x, y) =
            (a.map(|row| &row.as_chunks::<WIDE>().0[..whole]), b.map(|row| &row.as_chunks::<WIDE>().0[..whole]));
        for k in 0..whole {
            for i in 0..PRODUCTS.0 {
                for j in 0..PRODUCTS.1 {
                    for lane in 0..WIDE {
                        let product = i64::from(x[i][k][lane]) * i64::from(y[j][k][lane]);
                        lanes[i][j][lane] = lanes[i][j][lane].wrapping_add(product);
                    }
                }
            }
        }
        let mut out = [[0; PRODUCTS.1]; PRODUCTS.0];
        for i in 0..PRODUCTS.0 {
            for j in 0..PRODUCTS.1 {
                let rest = (whole * WIDE..len).map(|k| i64::from(a[i][k]) * i64::from(b[j][k]));
                out[i][j] = lanes[i][j].into_iter().chain(rest).fold(0, i64::wrapping_add);
            }
        }
        out
    }

    #[inline(always)]
    pub(super) fn square(values: &[i32]) -> i64 {
        values.iter().fold(0, |sum: i64, v| sum.wrapping_add(i64::from(*v) * i64::from(*v)))
    }

    #[inline(always)]
    pub(super) fn sort(tile: &mut [[i32; LANES]], pairs: &[(u16, u16)]) {
        for (a, b) in pairs {
            let (front, back) = tile.split_at_mut(usize::from(*b));
            let (low, high) = (&mut front[usize::from(*a)], &mut back[0]);
            for lane in 0..LANES {
                let (x, y) = (low[lane], high[lane]);
                low[lane] = x.min(y);
                high[lane] = x.max(y);
            }
        }
    }

    #[inline(always)]
    pub(super) fn total(rows: &[[i32; LANES]], out: &mut [i64; LANES]) {
        *out = [0; LANES];
        for row in rows {
            for lane in 0..LANES {
                out[lane] += i64::from(row[lane]);
            }
        }
    }

    /// What is nearest to the median is a run of the sorted values. The run that starts at rank s gives way to the one at
    /// s + 1 if the value that comes in is nearer than the one that goes out: if their sum is below twice the median. That
    /// holds up to some s and for none after, so the values that come and go can be added rank by rank.
    #[inline(always)]
    pub(super) fn nearest(sorted: &[[i32; LANES]], keep: usize, out: &mut [i64; LANES]) {
        let count = sorted.len();
        let (lower, upper) = (&sorted[(count - 1) / 2], &sorted[count / 2]);
        total(&sorted[..keep], out);
        for start in 0..count - keep {
            let (gone, come) = (&sorted[start], &sorted[start + keep]);
            for lane in 0..LANES {
                let nearer =
                    i64::from(gone[lane]) + i64::from(come[lane]) < i64::from(lower[lane]) + i64::from(upper[lane]);
                let change = i64::from(come[lane]) - i64::from(gone[lane]);
                out[lane] += if nearer { change } else { 0 };
            }
        }
    }

    /// Finds the values of the first and the last rank that count by halving ranges: the smallest value that more than
    /// `rank` values do not exceed. All values clamped to between the two, less the clamped ones at the ends, are the sum.
    #[inline(always)]
    pub(super) fn middle(rows: &[[i32; LANES]], cut: usize, out: &mut [i64; LANES]) {
        let low = ranked(rows, cut);
        let high = ranked(rows, rows.len() - 1 - cut);
        *out = [0; LANES];
        for row in rows {
            for lane in 0..LANES {
                out[lane] += i64::from(row[lane].max(low[lane]).min(high[lane]));
            }
        }
        let cut = i64::try_from(cut).unwrap_or(i64::MAX);
        for lane in 0..LANES {
            out[lane] -= cut * (i64::from(low[lane]) + i64::from(high[lane]));
        }
    }

    #[inline(always)]
    fn ranked(rows: &[[i32; LANES]], rank: usize) -> [i32; LANES] {
        let rank = i32::try_from(rank).unwrap_or(i32::MAX);
        let (mut low, mut high) = (rows[0], rows[0]);
        for row in rows {
            for lane in 0..LANES {
                low[lane] = low[lane].min(row[lane]);
                high[lane] = high[lane].max(row[lane]);
            }
        }
        while low != high {
            let mut pivot = [0; LANES];
            for lane in 0..LANES {
                // The mean rounded down, without leaving 32 bits.
                pivot[lane] = (low[lane] & high[lane]) + ((low[lane] ^ high[lane]) >> 1);
            }
            let mut below = [0_i32; LANES];
            for row in rows {
                for lane in 0..LANES {
                    below[lane] += i32::from(row[lane] <= pivot[lane]);
                }
            }
            for lane in 0..LANES {
                let enough = below[lane] > rank;
                high[lane] = if enough { pivot[lane] } else { high[lane] };
                // Below the highest value there is room for one more; a range that has closed has enough and stays.
                low[lane] = if enough { low[lane] } else { pivot[lane].wrapping_add(1) };
            }
        }
        low
    }
}

#[cfg(test)]
mod tests;
