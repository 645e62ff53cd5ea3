//! Shamir's sharing (1979) of a 32-byte secret: any `threshold` shares rebuild it, fewer say nothing about it.
//!
//! The secret is 16 elements of GF(2^16) (little endian), each the constant term of its own random polynomial of degree
//! `threshold` - 1; the share with index x holds their values at x. Promises: indices are public, values never printed and
//! erased when dropped; a share carries no proof that it is right, so who rebuilds a secret checks it against a commitment
//! ([`combine_checked`] does, and names the wrong shares).

use std::fmt;

use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::field::{self, Element, Field};
use decode::{Places, Points};

mod decode;

/// How many sets of shares [`combine_checked`] leaves out before it gives up.
///
/// A set costs up to 16 decodings of O(n^2): with 128 shares all of them take about a second. Every set of one share is
/// tried for n <= 1024, of two for n <= 44, of three for n <= 18.
pub const LEFT_OUT_MAX: usize = 1024;

/// One share of a secret.
#[derive(Clone)]
pub struct Share {
    /// Where the polynomials were evaluated: from 1 on, different for each holder. Public.
    pub index: u16,
    /// Their values there. Secret.
    pub value: [u8; 32],
}

/// Why a secret was not shared or not rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The share with index 0 is the secret itself.
    #[error("share index 0 is the place of the secret: number holders from 1")]
    IndexZero,
    /// Two shares of one index are no more than one.
    #[error("share index {0} appears twice: each holder needs an index of its own")]
    IndexTwice(u16),
    /// No secret is rebuilt from zero shares, or from more than there are.
    #[error("a threshold of {threshold} does not fit {shares} shares: it lies from 1 to their number")]
    Threshold {
        /// Shares needed.
        threshold: usize,
        /// Shares to make.
        shares: usize,
    },
    /// Too few shares.
    #[error("{have} shares cannot rebuild a secret that needs {need}")]
    TooFew {
        /// Shares given.
        have: usize,
        /// Shares needed.
        need: usize,
    },
    /// No secret among those found is the right one: too many shares are wrong, or they never belonged to one secret.
    #[error("{have} shares, {need} needed, do not agree on a secret that is recognised: too many of them are wrong")]
    Irreparable {
        /// Shares given.
        have: usize,
        /// Shares needed.
        need: usize,
    },
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl ZeroizeOnDrop for Share {}

/// The 16 elements of a secret or share.
type Lanes = Zeroizing<[u16; 16]>;

/// Splits `secret` into one share for each of `indices`, of which any `threshold` rebuild it.
///
/// # Errors
/// [`ShareError::IndexZero`], [`ShareError::IndexTwice`], and [`ShareError::Threshold`] unless 1 <= `threshold` <= number of
/// indices.
pub fn split(
    secret: &[u8; 32],
    threshold: usize,
    indices: &[u16],
    rng: &mut impl CryptoRng,
) -> Result<Vec<Share>, ShareError> {
    check_indices(indices)?;
    if threshold == 0 || threshold > indices.len() {
        return Err(ShareError::Threshold { threshold, shares: indices.len() });
    }
    // Highest degree first, the secret last: Horner's order.
    let mut coefficients: Vec<Lanes> = Vec::with_capacity(threshold);
    for _ in 1..threshold {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        coefficients.push(lanes(&bytes));
    }
    coefficients.push(lanes(secret));
    let share = |&index: &u16| {
        let mut sum = Lanes::default();
        for coefficient in &coefficients {
            field::scale(&mut sum, Element(index));
            for (sum, coefficient) in sum.iter_mut().zip(coefficient.iter()) {
                *sum ^= coefficient;
            }
        }
        Share { index, value: bytes(&sum) }
    };
    Ok(indices.iter().map(share).collect())
}

/// The secret that the first `threshold` of `shares` lie on. Whoever keeps it erases it.
///
/// A wrong share gives a wrong secret, silently: compare it with a commitment, or use [`combine_checked`].
///
/// # Errors
/// [`ShareError::TooFew`], [`ShareError::IndexZero`], [`ShareError::IndexTwice`], [`ShareError::Threshold`] for 0.
pub fn combine(shares: &[Share], threshold: usize) -> Result<[u8; 32], ShareError> {
    check_shares(shares, threshold)?;
    Ok(bytes(&interpolate(&shares[..threshold], Element::ZERO)))
}

/// The secret for which `is_right` holds, and the indices of all shares that do not belong to it, ascending.
///
/// First the first `threshold` shares are taken as they are. If the secret is not recognised, each element is decoded as a
/// Reed-Solomon code word (Gao 2003), which finds up to e wrong shares among n >= `threshold` + 2e. If there are more, sets
/// of s = 1, 2, .. shares are left out and the others decoded: e wrong ones are found as soon as a set holds
/// s >= 2e - n + `threshold` of them, so for certain while all sets up to that s are at most [`LEFT_OUT_MAX`]. With good luck,
/// beyond.
///
/// Whom to blame is certain only for n >= `threshold` + 2e: more who conspire can make right shares look wrong, though never
/// another secret look right.
///
/// # Errors
/// As [`combine`]; [`ShareError::Irreparable`] if no secret that is found is right.
pub fn combine_checked(
    shares: &[Share],
    threshold: usize,
    is_right: impl Fn(&[u8; 32]) -> bool,
) -> Result<([u8; 32], Vec<u16>), ShareError> {
    check_shares(shares, threshold)?;
    let plain = Zeroizing::new(bytes(&interpolate(&shares[..threshold], Element::ZERO)));
    let at_hand = is_right(&plain).then(|| strangers(shares, &shares[..threshold]));
    match at_hand {
        Some(wrong) if wrong.is_empty() => return Ok((*plain, wrong)),
        // Errors that cancel at zero give the right secret from wrong shares, and make the right ones look wrong.
        Some(wrong) => {
            let all: Vec<&Share> = shares.iter().collect();
            let nearest = decoded(&all, threshold).filter(|base| is_right(&bytes(&interpolate(base, Element::ZERO))));
            return Ok((*plain, nearest.map_or(wrong, |base| strangers(shares, &base))));
        }
        None => {}
    }
    let mut left_out = Vec::new();
    for _ in 0..=LEFT_OUT_MAX {
        let kept: Vec<&Share> =
            shares.iter().enumerate().filter(|(at, _)| !left_out.contains(at)).map(|(_, share)| share).collect();
        if let Some(base) = decoded(&kept, threshold) {
            let secret = Zeroizing::new(bytes(&interpolate(&base, Element::ZERO)));
            if is_right(&secret) {
                return Ok((*secret, strangers(shares, &base)));
            }
        }
        if !next_set(&mut left_out, shares.len(), shares.len() - threshold) {
            break;
        }
    }
    Err(ShareError::Irreparable { have: shares.len(), need: threshold })
}

/// The shares 1 to `threshold` of the code word nearest to `shares`, if each of its elements is within reach.
fn decoded(shares: &[&Share], threshold: usize) -> Option<Vec<Share>> {
    let points = Points::new(shares.iter().map(|share| Element(share.index)).collect());
    let all: Vec<Lanes> = shares.iter().map(|share| lanes(&share.value)).collect();
    let mut values = vec![Lanes::default(); threshold];
    for lane in 0..16 {
        let received: Vec<Element> = all.iter().map(|lanes| Element(lanes[lane])).collect();
        let polynomial = points.decode(&received, threshold)?;
        for (value, share) in values.iter_mut().zip(shares) {
            value[lane] = decode::evaluate(&polynomial, Element(share.index)).0;
        }
    }
    Some(shares.iter().zip(values).map(|(share, value)| Share { index: share.index, value: bytes(&value) }).collect())
}

/// Indices of those among `shares` that do not lie on the polynomials through `base`.
fn strangers(shares: &[Share], base: &[Share]) -> Vec<u16> {
    let places = places(base);
    let mut wrong: Vec<u16> = shares
        .iter()
        .filter(|share| *weigh(base, &places.weights(Element(share.index))) != *lanes(&share.value))
        .map(|share| share.index)
        .collect();
    wrong.sort_unstable();
    wrong
}

/// The next set of positions below `n`: by size, then in order; false after the last one of `size_max`.
fn next_set(set: &mut Vec<usize>, n: usize, size_max: usize) -> bool {
    let size = set.len();
    // The last position that can still move up.
    if let Some(at) = (0..size).rev().find(|&at| set[at] + size - at < n) {
        let first = set[at] + 1;
        for (offset, position) in set[at..].iter_mut().enumerate() {
            *position = first + offset;
        }
        return true;
    }
    *set = (0..=size).collect();
    size < size_max
}

/// The value at `at` of the polynomials through `shares`.
fn interpolate(shares: &[Share], at: Element) -> Lanes {
    weigh(shares, &places(shares).weights(at))
}

fn places(shares: &[Share]) -> Places<Element> {
    Places::new(shares.iter().map(|share| Element(share.index)).collect())
}

/// The sum of `shares`, each times its weight.
fn weigh(shares: &[Share], weights: &[Element]) -> Lanes {
    let mut sum = Lanes::default();
    for (share, weight) in shares.iter().zip(weights) {
        let mut term = lanes(&share.value);
        field::scale(&mut term, *weight);
        for (sum, term) in sum.iter_mut().zip(term.iter()) {
            *sum ^= term;
        }
    }
    sum
}

fn check_shares(shares: &[Share], threshold: usize) -> Result<(), ShareError> {
    let indices: Vec<u16> = shares.iter().map(|share| share.index).collect();
    check_indices(&indices)?;
    if threshold == 0 {
        return Err(ShareError::Threshold { threshold, shares: shares.len() });
    }
    if shares.len() < threshold {
        return Err(ShareError::TooFew { have: shares.len(), need: threshold });
    }
    Ok(())
}

fn check_indices(indices: &[u16]) -> Result<(), ShareError> {
    let mut sorted = indices.to_vec();
    sorted.sort_unstable();
    if sorted.first() == Some(&0) {
        return Err(ShareError::IndexZero);
    }
    match sorted.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(ShareError::IndexTwice(two[0])),
        None => Ok(()),
    }
}

fn lanes(bytes: &[u8; 32]) -> Lanes {
    let mut lanes = Lanes::default();
    for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *lane = u16::from_le_bytes(*bytes);
    }
    lanes
}

fn bytes(lanes: &[u16; 16]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, lane) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
        *bytes = lane.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests;
