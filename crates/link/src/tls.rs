//! TLS 1.3 with the gateway's own CA: one explicit provider (aws-lc-rs), the house's clock, no session resumption.
//!
//! Resumption is off on both sides: a resumed session would carry an old client certificate past its end. Nothing is
//! installed process-wide. Must not know HTTP or the registry.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::time::Clock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::ca::Authority;
use crate::identity::Identity;
use crate::token::Pin;

/// A TLS configuration could not be made: damaged certificates or keys.
#[derive(Debug, Clone, thiserror::Error)]
#[error("TLS cannot be set up: {0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(cause: impl std::fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The house's clock as TLS wants it, so that certificates run out by the same clock as everything else.
#[derive(Debug)]
struct WallClock(Arc<dyn Clock>);

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().wall_ms)))
    }
}

/// The server's certificate, made anew by the CA when two thirds of its life are over; its key never touches a disk.
#[derive(Debug)]
struct Leaf {
    authority: Authority,
    clock: Arc<dyn Clock>,
    current: std::sync::RwLock<(u64, Arc<CertifiedKey>)>,
}

impl Leaf {
    fn make(authority: &Authority) -> Result<(u64, Arc<CertifiedKey>), TlsError> {
        let leaf = authority.server_leaf().map_err(TlsError::new)?;
        let key = CertifiedKey::from_der(leaf.chain, leaf.key, &provider()).map_err(TlsError::new)?;
        Ok((leaf.renew_at_ms, Arc::new(key)))
    }

    fn current(&self) -> (u64, Arc<CertifiedKey>) {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let (renew_at_ms, key) = self.current();
        if self.clock.now().wall_ms < renew_at_ms {
            return Some(key);
        }
        match Self::make(&self.authority) {
            Ok(fresh) => {
                let key = fresh.1.clone();
                *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
                Some(key)
            }
            Err(error) => {
                tracing::error!(%error, "link server certificate could not be renewed");
                Some(key)
            }
        }
    }
}

/// The gateway's side: client certificates of our CA are checked if sent, and may be absent.
pub(crate) fn server(authority: &Authority, clock: &Arc<dyn Clock>) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority.ca_der())?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::new)?;
    let leaf = Leaf {
        authority: authority.clone(),
        clock: clock.clone(),
        current: std::sync::RwLock::new(Leaf::make(authority)?),
    };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(WallClock(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(leaf));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Who a client says it is.
pub(crate) enum Presents<'a> {
    /// Nobody: for join and renewal.
    Nothing,
    /// A node with its certificate.
    Certificate { identity: &'a Identity, chain: Vec<CertificateDer<'static>> },
}

/// How a client knows the gateway.
pub(crate) enum Trusts<'a> {
    /// By the CA it was enrolled with.
    Ca(&'a CertificateDer<'static>),
    /// By the hash of the CA's key in a join token.
    Pinned(Pin),
}

/// A node's side.
pub(crate) fn client(
    trusts: &Trusts<'_>,
    presents: Presents<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(WallClock(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?;
    let builder = match trusts {
        Trusts::Ca(ca) => builder.with_root_certificates(roots(ca)?),
        Trusts::Pinned(pin) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pin: *pin, provider: provider() }))
        }
    };
    let mut config = match presents {
        Presents::Nothing => builder.with_no_client_auth(),
        Presents::Certificate { identity, chain } => {
            let key = identity.tls_key().map_err(TlsError::new)?;
            let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add(ca.clone()).map_err(TlsError::new)?;
    Ok(Arc::new(store))
}

/// The gateway does not show the CA that a token pins.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is not from the CA that the token names")]
pub(crate) struct PinMismatch;

/// Trusts exactly the CA whose public key has the pinned hash: the gateway shows it behind its own certificate.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|der| pin_of(der) == Some(self.pin));
        let Some(ca) = pinned else {
            let mismatch = OtherError(Arc::new(PinMismatch));
            return Err(CertificateError::Other(mismatch).into());
        };
        let mut store = RootCertStore::empty();
        store.add(ca.clone().into_owned())?;
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken on this link".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The pin of a certificate's key; None if it cannot be read.
pub(crate) fn pin_of(der: &CertificateDer<'_>) -> Option<Pin> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(Pin::of_spki(certificate.public_key().raw))
}
