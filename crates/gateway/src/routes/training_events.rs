//! A job's events as they happen, server-sent (WHATWG HTML, section 9.2).
//!
//! ```text
//! state (the whole job) ─> status | recruiting | round_opened | member | round_ended … ─> status (terminal), end
//!                              behind by too much ─> lagged {missed}, state, and on
//! ```

use std::convert::Infallible;
use std::sync::Arc;

use aivillage_base::JobId;
use aivillage_training::view::{EventKind, JobEvent};
use axum::extract::{Path, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Shared;
use super::training::{ROUNDS_SHOWN, job_id};
use crate::app::App;
use crate::dto::training::{EventBody, JobAnswer};
use crate::problem::Problem;

/// A job's state now, then its events until it ends.
#[utoipa::path(get, path = "/v1/federated/training/{job_id}/events", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`")),
    responses((status = 200, description = "Events `state`, `status`, `recruiting`, `round_opened`, `member`, \
        `round_ended`, `lagged`; data is JSON", body = String, content_type = "text/event-stream")))]
pub(crate) async fn events(
    State(app): Shared,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let job = job_id(&id)?;
    // Subscribe first, read the state second: nothing can fall in between.
    let receiver = app.training()?.events(&job).await?;
    let state = state(&app, &job).await?;
    let heartbeat = KeepAlive::new().interval(app.config.sse_heartbeat).text("heartbeat");
    let cancelled = app.cancel.clone().cancelled_owned();
    let live = Live { app, job, receiver, ended: state.1 };
    let first = futures_util::stream::iter([state.0]);
    let rest = futures_util::stream::unfold(live, Live::next).flat_map(futures_util::stream::iter);
    // A stopping gateway must not wait for streams that never end.
    let all = first.chain(rest).take_until(cancelled).map(Ok);
    Ok(Sse::new(all).keep_alive(heartbeat))
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".into());
    Event::default().event(name).data(data)
}

/// The whole job as an event, and whether it has ended.
async fn state(app: &App, job: &JobId) -> Result<(Event, bool), Problem> {
    let view = app.training()?.status(job).await?;
    let ended = view.status.is_terminal();
    Ok((event("state", &JobAnswer::new(view, ROUNDS_SHOWN)), ended))
}

struct Live {
    app: Arc<App>,
    job: JobId,
    receiver: Receiver<JobEvent>,
    ended: bool,
}

impl Live {
    async fn next(mut self) -> Option<(Vec<Event>, Self)> {
        if self.ended {
            return None;
        }
        let events = match self.receiver.recv().await {
            Ok(happened) => {
                let sequence = happened.sequence.to_string();
                if let EventKind::Status { status, .. } = &happened.kind {
                    self.ended = status.is_terminal();
                }
                let (name, body) = EventBody::named(happened.kind);
                vec![event(name, &body).id(sequence)]
            }
            Err(RecvError::Lagged(missed)) => {
                let (state, ended) = state(&self.app, &self.job).await.ok()?;
                self.ended = ended;
                vec![event("lagged", &serde_json::json!({ "missed": missed })), state]
            }
            Err(RecvError::Closed) => {
                // The coordinator has let go of the job: its last state is the last word.
                let (state, _) = state(&self.app, &self.job).await.ok()?;
                self.ended = true;
                vec![state]
            }
        };
        Some((events, self))
    }
}
