//! `/v1/federated/models`: the catalogue. Metadata comes as JSON, bytes as a stream of their own.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::{Blobs, StoreError};
use aivillage_base::wire::BlobRef;
use aivillage_base::{Digest, ErrorKind, ModelId};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http_body_util::BodyExt as _;

use super::{JsonObject, Shared};
use crate::app::App;
use crate::body;
use crate::dto::models::{ModelAnswer, ModelList, RegisterModel};
use crate::problem::Problem;

/// Bytes read from the store at a time while a model is downloaded.
const BLOCK: usize = 256 * 1024;
/// Longest silence of an upload: slow is fine, dead is not.
const UPLOAD_SILENCE: Duration = Duration::from_secs(30);

fn model_id(text: &str) -> Result<ModelId, Problem> {
    ModelId::new(text).map_err(|_| Problem::not_found(format!("Model not found: `{text}` cannot be a model's id")))
}

fn store(error: StoreError) -> Problem {
    Problem::from_room(error.kind(), error.to_string())
}

/// Registers a model by its metadata: it counts, and can be an architecture, but is not servable before its bytes.
#[utoipa::path(post, path = "/v1/federated/models", tag = "models", request_body = RegisterModel,
    responses((status = 201, body = ModelAnswer)))]
pub(crate) async fn register(
    State(app): Shared,
    JsonObject(map, ..): JsonObject,
) -> Result<(StatusCode, Json<ModelAnswer>), Problem> {
    let inference = app.inference()?;
    let model: RegisterModel = body::read(map)?;
    let record = inference.register(model.into()).await?;
    Ok((StatusCode::CREATED, Json(record.into())))
}

/// The catalogue.
#[utoipa::path(get, path = "/v1/federated/models", tag = "models", responses((status = 200, body = ModelList)))]
pub(crate) async fn list(State(app): Shared) -> Result<Json<ModelList>, Problem> {
    let models = app.inference()?.models().into_iter().map(Into::into).collect();
    Ok(Json(ModelList { models }))
}

/// One model.
#[utoipa::path(get, path = "/v1/federated/models/{model_id}", tag = "models",
    params(("model_id" = String, Path, description = "Its id")),
    responses((status = 200, body = ModelAnswer)))]
pub(crate) async fn show(State(app): Shared, Path(id): Path<String>) -> Result<Json<ModelAnswer>, Problem> {
    Ok(Json(app.inference()?.model(&model_id(&id)?)?.into()))
}

/// Gives a registered model its bytes: a safetensors bundle of our recipes, streamed. Makes it `ready`.
///
/// The same bytes again change nothing.
#[utoipa::path(put, path = "/v1/federated/models/{model_id}/content", tag = "models",
    params(("model_id" = String, Path, description = "Of a registered model")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = ModelAnswer),
        (status = 409, description = "Other bytes have this version", body = crate::problem::ProblemBody,
         content_type = "application/problem+json"),
    ))]
pub(crate) async fn upload(
    State(app): Shared,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<ModelAnswer>, Problem> {
    let inference = app.inference()?;
    let record = inference.model(&model_id(&id)?)?;
    let given = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    if given != "application/octet-stream" {
        return Err(Problem::media_type(format!(
            "Content-Type is `{given}`: send the bundle with `Content-Type: application/octet-stream`"
        )));
    }
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let blob = {
        let _seen = inference.uploading(&record.info.model_id);
        take(&app, request.into_body(), declared).await?
    };
    match inference.publish(record.info, blob).await {
        Ok(record) => Ok(Json(record.into())),
        Err(error) => Err(error.into()),
    }
}

/// Streams a body into the blob store, hashed on the way.
async fn take(app: &App, mut body: Body, declared: Option<u64>) -> Result<BlobRef, Problem> {
    let limit = app.config.max_model_bytes;
    if declared.is_some_and(|bytes| bytes > limit) {
        return Err(body::too_large(limit));
    }
    let mut writer = app.blobs.writer(declared.unwrap_or(0)).await.map_err(store)?;
    let mut length = 0u64;
    loop {
        let frame = tokio::time::timeout(UPLOAD_SILENCE, body.frame())
            .await
            .map_err(|_| Problem::timeout(format!("nothing arrived for {} s", UPLOAD_SILENCE.as_secs())))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Problem::new(ErrorKind::Invalid, format!("the upload broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        if length > limit {
            return Err(body::too_large(limit));
        }
        writer.write(data).await.map_err(store)?;
    }
    writer.finish().await.map_err(store)
}

/// A model's bundle.
#[utoipa::path(get, path = "/v1/federated/models/{model_id}/content", tag = "models",
    params(("model_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "safetensors; ETag = BLAKE3", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 409, description = "The model has no bytes", body = crate::problem::ProblemBody,
         content_type = "application/problem+json"),
    ))]
pub(crate) async fn download(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let record = app.inference()?.model(&model_id(&id)?)?;
    let Some(blob) = record.bundle else {
        return Err(Problem::new(
            ErrorKind::Conflict,
            format!("model `{id}` is {}: it has no bytes yet", record.state.name()),
        ));
    };
    if app.blobs.len(&blob.digest).await.map_err(store)? != Some(blob.bytes) {
        return Err(Problem::internal(&format!("blob {} of model {id} is missing or cut", blob.digest)));
    }
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, blob.bytes.to_string()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{id}.safetensors\"")),
        (ETAG, format!("\"{}\"", blob.digest)),
    ];
    let body = Body::from_stream(verified(Arc::clone(&app.blobs), blob));
    Ok((headers, body).into_response())
}

/// The blob in blocks, hashed on the way; the last block is sent only if the hash is right, so a receiver never takes
/// damaged bytes for a whole file.
fn verified(blobs: Arc<dyn Blobs>, blob: BlobRef) -> impl stream::Stream<Item = Result<Bytes, StoreError>> {
    let start = (blobs, 0u64, blake3::Hasher::new());
    stream::try_unfold(start, move |(blobs, offset, mut hasher)| async move {
        if offset >= blob.bytes {
            return Ok(None);
        }
        let block = blobs.read_at(&blob.digest, offset, BLOCK).await?;
        hasher.update(&block);
        let next = offset + block.len() as u64;
        let ends = next >= blob.bytes;
        if block.is_empty() || (ends && Digest::from(hasher.finalize()) != blob.digest) {
            tracing::error!(digest = %blob.digest, "a stored model is damaged");
            return Err(StoreError::Damaged(blob.digest.to_string()));
        }
        Ok(Some((block, (blobs, next, hasher))))
    })
}
