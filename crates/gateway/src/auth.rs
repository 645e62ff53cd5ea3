//! Who calls: API keys, their scopes, and the rule for callers without a key.
//!
//! Promise: every handler behind [`require_client`] or [`require_admin`] finds a [`Principal`] in its request; a wrong
//! key is refused even where none would be needed, so that a typing error is never mistaken for anonymous access.

mod keys;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aivillage_base::ErrorKind;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use keys::{ApiKeys, IssuedKey, KeyError, KeyInfo};

use crate::app::App;
use crate::limits;
use crate::problem::Problem;

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The guide's routes, listings, requests, own jobs, metrics, documents.
    Client,
    /// Everything: tokens, keys, revocation, models, other people's jobs.
    Admin,
}

/// An authenticated caller, or the anonymous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Stable id: a key's id, or `anonymous`. Owns jobs and Idempotency-Keys.
    pub id: String,
    /// Whom the key was made for.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
}

impl Principal {
    fn anonymous() -> Self {
        Self { id: "anonymous".into(), name: "anonymous".into(), scope: Scope::Client }
    }

    /// May it act on what belongs to `owner`?
    #[must_use]
    pub(crate) fn may_act_for(&self, owner: Option<&str>) -> bool {
        self.scope == Scope::Admin || owner == Some(self.id.as_str())
    }
}

/// The key that a request presents: `Authorization: Bearer` or `X-API-Key`.
fn presented(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let unreadable = || Problem::new(ErrorKind::Unauthenticated, "the API key holds characters that no key has");
    if let Some(value) = headers.get("x-api-key") {
        return value.to_str().map(|v| Some(v.trim())).map_err(|_| unreadable());
    }
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| unreadable())?;
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(key.trim())),
        Some(_) | None => {
            Err(Problem::new(ErrorKind::Unauthenticated, "the Authorization header must be `Bearer <API key>`"))
        }
    }
}

/// The peer's address, as the accept loop noted it.
pub(crate) fn peer_ip(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip().to_canonical())
}

fn identify(app: &App, request: &Request) -> Result<Option<Principal>, Problem> {
    if let Some(key) = presented(request.headers())? {
        return app.keys.verify(key).map(Some).ok_or_else(|| {
            Problem::new(
                ErrorKind::Unauthenticated,
                "this API key is unknown or revoked: ask the operator for a new one (`aivillage token create --role client`)",
            )
        });
    }
    let local = peer_ip(request).is_some_and(|ip| ip.is_loopback());
    // On an address that others reach, strangers have access only where the operator accepted the risk.
    let open = local || app.config.allow_insecure;
    Ok((open && !app.config.require_authentication).then(Principal::anonymous))
}

/// Middleware: finds out who calls; refuses wrong keys everywhere, and too many of one host with 429.
pub(crate) async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match identify(&app, &request) {
        Ok(Some(principal)) => {
            request.extensions_mut().insert(principal);
        }
        Ok(None) => {}
        Err(problem) => return limits::charge_wrong_key(&app, &request).err().unwrap_or(problem).into_response(),
    }
    next.run(request).await
}

fn require(request: &Request, scope: Scope) -> Result<(), Problem> {
    match request.extensions().get::<Principal>() {
        Some(principal) if principal.scope >= scope => Ok(()),
        Some(principal) => Err(Problem::new(
            ErrorKind::Forbidden,
            format!("`{}` has the client scope; this needs an admin key", principal.name),
        )),
        None => Err(Problem::new(
            ErrorKind::Unauthenticated,
            "this gateway needs an API key: send `Authorization: Bearer <key>` or `X-API-Key: <key>`",
        )),
    }
}

/// Route layer: any known caller.
pub(crate) async fn require_client(request: Request, next: Next) -> Response {
    match require(&request, Scope::Client) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Route layer: admins only.
pub(crate) async fn require_admin(request: Request, next: Next) -> Response {
    match require(&request, Scope::Admin) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Route layer of `/metrics` and `GET status`: any known caller, or everybody if the operator says so.
pub(crate) async fn require_client_unless_public(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    if app.config.public_metrics {
        return next.run(request).await;
    }
    require_client(request, next).await
}
