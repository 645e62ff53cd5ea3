//! A generator for tests that can be repeated: the same seed, the same secrets.

use std::convert::Infallible;

use aivillage_base::rng::SeededRng;
use rand_core::{TryCryptoRng, TryRng};

/// Deterministic where the program's own generator must not be.
pub(crate) struct TestRng(SeededRng);

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededRng::new("test of privacy", seed, &[]))
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        rand_core::Rng::fill_bytes(self, &mut bytes);
        bytes
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }
}

impl TryRng for TestRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.next_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}
