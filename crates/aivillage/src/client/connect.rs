//! From a URL to an open connection: TCP, and TLS for `https`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Body;
use crate::exit::{CliError, ExitCode};

/// Longest wait for a connection: a gateway that is there answers in milliseconds, or a second across the world.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Where systems keep the authorities that they trust.
const SYSTEM_CA: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where a gateway answers, and how that was found.
#[derive(Debug, Clone)]
pub struct Address {
    url: String,
    host: String,
    port: u16,
    authority: String,
    prefix: String,
    tls: Option<Arc<ClientConfig>>,
    /// How the address was found, for errors: `--url`, a file …
    source: String,
    /// What to do when nobody answers there.
    advice: String,
}

impl Address {
    /// Understands `url`; `source` says where it comes from, `advice` what to do when nobody answers.
    ///
    /// # Errors
    /// Not a URL of a gateway; for https: the authorities cannot be read.
    pub fn parse(url: &str, ca: Option<&Path>, source: String, advice: String) -> Result<Self, CliError> {
        let wrong = |why: &str| {
            CliError::new(ExitCode::Usage, format!("`{url}` ({source}) is no address of a gateway: {why}"))
                .hint("write it like http://127.0.0.1:8000")
        };
        let uri: Uri = url.trim().parse().map_err(|_| wrong("it is no URL"))?;
        let host = uri.host().ok_or_else(|| wrong("it names no host"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(wrong("it must begin with http:// or https://")),
        };
        if uri.query().is_some() {
            return Err(wrong("it must not have a query"));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let authority = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        if authority.contains('@') {
            return Err(wrong("names and passwords do not belong there: give the key with --key or API_KEY"));
        }
        if let (Some(ca), false) = (ca, secure) {
            return Err(wrong(&format!("--ca {} is for https:// addresses", ca.display())));
        }
        Ok(Self {
            url: url.trim().trim_end_matches('/').to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            tls: if secure { Some(Arc::new(tls(ca)?)) } else { None },
            source,
            advice,
        })
    }

    /// Base URL without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> CliError {
        let message = format!("no gateway answers at {} ({}): {why}", self.url, self.source);
        CliError::new(ExitCode::Unavailable, message).hint(self.advice.clone())
    }
}

/// TLS 1.3 with the authorities of `ca`, or the system's.
fn tls(ca: Option<&Path>) -> Result<ClientConfig, CliError> {
    let fail = |what: String| {
        CliError::new(ExitCode::Configuration, what)
            .hint("name the PEM file of the authority that signed the gateway's certificate with --ca FILE")
    };
    let path = match ca {
        Some(path) => path,
        None => SYSTEM_CA
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or_else(|| fail("this system keeps no list of certificate authorities where it is usual".into()))?,
    };
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|e| fail(format!("cannot read {}: {e}", path.display())))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| fail(format!("{} is no PEM file: {e}", path.display())))?;
        // A system's list may hold certificates that rustls does not take; the others still count.
        let _kept = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(fail(format!("{} holds no certificate of an authority", path.display())));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| fail(format!("TLS 1.3 is not available: {e}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A fresh connection.
pub(super) async fn open(address: &Address) -> Result<SendRequest<Body>, CliError> {
    let opened = tokio::time::timeout(CONNECT_MAX, connect(address)).await;
    opened.map_err(|_| address.unreachable(&format!("no connection within {} s", CONNECT_MAX.as_secs())))?
}

async fn connect(address: &Address) -> Result<SendRequest<Body>, CliError> {
    let stream =
        TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|e| address.unreachable(&e))?;
    stream.set_nodelay(true).map_err(|e| address.unreachable(&e))?;
    let Some(tls) = &address.tls else { return handshake(address, stream).await };
    let name = ServerName::try_from(address.host.clone()).map_err(|e| address.unreachable(&e))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|e| {
        address
            .unreachable(&e)
            .hint("if the gateway's certificate is signed by an authority of your own, name it with --ca FILE")
    })?;
    handshake(address, stream).await
}

async fn handshake<S>(address: &Address, stream: S) -> Result<SendRequest<Body>, CliError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| address.unreachable(&e))?;
    // Ends with the connection; what went wrong on it is told to whoever waits for an answer.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
