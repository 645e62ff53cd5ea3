//! The gateway: the house's HTTP door.
//!
//! ```text
//! socket ─> server (timers, bounds, TLS) ─> guard (Host, Origin) ─> auth ─> limits ─> idempotency ─> routes ─> rooms
//!                                              every error on the way out: problem (RFC 9457)
//! ```
//!
//! - [`check_listener`]: where a gateway may listen at all; [`start`]: open it, serve until cancelled, drain;
//! - `routes/`: one file a resource, thin: read a DTO, call a room's handle, write a DTO; `dto/`: the shapes outsiders see;
//! - `body`: JSON at the wall, all faults together; `problem`: every error's shape; `openapi`: the document, made from
//!   the handlers;
//! - [`ApiKeys`], [`Principal`], [`Scope`]: who calls; [`Enrolment`], [`StatusSource`]: what it needs from others.
//!
//! Promises: nothing is read without a bound in bytes, depth and time; unknown names are errors with a suggestion; a part
//! that is off answers 503 with the reason while the rest serves; causes of internal errors stay in the log.
//!
//! Must not know: databases, the node link, tensor libraries.

mod app;
mod auth;
mod body;
mod config;
mod dto;
mod feeds;
mod guard;
mod idempotency;
mod limits;
mod listen;
mod metrics;
mod openapi;
mod ports;
mod problem;
mod routes;
mod server;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use aivillage_base::ports::StoreError;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use app::{GatewayDeps, Part};
pub use auth::{ApiKeys, IssuedKey, KeyError, KeyInfo, Principal, Scope};
pub use config::{GatewayConfig, TlsFiles};
pub use listen::{ListenError, check_listener};
pub use openapi::document as openapi_document;
pub use ports::{EnrolledNode, Enrolment, EnrolmentError, IssuedToken, NotInEffect, StatusSource, TokenInfo};
pub use tls::TlsError;

use app::App;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address would expose it.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its tables cannot be read.
    #[error("the gateway's tables: {0}")]
    Store(#[from] StoreError),
    /// The socket.
    #[error("the HTTP listener: {0}")]
    Io(#[from] std::io::Error),
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// True if it speaks HTTPS.
    pub tls: bool,
    task: JoinHandle<()>,
}

impl Gateway {
    /// Waits until it has stopped: after the token given to [`start`] fired and open requests were drained.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the HTTP server ended badly");
        }
    }
}

/// Opens the gateway on `listener` and serves until `cancel` fires; then drains for at most `config.drain`.
///
/// # Errors
/// A listener that others could reach unprotected, an unusable certificate, unreadable tables.
pub async fn start(
    deps: GatewayDeps,
    listener: TcpListener,
    cancel: CancellationToken,
) -> Result<Gateway, GatewayError> {
    let address = listener.local_addr()?;
    let config = &deps.config;
    check_listener(address, config.tls.is_some(), config.require_authentication, config.allow_insecure)?;
    let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
    let server = server::ServerConfig {
        header_timeout: config.header_timeout,
        max_connections: config.max_connections,
        drain: config.drain,
    };
    let speaks_tls = tls.is_some();
    let app = open(deps, cancel.clone()).await?;
    let router = routes::router(app);
    let task = tokio::spawn(server::run(listener, tls, router, server, cancel));
    Ok(Gateway { address, tls: speaks_tls, task })
}

async fn open(mut deps: GatewayDeps, cancel: CancellationToken) -> Result<Arc<App>, StoreError> {
    let metrics = metrics::HttpMetrics::register(&mut deps.registry);
    let config = deps.config;
    let limits =
        limits::Limits::new(config.max_concurrent_requests, config.rate_limit_per_second, config.rate_limit_burst);
    let bodies = body::Bodies::new(config.max_body_bytes);
    let retention_ms = u64::try_from(config.idempotency_retention.as_millis()).unwrap_or(u64::MAX);
    let idempotency = idempotency::Idempotency::open(
        Arc::clone(&deps.records),
        Arc::clone(&deps.clock),
        retention_ms,
        config.idempotency_entries_max,
    )
    .await?;
    let document = openapi::document_of(config.mount_inference);
    let openapi = document.to_json().expect("invariant: the document's strings and numbers serialise");
    Ok(Arc::new(App {
        training: deps.training,
        inference: deps.inference,
        inventory: deps.inventory,
        keys: deps.keys,
        enrolment: deps.enrolment,
        blobs: deps.blobs,
        records: deps.records,
        started_ms: deps.clock.now().monotonic_ms,
        clock: deps.clock,
        config,
        status: deps.status,
        registry: deps.registry,
        metrics,
        limits,
        bodies,
        idempotency: Arc::new(idempotency),
        feeds: feeds::Feeds::default(),
        openapi: openapi.into(),
        cancel,
    }))
}
