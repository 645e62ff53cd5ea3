//! A job's events as they happen, server-sent (WHATWG HTML, section 9.2).
//!
//! ```text
//! state (the whole job) ─> status | recruiting | round_opened | member | round_ended … ─> status (terminal), end
//!                              behind by too much ─> lagged {missed}, state, and on
//! come back with Last-Event-ID ─┬─ of an event that is remembered ─> the events after it, and on
//!                               ├─ of the end ─> 204, which ends a browser's coming back
//!                               └─ of anything else ─> as at first
//! ```
//!
//! Promise: together, the streams of a client that comes back in time hold every event once and in order.

use std::convert::Infallible;
use std::sync::Arc;

use aivillage_base::JobId;
use aivillage_training::view::JobView;
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::Shared;
use super::training::{ROUNDS_SHOWN, job_id};
use crate::app::App;
use crate::dto::training::JobAnswer;
use crate::feeds::{Place, Reader, Told};
use crate::problem::Problem;

/// The id of whatever tells that the job has ended; there is nothing beyond it.
const END: &str = "end";
const LAST_EVENT_ID: &str = "last-event-id";

/// A job's state now, then its events until it ends.
///
/// With `Last-Event-ID`, the events after that one instead of the state, while they are remembered.
#[utoipa::path(get, path = "/v1/federated/training/{job_id}/events", tag = "training",
    params(("job_id" = String, Path, description = "From `training/create`"),
           ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event received; browsers send \
            it when they come back")),
    responses((status = 200, description = "Events `state`, `status`, `recruiting`, `round_opened`, `member`, \
        `round_ended`, `lagged`; data is JSON. The terminal `status`, and the `state` of an ended job, have the id `end`",
        body = String, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended and `Last-Event-ID` is `end`: nothing will follow")))]
pub(crate) async fn events(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job = job_id(&id)?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).unwrap_or("");
    let training = app.training()?;
    let view = training.status(&job).await?;
    let ended = view.status.is_terminal();
    if ended && last == END {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let known = last.parse().ok().and_then(|place: Place| app.feeds.resume(&job, place));
    if let Some(reader) = known {
        return Ok(respond(&app, Live { app: Arc::clone(&app), job, reader, ended: false }.events()));
    }
    if ended {
        return Ok(respond(&app, stream::iter([state(view, END)])));
    }
    // Follow first, read the state second: nothing can fall in between.
    let reader = app.feeds.follow(&job, training.events(&job).await?);
    let mut live = Live { app: Arc::clone(&app), job, reader, ended: false };
    let first = live.state().await?;
    Ok(respond(&app, stream::iter([first]).chain(live.events())))
}

fn respond(app: &App, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let heartbeat = KeepAlive::new().interval(app.config.sse_heartbeat).text("heartbeat");
    // A stopping gateway must not wait for streams that never end.
    let events = events.take_until(app.cancel.clone().cancelled_owned()).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(heartbeat).into_response()
}

/// The whole job as an event.
fn state(view: JobView, id: &str) -> Event {
    let data = serde_json::to_string(&JobAnswer::new(view, ROUNDS_SHOWN)).unwrap_or_else(|_| "null".into());
    Event::default().event("state").id(id).data(data)
}

struct Live {
    app: Arc<App>,
    job: JobId,
    reader: Reader,
    ended: bool,
}

impl Live {
    /// What happens until the job's end.
    fn events(self) -> impl Stream<Item = Event> {
        stream::unfold(self, Self::next).flat_map(stream::iter)
    }

    /// The job at least as of the reader's place.
    async fn state(&mut self) -> Result<Event, Problem> {
        let view = self.app.training()?.status(&self.job).await?;
        self.ended = view.status.is_terminal();
        let place = self.reader.place().to_string();
        Ok(state(view, if self.ended { END } else { &place }))
    }

    async fn next(mut self) -> Option<(Vec<Event>, Self)> {
        if self.ended {
            return None;
        }
        let events = match self.reader.next().await {
            Some(Told::Events(events)) => {
                let told = events.into_iter().map(|(place, happened)| {
                    self.ended |= happened.last;
                    let id = if happened.last { END.to_owned() } else { place.to_string() };
                    Event::default().event(happened.name).id(id).data(happened.data)
                });
                told.collect()
            }
            Some(Told::Missed(missed)) => {
                let lagged = Event::default().event("lagged").data(json!({ "missed": missed }).to_string());
                vec![lagged, self.state().await.ok()?]
            }
            None => {
                // The coordinator has let go of the job: its state is the last word.
                let state = self.state().await.ok()?;
                self.ended = true;
                vec![state]
            }
        };
        Some((events, self))
    }
}
