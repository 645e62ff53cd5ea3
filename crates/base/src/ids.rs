//! Ids: who and what, each with its own type, parsed once at the wall.
//!
//! Promise: a value of these types is well-formed; their text is safe in file names, URLs and log lines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rng::os_bytes;

/// Text that is no valid id of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a valid {what}: {rule}")]
pub struct IdError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

const NAME_RULE: &str = "1 to 64 characters of a-z, A-Z, 0-9, `.`, `_`, `-`, the first a letter or digit";

fn valid_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps `text`: 1 to 64 characters of `a-z A-Z 0-9 . _ -`, the first a letter or digit.
            ///
            /// # Errors
            /// [`IdError`] with the rule.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if valid_name(&text) {
                    Ok(Self(text))
                } else {
                    Err(IdError { what: $what, given: text.chars().take(80).collect(), rule: NAME_RULE })
                }
            }

            /// The text of the id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// The name under which a node was enrolled: part of the seed of its training randomness.
    NodeName,
    "node name"
);
text_id!(
    /// A training job: given by the caller or `job_` + 8 hex.
    JobId,
    "job id"
);
text_id!(
    /// A model of the catalogue.
    ModelId,
    "model id"
);

impl JobId {
    /// `job_` + 8 random hex characters, as in the guide.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0u8; 4];
        os_bytes(&mut bytes);
        Self(format!("job_{}", hex::encode(bytes)))
    }
}

/// An inference request: 128 random bits, printed as `req_` + 32 hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// 128 bits from the operating system: ids cannot be guessed.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0u8; 16];
        os_bytes(&mut bytes);
        Self(bytes)
    }

    /// From given bits, for simulations whose randomness is seeded.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }
}

/// A node: its Ed25519 public key (RFC 8032), printed as 64 hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The first 8 hex characters, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

macro_rules! hex_id {
    ($name:ident, $what:literal, $prefix:literal, $len:literal, $rule:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let error = || IdError { what: $what, given: s.chars().take(80).collect(), rule: $rule };
                let mut bytes = [0u8; $len];
                let text = s.strip_prefix($prefix).ok_or_else(error)?;
                hex::decode_to_slice(text, &mut bytes).map_err(|_| error())?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(RequestId, "request id", "req_", 16, "`req_` and 32 hexadecimal characters");
hex_id!(NodeId, "node id", "", 32, "64 hexadecimal characters, an Ed25519 public key");

#[cfg(test)]
mod tests;
