//! Streams by the `aes` crate: with AES instructions where it finds them, else in constant time without. Also the twin that
//! `wide` is tested against.

use aes::Aes128Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use zeroize::Zeroizing;

use super::{BATCH, BLOCK, narrow, word};

/// A key, erased by the crate.
pub(super) struct Cipher(Aes128Enc);

impl Cipher {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        Self(Aes128Enc::new(key.into()))
    }

    pub(super) fn add<const WORD: usize>(&self, nonce: [u8; 8], counters: &[[u8; BLOCK]], sums: &mut [[u8; BLOCK]]) {
        let mut stream = Zeroizing::new([[0; BLOCK]; BATCH]);
        for (counters, sums) in counters.as_chunks::<BATCH>().0.iter().zip(sums.as_chunks_mut::<BATCH>().0) {
            *stream = *counters;
            stream.iter_mut().for_each(|block| block[..8].copy_from_slice(&nonce));
            self.0.encrypt_blocks(Array::cast_slice_from_core_mut(stream.as_mut_slice()));
            let words = stream.as_flattened().as_chunks::<WORD>().0;
            for (sum, mask) in sums.as_flattened_mut().as_chunks_mut::<WORD>().0.iter_mut().zip(words) {
                *sum = narrow(word(*sum).wrapping_add(word(*mask)));
            }
        }
    }
}
