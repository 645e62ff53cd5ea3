//! Probes and figures: is it alive, is it ready, what does it count.

use std::time::Duration;

use aivillage_base::ErrorKind;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use crate::problem::Problem;

/// A store that does not answer within this time cannot serve requests.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Answer of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Would a request be served? Parts that are off do not count: their own routes say so.
#[utoipa::path(get, path = "/readyz", tag = "probes", responses(
    (status = 200, body = Health),
    (status = 503, description = "The store does not answer, or the gateway is stopping",
     body = crate::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub(crate) async fn readyz(State(app): Shared) -> Result<Json<Health>, Problem> {
    let unavailable = |text: String| Err(Problem::new(ErrorKind::Unavailable, text));
    if app.cancel.is_cancelled() {
        return unavailable("the gateway is stopping".into());
    }
    match tokio::time::timeout(STORE_TIMEOUT, app.records.get("gateway_keys", "")).await {
        Ok(Ok(_)) => Ok(Json(Health { status: "ok" })),
        Ok(Err(error)) => unavailable(format!("the store does not work: {error}")),
        Err(_) => unavailable(format!("the store does not answer within {} s", STORE_TIMEOUT.as_secs())),
    }
}

/// All figures in the OpenMetrics text format, which Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "probes", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
    (status = 404, description = "Metrics are off (monitoring.enabled, monitoring.export_prometheus)",
     body = crate::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub(crate) async fn metrics(State(app): Shared) -> Result<Response, Problem> {
    if !app.config.export_metrics {
        return Err(Problem::not_found(
            "metrics are off: set monitoring.enabled and monitoring.export_prometheus to true",
        ));
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.registry).map_err(|e| Problem::internal(&e))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
