//! Join tokens: a secret that works once, and the fingerprint of the gateway that will honour it.
//!
//! Text: `avt1.<base64url of 32 random bytes>.<hex SHA-256 of the CA's public key>`. The gateway stores only the
//! SHA-256 of the secret; 256 random bits need no slow hash. Must not know who may use it or until when.

use std::fmt;
use std::str::FromStr;

use aivillage_base::rng::os_bytes;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const PREFIX: &str = "avt1";

/// SHA-256 of a CA's SubjectPublicKeyInfo: what a node pins before it trusts a gateway. Prints as 64 hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a public key, given its DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// What was given is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token ({0}); a token looks like `avt1.<43 characters>.<64 hex characters>` and is shown once by `aivillage token create`"
)]
pub struct TokenError(&'static str);

/// A join token; never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: Zeroizing<[u8; 32]>,
    pin: Pin,
}

impl Token {
    /// A fresh token for the gateway with this pin.
    #[must_use]
    pub fn random(pin: Pin) -> Self {
        let mut secret = Zeroizing::new([0u8; 32]);
        os_bytes(secret.as_mut());
        Self { secret, pin }
    }

    /// The CA that honours it.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// SHA-256 of the secret, in hex: the key under which a registry knows the token.
    #[must_use]
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.as_slice()))
    }

    /// The text to hand to the node's owner.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}", URL_SAFE_NO_PAD.encode(self.secret.as_slice()), self.pin)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(secret, {:?})", self.pin)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(prefix), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError("it needs three parts with dots between them"));
        };
        if prefix != PREFIX {
            return Err(TokenError("it does not begin with `avt1.`"));
        }
        let mut bytes = Zeroizing::new([0u8; 32]);
        let decoded = URL_SAFE_NO_PAD
            .decode(secret)
            .map(Zeroizing::new)
            .map_err(|_| TokenError("its second part is not base64url"))?;
        if decoded.len() != bytes.len() {
            return Err(TokenError("its second part is incomplete"));
        }
        bytes.copy_from_slice(&decoded);
        let mut pinned = [0u8; 32];
        hex::decode_to_slice(pin, &mut pinned)
            .map_err(|_| TokenError("its third part is not 64 hexadecimal characters"))?;
        Ok(Self { secret: bytes, pin: Pin(pinned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_does_not_print_its_secret() {
        let token = Token::random(Pin([7; 32]));
        assert_eq!(token.reveal().parse::<Token>(), Ok(token.clone()));
        let secret = token.reveal().split('.').nth(1).unwrap().to_owned();
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn what_is_no_token_is_refused_with_the_part_that_is_wrong() {
        let good = Token::random(Pin([7; 32])).reveal();
        for (bad, says) in [
            ("", "three parts"),
            ("avk1.x.y", "avt1"),
            ("avt1.###.00", "base64url"),
            (&good[..20], "three parts"),
            (&good[..good.len() - 1], "64 hex"),
            (&format!("{good}.x"), "three parts"),
        ] {
            let error = bad.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
