//! Masks: AES-128-CTR streams (NIST SP 800-38A), added to a vector or subtracted from it as they are made.
//!
//! ```text
//! shared secret, ctx, domain --HKDF-SHA-256--> key (16 bytes), nonce (8)
//! block j of the stream = AES-128(key, nonce || j), j in 8 bytes, big endian
//! words of the stream   = 4 bytes for values of up to 32 bits, 8 for wider ones, little endian
//! value i of width b    = the low b bits of word i: of a uniform word they are uniform
//!
//! portable  streams by the `aes` crate, then the addition
//! wide      both in one loop, for processors with VAES
//! ```
//!
//! Promises: the stream of a key depends on its secret, context and domain and on nothing else, least of all on how a vector
//! is cut into pieces; keys and streams are erased, never printed. The streams of all keys are summed up for a stretch of
//! values that the nearest cache holds, and their sum is added to the vector before the next, so the vector crosses memory
//! once. The nonce is secret too: a table of AES outputs at known counters finds no key.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::keys;
use super::ring::Width;

mod portable;
#[cfg(target_arch = "x86_64")]
mod wide;

/// Where a piece may begin: a multiple of this many values, which is a whole number of AES blocks in every width.
pub const UNIT: usize = 16;

/// Bytes of an AES block.
const BLOCK: usize = 16;
/// Blocks encrypted at once: twelve registers of two, or three times the eight of a processor without VAES.
const BATCH: usize = 24;
/// Blocks of a stretch: 7.5 KiB, and as much for their counters, leave half of the nearest cache to others.
const BLOCKS: usize = 20 * BATCH;

/// The stream of one pair of participants, or of one participant's own seed, in one context.
pub struct MaskKey {
    cipher: Cipher,
    nonce: [u8; 8],
}

/// Both erase themselves when they are dropped.
enum Cipher {
    #[cfg(target_arch = "x86_64")]
    Wide(wide::RoundKeys),
    Portable(Box<portable::Cipher>),
}

/// Whether a stream is added or subtracted. Of a pair one adds and the other subtracts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Add.
    Add,
    /// Subtract.
    Subtract,
}

impl fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskKey")
    }
}

impl Drop for MaskKey {
    fn drop(&mut self) {
        self.nonce.zeroize();
    }
}

impl ZeroizeOnDrop for MaskKey {}

impl MaskKey {
    /// The stream of `secret` in the context `ctx` for one purpose, the `domain`. Keys that
    /// [`derive`](super::keys::derive()) makes of the same secret are independent of it, whatever their domain.
    #[must_use]
    pub fn derive(secret: &[u8; 32], ctx: &[u8; 32], domain: &'static str) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        keys::expand(secret, ctx, &[b"aivillage secagg mask v1\0", domain.as_bytes()], &mut bytes);
        let mut key = Zeroizing::new([0; 16]);
        key.copy_from_slice(&bytes[..16]);
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&bytes[16..24]);
        Self::of(&key, nonce)
    }

    fn of(key: &[u8; 16], nonce: [u8; 8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(keys) = wide::RoundKeys::new(key) {
            return Self { cipher: Cipher::Wide(keys), nonce };
        }
        Self { cipher: Cipher::Portable(Box::new(portable::Cipher::new(key))), nonce }
    }

    /// Adds the stream, word by word of `WORD` bytes, to `sums`; a whole number of batches.
    fn add<const WORD: usize>(&self, counters: &[[u8; BLOCK]], sums: &mut [[u8; BLOCK]]) {
        match &self.cipher {
            #[cfg(target_arch = "x86_64")]
            Cipher::Wide(keys) => keys.add::<WORD>(self.nonce, counters, sums),
            Cipher::Portable(cipher) => cipher.add::<WORD>(self.nonce, counters, sums),
        }
    }
}

/// Bytes of stream that mask one value.
#[must_use]
pub const fn word_bytes(width: Width) -> usize {
    match width {
        Width::B16 | Width::B24 | Width::B32 => 4,
        Width::B40 | Width::B48 | Width::B64 => 8,
    }
}

/// Adds the streams of `keys` to `words`, the values from index `first` on, each as its sign says, mod 2^b: what lies above
/// is nobody's business, as in all numbers of the ring.
///
/// # Panics
/// Unless `first` is a multiple of [`UNIT`].
pub fn apply(keys: &[(MaskKey, Sign)], width: Width, first: u64, words: &mut [i64]) {
    assert!(first.is_multiple_of(UNIT as u64), "a piece begins at a multiple of {UNIT} values, not at {first}");
    match word_bytes(width) {
        4 => apply_from::<4>(keys, first / 4, words),
        _ => apply_from::<8>(keys, first / 2, words),
    }
}

/// [`apply`] from a block of the streams on, `WORD` bytes a value.
fn apply_from<const WORD: usize>(keys: &[(MaskKey, Sign)], mut block: u64, words: &mut [i64]) {
    // The same for all keys, beside an empty nonce.
    let mut counters = [[0; BLOCK]; BLOCKS];
    let mut sums = Zeroizing::new([[0; BLOCK]; BLOCKS]);
    for words in words.chunks_mut(BLOCKS * BLOCK / WORD) {
        let blocks = (words.len() * WORD).div_ceil(BLOCK).next_multiple_of(BATCH);
        let (counters, sums) = (&mut counters[..blocks], &mut sums[..blocks]);
        for counter in counters.iter_mut() {
            *counter = u128::from(block).to_be_bytes();
            block = block.wrapping_add(1);
        }
        sums.fill([0; BLOCK]);
        let of = |wanted| keys.iter().filter(move |(_, sign)| *sign == wanted);
        of(Sign::Subtract).for_each(|(key, _)| key.add::<WORD>(counters, sums));
        for sum in sums.as_flattened_mut().as_chunks_mut::<WORD>().0 {
            *sum = narrow(word(*sum).wrapping_neg());
        }
        of(Sign::Add).for_each(|(key, _)| key.add::<WORD>(counters, sums));
        for (value, sum) in words.iter_mut().zip(sums.as_flattened().as_chunks::<WORD>().0) {
            *value = value.wrapping_add(word(*sum).cast_signed());
        }
    }
}

/// A word of 4 or 8 bytes as a number. Byte by byte, which compiles to one load.
#[inline(always)]
fn word<const WORD: usize>(bytes: [u8; WORD]) -> u64 {
    match WORD {
        4 => u64::from(u32::from_le_bytes(std::array::from_fn(|at| bytes[at]))),
        _ => u64::from_le_bytes(std::array::from_fn(|at| bytes[at])),
    }
}

/// Its low bytes.
#[inline(always)]
fn narrow<const WORD: usize>(word: u64) -> [u8; WORD] {
    let bytes = word.to_le_bytes();
    std::array::from_fn(|at| bytes[at])
}

#[cfg(test)]
mod tests;
