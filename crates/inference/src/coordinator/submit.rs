//! A request's way in: checked, admitted, promised (if its id is given away), planned, perhaps waited for.

use std::sync::Arc;
use std::time::Duration;

use aivillage_base::wire::BlobRef;
use aivillage_base::{Architecture, RequestId};
use tokio::sync::oneshot;

use super::{Coordinator, Job};
use crate::core::{Admission, Input, Output};
use crate::error::InferenceError;
use crate::input;
use crate::model::{ModelRecord, ModelState};
use crate::plan::Needs;
use crate::request::{MAX_LATENCY_MS_DEFAULT, ModelRef, PrivacyLevel, RequestView, Submit, Submitted};
use crate::store::{self, Unfinished};

/// Longest label of a client, in characters.
const CLIENT_MAX: usize = 64;

impl Coordinator {
    /// See [`crate::Inference::submit`].
    pub(crate) async fn submit(self: &Arc<Self>, submit: Submit) -> Result<Submitted, InferenceError> {
        if self.cancel.is_cancelled() {
            return Err(InferenceError::Unavailable { detail: "inference is stopping: try again in a moment".into() });
        }
        let id = RequestId::random();
        let promise = self.prepare(&submit)?;
        let waiter = self.admit(id, &promise, submit.wait.is_none())?;
        let Some(wait) = submit.wait else {
            self.promise(id, promise).await?;
            return Ok(Submitted { request_id: id, finished: None });
        };
        let mut guard = Withdraw { coordinator: self, id, armed: true };
        self.drive(Input::Start(id));
        let finished = self.wait(&mut guard, waiter, wait, promise).await;
        guard.armed = false;
        finished.map(|finished| Submitted { request_id: id, finished })
    }

    /// Checks everything that can be checked and says what would be promised.
    fn prepare(&self, submit: &Submit) -> Result<Unfinished, InferenceError> {
        let config = &self.deps.config;
        let record = self
            .catalogue
            .get(&submit.model_id)
            .ok_or_else(|| InferenceError::ModelNotFound(submit.model_id.clone()))?;
        let (bundle, architecture) = servable(&record)?;
        let privacy = submit.privacy_level.unwrap_or(config.default_privacy_level);
        check_privacy(privacy, &record)?;
        let within_ms = submit.max_latency_ms.unwrap_or(MAX_LATENCY_MS_DEFAULT);
        if within_ms == 0 {
            return Err(InferenceError::invalid("/max_latency_ms", "0: at least 1 ms is needed"));
        }
        let rows = input::parse(&submit.input_data, architecture)?;
        Ok(Unfinished {
            model: ModelRef {
                id: submit.model_id.clone(),
                version: record.info.model_version.clone(),
                blake3: bundle.digest,
            },
            bundle,
            task: architecture.task,
            rows,
            needs: Needs {
                node_types: record.info.supported_node_types.clone(),
                preferred_node_types: submit.preferred_node_types.clone(),
                memory_gb: record.info.memory_requirements_gb,
                compute_gflops: record.info.compute_requirements_gflops,
            },
            privacy,
            client: submit.client.chars().take(CLIENT_MAX).collect(),
            submitted_ms: self.deps.clock.now().wall_ms,
            within_ms: within_ms.min(config.request_timeout_ms),
        })
    }

    fn admit(
        &self,
        id: RequestId,
        promise: &Unfinished,
        durable: bool,
    ) -> Result<oneshot::Receiver<RequestView>, InferenceError> {
        let (sender, waiter) = oneshot::channel();
        let job = Job {
            model: promise.model.clone(),
            bundle: promise.bundle,
            task: promise.task,
            rows: Arc::new(promise.rows.clone()),
            waiter: Some(sender),
        };
        let stored_max = self.deps.config.stored_requests_max;
        let admission = Admission {
            request: id,
            model: promise.model.clone(),
            needs: promise.needs.clone(),
            privacy: promise.privacy,
            within_ms: promise.within_ms,
            elapsed_ms: 0,
            durable,
        };
        let (outputs, room) = {
            let mut state = self.state();
            let room = !durable || state.stored.len() < stored_max;
            let outputs = self.step(&mut state, if room { Input::Admit(admission) } else { Input::Refuse(id) });
            if !outputs.contains(&Output::Shed(id)) {
                state.jobs.insert(id, job);
                if durable {
                    state.stored.unfinished.insert(id);
                }
            }
            (outputs, room)
        };
        let shed = outputs.contains(&Output::Shed(id));
        self.carry_out_all(outputs);
        if !shed {
            self.metrics.admitted();
            return Ok(waiter);
        }
        let (detail, retry_after_s) = if room {
            let max = self.deps.config.max_concurrent_requests;
            (format!("{max} requests are in work, as many as `max_concurrent_requests` allows"), 1)
        } else {
            (format!("{stored_max} requests and results are kept: wait for some to expire, or use `wait`"), 30)
        };
        Err(InferenceError::Overloaded { detail, retry_after_s })
    }

    /// Makes the promise durable, then plans. On a task of its own: a client that goes away does not undo half of it.
    async fn promise(self: &Arc<Self>, id: RequestId, promise: Unfinished) -> Result<(), InferenceError> {
        let coordinator = Arc::clone(self);
        let task = tokio::spawn(async move {
            match store::promise(&*coordinator.deps.records, id, promise).await {
                Ok(()) => {
                    coordinator.drive(Input::Start(id));
                    Ok(())
                }
                Err(e) => {
                    coordinator.withdraw(id, "it could not be stored");
                    Err(InferenceError::Store(e))
                }
            }
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.withdraw(id, "its task was stopped");
                Err(InferenceError::Unavailable { detail: "inference is stopping: try again in a moment".into() })
            }
        }
    }

    /// The outcome if it comes in time; else the request is made durable and goes on without its client.
    async fn wait(
        self: &Arc<Self>,
        guard: &mut Withdraw<'_>,
        mut waiter: oneshot::Receiver<RequestView>,
        wait: Duration,
        promise: Unfinished,
    ) -> Result<Option<RequestView>, InferenceError> {
        let gone = || InferenceError::Unavailable { detail: "inference is stopping: try again in a moment".into() };
        if let Ok(finished) = tokio::time::timeout(wait, &mut waiter).await {
            return finished.map(Some).map_err(|_| gone());
        }
        let id = guard.id;
        let outputs = {
            let mut state = self.state();
            let room = state.stored.len() < self.deps.config.stored_requests_max;
            (room && state.core.is_active(&id)).then(|| {
                state.stored.unfinished.insert(id);
                self.step(&mut state, Input::MakeDurable(id))
            })
        };
        let Some(outputs) = outputs else {
            // Either it has just finished, or there is no room to keep it and its client must wait to the end.
            let left = Duration::from_millis(promise.within_ms.saturating_add(1_000));
            return match tokio::time::timeout(left, waiter).await {
                Ok(Ok(finished)) => Ok(Some(finished)),
                Ok(Err(_)) | Err(_) => Err(gone()),
            };
        };
        guard.armed = false;
        self.carry_out_all(outputs);
        self.promise(id, promise).await.map(|()| None)
    }

    /// Takes an unfinished request back.
    fn withdraw(&self, id: RequestId, reason: &str) {
        let outputs = {
            let mut state = self.state();
            if !state.core.is_active(&id) {
                return;
            }
            state.jobs.remove(&id);
            state.stored.unfinished.remove(&id);
            self.step(&mut state, Input::Abandon { request: id, reason: reason.to_owned() })
        };
        self.metrics.failed();
        self.carry_out_all(outputs);
    }
}

/// Withdraws a request whose client has gone away before it was told the id.
struct Withdraw<'a> {
    coordinator: &'a Coordinator,
    id: RequestId,
    armed: bool,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.coordinator.withdraw(self.id, "its client went away");
        }
    }
}

/// The bytes and shape of a model that can be served.
fn servable(record: &ModelRecord) -> Result<(BlobRef, &Architecture), InferenceError> {
    let id = &record.info.model_id;
    let refuse =
        |why: String| Err(InferenceError::Conflict { detail: format!("model `{id}` cannot be served: {why}") });
    match (record.state, record.bundle, &record.info.architecture) {
        (ModelState::Ready, Some(bundle), Some(architecture)) => Ok((bundle, architecture)),
        (ModelState::Ready, _, _) => refuse("its record names no bytes".into()),
        (ModelState::Declared, _, _) => {
            refuse("it is declared by its metadata only; upload its bytes (a safetensors bundle) first".into())
        }
        (ModelState::Uploading | ModelState::Verifying, _, _) => {
            refuse(format!("its bytes are not here yet (state `{}`); try again in a moment", record.state.name()))
        }
        (ModelState::Retired, _, _) => refuse("it is retired; use another model".into()),
        (ModelState::Refused, _, _) => {
            let reason = record.reason.as_deref().unwrap_or("unknown");
            refuse(format!("its bytes were refused ({reason}); upload good ones"))
        }
    }
}

fn check_privacy(level: PrivacyLevel, record: &ModelRecord) -> Result<(), InferenceError> {
    let (id, needed) = (&record.info.model_id, record.info.privacy_requirements);
    let unsupported = |detail: String| Err(InferenceError::PrivacyUnsupported { detail });
    let how = |level| match level {
        PrivacyLevel::Low => "any compatible node",
        PrivacyLevel::Medium => "authenticated nodes over encrypted links",
        PrivacyLevel::High => "through the mix network, so that the node does not learn the client",
        PrivacyLevel::Ultra => {
            "sealed to keys of nodes that the client chose, so that the gateway never sees the input"
        }
    };
    if level > PrivacyLevel::Medium {
        return unsupported(format!(
            "privacy level `{}` ({}) is not built in this version: ask for `medium` ({}), if that is enough for this input",
            level.name(),
            how(level),
            how(PrivacyLevel::Medium)
        ));
    }
    if needed > PrivacyLevel::Medium {
        return unsupported(format!(
            "model `{id}` demands privacy level `{}` ({}), which is not built in this version: use another model, or register it with privacy_requirements `medium`",
            needed.name(),
            how(needed)
        ));
    }
    if needed > level {
        let detail = format!("model `{id}` demands at least `{}`, but `{}` is asked for", needed.name(), level.name());
        return Err(InferenceError::invalid("/privacy_level", detail));
    }
    Ok(())
}
