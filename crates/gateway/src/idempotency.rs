//! `Idempotency-Key` on POSTs: a request that is sent twice has its effect once.
//!
//! ```text
//! no entry ──> run, then store the answer (2xx only: an error had no effect, so running again is right)
//! running  ──> 409       same body, stored ──> the stored answer       other body, stored ──> 422
//! ```
//!
//! Keys belong to a caller and a route. A request runs to its end even when its client hangs up, so that the answer is there
//! when the client asks again. What is running is in memory only: after a crash the request runs again, and
//! handlers that create something derive its id from [`Attempt`] so that it is the same thing. Bounded by age and number.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::ErrorKind;
use aivillage_base::ports::{Batch, Records, Scan, StoreError};
use aivillage_base::time::Clock;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::auth::Principal;
use crate::problem::Problem;

const TABLE: &str = "gateway_answers";
const HEADER: &str = "idempotency-key";
/// Set to `true` on an answer that is not new.
pub(crate) static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Largest answer that is stored: ours are small, and a big inference result can be asked again by its id.
const ANSWER_MAX: usize = 256 * 1024;
/// Old answers deleted along with each new one, so that the sweep needs no task of its own.
const SWEEP: usize = 32;
const PAGE: usize = 1000;

/// The digest of caller, route, key and body of a keyed request; the same on every repetition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt(pub(crate) [u8; 32]);

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    body_hash: String,
    status: u16,
    content_type: String,
    body: String,
    /// The answer held a secret and was not kept.
    secret: bool,
    expires_ms: u64,
}

#[derive(Debug, Default)]
struct Known {
    /// Running requests by key, with the hash of their body.
    running: HashMap<String, String>,
    /// Stored answers, oldest first: when they expire and their key.
    stored: VecDeque<(u64, String)>,
}

/// The stored answers of one gateway.
#[derive(Debug)]
pub(crate) struct Idempotency {
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
    retention_ms: u64,
    entries_max: usize,
    state: Mutex<Known>,
}

/// What to do with a keyed request.
enum Verdict {
    Run(Running),
    Replay(Answer),
}

/// Marks a key as running until dropped.
struct Running {
    owner: Arc<Idempotency>,
    key: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.owner.lock().running.remove(&self.key);
    }
}

impl Idempotency {
    /// Reads which answers are stored.
    pub(crate) async fn open(
        records: Arc<dyn Records>,
        clock: Arc<dyn Clock>,
        retention_ms: u64,
        entries_max: usize,
    ) -> Result<Self, StoreError> {
        let mut stored = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let scan = Scan { prefix: "", after: after.as_deref(), limit: PAGE };
            let rows = records.scan(TABLE, scan).await?;
            for row in &rows {
                // A row nobody can read any more is as good as expired.
                let expires = serde_json::from_slice::<Answer>(&row.value).map_or(0, |a| a.expires_ms);
                stored.push((expires, row.key.clone()));
            }
            match rows.last() {
                Some(last) if rows.len() == PAGE => after = Some(last.key.clone()),
                Some(_) | None => break,
            }
        }
        stored.sort();
        let state = Mutex::new(Known { running: HashMap::new(), stored: stored.into() });
        Ok(Self { records, clock, retention_ms, entries_max, state })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Changes are single insertions and removals: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin(self: &Arc<Self>, key: &str, body_hash: &str) -> Result<Verdict, Problem> {
        {
            let mut state = self.lock();
            if let Some(running) = state.running.get(key) {
                return Err(if running == body_hash {
                    Problem::new(
                        ErrorKind::Conflict,
                        "a request with this Idempotency-Key is still running: ask again in a moment",
                    )
                } else {
                    Problem::key_reused()
                });
            }
            state.running.insert(key.to_owned(), body_hash.to_owned());
        }
        let running = Running { owner: Arc::clone(self), key: key.to_owned() };
        let row = self.records.get(TABLE, key).await.map_err(|e| Problem::from_room(e.kind(), e.to_string()))?;
        let answer = row.and_then(|row| serde_json::from_slice::<Answer>(&row.value).ok());
        match answer.filter(|a| a.expires_ms > self.clock.now().wall_ms) {
            None => Ok(Verdict::Run(running)),
            Some(answer) if answer.body_hash != body_hash => Err(Problem::key_reused()),
            Some(Answer { secret: true, .. }) => Err(Problem::new(
                ErrorKind::Conflict,
                "this request was carried out before; its answer held a secret that is shown once: list and revoke \
                 what it made, then ask again with a new Idempotency-Key",
            )),
            Some(answer) => Ok(Verdict::Replay(answer)),
        }
    }

    async fn store(&self, key: &str, answer: &Answer) -> Result<(), StoreError> {
        let now = self.clock.now().wall_ms;
        let mut batch = Batch::new("answer_stored");
        {
            let mut state = self.lock();
            let mut swept = 0;
            while let Some((expires, _)) = state.stored.front()
                && swept < SWEEP
                && (*expires <= now || state.stored.len() >= self.entries_max)
            {
                let Some((_, old)) = state.stored.pop_front() else { break };
                batch.delete(TABLE, old);
                swept += 1;
            }
            if state.stored.front().is_some_and(|(expires, _)| *expires <= now) {
                // The sweep has not come to the end of what has expired: an older answer of this very key may be among
                // it, and must not take the new one with it later.
                state.stored.retain(|(_, old)| old != key);
            }
            state.stored.push_back((answer.expires_ms, key.to_owned()));
        }
        batch.put(TABLE, key, answer);
        self.records.commit(batch).await
    }
}

/// The key of a request, if it has one.
fn key_of(request: &Request) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or("").trim();
    if (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Ok(Some(text.to_owned()));
    }
    Err(Problem::new(ErrorKind::Invalid, "Idempotency-Key: 1 to 255 printable ASCII characters are needed"))
}

/// BLAKE3 over length-prefixed parts: no two lists of parts collide.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Middleware: answers repeated keyed POSTs from the store. Requests that change something run to their end, keyed or
/// not, even when their client hangs up: half an effect (a job that is stored but not started) is worse than none.
pub(crate) async fn replay(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
        return next.run(request).await;
    }
    if request.method() != Method::POST {
        return to_the_end(async { Ok(next.run(request).await) }).await;
    }
    match key_of(&request) {
        Ok(None) => to_the_end(async { Ok(next.run(request).await) }).await,
        Ok(Some(key)) => keyed(app, key, request, next).await.unwrap_or_else(IntoResponse::into_response),
        Err(problem) => problem.into_response(),
    }
}

async fn keyed(app: Arc<App>, key: String, request: Request, next: Next) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let Some(principal) = parts.extensions.get::<Principal>() else {
        // Nobody to keep an answer for: the route's own rule refuses.
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let caller = principal.id.clone();
    let (bytes, share) = app.bodies.read(body).await?;
    let query = parts.uri.query().unwrap_or("");
    let body_digest = digest(&[query.as_bytes(), &bytes]);
    let row_digest = digest(&[caller.as_bytes(), parts.uri.path().as_bytes(), key.as_bytes()]);
    let (row_key, body_hash) = (hex::encode(row_digest), hex::encode(body_digest));
    let running = match app.idempotency.begin(&row_key, &body_hash).await? {
        Verdict::Replay(answer) => return Ok(replayed(answer)),
        Verdict::Run(running) => running,
    };
    parts.extensions.insert(Attempt(digest(&[&row_digest, &body_digest])));
    let request = Request::from_parts(parts, Body::from(bytes));
    Ok(to_the_end(async move {
        let response = keep(&app, &running.key, body_hash, next.run(request).await).await;
        drop((running, share));
        response
    })
    .await)
}

/// Runs a request in a task of its own, which nobody's hanging up ends.
async fn to_the_end(request: impl Future<Output = Result<Response, Problem>> + Send + 'static) -> Response {
    let done = tokio::spawn(request).await.unwrap_or_else(|e| Err(Problem::internal(&e)));
    done.unwrap_or_else(IntoResponse::into_response)
}

/// Stores a successful answer before it is given.
async fn keep(app: &App, key: &str, body_hash: String, response: Response) -> Result<Response, Problem> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    // A secret is shown once and stored nowhere: its answer is remembered as "done" only.
    let secret = parts.headers.get(CACHE_CONTROL).is_some_and(|v| v == "no-store");
    let bytes: Bytes = axum::body::to_bytes(body, usize::MAX).await.map_err(|e| Problem::internal(&e))?;
    if let Ok(text) = std::str::from_utf8(&bytes)
        && text.len() <= ANSWER_MAX
    {
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let answer = Answer {
            body_hash,
            status: parts.status.as_u16(),
            content_type: content_type.to_owned(),
            body: if secret { String::new() } else { text.to_owned() },
            secret,
            expires_ms: app.clock.now().wall_ms.saturating_add(app.idempotency.retention_ms),
        };
        if let Err(error) = app.idempotency.store(key, &answer).await {
            // The effect has happened: the caller must learn its result even if it cannot be repeated.
            tracing::warn!(%error, "an answer could not be stored for its Idempotency-Key");
        }
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

fn replayed(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&answer.content_type) {
        headers.insert(CONTENT_TYPE, value);
    }
    headers.insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use aivillage_storage::MemoryRecords;
    use aivillage_storage::contract::ManualClock;

    use super::*;

    /// More than one sweep takes, all expired, and then one of them again.
    #[tokio::test]
    async fn an_old_answer_of_a_key_does_not_take_the_new_one_with_it() {
        let clock = ManualClock::at(1_000_000);
        let records: Arc<dyn Records> = Arc::new(MemoryRecords::new(clock.clone()));
        let answers = Idempotency::open(Arc::clone(&records), clock.clone(), 1_000, 10_000).await.unwrap();
        let answer = |body: &str| Answer {
            body_hash: "hash".into(),
            status: 200,
            content_type: String::new(),
            body: body.into(),
            secret: false,
            expires_ms: clock.now().wall_ms + 1_000,
        };
        let last = 2 * SWEEP;
        for i in 0..=last {
            answers.store(&format!("{i:03}"), &answer("old")).await.unwrap();
        }
        clock.advance(std::time::Duration::from_secs(2));
        let again = format!("{last:03}");
        answers.store(&again, &answer("new")).await.unwrap();
        for other in ["a", "b", "c"] {
            answers.store(other, &answer("other")).await.unwrap();
        }
        let row = records.get(TABLE, &again).await.unwrap().expect("the new answer is there");
        let kept: Answer = serde_json::from_slice(&row.value).unwrap();
        assert_eq!(kept.body, "new");
        assert_eq!(answers.lock().stored.len(), 4, "nothing that expired is left");
    }
}
