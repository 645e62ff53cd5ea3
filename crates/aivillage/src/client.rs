//! A small HTTP/1.1 client for the gateway's own API.
//!
//! ```text
//! --url | --data DIR | AIVILLAGE_URL | ./aivillage-data  ─ find.rs ─> Client ─ connect.rs ─> TCP or TLS 1.3
//!                                   JSON in and out, streamed bodies; server-sent events (sse.rs)
//!                                   problem documents ─ problem.rs ─> CliError with exit code and hint
//! ```
//!
//! Promise: every failure names the address, how that address was found, and what to do. A request is repeated by itself
//! only if it is a GET on a connection that the other side had closed. Must not know: what the answers mean.

mod connect;
mod find;
mod problem;
mod sse;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::exit::{CliError, ExitCode};

pub use connect::Address;
pub use find::find;
pub use sse::{Event, EventStream};

/// Longest wait for the head of an answer; a request that waits on the server is told to wait less.
const ANSWER_MAX: Duration = Duration::from_secs(90);
/// Longest answer that is read into memory: well above the largest listing, far below what hurts.
const BODY_MAX: usize = 1 << 30;
/// Connections kept open for the next request: commands ask one thing at a time, the demo two.
const IDLE_MAX: usize = 2;
/// Bytes of a file sent at a time.
const BLOCK: usize = 256 * 1024;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A gateway and the key to it; clones share connections.
#[derive(Clone)]
pub struct Client {
    address: Arc<Address>,
    key: Option<Arc<str>>,
    idle: Arc<Mutex<Vec<SendRequest<Body>>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Bytes with the name they were served under.
#[derive(Debug, Clone)]
pub struct Download {
    /// The bytes.
    pub bytes: Bytes,
    /// The server's ETag without quotes: BLAKE3 of a model.
    pub etag: Option<String>,
}

impl Client {
    /// A client of the gateway at `address`.
    #[must_use]
    pub fn new(address: Address, key: Option<&str>) -> Self {
        Self { address: Arc::new(address), key: key.map(Arc::from), idle: Arc::default() }
    }

    /// The gateway's base URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.address.url()
    }

    /// `GET /v1/federated/{path}` as JSON.
    ///
    /// # Errors
    /// Out of reach; a problem document; an answer that is not JSON of this shape.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let response = self.call(Method::GET, path, Content::None).await?;
        self.json(response).await
    }

    /// `POST /v1/federated/{path}` with a JSON body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, CliError> {
        let response = self.call(Method::POST, path, Content::Json(body)).await?;
        self.json(response).await
    }

    /// `DELETE /v1/federated/{path}`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn delete(&self, path: &str) -> Result<(), CliError> {
        self.call(Method::DELETE, path, Content::None).await.map(drop)
    }

    /// `PUT /v1/federated/{path}` with the bytes of a file, streamed.
    ///
    /// # Errors
    /// As [`Self::get`]; the file cannot be read.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        file: tokio::fs::File,
        length: u64,
    ) -> Result<T, CliError> {
        let response = self.call(Method::PUT, path, Content::File(file, length)).await?;
        self.json(response).await
    }

    /// `GET /v1/federated/{path}` as bytes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn download(&self, path: &str) -> Result<Download, CliError> {
        let response = self.call(Method::GET, path, Content::None).await?;
        let etag = response.headers().get(ETAG).and_then(|v| v.to_str().ok()).map(|v| v.trim_matches('"').to_owned());
        let bytes = self.read(response.into_body()).await?;
        Ok(Download { bytes, etag })
    }

    /// `GET {path}` from the root of the gateway, as text: `/metrics`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn text(&self, path: &str) -> Result<String, CliError> {
        let response = self.exchange(&Method::GET, path, Content::None).await?;
        let response = self.accept(response).await?;
        let bytes = self.read(response.into_body()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// `GET /v1/federated/{path}` as server-sent events.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn events(&self, path: &str) -> Result<EventStream, CliError> {
        let response = self.call(Method::GET, path, Content::None).await?;
        Ok(EventStream::new(response.into_body()))
    }

    async fn call(&self, method: Method, path: &str, content: Content<'_>) -> Result<Response<Incoming>, CliError> {
        let response = self.exchange(&method, &format!("/v1/federated/{path}"), content).await?;
        self.accept(response).await
    }

    /// The response if it is a success, else its problem document as an error.
    async fn accept(&self, response: Response<Incoming>) -> Result<Response<Incoming>, CliError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.read(response.into_body()).await.unwrap_or_default();
        Err(problem::error(status, &body, self.url()))
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        content: Content<'_>,
    ) -> Result<Response<Incoming>, CliError> {
        if *method == Method::GET
            && let Some(mut sender) = self.idle_connection()
        {
            let request = self.request(method, path, Content::None)?;
            // The other side may close an idle connection at any time; a GET may be asked again.
            if let Ok(Ok(response)) = tokio::time::timeout(ANSWER_MAX, sender.send_request(request)).await {
                self.keep(sender);
                return Ok(response);
            }
        }
        let mut sender = connect::open(&self.address).await?;
        let request = self.request(method, path, content)?;
        match tokio::time::timeout(ANSWER_MAX, sender.send_request(request)).await {
            Ok(Ok(response)) => {
                self.keep(sender);
                Ok(response)
            }
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(self.broken(&format!("no answer within {} s", ANSWER_MAX.as_secs()))),
        }
    }

    fn request(&self, method: &Method, path: &str, content: Content<'_>) -> Result<Request<Body>, CliError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address.prefix()))
            .header(HOST, self.address.authority())
            .header(USER_AGENT, concat!("aivillage/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json, text/event-stream, */*");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        if let Some(media) = content.media_type() {
            request = request.header(CONTENT_TYPE, media);
        }
        if let Content::File(_, length) = &content {
            request = request.header(CONTENT_LENGTH, *length);
        }
        request.body(content.into_body()).map_err(|e| {
            CliError::new(ExitCode::Usage, format!("cannot ask the gateway for `{path}`: {e}"))
                .hint("ids and names hold letters, digits, `.`, `_` and `-` only; a key holds no blanks")
        })
    }

    async fn json<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, CliError> {
        let bytes = self.read(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            CliError::new(ExitCode::Failed, format!("{} does not answer as a gateway of this version: {e}", self.url()))
                .hint("check the address, and compare `aivillage --version` on both sides")
        })
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, CliError> {
        let limited = http_body_util::Limited::new(body, BODY_MAX);
        let collected = limited.collect().await.map_err(|e| self.broken(&e))?;
        Ok(collected.to_bytes())
    }

    fn broken(&self, why: &dyn fmt::Display) -> CliError {
        CliError::new(ExitCode::Unavailable, format!("the gateway at {} broke off: {why}", self.url()))
            .hint("look at its log, then try again")
    }

    fn idle_connection(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(SendRequest::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    fn keep(&self, sender: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push(sender);
    }
}

/// What a request carries.
enum Content<'a> {
    None,
    Json(&'a Value),
    File(tokio::fs::File, u64),
}

impl Content<'_> {
    fn media_type(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Json(_) => Some("application/json"),
            Self::File(..) => Some("application/octet-stream"),
        }
    }

    fn into_body(self) -> Body {
        match self {
            Self::None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::Json(value) => Full::from(value.to_string()).map_err(|never| match never {}).boxed_unsync(),
            Self::File(file, _) => {
                let frames = futures_util::stream::try_unfold(file, |mut file| async move {
                    let mut block = vec![0; BLOCK];
                    let read = file.read(&mut block).await?;
                    block.truncate(read);
                    Ok((read > 0).then(|| (Frame::data(Bytes::from(block)), file)))
                });
                StreamBody::new(frames).boxed_unsync()
            }
        }
    }
}
