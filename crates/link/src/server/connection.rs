//! The accept loop and the life of one connection, before and after it has shown a certificate.
//!
//! Promise: strangers are bounded in number (in all, and of one host), in bytes (8 KiB of headers, then the route's cap)
//! and in time; a connection does not outlive its peer's certificate by more than one call. Must not know routes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::NodeId;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::strangers::{Strangers, Visit};
use super::streams::End;
use super::{Shared, routes};

/// Pause after a failed accept: the process is out of file descriptors, spinning would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest request head of a stranger: hyper's smallest buffer.
const STRANGER_BUFFER: usize = 8 * 1024;
/// Read buffer of a node's connection: large enough for uploads to run at disk speed, small enough for hundreds.
const NODE_BUFFER: usize = 128 * 1024;
/// Time and bytes for the last words of a connection that is refused.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX: usize = 64 * 1024;
/// A peer that answers nothing for this long, keep-alive probes included, is gone.
const VANISHED: Duration = Duration::from_secs(30);

/// The certificate a connection has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) id: NodeId,
    pub(crate) not_after_ms: u64,
}

pub(super) struct Door {
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    cancel: CancellationToken,
    /// Fires when draining has taken too long.
    kill: CancellationToken,
    connections: Arc<Semaphore>,
    strangers: Strangers,
}

impl Door {
    pub(super) fn new(shared: Arc<Shared>, acceptor: TlsAcceptor, cancel: CancellationToken) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(shared.config.connections));
        let strangers = Strangers::new(shared.config.strangers);
        let kill = CancellationToken::new();
        Arc::new(Self { shared, acceptor, cancel, kill, connections, strangers })
    }

    /// Accepts until cancelled, then says goodbye and waits for the connections, at most `drain`.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, place, stranger)) = self.accept(&listener).await {
            let door = self.clone();
            self.shared.streams.tasks().spawn(async move {
                let _place = place;
                let kill = door.kill.clone();
                tokio::select! {
                    () = kill.cancelled() => {}
                    () = door.connection(stream, stranger) => {}
                }
            });
        }
        drop(listener);
        let streams = &self.shared.streams;
        streams.end_all(End::Stopping);
        streams.tasks().close();
        let drained = tokio::time::timeout(self.shared.config.drain, streams.tasks().wait()).await;
        if drained.is_err() {
            tracing::warn!(connections = streams.tasks().len(), "link drain took too long, cutting");
            self.kill.cancel();
            streams.tasks().wait().await;
        }
    }

    /// The next connection with its places; None when cancelled. Without a place, callers wait in the kernel's backlog; one
    /// whose host holds its share of the strangers' places is cut at once.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, OwnedSemaphorePermit, Visit)> {
        let arrival = async {
            let place = self.connections.clone().acquire_owned().await;
            let place = place.expect("invariant: the semaphore is never closed");
            let mut stranger = self.strangers.place().await;
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => match stranger.take(peer.ip()) {
                        Ok(visit) => return (stream, place, visit),
                        Err(back) => {
                            tracing::debug!(%peer, "this host holds its share of the strangers' places");
                            stranger = back;
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "link cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => None,
            arrival = arrival => Some(arrival),
        }
    }

    async fn connection(&self, stream: TcpStream, stranger: Visit) {
        notice_vanishing(&stream);
        let config = &self.shared.config;
        let handshake = self.acceptor.accept(stream).into_fallible();
        let handshake = tokio::time::timeout(config.handshake, handshake);
        let handshake = tokio::select! {
            () = self.cancel.cancelled() => return,
            handshake = handshake => handshake,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                tracing::debug!(%error, "link handshake failed");
                let _ = tokio::time::timeout(LINGER, linger(stream)).await;
                return;
            }
            Err(_) => {
                tracing::debug!("link handshake took too long");
                return;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(certificate) = certificate else {
            let visit = self.http(stream, None, STRANGER_BUFFER, config.header);
            // One request and its answer: twice the header time is plenty.
            let _ = tokio::time::timeout(config.header * 2, visit).await;
            return;
        };
        let Some(shown) = read_certificate(certificate) else {
            tracing::warn!("a certificate of our CA has no Ed25519 key");
            return;
        };
        drop(stranger);
        self.http(stream, Some(shown), NODE_BUFFER, config.idle).await;
    }

    async fn http(
        &self,
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        shown: Option<Shown>,
        buffer: usize,
        header: Duration,
    ) {
        let shared = &self.shared;
        // Before the first request is admitted: no revocation falls between.
        let revocations = shared.deps.registry.revocations();
        let service =
            service_fn(move |request| async move { Ok::<_, Infallible>(routes::answer(shared, shown, request).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header)
            .max_buf_size(buffer)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = revoked(shared, shown, revocations) => {
                // What is being said may be the refusal: it gets a moment, then the node is cut.
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(LINGER, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "link connection ended");
        }
    }
}

/// Returns when the shown key is told to be revoked; for strangers, never. A key that was revoked before is refused
/// request by request, so that its node learns why.
async fn revoked(shared: &Shared, shown: Option<Shown>, mut told: broadcast::Receiver<NodeId>) {
    let Some(shown) = shown else { return std::future::pending().await };
    loop {
        // Whatever is told, also that telling was missed: the registry knows.
        if told.recv().await == Err(RecvError::Closed) {
            return std::future::pending().await;
        }
        if shared.deps.registry.admit(&shown.id).is_err() {
            return;
        }
    }
}

/// Reads on after a failed handshake, so that the alert with the reason reaches the peer: closing a socket with unread
/// bytes would destroy it on its way.
async fn linger(mut stream: TcpStream) {
    let mut rest = [0u8; 1024];
    let mut budget = LINGER_MAX;
    let _ = stream.shutdown().await;
    while let Ok(n @ 1..) = stream.read(&mut rest).await {
        let Some(left) = budget.checked_sub(n) else { return };
        budget = left;
    }
}

fn read_certificate(der: &rustls::pki_types::CertificateDer<'_>) -> Option<Shown> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let key = certificate.public_key().subject_public_key.data.as_ref();
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(Shown { id: NodeId(key.try_into().ok()?), not_after_ms: seconds * 1000 })
}

/// Small writes go out at once, and a peer that vanished without a word is noticed.
fn notice_vanishing(stream: &TcpStream) {
    let options = || -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        #[cfg(target_os = "linux")]
        {
            use rustix::net::sockopt;
            sockopt::set_tcp_keepidle(stream, VANISHED / 2)?;
            sockopt::set_tcp_keepintvl(stream, VANISHED / 6)?;
            sockopt::set_tcp_keepcnt(stream, 3)?;
            let ms = u32::try_from(VANISHED.as_millis()).unwrap_or(u32::MAX);
            sockopt::set_tcp_user_timeout(stream, ms)?;
        }
        Ok(())
    };
    if let Err(error) = options() {
        tracing::debug!(%error, "socket options of a link connection");
    }
}
