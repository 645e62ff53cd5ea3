//! The whole house at a glance, as the guide's tests read it.

use axum::Json;
use axum::extract::Extension;
use axum::extract::State;

use super::Shared;
use crate::app::Part;
use crate::auth::Principal;
use crate::dto::status::{Configuration, HouseStatus, InferenceStatus, Parts, TrainingStatus};

/// State and figures of all parts; a part that is off is `null`.
#[utoipa::path(get, path = "/v1/federated/status", tag = "status", responses((status = 200, body = HouseStatus)))]
pub(crate) async fn status(State(app): Shared, caller: Option<Extension<Principal>>) -> Json<HouseStatus> {
    let now = app.clock.now();
    let facts = &app.status;
    let inference = match &app.inference {
        Part::On(inference) => Some(InferenceStatus::new(facts.inference_coordinator_id(), inference.stats())),
        Part::Off { .. } => None,
    };
    let mut training_reason = app.training.reason().map(str::to_owned);
    let training = match &app.training {
        Part::On(training) => match training.list().await {
            Ok(jobs) => Some(TrainingStatus::new(
                facts.training_coordinator_id(),
                app.inventory.summary(),
                training.stats(),
                &jobs,
            )),
            Err(error) => {
                // A part that cannot answer is as good as off; status itself stays 200.
                tracing::error!(%error, "the training coordinator cannot list its jobs");
                training_reason = Some("the training coordinator does not answer".into());
                None
            }
        },
        Part::Off { .. } => None,
    };
    // Without a key only counts are shown: what is configured and why a part is off is the operator's business.
    let configuration = caller.is_some().then(|| Configuration {
        source: facts.config_source(),
        link: facts.link_address(),
        parts: Parts { inference: app.inference.reason().map(str::to_owned), training: training_reason },
    });
    let not_in_effect = caller.is_some().then(|| facts.not_in_effect().into_iter().map(Into::into).collect());
    Json(HouseStatus {
        inference,
        training,
        timestamp: now.rfc3339(),
        version: facts.version(),
        uptime_s: now.monotonic_ms.saturating_sub(app.started_ms) / 1000,
        config: configuration,
        not_in_effect,
    })
}
