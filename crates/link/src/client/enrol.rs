//! Joining with a token, and renewing the certificate with the node's key.
//!
//! Promise: the gateway is authenticated before the token leaves this machine: its CA's key has the hash that the token
//! carries.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::time::Clock;
use aivillage_base::{NodeId, NodeName};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::backoff::{Backoff, chance};
use super::dial::Dialer;
use super::error::LinkError;
use crate::address::Address;
use crate::identity::Identity;
use crate::protocol::{Certified, JOIN, JoinRequest, RENEW, RenewRequest};
use crate::tls::{self, Presents, Trusts};
use crate::token::Token;

/// Waits between tries to join: machines that start together are up within seconds of each other, and who waits at a
/// screen should not wait longer than that.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// What a node keeps of having joined: no secrets, those are in its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The gateway's link, `host:port`.
    pub link: String,
    /// The CA that this node trusts from now on.
    pub ca_pem: String,
    /// The node's key.
    pub id: NodeId,
    /// The name the gateway gave it.
    pub name: NodeName,
    /// Whose token it was.
    pub owner: NodeName,
    /// The certificate.
    pub certificate_pem: String,
    /// When it was signed, by the gateway's clock: milliseconds since 1970.
    pub issued_at_ms: u64,
    /// When it runs out, by the gateway's clock: milliseconds since 1970.
    pub not_after_ms: u64,
}

impl Enrolment {
    /// The certificate's whole life.
    pub(crate) fn life(&self) -> Duration {
        Duration::from_millis(self.not_after_ms.saturating_sub(self.issued_at_ms))
    }

    pub(crate) fn dialer(&self, clock: &Arc<dyn Clock>) -> Result<Dialer, LinkError> {
        let address = self.link.parse().map_err(LinkError::BadAddress)?;
        Ok(Dialer { address, clock: clock.clone() })
    }

    fn ca(&self) -> Result<CertificateDer<'static>, LinkError> {
        certificate(&self.ca_pem)
    }

    /// TLS as this node.
    pub(crate) fn tls(&self, identity: &Identity, clock: &Arc<dyn Clock>) -> Result<Arc<ClientConfig>, LinkError> {
        let chain = vec![certificate(&self.certificate_pem)?];
        let presents = Presents::Certificate { identity, chain };
        tls::client(&Trusts::Ca(&self.ca()?), presents, clock).map_err(|e| LinkError::BadEnrolment(e.to_string()))
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, LinkError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| LinkError::BadEnrolment(e.to_string()))
}

/// Trades a token for an enrolment at the link `address` (`host:port`). Safe to repeat with the same identity.
///
/// # Errors
/// [`LinkError`]: a wrong token or address, a gateway that did not issue the token, a token that was used or expired,
/// a clock that is wrong.
pub async fn join(
    address: &str,
    token: &str,
    identity: &Identity,
    clock: &Arc<dyn Clock>,
) -> Result<Enrolment, LinkError> {
    let token: Token = token.parse()?;
    let address: Address = address.parse().map_err(LinkError::BadAddress)?;
    let tls = tls::client(&Trusts::Pinned(token.pin()), Presents::Nothing, clock)
        .map_err(|e| LinkError::BadEnrolment(e.to_string()))?;
    let dialer = Dialer { address, clock: clock.clone() };
    let body = JoinRequest { token: token.reveal(), csr_pem: request_of(identity)? };
    let certified: Certified = dialer.post(tls, JOIN, &body).await?;
    let ca = certificate(&certified.ca_pem)?;
    if tls::pin_of(&ca) != Some(token.pin()) {
        return Err(LinkError::NotTheIssuer { address: dialer.address.to_string() });
    }
    enrolment(dialer.address.to_string(), identity, certified)
}

/// [`join`] for a gateway that may not be up yet: a link that cannot be reached or is busy is tried again with jittered
/// back-off; no try begins later than `patience` after the first.
///
/// # Errors
/// [`LinkError`]: the last try's; whatever else than patience would have to mend, at once.
pub async fn join_within(
    patience: Duration,
    address: &str,
    token: &str,
    identity: &Identity,
    clock: &Arc<dyn Clock>,
) -> Result<Enrolment, LinkError> {
    let started = Instant::now();
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut said = false;
    loop {
        let error = match join(address, token, identity, clock).await {
            Err(error @ (LinkError::Unreachable { .. } | LinkError::Busy { .. })) => error,
            joined_or_refused => return joined_or_refused,
        };
        let pause = backoff.wait(error.asked(), chance());
        if started.elapsed() + pause > patience {
            return Err(error);
        }
        if !said {
            tracing::warn!(%error, patience_s = patience.as_secs(), "not joined yet, trying again");
            said = true;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Renews the certificate with the node's key; works as well after it has run out.
///
/// # Errors
/// [`LinkError`]: above all that the node was revoked.
pub async fn renew(enrolment: &Enrolment, identity: &Identity, clock: &Arc<dyn Clock>) -> Result<Enrolment, LinkError> {
    let tls = tls::client(&Trusts::Ca(&enrolment.ca()?), Presents::Nothing, clock)
        .map_err(|e| LinkError::BadEnrolment(e.to_string()))?;
    let dialer = enrolment.dialer(clock)?;
    let body = RenewRequest { csr_pem: request_of(identity)? };
    let certified: Certified = dialer.post(tls, RENEW, &body).await?;
    self::enrolment(enrolment.link.clone(), identity, certified)
}

fn request_of(identity: &Identity) -> Result<String, LinkError> {
    identity.csr_pem().map_err(|e| LinkError::BadEnrolment(e.to_string()))
}

fn enrolment(link: String, identity: &Identity, certified: Certified) -> Result<Enrolment, LinkError> {
    let name = |text: String| NodeName::new(text).map_err(|e| LinkError::BadAnswer(e.to_string()));
    Ok(Enrolment {
        link,
        ca_pem: certified.ca_pem,
        id: identity.id(),
        name: name(certified.name)?,
        owner: name(certified.owner)?,
        certificate_pem: certified.certificate_pem,
        issued_at_ms: certified.issued_at_ms,
        not_after_ms: certified.not_after_ms,
    })
}
