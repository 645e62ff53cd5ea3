//! Problem documents (RFC 9457): one shape for every error that leaves the gateway.
//!
//! Promise: each [`ErrorKind`] has exactly one status, slug and title, in one exhaustive match; `detail` is written for
//! the caller; causes that are not the caller's business go to the log and never into an answer.
//! Must not know: which room an error came from.

use aivillage_base::ErrorKind;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

/// Media type of problem documents.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// One bad place of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Fault {
    /// JSON pointer (RFC 6901) into the body, e.g. `/hyperparameters/learning_rate`; `?wait` for a query parameter.
    pub pointer: String,
    /// What is wrong there and what would be right.
    pub detail: String,
}

impl Fault {
    /// A fault at `pointer`.
    pub(crate) fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }

    /// Place and fault in one line; a fault of the whole body needs no place.
    fn sentence(&self) -> String {
        if self.pointer.is_empty() { self.detail.clone() } else { format!("{}: {}", self.pointer, self.detail) }
    }
}

/// The document as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// Which kind of problem: a path of this gateway that explains it, e.g. `/problems/not-found`.
    #[serde(rename = "type")]
    #[schema(example = "/problems/not-found")]
    pub kind: String,
    /// The kind in words; the same for every occurrence.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// What happened here, why, and what to do next.
    pub detail: String,
    /// Path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// All bad places of the request, when there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// Problems that only HTTP has, beside the kinds that rooms have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Kind(ErrorKind),
    MethodNotAllowed,
    MediaType,
    Misdirected,
    KeyReused,
    Timeout,
}

/// Every class, for the route that explains them.
const CLASSES: [Class; 15] = [
    Class::Kind(ErrorKind::Invalid),
    Class::Kind(ErrorKind::PrivacyUnsupported),
    Class::Kind(ErrorKind::Unauthenticated),
    Class::Kind(ErrorKind::Forbidden),
    Class::Kind(ErrorKind::NotFound),
    Class::Kind(ErrorKind::Conflict),
    Class::Kind(ErrorKind::TooLarge),
    Class::Kind(ErrorKind::Overloaded),
    Class::Kind(ErrorKind::Unavailable),
    Class::Kind(ErrorKind::Internal),
    Class::MethodNotAllowed,
    Class::MediaType,
    Class::Misdirected,
    Class::KeyReused,
    Class::Timeout,
];

impl Class {
    /// Status, slug and title. A new kind must find its place here before it compiles.
    fn face(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Kind(kind) => match kind {
                ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid-request", "The request is not valid"),
                ErrorKind::PrivacyUnsupported => {
                    (StatusCode::BAD_REQUEST, "privacy-unsupported", "The privacy asked for cannot be given")
                }
                ErrorKind::Unauthenticated => {
                    (StatusCode::UNAUTHORIZED, "unauthenticated", "A valid API key is needed")
                }
                ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
                ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
                ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict", "The state of the thing forbids it"),
                ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too many bytes"),
                ErrorKind::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded", "Too much at once"),
                ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available now"),
                ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
            },
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed"),
            Self::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The body's media type is not supported")
            }
            Self::Misdirected => {
                (StatusCode::MISDIRECTED_REQUEST, "misdirected-request", "This gateway does not answer under that name")
            }
            Self::KeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "The Idempotency-Key belongs to another body",
            ),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "request-timeout", "The body took too long"),
        }
    }
}

/// Seconds to wait that are named when nobody knows better: long enough to matter, short enough for a person.
const RETRY_AFTER_S: u64 = 1;

/// An error on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    class: Class,
    detail: String,
    errors: Vec<Fault>,
    retry_after_s: Option<u64>,
}

impl Problem {
    fn classed(class: Class, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// A problem of one of the house's kinds; `detail` is for the caller.
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self::classed(Class::Kind(kind), detail)
    }

    /// From a room's error. An internal one is logged here, once, and loses its text.
    pub(crate) fn from_room(kind: ErrorKind, detail: String) -> Self {
        if kind == ErrorKind::Internal {
            return Self::internal(&detail);
        }
        Self::new(kind, detail)
    }

    /// Something that is not the caller's fault: `cause` goes to the log only.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "request failed inside the gateway");
        Self::new(
            ErrorKind::Internal,
            "the gateway could not do it; the cause is in its log (try again, and tell the operator if it stays)",
        )
    }

    /// 404 with the guide's words, e.g. "Job not found".
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, detail)
    }

    /// 400 with all faults of a body.
    pub(crate) fn faults(errors: Vec<Fault>) -> Self {
        let places: Vec<_> = errors.iter().map(Fault::sentence).collect();
        let detail = match places.as_slice() {
            [one] => one.clone(),
            many => format!("{} faults: {}", many.len(), many.join("; ")),
        };
        Self { errors, ..Self::new(ErrorKind::Invalid, detail) }
    }

    /// Adds bad places.
    #[must_use]
    pub(crate) fn with_errors(mut self, errors: Vec<Fault>) -> Self {
        self.errors = errors;
        self
    }

    /// Says when to come back.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// 405; the router adds `Allow`.
    pub(crate) fn method_not_allowed(method: &http::Method, path: &str) -> Self {
        Self::classed(
            Class::MethodNotAllowed,
            format!("{method} is not possible on {path}: the `Allow` header lists what is"),
        )
    }

    /// 415.
    pub(crate) fn media_type(detail: impl Into<String>) -> Self {
        Self::classed(Class::MediaType, detail)
    }

    /// 421.
    pub(crate) fn misdirected(detail: impl Into<String>) -> Self {
        Self::classed(Class::Misdirected, detail)
    }

    /// 422.
    pub(crate) fn key_reused() -> Self {
        Self::classed(
            Class::KeyReused,
            "this Idempotency-Key was used with another body: use a new key for a new request",
        )
    }

    /// 408.
    pub(crate) fn timeout(detail: impl Into<String>) -> Self {
        Self::classed(Class::Timeout, detail)
    }

    /// The status it will be answered with.
    #[must_use]
    pub(crate) fn status(&self) -> StatusCode {
        self.class.face().0
    }

    fn body(&self, instance: Option<String>) -> ProblemBody {
        let (status, slug, title) = self.class.face();
        ProblemBody {
            kind: format!("/problems/{slug}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            instance,
            errors: self.errors.clone(),
        }
    }

    fn render(&self, instance: Option<String>) -> Response {
        let body = serde_json::to_vec(&self.body(instance)).expect("invariant: strings and numbers serialise");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        let waits = matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(seconds) = self.retry_after_s.or(waits.then_some(RETRY_AFTER_S)) {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"aivillage\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.render(None);
        response.extensions_mut().insert(self);
        response
    }
}

/// Middleware: writes the request's path into the problem documents of its answers, and makes documents of the bare
/// refusals of the libraries below (an unreadable path, an asset that is not there).
pub(crate) async fn name_instance(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let problem = match response.extensions().get::<Problem>() {
        Some(problem) => problem.clone(),
        None if response.status() == StatusCode::BAD_REQUEST => {
            Problem::new(ErrorKind::Invalid, "the path or its parameters cannot be read")
        }
        None if response.status() == StatusCode::NOT_FOUND => Problem::not_found(format!("there is nothing at {path}")),
        None => return response,
    };
    let mut named = problem.render(Some(path));
    for (name, value) in response.headers() {
        // Headers that layers added on the way (Allow, Vary, CORS) stay; those of the document are its own.
        if !named.headers().contains_key(name) && *name != http::header::CONTENT_LENGTH {
            named.headers_mut().append(name.clone(), value.clone());
        }
    }
    named
}

/// What `GET /problems/{slug}` says: title and status of one kind of problem.
pub(crate) fn explain(slug: &str) -> Option<(StatusCode, &'static str)> {
    CLASSES.iter().map(|c| c.face()).find(|f| f.1 == slug).map(|f| (f.0, f.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slug_is_explained_once() {
        let mut slugs: Vec<_> = CLASSES.iter().map(|c| c.face().1).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), CLASSES.len());
        assert_eq!(explain("privacy-unsupported").unwrap().0, StatusCode::BAD_REQUEST);
        assert!(explain("nothing").is_none());
    }

    #[test]
    fn a_fault_of_the_whole_body_is_told_without_a_place() {
        let whole = Problem::faults(vec![Fault::new("", "the body must be a JSON object")]);
        assert_eq!(whole.detail, "the body must be a JSON object");
        let two = Problem::faults(vec![Fault::new("/a", "x"), Fault::new("", "y")]);
        assert_eq!(two.detail, "2 faults: /a: x; y");
    }

    #[test]
    fn internal_causes_stay_inside() {
        let problem = Problem::from_room(ErrorKind::Internal, "row 7 of /secret/path is bad".into());
        assert!(!problem.detail.contains("secret"));
    }

    #[test]
    fn busy_answers_say_when_to_come_back() {
        let busy = Problem::new(ErrorKind::Overloaded, "full").into_response();
        assert_eq!(busy.headers()[RETRY_AFTER], "1");
        let later = Problem::new(ErrorKind::Unavailable, "off").retry_after(30).into_response();
        assert_eq!(later.headers()[RETRY_AFTER], "30");
    }
}
