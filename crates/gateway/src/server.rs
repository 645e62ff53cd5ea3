//! The HTTP server: an accept loop over hyper that bounds what a stranger can hold open.
//!
//! Why not `axum::serve`: it sets no timer, so a half-sent header stays open for ever. Here every connection has a
//! header timeout from its first byte, connections are counted, and stopping drains open requests for a bounded time.
//! Must not know: routes.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use http::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Longest pause after a failed accept: out of file descriptors passes when connections close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests that one HTTP/2 connection may have open: as browsers do, and far below the house's own limit.
const H2_STREAMS_MAX: u32 = 100;
/// How often a silent HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const H2_PING: Duration = Duration::from_secs(20);
/// Largest head of an HTTP/1 request, in bytes: hyper's smallest possible buffer.
const HEAD_MAX: usize = 16 * 1024;

/// Limits of the server.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    pub(crate) header_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) drain: Duration,
}

/// Serves `router` until `cancel` fires, then lets open requests finish for at most `config.drain`.
pub(crate) async fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    config: ServerConfig,
    cancel: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let graceful = GracefulShutdown::new();
    let mut open = JoinSet::new();
    loop {
        // The permit comes before the accept: what is beyond the bound waits in the kernel's queue, not in memory.
        let permit = tokio::select! {
            () = cancel.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while open.try_join_next().is_some() {}
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection =
            Connection { peer, router: router.clone(), header_timeout: config.header_timeout, tls: tls.clone() };
        let watcher = graceful.watcher();
        let cancel = cancel.clone();
        open.spawn(async move {
            connection.serve(stream, watcher, cancel).await;
            drop(permit);
        });
    }
    // New connections are refused by the kernel from here on, not left hanging.
    drop(listener);
    if tokio::time::timeout(config.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(left = open.len(), "connections still open after the drain time are cut");
    }
    open.shutdown().await;
}

struct Connection {
    peer: SocketAddr,
    router: Router,
    header_timeout: Duration,
    tls: Option<TlsAcceptor>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, watcher: hyper_util::server::graceful::Watcher, cancel: CancellationToken) {
        // Answers are small and written whole: waiting for more bytes only adds latency.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        let Some(acceptor) = self.tls.clone() else {
            return self.drive(stream, watcher).await;
        };
        let handshake = tokio::select! {
            () = cancel.cancelled() => return,
            done = tokio::time::timeout(self.header_timeout, acceptor.accept(stream)) => done,
        };
        match handshake {
            Ok(Ok(stream)) => self.drive(stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        }
    }

    async fn drive<S>(&self, stream: S, watcher: hyper_util::server::graceful::Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_timeout).max_buf_size(HEAD_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(H2_PING)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX));
        let spoken = Arc::new(AtomicBool::new(false));
        let service = {
            let (router, peer, spoken) = (self.router.clone(), self.peer, Arc::clone(&spoken));
            hyper::service::service_fn(move |request| {
                spoken.store(true, Ordering::Relaxed);
                answer(router.clone(), peer, request)
            })
        };
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = watcher.watch(connection.into_owned());
        tokio::pin!(connection);
        // hyper's own header timeout starts once it knows the protocol; a client that sends nothing, or half an
        // HTTP/2 preface, must not live longer than that either.
        let done = tokio::select! {
            done = &mut connection => Some(done),
            () = tokio::time::sleep(self.header_timeout) => None,
        };
        let done = match done {
            Some(done) => done,
            None if spoken.load(Ordering::Relaxed) => connection.await,
            None => return tracing::debug!(peer = %self.peer, "no request within the header time"),
        };
        if let Err(error) = done {
            tracing::debug!(peer = %self.peer, %error, "connection ended");
        }
    }
}

fn answer(
    router: Router,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request)
}
