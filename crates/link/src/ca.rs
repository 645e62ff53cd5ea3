//! The gateway's certificate authority: made on first start, signs the link's own certificate and those of nodes.
//!
//! `ca.key` (ECDSA P-256, mode 0600, sealed if there is a [`Seal`]) is the one secret; `ca.pem` can be made again from it. Nodes pin the *key*
//! ([`Authority::pin`]). Clients check one fixed name, [`SERVER_NAME`], whatever address they dial: only this CA signs
//! for it. Must not know who may have a certificate: that is the registry's.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::time::Clock;
use aivillage_base::{NodeId, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::files;
use crate::seal::{self, Seal};
use crate::token::Pin;

/// The DNS name in the server's certificate.
pub const SERVER_NAME: &str = "gateway.aivillage";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Of the link's own certificate; renewed at two thirds.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How far certificates are dated back, so that a clock that is slow by this much still accepts them.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// The CA cannot be opened or cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("the certificate authority's {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files that are no CA of ours.
    #[error(
        "the certificate authority in {} is damaged ({why}): restore the folder from a backup; with a new one every node must join again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The request is not one of an Ed25519 key, or does not prove possession of it.
    #[error("the certificate request is not valid: {0}")]
    BadRequest(String),
    /// Signing failed.
    #[error("the certificate could not be signed: {0}")]
    Signing(String),
}

/// The certificate authority; a cheap handle.
#[derive(Clone)]
pub struct Authority {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
    pin: Pin,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.inner.pin)
    }
}

/// A checked certificate request: its sender holds this key.
pub(crate) struct Csr {
    pub(crate) id: NodeId,
    parsed: CertificateSigningRequestParams,
}

/// A node's signed certificate.
pub(crate) struct NodeCertificate {
    pub(crate) pem: String,
    pub(crate) issued_at_ms: u64,
    pub(crate) not_after_ms: u64,
}

/// The link's own certificate with its key.
pub(crate) struct ServerLeaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) renew_at_ms: u64,
}

impl Authority {
    /// Opens the CA in this folder, or makes it: key first, then certificate, each written whole and durably.
    ///
    /// # Errors
    /// [`CaError::Io`], also if others may read the key or it is sealed with another key; [`CaError::Damaged`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, seal: Option<&Seal>) -> Result<Self, CaError> {
        let (key_path, pem_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| CaError::Io { path, source }
        };
        let damaged =
            |path: &Path, why: &dyn fmt::Display| CaError::Damaged { path: path.to_owned(), why: why.to_string() };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let key = if let Some(text) = seal::read(&key_path, seal).map_err(io(&key_path))? {
            KeyPair::from_pem(&text).map_err(|e| damaged(&key_path, &e))?
        } else {
            if pem_path.exists() {
                return Err(damaged(&key_path, &"ca.pem is there, ca.key is not"));
            }
            let key = KeyPair::generate().map_err(|e| CaError::Signing(e.to_string()))?;
            seal::write(&key_path, &Zeroizing::new(key.serialize_pem()), seal).map_err(io(&key_path))?;
            key
        };
        let pin = Pin::of_spki(&key.subject_public_key_info());
        if !pem_path.exists() {
            let pem = ca_params(&pin, clock.now().wall_ms)
                .and_then(|params| params.self_signed(&key))
                .map_err(|e| CaError::Signing(e.to_string()))?
                .pem();
            files::write_durably(&pem_path, pem.as_bytes(), false).map_err(io(&pem_path))?;
        }
        let pem = std::fs::read_to_string(&pem_path).map_err(io(&pem_path))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&pem_path, &e))?.into_owned();
        if crate::tls::pin_of(&der) != Some(pin) {
            return Err(damaged(&pem_path, &"ca.pem does not belong to ca.key"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| damaged(&pem_path, &e))?;
        Ok(Self { inner: Arc::new(Inner { issuer, der, pem, pin, clock }) })
    }

    /// The hash of the CA's public key, as tokens carry it.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.inner.pin
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.inner.pem
    }

    pub(crate) fn ca_der(&self) -> &CertificateDer<'static> {
        &self.inner.der
    }

    /// Signs a certificate for the key of a request. Name and uses are ours: what the request claims is ignored.
    pub(crate) fn sign_node(&self, csr: &Csr, name: &NodeName, lifetime: Duration) -> Result<NodeCertificate, CaError> {
        let issued_at_ms = self.inner.clock.now().wall_ms;
        let not_after_ms = issued_at_ms.saturating_add(millis(lifetime));
        let mut params = leaf_params(name.as_str(), issued_at_ms, not_after_ms)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&csr.parsed.public_key, &self.inner.issuer)
            .map_err(|e| CaError::Signing(e.to_string()))?;
        Ok(NodeCertificate { pem: certificate.pem(), issued_at_ms, not_after_ms })
    }

    /// A fresh certificate for the link itself.
    pub(crate) fn server_leaf(&self) -> Result<ServerLeaf, CaError> {
        let signing = |e: rcgen::Error| CaError::Signing(e.to_string());
        let now_ms = self.inner.clock.now().wall_ms;
        let mut params = leaf_params(SERVER_NAME, now_ms, now_ms + millis(LEAF_LIFE))?;
        // A node whose clock is a day slow should still be able to tell its owner so.
        params.not_before = date(now_ms.saturating_sub(millis(DAY)))?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into().map_err(signing)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(signing)?;
        let certificate = params.signed_by(&key, &self.inner.issuer).map_err(signing)?;
        Ok(ServerLeaf {
            chain: vec![certificate.der().clone(), self.inner.der.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            renew_at_ms: now_ms + millis(LEAF_LIFE) / 3 * 2,
        })
    }
}

impl Csr {
    /// Reads a request and checks its signature.
    pub(crate) fn parse(pem: &str) -> Result<Self, CaError> {
        let parsed = CertificateSigningRequestParams::from_pem(pem).map_err(|e| CaError::BadRequest(e.to_string()))?;
        if parsed.public_key.algorithm() != &rcgen::PKCS_ED25519 {
            return Err(CaError::BadRequest("its key is not an Ed25519 key".to_owned()));
        }
        let id = parsed
            .public_key
            .der_bytes()
            .try_into()
            .map(NodeId)
            .map_err(|_| CaError::BadRequest("its Ed25519 key does not have 32 bytes".to_owned()))?;
        Ok(Self { id, parsed })
    }
}

fn ca_params(pin: &Pin, now_ms: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    // The name carries the key's hash: two villages' CAs never look alike.
    name.push(DnType::CommonName, format!("AIVillage CA {}", hex::encode(&pin.0[..4])));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date(now_ms.saturating_sub(millis(DAY))).map_err(|_| rcgen::Error::Time)?;
    params.not_after = date(now_ms + millis(CA_LIFE)).map_err(|_| rcgen::Error::Time)?;
    params.serial_number = Some(serial());
    Ok(params)
}

fn leaf_params(name: &str, now_ms: u64, not_after_ms: u64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = date(now_ms.saturating_sub(millis(BACKDATED)))?;
    params.not_after = date(not_after_ms)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    Ok(params)
}

/// 127 random bits (RFC 5280 wants unique positive numbers of at most 20 bytes).
fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    aivillage_base::rng::os_bytes(&mut bytes);
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn date(wall_ms: u64) -> Result<OffsetDateTime, CaError> {
    i64::try_from(wall_ms / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| CaError::Signing("this machine's clock is out of range".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aivillage_base::time::SystemClock;

    fn open(dir: &Path) -> Result<Authority, CaError> {
        Authority::open(dir, Arc::new(SystemClock::new()), None)
    }

    #[test]
    fn the_authority_is_the_same_after_reopening_even_if_its_certificate_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        assert_eq!(open(dir.path()).unwrap().ca_pem(), first.ca_pem());
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert_eq!(open(dir.path()).unwrap().pin(), first.pin());
    }

    #[test]
    fn a_certificate_without_its_key_or_with_another_is_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(a.path()).unwrap();
        open(b.path()).unwrap();
        std::fs::copy(a.path().join("ca.pem"), b.path().join("ca.pem")).unwrap();
        assert!(matches!(open(b.path()), Err(CaError::Damaged { .. })));
        std::fs::remove_file(a.path().join("ca.key")).unwrap();
        assert!(matches!(open(a.path()), Err(CaError::Damaged { .. })));
    }

    #[test]
    fn a_sealed_authority_is_the_same_one_and_opens_with_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let with = |key: Option<&str>| {
            let seal = key.map(Seal::new);
            Authority::open(dir.path(), Arc::new(SystemClock::new()), seal.as_ref())
        };
        let pin = with(None).unwrap().pin();
        assert_eq!(with(Some("right")).unwrap().pin(), pin);
        let text = std::fs::read_to_string(dir.path().join("ca.key")).unwrap();
        assert!(text.starts_with("aivillage-sealed-v1") && !text.contains("PRIVATE KEY"), "{text}");
        for wrong in [None, Some("wrong")] {
            let error = with(wrong).unwrap_err().to_string();
            assert!(error.contains("ca.key") && error.contains("SECRET_KEY"), "{error}");
        }
        assert_eq!(with(Some("right")).unwrap().pin(), pin);
    }

    #[test]
    fn a_request_that_was_tampered_with_or_has_another_kind_of_key_is_refused() {
        let identity = crate::Identity::generate().unwrap();
        let pem = identity.csr_pem().unwrap();
        assert_eq!(Csr::parse(&pem).map(|c| c.id).ok(), Some(identity.id()));
        let other = CertificateParams::default()
            .serialize_request(&KeyPair::generate().unwrap())
            .and_then(|r| r.pem())
            .unwrap();
        assert!(matches!(Csr::parse(&other), Err(CaError::BadRequest(_))));
        let mut der = pem_body(&pem);
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(Csr::parse(&to_pem(&der)), Err(CaError::BadRequest(_))));
    }

    fn pem_body(pem: &str) -> Vec<u8> {
        rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    fn to_pem(der: &[u8]) -> String {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    }
}
