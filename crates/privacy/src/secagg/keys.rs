//! Keys between two participants: X25519 (RFC 7748), HKDF-SHA-256 (RFC 5869), boxes of ChaCha20-Poly1305 (RFC 8439), and
//! commitments to seeds.
//!
//! Promises: secrets are erased when dropped and never printed; a peer's key that would make the shared secret known to
//! everybody (a point of small order) is refused; a box opens only with its key and its associated data. Must not know who
//! a key belongs to: public keys are trusted because an enrolled identity signed them, which is checked elsewhere.

use std::fmt;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use hkdf::Hkdf;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Bytes of a box beyond its text: the nonce before it, the tag behind it.
pub const BOX_OVERHEAD: usize = NONCE + 16;

const NONCE: usize = 12;

/// What is wrong with a key or box of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The public key is a point of small order.
    #[error("the peer's public key has small order: anybody could compute the shared secret")]
    NotContributory,
    /// The box is cut, changed, for another key, or bound to other associated data.
    #[error("the box does not open: it was changed, or sealed for another key or purpose")]
    Forged,
}

/// An ephemeral X25519 key pair.
pub struct KeyPair {
    secret: StaticSecret,
    public: PublicKey,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", self.public.as_bytes()).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A fresh pair.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self::from_seed(&seed)
    }

    /// The pair of `seed`, which is what participants share: a rebuilt seed must give the advertised public key.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let secret = StaticSecret::from(*seed);
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }

    /// The seed of [`KeyPair::from_seed`].
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public.to_bytes()
    }

    /// The secret that this pair and the owner of `peer` share: both compute the same, nobody else can. Not uniform: derive
    /// keys from it by [`derive()`].
    ///
    /// # Errors
    /// [`KeyFault::NotContributory`] if `peer` is a point of small order.
    pub fn shared(&self, peer: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, KeyFault> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return Err(KeyFault::NotContributory);
        }
        Ok(Zeroizing::new(shared.to_bytes()))
    }
}

/// HKDF-SHA-256: 32 bytes for one purpose, the `domain`, from `secret` with `ctx` as salt. Two purposes, two contexts or two
/// secrets give independent keys.
#[must_use]
pub fn derive(secret: &[u8; 32], ctx: &[u8; 32], domain: &'static str) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    expand(secret, ctx, &[domain.as_bytes()], &mut key);
    key
}

/// [`derive()`] for a domain in parts.
pub(crate) fn expand(secret: &[u8; 32], ctx: &[u8; 32], domain: &[&[u8]], out: &mut [u8; 32]) {
    Hkdf::<Sha256>::new(Some(ctx), secret)
        .expand_multi_info(domain, out)
        .expect("invariant: HKDF gives up to 8160 bytes");
}

/// Seals `plaintext`: nonce (12 random bytes), text, tag (16), with `aad` authenticated and not sent. One key seals few boxes
/// (one or two of a pair in a round), so random nonces do not meet.
#[must_use]
pub fn seal(key: &[u8; 32], aad: &[u8], plaintext: &[u8], rng: &mut impl CryptoRng) -> Vec<u8> {
    let mut nonce = [0; NONCE];
    rng.fill_bytes(&mut nonce);
    let sealed = ChaCha20Poly1305::new(key.into())
        .encrypt(&nonce.into(), Payload { msg: plaintext, aad })
        .expect("invariant: texts are shorter than 256 GiB");
    [nonce.as_slice(), &sealed].concat()
}

/// Opens what [`seal`] made with the same key and `aad`.
///
/// # Errors
/// [`KeyFault::Forged`] for anything else.
pub fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let (nonce, msg) = sealed.split_first_chunk::<NONCE>().ok_or(KeyFault::Forged)?;
    ChaCha20Poly1305::new(key.into())
        .decrypt(nonce.into(), Payload { msg, aad })
        .map(Zeroizing::new)
        .map_err(|_| KeyFault::Forged)
}

/// A commitment to a uniform `seed`: SHA-256 behind a label of its own. Binding, and hiding because nobody guesses 32 random
/// bytes; not for anything that can be guessed.
#[must_use]
pub fn commit(seed: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"aivillage secagg seed commitment v1\0").chain_update(seed).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::TestRng;

    fn hex32(text: &str) -> [u8; 32] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn x25519_gives_the_secret_of_rfc_7748() {
        let alice = KeyPair::from_seed(&hex32("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        let bob = KeyPair::from_seed(&hex32("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(bob.public(), hex32("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = hex32("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(*alice.shared(&bob.public()).unwrap(), shared);
        assert_eq!(*bob.shared(&alice.public()).unwrap(), shared);
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let pair = KeyPair::generate(&mut TestRng::new(1));
        let order_8 = hex32("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
        let mut one = [0; 32];
        one[0] = 1;
        for peer in [[0; 32], one, order_8] {
            assert_eq!(pair.shared(&peer).unwrap_err(), KeyFault::NotContributory);
        }
    }

    #[test]
    fn a_rebuilt_seed_gives_the_same_pair() {
        let pair = KeyPair::generate(&mut TestRng::new(2));
        assert_eq!(KeyPair::from_seed(&pair.seed()).public(), pair.public());
    }

    #[test]
    fn derived_keys_differ_by_secret_context_and_domain() {
        let keys = [
            derive(&[1; 32], &[2; 32], "a"),
            derive(&[9; 32], &[2; 32], "a"),
            derive(&[1; 32], &[9; 32], "a"),
            derive(&[1; 32], &[2; 32], "b"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(keys[..at].iter().all(|other| other != key));
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let pair = KeyPair::from_seed(&[0xAB; 32]);
        assert!(!format!("{pair:?}").contains("171, 171"));
    }

    #[test]
    fn commitments_are_fixed_for_ever() {
        let expected = Sha256::digest([b"aivillage secagg seed commitment v1\0".as_slice(), &[7; 32]].concat());
        assert_eq!(commit(&[7; 32]), <[u8; 32]>::from(expected));
        assert_ne!(commit(&[7; 32]), commit(&[8; 32]));
    }

    proptest! {
        #[test]
        fn two_pairs_share_one_secret(a: [u8; 32], b: [u8; 32]) {
            let (a, b) = (KeyPair::from_seed(&a), KeyPair::from_seed(&b));
            prop_assert_eq!(a.shared(&b.public()).unwrap(), b.shared(&a.public()).unwrap());
        }

        #[test]
        fn a_box_opens_as_it_was_sealed_and_in_no_other_way(
            key: [u8; 32], aad: Vec<u8>, text: Vec<u8>, at: prop::sample::Index, flip in 1u8..,
        ) {
            let sealed = seal(&key, &aad, &text, &mut TestRng::new(3));
            prop_assert_eq!(sealed.len(), text.len() + BOX_OVERHEAD);
            prop_assert_eq!(&*open(&key, &aad, &sealed).unwrap(), &text);

            let mut changed = sealed.clone();
            *at.get_mut(&mut changed) ^= flip;
            prop_assert_eq!(open(&key, &aad, &changed).unwrap_err(), KeyFault::Forged);
            let cut = &sealed[..at.index(sealed.len())];
            prop_assert_eq!(open(&key, &aad, cut).unwrap_err(), KeyFault::Forged);
            let other = [aad.as_slice(), &[0]].concat();
            prop_assert_eq!(open(&key, &other, &sealed).unwrap_err(), KeyFault::Forged);
            let mut key = key;
            key[0] ^= flip;
            prop_assert_eq!(open(&key, &aad, &sealed).unwrap_err(), KeyFault::Forged);
        }
    }
}
