//! From an address to an HTTP connection over TLS, in bounded time, with errors that say what is wrong.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::time::Clock;
use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::LinkError;
use crate::address::Address;
use crate::ca::SERVER_NAME;
use crate::protocol::{ANSWER_MAX, Reason, Refusal};

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;
pub(crate) type Sender = SendRequest<RequestBody>;

/// Time to reach the gateway: connection and handshake each.
pub(crate) const DIAL: Duration = Duration::from_secs(10);
/// Time for a small answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// Read buffer of a connection: downloads come in blocks, a node must stay small.
const BUFFER: usize = 128 * 1024;

/// How far a connection had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Handshake,
    Request,
}

/// Where to dial, and the clock that certificates are judged by.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) address: Address,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Dialer {
    /// A fresh connection.
    pub(crate) async fn dial(&self, tls: Arc<ClientConfig>) -> Result<Sender, LinkError> {
        let address = &self.address;
        let late = |what: &str| LinkError::unreachable(address, format!("no {what} within {} s", DIAL.as_secs()));
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = tokio::time::timeout(DIAL, connecting)
            .await
            .map_err(|_| late("connection"))?
            .map_err(|e| LinkError::unreachable(address, e))?;
        stream.set_nodelay(true).map_err(|e| LinkError::unreachable(address, e))?;
        let name = ServerName::try_from(SERVER_NAME).expect("invariant: the name is a DNS name");
        let handshake = TlsConnector::from(tls).connect(name, stream);
        let stream = tokio::time::timeout(DIAL, handshake)
            .await
            .map_err(|_| late("TLS answer"))?
            .map_err(|e| self.failed(Stage::Handshake, &e))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.failed(Stage::Request, &e))?;
        // It ends with the sender, or with the peer; whoever waits for an answer gets the error.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "link connection ended");
            }
        });
        Ok(sender)
    }

    pub(crate) fn failed(&self, stage: Stage, error: &(dyn std::error::Error + 'static)) -> LinkError {
        LinkError::connection(&self.address, stage, self.clock.now().wall_ms, error)
    }

    /// One JSON request over a connection of its own.
    pub(crate) async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        tls: Arc<ClientConfig>,
        path: &str,
        body: &Q,
    ) -> Result<A, LinkError> {
        let mut sender = self.dial(tls).await?;
        let bytes = serde_json::to_vec(body).expect("invariant: requests serialise to JSON");
        let request = request("POST", path, full(bytes.into()));
        let answer = async {
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|e| self.failed(Stage::Request, &e))?;
            let status = answer.status();
            let bytes = whole(answer.into_body()).await?;
            if status.is_success() {
                serde_json::from_slice(&bytes).map_err(|e| LinkError::BadAnswer(e.to_string()))
            } else {
                Err(LinkError::refused(refusal(status, &bytes)))
            }
        };
        tokio::time::timeout(ANSWER, answer)
            .await
            .unwrap_or_else(|_| Err(LinkError::unreachable(&self.address, "no answer")))
    }
}

pub(crate) fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).boxed_unsync()
}

pub(crate) fn request(method: &str, path: &str, body: RequestBody) -> Request<RequestBody> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, SERVER_NAME)
        .body(body)
        .expect("invariant: our own method, path and host are valid")
}

/// A small answer's bytes.
pub(crate) async fn whole(body: Incoming) -> Result<Bytes, LinkError> {
    let collected = Limited::new(body, ANSWER_MAX).collect().await;
    collected.map(|c| c.to_bytes()).map_err(|e| LinkError::BadAnswer(e.to_string()))
}

/// What an answer that is not a success says.
pub(crate) fn refusal(status: http::StatusCode, bytes: &[u8]) -> Refusal {
    serde_json::from_slice(bytes).unwrap_or_else(|_| {
        let detail = format!("HTTP {status} without a reason");
        Refusal::new(Reason::Unknown, detail)
    })
}
