//! Sixteen numbers side by side, as each kind of processor holds them.
//!
//! Promise: only arithmetic that is exact or rounded once a lane, so all fused kinds give the same bits.
#![expect(unsafe_code, reason = "instructions of a processor, for callers that have asked whether it has them")]

use std::ops::{Add, Mul};

/// Columns computed at once: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Sixteen numbers.
///
/// The types that stand for instructions may only be used in functions that are compiled for these instructions, behind a
/// question whether the processor has them: [`super`] is the one place.
pub(super) trait Register<F>: Copy {
    /// Rows of the largest tile whose sums fit the registers, with room for one more: 6 or a power of two.
    const ROWS: usize;
    /// The same number sixteen times.
    fn splat(value: F) -> Self;
    /// From memory.
    fn load(values: &[F; LANES]) -> Self;
    /// To memory.
    fn store(self, values: &mut [F; LANES]);
    /// self + a * b, lane by lane.
    fn add_product(self, a: Self, b: Self) -> Self;
}

/// Any processor: two roundings.
#[derive(Clone, Copy)]
pub(super) struct Plain<F>([F; LANES]);

impl<F: Copy + Add<Output = F> + Mul<Output = F>> Register<F> for Plain<F> {
    const ROWS: usize = 2;

    #[inline(always)]
    fn splat(value: F) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[F; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self, values: &mut [F; LANES]) {
        *values = self.0;
    }

    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            *sum = *sum + a * b;
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::{LANES, Register};

    /// Needs `avx512f`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    // SAFETY (all blocks): the instructions are there, see `Register`; a reference to 16 numbers is readable, or writable,
    // as a whole, and the unaligned forms ask for no more.
    impl Register<f32> for Avx512 {
        const ROWS: usize = 16;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            unsafe { Self(_mm512_loadu_ps(values.as_ptr())) }
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
    }

    /// Needs `avx2` and `fma`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    // SAFETY (all blocks): as above; each half is 8 of the 16 numbers.
    impl Register<f32> for Avx2 {
        const ROWS: usize = 6;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            unsafe { Self(_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())) }
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), self.0);
                _mm256_storeu_ps(values[8..].as_mut_ptr(), self.1);
            }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
    }
}
