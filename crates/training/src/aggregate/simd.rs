//! The loops that count, compiled twice: with AVX2 where the processor has it, and without.
//!
//! Each kernel is plain Rust (`mod scalar`) behind a door of the same name. Most doors call the same body once more inside a
//! function with the target feature `avx2`, where the compiler makes eight lanes of it. Three loops it does not see through
//! (products of 32-bit integers that need 64, rows that should stay in registers): these have a twin in intrinsics
//! (`mod wide`). Integers only, so all give the same bits. The only `unsafe` of the room is here: entering a function with a
//! target feature after asking the processor, loads and stores of whole registers, and the view of integers as bytes.
#![expect(unsafe_code, reason = "target features after a check at run time; register loads; a view of i32 as bytes")]

use super::network::Chain;

/// Columns sorted side by side: eight registers of eight integers.
pub(super) const LANES: usize = 64;
/// Rows by columns of the tile of products that stays in registers.
pub(super) const PRODUCTS: (usize, usize) = (3, 3);

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

/// Adds `factors[k]` * `rows[k]` to `sums`; all are equally long. Wraps: the caller has bounded the sums.
///
/// False if a value's magnitude is beyond `bound` (>= 0).
pub(super) fn add(sums: &mut [i64], rows: [&[i32]; 4], factors: [i32; 4], bound: i32) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just said that it has AVX2; the function asks nothing else of its caller.
        return unsafe { wide::add(sums, rows, factors, bound) };
    }
    scalar::add(sums, rows, factors, bound)
}

/// Products of each of four rows with each of three; all are equally long. Wraps: the caller has bounded the length.
pub(super) fn products(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        return unsafe { wide::products(a, b) };
    }
    scalar::products(a, b)
}

/// Orders pairs of rows, lane by lane.
pub(super) fn sort(tile: &mut [[i32; LANES]], chains: &[Chain]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        return unsafe { wide::sort(tile, chains) };
    }
    scalar::sort(tile, chains);
}

/// What [`products`] gives, faster, for values whose magnitudes and number [`fit_floats`].
pub(super) fn products_in_floats(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has just said that it has AVX2 and FMA; the function asks nothing else of its caller.
        return unsafe { wide::products_in_floats(a, b) };
    }
    scalar::products(a, b)
}

/// How many values of magnitudes up to `largest` a row may have for [`products_in_floats`]: each of four lanes adds up a
/// quarter of the products, all of them and their sums are integers, and f64 holds integers up to 2^53.
pub(super) fn fit_floats(largest: u32) -> usize {
    let terms = (1_u64 << 53) / u64::from(largest.max(1)).pow(2);
    usize::try_from(terms).unwrap_or(usize::MAX).saturating_mul(4) / 8 * 8
}

kernels! {
    /// The least value or 0 and the greatest value or 0.
    fn ends(values: &[i32]) -> (i32, i32);
    /// The square of a row. Wraps: the caller has bounded the length.
    fn square(values: &[i32]) -> i64;
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
    use super::{Chain, LANES, PRODUCTS};

    pub(super) fn add(sums: &mut [i64], rows: [&[i32]; 4], factors: [i32; 4], bound: i32) -> bool {
        let len = sums.len();
        let mut ok = true;
        for (row, factor) in rows.iter().zip(factors) {
            let row = &row[..len];
            ok &= within(row, bound);
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i64::from(*value) * i64::from(factor));
            }
        }
        ok
    }

    #[inline(always)]
    pub(super) fn ends(values: &[i32]) -> (i32, i32) {
        let (mut low, mut high) = (0, 0);
        for value in values {
            low = low.min(*value);
            high = high.max(*value);
        }
        (low, high)
    }

    /// Is every magnitude at most `bound` (>= 0)?
    #[inline(always)]
    pub(super) fn within(values: &[i32], bound: i32) -> bool {
        let (low, high) = ends(values);
        low >= -bound && high <= bound
    }

    pub(super) fn products(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
        a.map(|x| {
            b.map(|y| x.iter().zip(y).fold(0, |sum: i64, (x, y)| sum.wrapping_add(i64::from(*x) * i64::from(*y))))
        })
    }

    #[inline(always)]
    pub(super) fn square(values: &[i32]) -> i64 {
        values.iter().fold(0, |sum: i64, v| sum.wrapping_add(i64::from(*v) * i64::from(*v)))
    }

    pub(super) fn sort(tile: &mut [[i32; LANES]], chains: &[Chain]) {
        for chain in chains {
            let mut hand = tile[usize::from(chain.first)];
            for step in &chain.steps {
                let mut other = tile[usize::from(step.load)];
                for (x, y) in hand.iter_mut().zip(&mut other) {
                    let (low, high) = ((*x).min(*y), (*x).max(*y));
                    (*x, *y) = if step.keep_low { (low, high) } else { (high, low) };
                }
                tile[usize::from(step.store)] = other;
            }
            tile[usize::from(chain.last)] = hand;
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

/// The twins in intrinsics. A multiplication takes the lower half of each 64-bit lane, so eight integers are multiplied as
/// the four even ones and, moved down, the four odd ones.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m256d, __m256i, _mm_loadu_si128, _mm256_add_epi64, _mm256_cvtepi32_pd, _mm256_fmadd_pd, _mm256_loadu_si256,
        _mm256_max_epi32, _mm256_min_epi32, _mm256_mul_epi32, _mm256_permute2x128_si256, _mm256_set1_epi64x,
        _mm256_setzero_pd, _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_pd, _mm256_storeu_si256,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi64,
    };

    use super::{Chain, LANES, PRODUCTS, scalar};

    /// Integers a register.
    const WIDE: usize = 8;

    #[target_feature(enable = "avx2")]
    fn load(values: &[i32; WIDE]) -> __m256i {
        // SAFETY: 32 bytes that are borrowed; the load needs no alignment.
        unsafe { _mm256_loadu_si256(std::ptr::from_ref(values).cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn load_floats(values: &[i32; 4]) -> __m256d {
        // SAFETY: 16 bytes that are borrowed; the load needs no alignment.
        _mm256_cvtepi32_pd(unsafe { _mm_loadu_si128(std::ptr::from_ref(values).cast()) })
    }

    #[target_feature(enable = "avx2")]
    fn store(values: &mut [i32; WIDE], register: __m256i) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(std::ptr::from_mut(values).cast(), register) }
    }

    #[target_feature(enable = "avx2")]
    fn load_sums(values: &[i64; 4]) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_loadu_si256(std::ptr::from_ref(values).cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store_sums(values: &mut [i64; 4], register: __m256i) {
        // SAFETY: 32 bytes that are borrowed for writing; the store needs no alignment.
        unsafe { _mm256_storeu_si256(std::ptr::from_mut(values).cast(), register) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn add(sums: &mut [i64], rows: [&[i32]; 4], factors: [i32; 4], bound: i32) -> bool {
        let len = sums.len();
        let whole = len / WIDE;
        let [a, b, c, d] = rows.map(|row| &row[..len].as_chunks::<WIDE>().0[..whole]);
        let [p, q, r, s] = factors.map(|factor| _mm256_set1_epi64x(i64::from(factor)));
        let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for (k, pair) in sums[..whole * WIDE].as_chunks_mut::<4>().0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (values, factor) in [(&a[k], p), (&b[k], q), (&c[k], r), (&d[k], s)] {
                let values = load(values);
                low = _mm256_min_epi32(low, values);
                high = _mm256_max_epi32(high, values);
                even = _mm256_add_epi64(even, _mm256_mul_epi32(values, factor));
                odd = _mm256_add_epi64(odd, _mm256_mul_epi32(_mm256_srli_epi64::<32>(values), factor));
            }
            // Even and odd ones in turn: 0 1 4 5 and 2 3 6 7, then halves together.
            let (outer, inner) = (_mm256_unpacklo_epi64(even, odd), _mm256_unpackhi_epi64(even, odd));
            let first = _mm256_permute2x128_si256::<0x20>(outer, inner);
            let second = _mm256_permute2x128_si256::<0x31>(outer, inner);
            let sum = _mm256_add_epi64(load_sums(&pair[0]), first);
            store_sums(&mut pair[0], sum);
            let sum = _mm256_add_epi64(load_sums(&pair[1]), second);
            store_sums(&mut pair[1], sum);
        }
        let mut ends = [[0; WIDE]; 2];
        for (end, register) in ends.iter_mut().zip([low, high]) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_si256(std::ptr::from_mut(end).cast(), register) }
        }
        let rest = rows.map(|row| &row[whole * WIDE..len]);
        scalar::add(&mut sums[whole * WIDE..], rest, factors, bound) && scalar::within(ends.as_flattened(), bound)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sort(tile: &mut [[i32; LANES]], chains: &[Chain]) {
        const REGISTERS: usize = LANES / WIDE;
        for chain in chains {
            let mut hand = [_mm256_setzero_si256(); REGISTERS];
            for (register, values) in hand.iter_mut().zip(tile[usize::from(chain.first)].as_chunks().0) {
                *register = load(values);
            }
            for step in &chain.steps {
                let mut other = [_mm256_setzero_si256(); REGISTERS];
                for (register, values) in other.iter_mut().zip(tile[usize::from(step.load)].as_chunks().0) {
                    *register = load(values);
                }
                let out = tile[usize::from(step.store)].as_chunks_mut().0;
                if step.keep_low {
                    for ((hand, other), out) in hand.iter_mut().zip(other).zip(out) {
                        store(out, _mm256_max_epi32(*hand, other));
                        *hand = _mm256_min_epi32(*hand, other);
                    }
                } else {
                    for ((hand, other), out) in hand.iter_mut().zip(other).zip(out) {
                        store(out, _mm256_min_epi32(*hand, other));
                        *hand = _mm256_max_epi32(*hand, other);
                    }
                }
            }
            for (register, out) in hand.into_iter().zip(tile[usize::from(chain.last)].as_chunks_mut().0) {
                store(out, register);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn products(a: [&[i32]; PRODUCTS.0], b: [&[i32]; PRODUCTS.1]) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
        let len = b[0].len();
        let whole = len / WIDE;
        let x = a.map(|row| &row[..len].as_chunks::<WIDE>().0[..whole]);
        let y = b.map(|row| &row[..len].as_chunks::<WIDE>().0[..whole]);
        let mut sums = [[_mm256_setzero_si256(); PRODUCTS.1]; PRODUCTS.0];
        for k in 0..whole {
            // The left rows one after the other: nine sums, three values of the right, one of the left and one product
            // are fewer than the sixteen registers there are.
            let mut right = [load(&y[0][k]), load(&y[1][k]), load(&y[2][k])];
            for half in 0..2 {
                if half == 1 {
                    right = right.map(|values| _mm256_srli_epi64::<32>(values));
                }
                for (sums, left) in sums.iter_mut().zip(&x) {
                    let left = load(&left[k]);
                    let left = if half == 1 { _mm256_srli_epi64::<32>(left) } else { left };
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = _mm256_add_epi64(*sum, _mm256_mul_epi32(left, right));
                    }
                }
            }
        }
        let mut out = scalar::products(a.map(|row| &row[whole * WIDE..len]), b.map(|row| &row[whole * WIDE..len]));
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                let mut lanes = [0; 4];
                store_sums(&mut lanes, sum);
                *out = lanes.into_iter().fold(*out, i64::wrapping_add);
            }
        }
        out
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn products_in_floats(
        a: [&[i32]; PRODUCTS.0],
        b: [&[i32]; PRODUCTS.1],
    ) -> [[i64; PRODUCTS.1]; PRODUCTS.0] {
        let len = b[0].len();
        let whole = len / 4;
        let x = a.map(|row| &row[..len].as_chunks::<4>().0[..whole]);
        let y = b.map(|row| &row[..len].as_chunks::<4>().0[..whole]);
        let mut sums = [[_mm256_setzero_pd(); PRODUCTS.1]; PRODUCTS.0];
        for k in 0..whole {
            let right = [load_floats(&y[0][k]), load_floats(&y[1][k]), load_floats(&y[2][k])];
            for (sums, left) in sums.iter_mut().zip(&x) {
                let left = load_floats(&left[k]);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm256_fmadd_pd(left, right, *sum);
                }
            }
        }
        let mut out = scalar::products(a.map(|row| &row[whole * 4..len]), b.map(|row| &row[whole * 4..len]));
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                let mut lanes = [0.0; 4];
                // SAFETY: as above.
                unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), sum) };
                #[expect(clippy::cast_possible_truncation, reason = "integers below 2^53")]
                let exact = lanes.map(|lane: f64| lane as i64);
                *out = exact.into_iter().fold(*out, i64::wrapping_add);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
