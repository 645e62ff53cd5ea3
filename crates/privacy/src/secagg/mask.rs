//! Masks: AES-128-CTR streams (NIST SP 800-38A), added to a vector or subtracted from it as they are made.
//!
//! ```text
//! shared secret, ctx, domain --HKDF-SHA-256--> key (16 bytes), first counter (16)
//! value i of width b:  bits i·b .. (i + 1)·b of the stream, little endian
//! ```
//!
//! Promises: the stream of a key depends on its secret, context and domain and on nothing else, least of all on how a vector
//! is cut into pieces; keys and streams are erased, never printed. A block of values that the nearest cache holds is masked
//! by all keys before the next, so the vector crosses memory once; nothing is stored of a stream but its part for that
//! block. The first counter is secret too: a table of AES outputs at known counters is of no use.

use std::fmt;

use aes::Aes128Enc;
use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{
    Block, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks,
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::keys;
use super::ring::Width;

/// Where a piece may begin: a multiple of this many values, which is a whole number of AES blocks in every width.
pub const UNIT: usize = 16;

/// Values masked by all keys before the next: 7.5 KiB, and as much of the stream at most; a multiple of [`UNIT`] whose blocks
/// divide evenly among the 8 or 30 that are encrypted at once.
const STRIDE: usize = 60 * UNIT;

const BLOCK: usize = 16;

/// The stream of one pair of participants, or of one participant's own seed, in one context.
pub struct MaskKey {
    cipher: Aes128Enc,
    first_counter: u128,
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
        // The cipher erases its round keys by itself.
        self.first_counter.zeroize();
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
        let [key, counter] = [0, 16].map(|at| {
            let mut half = Zeroizing::new([0; 16]);
            half.copy_from_slice(&bytes[at..at + 16]);
            half
        });
        Self::of(&key, u128::from_be_bytes(*counter))
    }

    fn of(key: &[u8; 16], first_counter: u128) -> Self {
        Self { cipher: Aes128Enc::new(key.into()), first_counter }
    }
}

/// Adds the streams of `keys` to `words`, the values from index `first` on, each as its sign says, mod 2^64 and hence mod 2^b;
/// [`pack`](super::ring::pack) reduces.
///
/// # Panics
/// Unless `first` is a multiple of [`UNIT`].
pub fn apply(keys: &[(MaskKey, Sign)], width: Width, first: u64, words: &mut [i64]) {
    assert!(first.is_multiple_of(UNIT as u64), "a piece begins at a multiple of {UNIT} values, not at {first}");
    let mut stream = Zeroizing::new([[0u8; BLOCK]; STRIDE * 8 / BLOCK]);
    let mut first_block = u128::from(first) * width.bytes() as u128 / BLOCK as u128;
    for words in words.chunks_mut(STRIDE) {
        let blocks = (words.len() * width.bytes()).div_ceil(BLOCK);
        for (key, sign) in keys {
            key.cipher.encrypt_with_backend(Masking {
                counter: key.first_counter.wrapping_add(first_block),
                stream: Array::cast_slice_from_core_mut(&mut stream[..blocks]),
                words,
                width,
                sign: *sign,
            });
        }
        first_block += blocks as u128;
    }
}

/// One stream over one stride. A closure of the cipher's, because what it runs is compiled for the processor's vectors that
/// the cipher has found: the addition, too.
struct Masking<'a> {
    counter: u128,
    stream: &'a mut [Block<Aes128Enc>],
    words: &'a mut [i64],
    width: Width,
    sign: Sign,
}

impl BlockSizeUser for Masking<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Masking<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Self { mut counter, stream, words, width, sign } = self;
        let (batches, rest) = ParBlocks::<B>::slice_as_chunks_mut(stream);
        for batch in batches {
            counter = count(counter, batch);
            backend.encrypt_par_blocks_inplace(batch);
        }
        count(counter, rest);
        backend.encrypt_tail_blocks_inplace(rest);
        let stream = Array::slice_as_flattened(stream);
        match (width, sign) {
            (Width::B16, Sign::Add) => add::<2>(stream, words, i64::wrapping_add),
            (Width::B24, Sign::Add) => add::<3>(stream, words, i64::wrapping_add),
            (Width::B32, Sign::Add) => add::<4>(stream, words, i64::wrapping_add),
            (Width::B40, Sign::Add) => add::<5>(stream, words, i64::wrapping_add),
            (Width::B48, Sign::Add) => add::<6>(stream, words, i64::wrapping_add),
            (Width::B64, Sign::Add) => add::<8>(stream, words, i64::wrapping_add),
            (Width::B16, Sign::Subtract) => add::<2>(stream, words, i64::wrapping_sub),
            (Width::B24, Sign::Subtract) => add::<3>(stream, words, i64::wrapping_sub),
            (Width::B32, Sign::Subtract) => add::<4>(stream, words, i64::wrapping_sub),
            (Width::B40, Sign::Subtract) => add::<5>(stream, words, i64::wrapping_sub),
            (Width::B48, Sign::Subtract) => add::<6>(stream, words, i64::wrapping_sub),
            (Width::B64, Sign::Subtract) => add::<8>(stream, words, i64::wrapping_sub),
        }
    }
}

/// Writes successive counters, big endian, and returns the next.
#[inline(always)]
fn count(counter: u128, blocks: &mut [Block<Aes128Enc>]) -> u128 {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a counter")]
    let (high, low) = ((counter >> 64) as u64, counter as u64);
    for (i, block) in (0u64..).zip(blocks.iter_mut()) {
        let (low, carry) = low.overflowing_add(i);
        block[..8].copy_from_slice(&high.wrapping_add(u64::from(carry)).to_be_bytes());
        block[8..].copy_from_slice(&low.to_be_bytes());
    }
    counter.wrapping_add(blocks.len() as u128)
}

#[inline(always)]
fn add<const BYTES: usize>(stream: &[u8], words: &mut [i64], join: impl Fn(i64, i64) -> i64) {
    for (word, bytes) in words.iter_mut().zip(stream.as_chunks::<BYTES>().0) {
        let mut mask = [0; 8];
        mask[..BYTES].copy_from_slice(bytes);
        *word = join(*word, i64::from_le_bytes(mask));
    }
}

#[cfg(test)]
mod tests;
