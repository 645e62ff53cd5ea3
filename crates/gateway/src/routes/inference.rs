//! `/v1/federated/inference/*`: ask for predictions, read results.

use std::time::Duration;

use aivillage_base::RequestId;
use aivillage_inference::InferenceError;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};

use super::{JsonObject, Params, Shared};
use crate::app::App;
use crate::body;
use crate::dto::inference::{ResultAnswer, StatusAnswer, SubmitAnswer, SubmitQuery, SubmitRequest};
use crate::problem::{Fault, Problem};

impl From<InferenceError> for Problem {
    fn from(error: InferenceError) -> Self {
        let faults: Vec<_> = error.faults().iter().map(|f| Fault::new(f.pointer.clone(), f.detail.clone())).collect();
        let problem = Self::from_room(error.kind(), error.to_string()).with_errors(faults);
        match error {
            InferenceError::Overloaded { retry_after_s, .. } => problem.retry_after(retry_after_s),
            InferenceError::Invalid { .. }
            | InferenceError::PrivacyUnsupported { .. }
            | InferenceError::ModelNotFound(_)
            | InferenceError::RequestNotFound(_)
            | InferenceError::Conflict { .. }
            | InferenceError::Unavailable { .. }
            | InferenceError::Store(_) => problem,
        }
    }
}

/// Submits a request for predictions.
///
/// With `?wait=` and an answer in time, the answer is the finished request; else its id, which is durable.
#[utoipa::path(post, path = "/v1/federated/inference/submit", tag = "inference", params(SubmitQuery),
    request_body = SubmitRequest,
    responses(
        (status = 200, description = "Accepted; with `?wait=` and an answer in time, the finished request (as `inference/result`)", body = SubmitAnswer),
        (status = 404, description = "No such model", body = crate::problem::ProblemBody, content_type = "application/problem+json"),
    ))]
pub(crate) async fn submit(
    State(app): Shared,
    Params(query): Params<SubmitQuery>,
    JsonObject(map, ..): JsonObject,
) -> Result<Response, Problem> {
    let inference = app.inference()?;
    let request: SubmitRequest = body::read(map)?;
    let wait = query.wait.map(|ms| Duration::from_millis(ms).min(app.config.wait_max));
    let client = query.client_id.unwrap_or_else(|| "anonymous".into());
    let submitted = inference.submit(request.into_room(client, wait)).await?;
    Ok(match submitted.finished {
        Some(view) => Json(ResultAnswer::from(view)).into_response(),
        None => {
            let request_id = submitted.request_id.to_string();
            Json(SubmitAnswer { request_id, status: "submitted" }).into_response()
        }
    })
}

async fn find(app: &App, id: &str) -> Result<aivillage_inference::RequestView, Problem> {
    let inference = app.inference()?;
    // What cannot be an id is the id of nothing.
    let id: RequestId = id.parse().map_err(|_| Problem::not_found("Request not found"))?;
    Ok(inference.request(&id).await?)
}

/// A request's result; while it is unfinished, its status.
#[utoipa::path(get, path = "/v1/federated/inference/result/{request_id}", tag = "inference",
    params(("request_id" = String, Path, description = "From `inference/submit`")),
    responses((status = 200, body = ResultAnswer)))]
pub(crate) async fn result(State(app): Shared, Path(id): Path<String>) -> Result<Json<ResultAnswer>, Problem> {
    Ok(Json(find(&app, &id).await?.into()))
}

/// A request's status, without its result.
#[utoipa::path(get, path = "/v1/federated/inference/status/{request_id}", tag = "inference",
    params(("request_id" = String, Path, description = "From `inference/submit`")),
    responses((status = 200, body = StatusAnswer)))]
pub(crate) async fn request_status(State(app): Shared, Path(id): Path<String>) -> Result<Json<StatusAnswer>, Problem> {
    Ok(Json(find(&app, &id).await?.into()))
}
