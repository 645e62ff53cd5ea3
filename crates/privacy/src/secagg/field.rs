//! GF(2^16): polynomials over GF(2) modulo x^16 + x^5 + x^3 + x + 1 (0x1002B), an irreducible polynomial.
//!
//! Sixteen bits, because a neighbourhood can pass the 255 points that GF(2^8) has. Bit i of an element is the coefficient of
//! x^i; the sum is exclusive or. Promises: no table, no branch and no memory address depends on an element, but in
//! `scale`, whose factor is public.

use std::ops::{Add, AddAssign, Mul};

/// x^16 = x^5 + x^3 + x + 1.
const TAIL: u16 = 0x2B;

/// An element of GF(2^16).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Element(pub u16);

/// What polynomials need of their numbers.
pub(crate) trait Field: Copy + Eq + Add<Output = Self> + AddAssign + Mul<Output = Self> {
    const ZERO: Self;
    const ONE: Self;

    /// 1 / self; zero for zero.
    fn inverse(self) -> Self;
}

impl std::fmt::Debug for Element {
    /// Elements are shares of secrets: none is printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Element")
    }
}

impl Add for Element {
    type Output = Self;

    #[expect(clippy::suspicious_arithmetic_impl, reason = "in characteristic 2 the sum is the exclusive or")]
    fn add(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

impl AddAssign for Element {
    #[expect(clippy::suspicious_op_assign_impl, reason = "in characteristic 2 the sum is the exclusive or")]
    fn add_assign(&mut self, other: Self) {
        self.0 ^= other.0;
    }
}

impl Mul for Element {
    type Output = Self;

    /// Carry-less product, then two folds of what lies above bit 15; the same steps for all elements.
    fn mul(self, other: Self) -> Self {
        let (a, b) = (u32::from(self.0), u32::from(other.0));
        let mut product = 0;
        for bit in 0..16 {
            product ^= (a << bit) & 0u32.wrapping_sub(b >> bit & 1);
        }
        let folded = fold(fold(product));
        #[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits: 31 -> 20 -> 16")]
        Self(folded as u16)
    }
}

impl Element {
    /// 1 / self = self^(2^16 - 2); zero for zero.
    #[must_use]
    pub fn inverse(self) -> Self {
        // 2^16 - 2 = 2 + 4 + ... + 2^15.
        let mut square = self * self;
        let mut product = square;
        for _ in 2..16 {
            square = square * square;
            product = product * square;
        }
        product
    }
}

impl Field for Element {
    const ZERO: Self = Self(0);
    const ONE: Self = Self(1);

    fn inverse(self) -> Self {
        Self::inverse(self)
    }
}

/// Replaces h·x^16 + l by h·(x^5 + x^3 + x + 1) + l.
fn fold(value: u32) -> u32 {
    let high = value >> 16;
    (value & 0xFFFF) ^ high ^ (high << 1) ^ (high << 3) ^ (high << 5)
}

/// Multiplies each of 16 `lanes` by the **public** `factor`: the time depends on it.
pub(crate) fn scale(lanes: &mut [u16; 16], factor: Element) {
    let mut product = [0u16; 16];
    let mut rest = factor.0;
    while rest != 0 {
        let take = 0u16.wrapping_sub(rest & 1);
        for (sum, lane) in product.iter_mut().zip(lanes.iter_mut()) {
            *sum ^= *lane & take;
            *lane = (*lane << 1) ^ (TAIL & 0u16.wrapping_sub(*lane >> 15));
        }
        rest >>= 1;
    }
    *lanes = product;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Schoolbook: multiply, then subtract the modulus from the top.
    fn slow(a: u16, b: u16) -> u16 {
        let mut product = (0..16).filter(|bit| b >> bit & 1 == 1).fold(0u32, |sum, bit| sum ^ (u32::from(a) << bit));
        for bit in (16..32).rev() {
            if product >> bit & 1 == 1 {
                product ^= 0x1_002B << (bit - 16);
            }
        }
        product as u16
    }

    #[test]
    fn every_element_but_zero_has_its_inverse() {
        assert_eq!(Element(0).inverse().0, 0);
        for value in 1..=u16::MAX {
            assert_eq!((Element(value) * Element(value).inverse()).0, 1, "{value:#x}");
        }
    }

    proptest! {
        #[test]
        fn products_are_those_of_schoolbook_division(a: u16, b: u16) {
            prop_assert_eq!((Element(a) * Element(b)).0, slow(a, b));
            let mut lanes = [a; 16];
            lanes[3] = b;
            scale(&mut lanes, Element(b));
            prop_assert_eq!((lanes[0], lanes[3]), (slow(a, b), slow(b, b)));
        }

        #[test]
        fn products_distribute_and_associate(a: u16, b: u16, c: u16) {
            let (a, b, c) = (Element(a), Element(b), Element(c));
            prop_assert_eq!((a * (b + c)).0, (a * b + a * c).0);
            prop_assert_eq!((a * (b * c)).0, ((a * b) * c).0);
        }
    }
}
