//! Secrets that a run can repeat: where real nodes ask their operating system, simulated ones ask their seed.

use std::convert::Infallible;
use std::fmt;

use aivillage_base::rng::SeededRng;
use aivillage_privacy::rand_core::{TryCryptoRng, TryRng};

/// A stream of bytes by seed. For simulations only: whoever knows the seed knows every secret.
pub(crate) struct Secrets(SeededRng);

impl Secrets {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededRng::new("simulated secrets", seed, &[]))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl TryRng for Secrets {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let [a, b, c, d, ..] = self.0.next_u64().to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
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

impl TryCryptoRng for Secrets {}
