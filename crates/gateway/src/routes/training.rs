//! `/v1/federated/training/*`: create, watch and end jobs, fetch their models.

use std::sync::Arc;

use aivillage_base::ports::{Batch, BlobReader};
use aivillage_base::wire::BlobRef;
use aivillage_base::{Digest, ErrorKind, JobId};
use aivillage_training::TrainingError;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG};

use super::{Caller, JsonObject, NoFields, Params, Shared};
use crate::app::App;
use crate::auth::Principal;
use crate::body::{Fields, FromFields as _};
use crate::dto::training::{CancelAnswer, CreateAnswer, CreateJob, JobAnswer, JobList, ModelQuery, StatusQuery};
use crate::idempotency::Attempt;
use crate::problem::{Fault, Problem};

/// Bytes of a model that are in memory at a time, for each that is fetched.
const PIECE: usize = 256 * 1024;

/// Who created which job. The gateway's own table: training does not know callers.
const OWNERS: &str = "gateway_job_owners";
/// Ended attempts shown unless the caller says otherwise: about 1 MB at ten members each.
pub(crate) const ROUNDS_SHOWN: usize = 1000;

impl From<TrainingError> for Problem {
    fn from(error: TrainingError) -> Self {
        let problem = Self::from_room(error.kind(), error.to_string());
        match error {
            TrainingError::Refused(faults) => {
                problem.with_errors(faults.into_iter().map(|f| Fault::new(f.pointer, f.detail)).collect())
            }
            TrainingError::Full(_) => problem.retry_after(60),
            TrainingError::NotFound
            | TrainingError::Taken(_)
            | TrainingError::Ended { .. }
            | TrainingError::NoModel(_)
            | TrainingError::NoUpdate(_)
            | TrainingError::Stopped
            | TrainingError::Store(_) => problem,
        }
    }
}

/// A path's job id; what cannot be an id is the id of nothing.
pub(crate) fn job_id(text: &str) -> Result<JobId, Problem> {
    JobId::new(text).map_err(|_| Problem::not_found("Job not found"))
}

/// Creates a training job; it is durable when this answers.
#[utoipa::path(post, path = "/v1/federated/training/create", tag = "training", request_body = CreateJob,
    responses((status = 200, body = CreateAnswer)))]
pub(crate) async fn create(
    State(app): Shared,
    Caller(caller): Caller,
    attempt: Option<Extension<Attempt>>,
    JsonObject(map, ..): JsonObject,
) -> Result<Json<CreateAnswer>, Problem> {
    let training = app.training()?;
    let mut fields = Fields::new("", map);
    let job =
        CreateJob::read(&mut fields).ok_or_else(|| Problem::internal(&"CreateJob stands in for every faulty field"))?;
    let mut request = job.into_room(caller.name.clone(), &mut fields);
    let faults = fields.finish();
    if !faults.is_empty() {
        let more = training.check(&request).await.into_iter().map(|f| Fault::new(f.pointer, f.detail));
        return Err(Problem::faults(faults.into_iter().chain(more).collect()));
    }
    // A keyed request that runs again after a crash must find the job of its first run, not make a second one.
    let derived = attempt
        .filter(|_| request.job_id.is_none())
        .and_then(|a| JobId::new(format!("job_{}", hex::encode(&a.0.0[..4]))).ok());
    request.job_id = request.job_id.or_else(|| derived.clone()).or_else(|| Some(JobId::random()));
    let created = match training.create(request).await {
        Err(TrainingError::Taken(id)) if derived.as_ref().is_some_and(|d| d.as_str() == id) => derived,
        other => Some(other?),
    };
    let job = created.ok_or_else(|| Problem::internal(&"a job without id"))?;
    let mut batch = Batch::new("job_owner_noted");
    batch.put(OWNERS, job.as_str(), &caller.id);
    app.records.commit(batch).await.map_err(|e| Problem::from_room(e.kind(), e.to_string()))?;
    let warnings = training.warnings(&job).await?.into_iter().map(Into::into).collect();
    Ok(Json(CreateAnswer { job_id: job.to_string(), status: "created", warnings }))
}

/// A job with all its rounds: who was invited, who counted, who did not and why.
#[utoipa::path(get, path = "/v1/federated/training/status/{job_id}", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`"), StatusQuery),
    responses((status = 200, body = JobAnswer)))]
pub(crate) async fn status(
    State(app): Shared,
    Path(id): Path<String>,
    Params(query): Params<StatusQuery>,
) -> Result<Json<JobAnswer>, Problem> {
    let view = app.training()?.status(&job_id(&id)?).await?;
    Ok(Json(JobAnswer::new(view, query.rounds.unwrap_or(ROUNDS_SHOWN))))
}

/// All jobs, oldest first.
#[utoipa::path(get, path = "/v1/federated/training/jobs", tag = "training",
    responses((status = 200, body = JobList)))]
pub(crate) async fn jobs(State(app): Shared) -> Result<Json<JobList>, Problem> {
    Ok(Json(app.training()?.list().await?.into()))
}

/// Ends a job. Its creator may, and every admin. The body is empty or `{}`.
#[utoipa::path(post, path = "/v1/federated/training/{job_id}/cancel", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`")),
    responses((status = 200, body = CancelAnswer)))]
pub(crate) async fn cancel(
    State(app): Shared,
    Caller(caller): Caller,
    Path(id): Path<String>,
    _: NoFields,
) -> Result<Json<CancelAnswer>, Problem> {
    let training = app.training()?;
    let job = job_id(&id)?;
    // A job that is not there is 404, whoever asks.
    training.status(&job).await?;
    only_its_owner(&app, &caller, &job, "cancel it").await?;
    training.cancel(&job).await?;
    Ok(Json(CancelAnswer { job_id: job.to_string(), status: "cancelled" }))
}

/// Refuses everybody but the creator of a job and admins.
pub(crate) async fn only_its_owner(app: &App, caller: &Principal, job: &JobId, act: &str) -> Result<(), Problem> {
    if caller.may_act_for(owner(app, job).await?.as_deref()) {
        return Ok(());
    }
    Err(Problem::new(
        ErrorKind::Forbidden,
        format!("job `{job}` was created by somebody else: only its creator or an admin may {act}"),
    ))
}

async fn owner(app: &App, job: &JobId) -> Result<Option<String>, Problem> {
    let row = app.records.get(OWNERS, job.as_str()).await.map_err(|e| Problem::from_room(e.kind(), e.to_string()))?;
    Ok(row.and_then(|row| serde_json::from_slice(&row.value).ok()))
}

/// The newest model of a job, or that of `?round=N` while it is kept: a safetensors bundle.
#[utoipa::path(get, path = "/v1/federated/training/{job_id}/model", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`"), ModelQuery),
    responses((status = 200, description = "safetensors with the architecture in its metadata; ETag = BLAKE3",
               body = Vec<u8>, content_type = "application/octet-stream")))]
pub(crate) async fn model(
    State(app): Shared,
    Path(id): Path<String>,
    Params(query): Params<ModelQuery>,
) -> Result<Response, Problem> {
    let job = job_id(&id)?;
    let (blob, reader) = app.training()?.model(&job, query.round).await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, blob.bytes.to_string()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{job}.safetensors\"")),
        (ETAG, format!("\"{}\"", blob.digest)),
    ];
    Ok((headers, Body::from_stream(verified(blob, reader))).into_response())
}

/// The bytes of a stored blob, piece by piece; one that is damaged is cut before its last piece, so that nobody takes it
/// for whole.
fn verified(blob: BlobRef, reader: Arc<dyn BlobReader>) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::try_unfold((0, blake3::Hasher::new()), move |(offset, mut hasher)| {
        let reader = Arc::clone(&reader);
        async move {
            let length = usize::try_from(blob.bytes - offset).map_or(PIECE, |left| left.min(PIECE));
            if length == 0 {
                return Ok(None);
            }
            let next = offset + length as u64;
            let work = move || {
                let mut piece = vec![0; length];
                reader.read_at(offset, &mut piece).map_err(std::io::Error::other)?;
                hasher.update(&piece);
                if next == blob.bytes && Digest::from(hasher.finalize()) != blob.digest {
                    return Err(std::io::Error::other(format!("the stored model {} is damaged", blob.digest)));
                }
                Ok((piece, hasher))
            };
            let (piece, hasher) = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)??;
            Ok(Some((Bytes::from(piece), (next, hasher))))
        }
    })
}
