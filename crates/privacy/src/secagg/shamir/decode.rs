//! Polynomials over a field of characteristic 2 (minus is plus): interpolation, and decoding of Reed-Solomon words with
//! wrong values.
//!
//! Shuhong Gao, "A new algorithm for decoding Reed-Solomon codes" (2003). A polynomial is its coefficients, lowest first,
//! without zeros at the top; the zero polynomial is empty.

use super::super::field::Field;

/// Different places through which polynomials are drawn.
pub(super) struct Places<F> {
    places: Vec<F>,
    /// For each the inverse of the product of its differences from the others.
    inverses: Vec<F>,
}

impl<F: Field> Places<F> {
    /// O(n^2).
    pub(super) fn new(places: Vec<F>) -> Self {
        let others = |i| places.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, other)| *other);
        let inverse = |(i, place): (usize, &F)| others(i).fold(F::ONE, |all, other| all * (*place + other)).inverse();
        let inverses = places.iter().enumerate().map(inverse).collect();
        Self { places, inverses }
    }

    /// The weights w with f(at) = sum of w_i·f(places_i) for every polynomial of degree below the number of places. O(n).
    pub(super) fn weights(&self, at: F) -> Vec<F> {
        // w_i = product of all differences from `at` but the i-th, over that of the place: those before i, then those behind.
        let mut weights = self.inverses.clone();
        let mut before = F::ONE;
        for (weight, place) in weights.iter_mut().zip(&self.places) {
            *weight = *weight * before;
            before = before * (at + *place);
        }
        let mut behind = F::ONE;
        for (weight, place) in weights.iter_mut().zip(&self.places).rev() {
            *weight = *weight * behind;
            behind = behind * (at + *place);
        }
        weights
    }
}

/// The value of `polynomial` at `at`.
pub(super) fn evaluate<F: Field>(polynomial: &[F], at: F) -> F {
    polynomial.iter().rev().fold(F::ZERO, |sum, coefficient| sum * at + *coefficient)
}

/// Places where words are received, with what all words have in common.
pub(super) struct Points<F> {
    /// The polynomial that vanishes at all of them.
    vanishing: Vec<F>,
    /// For each place the polynomial that is 1 there and 0 at the others.
    basis: Vec<Vec<F>>,
}

impl<F: Field> Points<F> {
    /// `places` differ.
    pub(super) fn new(places: Vec<F>) -> Self {
        let mut vanishing = vec![F::ONE];
        for place in &places {
            vanishing.insert(0, F::ZERO);
            for i in 1..vanishing.len() {
                let above = vanishing[i];
                vanishing[i - 1] += above * *place;
            }
        }
        let basis = places
            .iter()
            .map(|place| {
                let mut rest = without_root(&vanishing, *place);
                let scale = evaluate(&rest, *place).inverse();
                rest.iter_mut().for_each(|coefficient| *coefficient = *coefficient * scale);
                rest
            })
            .collect();
        Self { vanishing, basis }
    }

    /// The polynomial of degree below `size` that all `values` lie on but e, where n >= `size` + 2e; if there is one.
    pub(super) fn decode(&self, values: &[F], size: usize) -> Option<Vec<F>> {
        let n = self.basis.len();
        let mut through_all = vec![F::ZERO; n];
        for (basis, value) in self.basis.iter().zip(values) {
            for (sum, coefficient) in through_all.iter_mut().zip(basis) {
                *sum += *coefficient * *value;
            }
        }
        trim(&mut through_all);

        // Euclid's algorithm until the remainder has degree below (n + size) / 2; a polynomial's length is its degree + 1.
        let (mut last, mut rest) = (self.vanishing.clone(), through_all);
        let (mut last_factor, mut factor) = (Vec::new(), vec![F::ONE]);
        while rest.len() > (n + size).div_ceil(2) {
            let quotient = divide(&mut last, &rest);
            std::mem::swap(&mut last, &mut rest);
            add_product(&mut last_factor, &quotient, &factor);
            std::mem::swap(&mut last_factor, &mut factor);
        }
        let found = divide(&mut rest, &factor);
        (rest.is_empty() && found.len() <= size).then_some(found)
    }
}

/// `polynomial` / (x - `root`), where `root` is one.
fn without_root<F: Field>(polynomial: &[F], root: F) -> Vec<F> {
    let mut quotient = vec![F::ZERO; polynomial.len() - 1];
    let mut carry = F::ZERO;
    for (slot, coefficient) in quotient.iter_mut().zip(&polynomial[1..]).rev() {
        carry = carry * root + *coefficient;
        *slot = carry;
    }
    quotient
}

/// Divides `value` by `by`, which is not zero; leaves the remainder and returns the quotient.
fn divide<F: Field>(value: &mut Vec<F>, by: &[F]) -> Vec<F> {
    let top = by.last().expect("invariant: Euclid's divisors are not zero").inverse();
    let mut quotient = vec![F::ZERO; (value.len() + 1).saturating_sub(by.len())];
    for (shift, slot) in quotient.iter_mut().enumerate().rev() {
        let factor = value[shift + by.len() - 1] * top;
        *slot = factor;
        for (coefficient, by) in value[shift..].iter_mut().zip(by) {
            *coefficient += factor * *by;
        }
    }
    trim(value);
    quotient
}

/// sum += a·b.
fn add_product<F: Field>(sum: &mut Vec<F>, a: &[F], b: &[F]) {
    sum.resize(sum.len().max((a.len() + b.len()).saturating_sub(1)), F::ZERO);
    for (shift, a) in a.iter().enumerate() {
        for (sum, b) in sum[shift..].iter_mut().zip(b) {
            *sum += *a * *b;
        }
    }
    trim(sum);
}

fn trim<F: Field>(polynomial: &mut Vec<F>) {
    while polynomial.last() == Some(&F::ZERO) {
        polynomial.pop();
    }
}
