//! A node's identity: one Ed25519 key (RFC 8032), kept in `identity.key` (PKCS#8 PEM, mode 0600, sealed if there is a
//! [`Seal`]).
//!
//! Promise: the private half is printed by nothing, leaves memory zeroed, and proves itself in each certificate request.
//! Must not know the gateway.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aivillage_base::NodeId;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use crate::seal::{self, Seal};

/// A node's identity cannot be read, made or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("the identity {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no Ed25519 key.
    #[error(
        "{} holds no Ed25519 key: restore it from a backup, or delete it and join again under a new identity",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The cryptographic library refuses.
    #[error("no key could be made")]
    Crypto,
}

/// A node's key pair. `Debug` prints the public half only.
pub struct Identity {
    key: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    id: NodeId,
}

impl Identity {
    /// A new key, in memory only.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn generate() -> Result<Self, IdentityError> {
        let key = Ed25519KeyPair::generate().map_err(|_| IdentityError::Crypto)?;
        let document = key.to_pkcs8v1().map_err(|_| IdentityError::Crypto)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec())).ok_or(IdentityError::Crypto)
    }

    /// The key in this file; a new one is made and saved if there is none.
    ///
    /// # Errors
    /// [`IdentityError`], also if others may read the file or it is sealed with another key.
    pub fn open_or_create(path: &Path, seal: Option<&Seal>) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        if let Some(text) = seal::read(path, seal).map_err(io)? {
            let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
                .map(|der| Zeroizing::new(der.secret_pkcs8_der().to_vec()));
            return der.ok().and_then(Self::from_pkcs8).ok_or_else(|| IdentityError::Damaged { path: path.to_owned() });
        }
        let identity = Self::generate()?;
        let mut text = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
        let mut body = STANDARD.encode(identity.pkcs8.as_slice());
        text.push_str(&body);
        body.zeroize();
        text.push_str("\n-----END PRIVATE KEY-----\n");
        seal::write(path, &text, seal).map_err(io)?;
        Ok(identity)
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).ok()?;
        let id = NodeId(key.public_key().as_ref().try_into().ok()?);
        Some(Self { key, pkcs8, id })
    }

    /// The public key.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// An Ed25519 signature over `text`.
    #[must_use]
    pub fn sign_text(&self, text: &[u8]) -> [u8; 64] {
        self.key.sign(text).as_ref().try_into().expect("invariant: an Ed25519 signature has 64 bytes")
    }

    /// A certificate request (PKCS#10 PEM): proves that we hold the key, claims nothing else.
    pub(crate) fn csr_pem(&self) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(self)?.pem()
    }

    /// The key as TLS uses it.
    pub(crate) fn tls_key(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, rustls::Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der)
    }
}

impl PublicKeyData for Identity {
    fn der_bytes(&self) -> &[u8] {
        &self.id.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl SigningKey for Identity {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).as_ref().to_vec())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_the_same_after_reopening_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let first = Identity::open_or_create(&path, None).unwrap();
        assert_eq!(Identity::open_or_create(&path, None).unwrap().id(), first.id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            let error = Identity::open_or_create(&path, None).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        seal::write(&path, "hello", None).unwrap();
        assert!(matches!(Identity::open_or_create(&path, None), Err(IdentityError::Damaged { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    }

    #[test]
    fn debug_prints_the_public_id_only() {
        let identity = Identity::generate().unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.id()));
    }
}
