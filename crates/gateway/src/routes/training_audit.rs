//! `/v1/federated/training/{job_id}/record` and `.../updates/{digest}`: what an auditor replays a job from.
//!
//! Promise: only the job's creator and admins see them, for a record names every node and an update tells of its data.
//! A large update is streamed, never held.

use aivillage_base::Digest;
use aivillage_training::audit::KeptUpdate;
use aivillage_training::record::{JobRecord, RoundRecord};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use serde::Serialize;
use utoipa::ToSchema;

use super::training::{job_id, only_its_owner};
use super::{Caller, Shared};
use crate::problem::Problem;

/// Bytes of an update sent at a time.
const PIECE: usize = 256 * 1024;

/// A job as it is persisted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RecordAnswer {
    /// The job: what was asked, its architecture, its newest model and server state.
    #[schema(value_type = Object)]
    job: JobRecord,
    /// Its attempts, oldest first: models, server state and grids of each, and what every member declared.
    #[schema(value_type = Vec<Object>)]
    rounds: Vec<RoundRecord>,
}

/// The job's record, complete. Its creator may ask, and every admin.
///
/// With the updates that were kept it is what `aivillage train export` writes and `aivillage aggregate` recomputes.
#[utoipa::path(get, path = "/v1/federated/training/{job_id}/record", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`")),
    responses((status = 200, body = RecordAnswer)))]
pub(crate) async fn record(
    State(app): Shared,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Json<RecordAnswer>, Problem> {
    let job = job_id(&id)?;
    let saved = app.training()?.record(&job).await?;
    only_its_owner(&app, &caller, &job, "see its record").await?;
    Ok(Json(RecordAnswer { job: saved.record, rounds: saved.attempts }))
}

/// An update that was kept after its round: little-endian 32-bit integers on the round's grids. The job's creator may ask,
/// and every admin.
#[utoipa::path(get, path = "/v1/federated/training/{job_id}/updates/{digest}", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`"),
           ("digest" = String, Path, description = "BLAKE3 of the update, from the job's record")),
    responses((status = 200, description = "i32, little endian, in the order of the model's tensors; ETag = BLAKE3",
               body = Vec<u8>, content_type = "application/octet-stream")))]
pub(crate) async fn update(
    State(app): Shared,
    Caller(caller): Caller,
    Path((id, digest)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let job = job_id(&id)?;
    let training = app.training()?;
    // A job that is not there is 404, whoever asks.
    training.record(&job).await?;
    only_its_owner(&app, &caller, &job, "see its updates").await?;
    let digest: Digest =
        digest.parse().map_err(|e: aivillage_base::digest::DigestError| Problem::not_found(e.to_string()))?;
    let update = training.kept_update(&job, &digest).await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, update.blob().bytes.to_string()),
        (ETAG, format!("\"{digest}\"")),
    ];
    Ok((headers, Body::from_stream(pieces(update))).into_response())
}

/// The bytes of an update, piece by piece.
fn pieces(update: KeptUpdate) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::try_unfold((update, 0_u64), |(update, offset)| async move {
        if offset >= update.blob().bytes {
            return Ok(None);
        }
        let piece = update.read(offset, PIECE).await.map_err(std::io::Error::other)?;
        if piece.is_empty() {
            return Err(std::io::Error::other("the stored update is cut"));
        }
        let next = offset + piece.len() as u64;
        Ok(Some((piece, (update, next))))
    })
}
