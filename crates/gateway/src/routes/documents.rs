//! Documents for people and tools: OpenAPI, its browser, and what each kind of problem means. Nothing comes from a CDN.

use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::HeaderValue;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::Shared;
use crate::app::App;
use crate::problem::{self, Problem};

/// Swagger UI needs inline styles; scripts come from this gateway only.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The OpenAPI document of this gateway.
#[utoipa::path(get, path = "/openapi.json", tag = "documents", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json"),
))]
pub(crate) async fn openapi(State(app): Shared) -> Response {
    ([(CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

/// What one kind of problem means.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProblemKind {
    /// The `type` of such documents.
    #[serde(rename = "type")]
    kind: String,
    /// Its title.
    title: &'static str,
    /// Its HTTP status.
    status: u16,
}

/// What a problem's `type` means.
#[utoipa::path(get, path = "/problems/{slug}", tag = "documents",
    params(("slug" = String, Path, description = "Last part of a problem's `type`")),
    responses((status = 200, body = ProblemKind)))]
pub(crate) async fn explain_problem(Path(slug): Path<String>) -> Result<Json<ProblemKind>, Problem> {
    let (status, title) = problem::explain(&slug).ok_or_else(|| Problem::not_found("no such kind of problem"))?;
    Ok(Json(ProblemKind { kind: format!("/problems/{slug}"), title, status: status.as_u16() }))
}

/// Swagger UI under `/docs`, embedded in the binary.
pub(crate) fn swagger() -> Router<Arc<App>> {
    let config = Config::from("/openapi.json").validator_url("none").persist_authorization(false);
    Router::from(SwaggerUi::new("/docs").config(config)).layer(from_fn(restrict))
}

async fn restrict(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}
