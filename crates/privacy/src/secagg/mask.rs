//! Masks: AES-128-CTR streams (NIST SP 800-38A), added to a vector or subtracted from it as they are made.
//!
//! ```text
//! shared secret, ctx, domain --HKDF-SHA-256--> key (16 bytes), nonce (8)
//! block j of the stream = AES-128(key, nonce || j), j in 8 bytes, big endian
//! value i of width b    = bits i·b to (i + 1)·b - 1 of the stream, little endian
//! ```
//!
//! Promises: the stream of a key depends on its secret, context and domain and on nothing else, least of all on how a vector
//! is cut into pieces; keys and streams are erased, never printed. A block of values that the nearest cache holds is masked
//! by all keys before the next, so the vector crosses memory once; nothing is stored of a stream but its part for that
//! block. The nonce is secret too: a table of AES outputs at known counters finds no key.

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

/// Values masked by all keys before the next. 7.5 KiB, their counters and a stream take at most three times that, which the
/// nearest cache holds; the blocks divide evenly among the 8 or 30 that are encrypted at once.
const STRIDE: usize = 60 * UNIT;

/// Blocks of a stride in the widest ring.
const BLOCKS: usize = STRIDE * 8 / BLOCK;

const BLOCK: usize = 16;

/// The stream of one pair of participants, or of one participant's own seed, in one context.
pub struct MaskKey {
    cipher: Aes128Enc,
    nonce: [u8; 8],
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
        Self { cipher: Aes128Enc::new(key.into()), nonce }
    }
}

/// Adds the streams of `keys` to `words`, the values from index `first` on, each as its sign says, mod 2^64 and hence mod 2^b;
/// [`pack`](super::ring::pack) reduces.
///
/// # Panics
/// Unless `first` is a multiple of [`UNIT`].
pub fn apply(keys: &[(MaskKey, Sign)], width: Width, first: u64, words: &mut [i64]) {
    assert!(first.is_multiple_of(UNIT as u64), "a piece begins at a multiple of {UNIT} values, not at {first}");
    apply_from(keys, width, first / UNIT as u64 * width.bytes() as u64, words);
}

/// [`apply`] from a block of the streams on.
fn apply_from(keys: &[(MaskKey, Sign)], width: Width, mut block: u64, words: &mut [i64]) {
    let mut stream = Zeroizing::new([[0; BLOCK]; BLOCKS]);
    let mut counters = [[0; BLOCK]; BLOCKS];
    for words in words.chunks_mut(STRIDE) {
        let blocks = (words.len() * width.bytes()).div_ceil(BLOCK);
        for counter in &mut counters[..blocks] {
            *counter = u128::from(block).to_be_bytes();
            block = block.wrapping_add(1);
        }
        for (key, sign) in keys {
            key.cipher.encrypt_with_backend(Masking {
                nonce: key.nonce,
                counters: Array::cast_slice_from_core(&counters[..blocks]),
                stream: Array::cast_slice_from_core_mut(&mut stream[..blocks]),
                words,
                width,
                sign: *sign,
            });
        }
    }
}

/// One stream over one stride. A closure of the cipher's, because what it runs is compiled for the processor's vectors that
/// the cipher has found: the addition, too.
struct Masking<'a> {
    nonce: [u8; 8],
    /// Block numbers, the same for all keys, beside an empty nonce.
    counters: &'a [Block<Aes128Enc>],
    /// As many blocks for the stream.
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
        let Self { nonce, counters, stream, words, width, sign } = self;
        let (batches, rest) = ParBlocks::<B>::slice_as_chunks_mut(stream);
        let (counters, counters_rest) = ParBlocks::<B>::slice_as_chunks(counters);
        for (batch, counters) in batches.iter_mut().zip(counters) {
            let mut input = counters.clone();
            input.iter_mut().for_each(|block| set_nonce(block, nonce));
            backend.encrypt_par_blocks((&input, batch).into());
        }
        rest.copy_from_slice(counters_rest);
        rest.iter_mut().for_each(|block| set_nonce(block, nonce));
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

/// Fills the first half of a block, which is empty. As one number of 16 bytes: a store of 8 would wait for the load of 32 that
/// follows.
#[inline(always)]
fn set_nonce(block: &mut Block<Aes128Enc>, nonce: [u8; 8]) {
    let nonce = u128::from(u64::from_le_bytes(nonce));
    block.0 = (u128::from_le_bytes(block.0) | nonce).to_le_bytes();
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
