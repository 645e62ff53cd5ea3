//! The shell around the pure machine: it takes inputs in, carries outputs out, and keeps what the machine must not know
//! (rows, waiters, stored outcomes).
//!
//! The machine sits behind a mutex that is never held across an await; sending to nodes does not block. Two tasks serve
//! it: `timers` ticks it and follows the inventory, `keeper` stores outcomes (many in one commit) and sweeps old ones.
//! A request's rows live here until it has an outcome; nothing here logs them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aivillage_base::ports::{Sent, StoreError};
use aivillage_base::wire::{BlobRef, Down, NodeReport, Peer, PredictOutcome, PredictTask};
use aivillage_base::{NodeId, RequestId, Task};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::answer;
use crate::catalogue::Catalogue;
use crate::core::{Admission, Answer, Core, CoreConfig, Input, Output};
use crate::error::InferenceError;
use crate::handle::Deps;
use crate::metrics::Metrics;
use crate::model::ModelState;
use crate::plan::Candidate;
use crate::request::{InferenceStats, ModelRef, RequestStatus, RequestView};
use crate::store::{self, RequestRow, Unfinished};

mod submit;
mod tasks;

/// Models that a newly connected node is told of, so that its first request does not wait for a download.
const FETCH_AHEAD_MAX: usize = 4;

/// Longest reason taken from a node, in characters: it is stored and shown.
const REASON_MAX: usize = 300;

/// One request's cargo.
#[derive(Debug)]
struct Job {
    model: ModelRef,
    bundle: BlobRef,
    task: Task,
    rows: Arc<Vec<Vec<f32>>>,
    /// Who waits for the outcome, if anybody.
    waiter: Option<oneshot::Sender<RequestView>>,
}

/// Ids of stored requests: what the bound counts and the sweep removes.
#[derive(Debug, Default)]
struct Stored {
    unfinished: BTreeSet<RequestId>,
    /// By the wall clock at which they expire, in milliseconds.
    finished: BTreeSet<(u64, RequestId)>,
}

impl Stored {
    fn len(&self) -> usize {
        self.unfinished.len() + self.finished.len()
    }
}

#[derive(Debug)]
struct State {
    core: Core,
    jobs: HashMap<RequestId, Job>,
    stored: Stored,
}

/// What handle and tasks share.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) deps: Deps,
    pub(crate) catalogue: Catalogue,
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
    /// Held from looking at the nodes to telling the machine, so that the later look wins.
    looking: Mutex<()>,
    /// The next tick has moved nearer.
    timer: Notify,
    /// There are outcomes to store.
    outcomes: Notify,
    cancel: CancellationToken,
}

impl Coordinator {
    pub(crate) async fn open(deps: Deps, cancel: CancellationToken) -> Result<Arc<Self>, InferenceError> {
        let config = CoreConfig {
            active_max: deps.config.max_concurrent_requests,
            per_node_in_flight: deps.config.per_node_in_flight,
            strategy: deps.config.check()?,
        };
        let catalogue =
            Catalogue::open(Arc::clone(&deps.records), Arc::clone(&deps.blobs), Arc::clone(&deps.clock)).await?;
        let metrics = Metrics::new(Arc::clone(&deps.clock));
        let state = State { core: Core::new(config), jobs: HashMap::new(), stored: Stored::default() };
        let coordinator = Arc::new(Self {
            deps,
            catalogue,
            metrics,
            state: Mutex::new(state),
            looking: Mutex::default(),
            timer: Notify::new(),
            outcomes: Notify::new(),
            cancel,
        });
        coordinator.recover().await?;
        coordinator.refresh_nodes();
        Ok(coordinator)
    }

    /// Takes over what an earlier process promised and did not finish.
    async fn recover(&self) -> Result<(), InferenceError> {
        let mut after: Option<String> = None;
        let mut recovered = 0_usize;
        loop {
            let rows = store::page::<RequestRow>(&*self.deps.records, store::REQUESTS, after.as_deref()).await?;
            let full = rows.len() == store::PAGE;
            after = rows.last().map(|(key, _, _)| key.clone());
            for (key, _, row) in rows {
                let damaged = |_| StoreError::Damaged(format!("{}/{key}: no request id", store::REQUESTS));
                let id: RequestId = key.parse().map_err(damaged)?;
                match row {
                    RequestRow::Unfinished(row) => {
                        recovered += 1;
                        self.take_over(id, *row);
                    }
                    RequestRow::Finished { finished_ms, .. } => {
                        let expires = self.expires(finished_ms);
                        self.state().stored.finished.insert((expires, id));
                    }
                }
            }
            if !full {
                break;
            }
        }
        if recovered > 0 {
            tracing::info!(requests = recovered, "unfinished requests taken over");
        }
        Ok(())
    }

    fn take_over(&self, id: RequestId, row: Unfinished) {
        let elapsed_ms = self.deps.clock.now().wall_ms.saturating_sub(row.submitted_ms);
        let admission = Admission {
            request: id,
            model: row.model.clone(),
            needs: row.needs,
            privacy: row.privacy,
            within_ms: row.within_ms,
            elapsed_ms,
            durable: true,
        };
        let job = Job { model: row.model, bundle: row.bundle, task: row.task, rows: Arc::new(row.rows), waiter: None };
        {
            let mut state = self.state();
            state.jobs.insert(id, job);
            state.stored.unfinished.insert(id);
        }
        self.metrics.admitted();
        self.drive(Input::Recover(admission));
        self.drive(Input::Start(id));
        // Its time may have passed while nothing ran.
        self.drive(Input::Tick);
    }

    /// Runs one input through the machine and carries its outputs out.
    fn drive(&self, input: Input) {
        let outputs = self.step(&mut self.state(), input);
        self.carry_out_all(outputs);
    }

    /// One step; the caller holds the lock, because it decides by what it sees there, and carries the outputs out after.
    fn step(&self, state: &mut State, input: Input) -> Vec<Output> {
        let before = state.core.next_wake();
        let outputs = state.core.step(self.deps.clock.now().monotonic_ms, input);
        let after = state.core.next_wake();
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.timer.notify_one();
        }
        outputs
    }

    fn carry_out_all(&self, outputs: Vec<Output>) {
        let mut queue = VecDeque::from(outputs);
        while let Some(output) = queue.pop_front() {
            if let Some(input) = self.carry_out(output) {
                queue.extend(self.step(&mut self.state(), input));
            }
        }
        let state = self.state();
        self.metrics.gauges(state.core.active(), state.core.queued(), state.core.nodes().len());
    }

    /// Carries one output out; what it leads to at once is the next input.
    fn carry_out(&self, output: Output) -> Option<Input> {
        match output {
            Output::Shed(_) => {
                self.metrics.shed();
                None
            }
            Output::Send { to, request, attempt, left_ms } => self.send(&to, request, attempt, left_ms),
            Output::Replanned { request, attempt, reason } => {
                tracing::debug!(%request, attempt, reason, "attempt failed, the request is planned again");
                self.metrics.replanned();
                None
            }
            Output::Finished { view, durable } => {
                match view.status {
                    RequestStatus::Completed => self.metrics.completed(view.metadata.processing_time_ms),
                    RequestStatus::Expired => self.metrics.expired(),
                    RequestStatus::Failed | RequestStatus::Queued | RequestStatus::Processing => self.metrics.failed(),
                }
                tracing::debug!(
                    request = %view.request_id,
                    status = ?view.status,
                    ms = view.metadata.processing_time_ms,
                    attempts = view.metadata.attempts,
                    "request finished"
                );
                let job = self.state().jobs.remove(&view.request_id);
                if durable {
                    self.outcomes.notify_one();
                } else if let Some(waiter) = job.and_then(|j| j.waiter) {
                    // Nobody there any more: nobody was told the id either.
                    let _gone = waiter.send(*view);
                }
                None
            }
        }
    }

    fn send(&self, to: &Peer, request: RequestId, attempt: u32, left_ms: u64) -> Option<Input> {
        let task = {
            let state = self.state();
            let job = state.jobs.get(&request)?;
            let (model, model_id, rows) = (job.bundle, job.model.id.clone(), Arc::clone(&job.rows));
            (model, model_id, rows)
        };
        let (model, model_id, rows) = task;
        let rows = (*rows).clone();
        let task = PredictTask { request, attempt, model_id, model, rows, deadline_ms: left_ms };
        let reason = match self.deps.transport.send(&to.id, Arc::new(Down::Predict(Box::new(task)))) {
            Sent::Queued => return None,
            Sent::NotConnected => format!("node {} is not connected", to.name),
            Sent::Full => format!("node {} does not read its messages", to.name),
        };
        Some(Input::Unsent { request, attempt, reason })
    }

    /// A node's answer.
    pub(crate) fn prediction(&self, from: &Peer, request: RequestId, attempt: u32, outcome: PredictOutcome) {
        let shape = self.state().jobs.get(&request).map(|job| (job.task, job.rows.len()));
        let Some((task, rows)) = shape else { return };
        let answer = match outcome {
            PredictOutcome::Done { outputs, .. } => match answer::predictions(task, rows, outputs) {
                Ok(predictions) => Answer::Done(predictions),
                Err(reason) => Answer::Failed { reason, permanent: false },
            },
            PredictOutcome::Failed { reason, permanent } => {
                Answer::Failed { reason: reason.chars().take(REASON_MAX).collect(), permanent }
            }
        };
        self.drive(Input::Answered { from: from.id, request, attempt, answer });
    }

    pub(crate) fn connected(&self) {
        self.refresh_nodes();
    }

    pub(crate) fn disconnected(&self, node: &NodeId) {
        self.drive(Input::Lost(*node));
        self.refresh_nodes();
    }

    fn refresh_nodes(&self) {
        let (outputs, new) = {
            let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            let candidates = self.candidates();
            let mut state = self.state();
            let before: BTreeSet<NodeId> = state.core.nodes().iter().map(|n| n.peer.id).collect();
            let new: Vec<NodeId> = candidates.iter().map(|c| c.peer.id).filter(|id| !before.contains(id)).collect();
            (self.step(&mut state, Input::Nodes(candidates)), new)
        };
        self.carry_out_all(outputs);
        if !new.is_empty() {
            self.fetch_ahead(&new);
        }
    }

    /// Who is connected is the transport's word, what they can do the inventory's.
    fn candidates(&self) -> Vec<Candidate> {
        let known: HashMap<NodeId, NodeReport> =
            self.deps.inventory.list().into_iter().filter_map(|r| Some((r.id?, r.report?))).collect();
        let serving = self.deps.transport.connected().into_iter().filter_map(|peer| {
            let report = known.get(&peer.id).filter(|r| r.serves)?;
            Some(Candidate {
                peer,
                node_types: report.node_types.clone(),
                gflops: report.compute_gflops,
                memory_gb: report.memory_gb,
                in_flight: 0,
                failures: 0,
            })
        });
        serving.collect()
    }

    /// Tells nodes of the models published last.
    fn fetch_ahead(&self, nodes: &[NodeId]) {
        let mut ready: Vec<_> = self
            .catalogue
            .list()
            .into_iter()
            .filter(|m| m.state == ModelState::Ready)
            .filter_map(|m| Some((m.updated_ms, m.info.model_id, m.bundle?)))
            .collect();
        ready.sort_by_key(|(updated, _, _)| std::cmp::Reverse(*updated));
        for (_, model_id, model) in ready.into_iter().take(FETCH_AHEAD_MAX) {
            let message = Arc::new(Down::ModelReady { model_id, model });
            for node in nodes {
                // A hint: a node that does not get it fetches with its first request.
                let _hint = self.deps.transport.send(node, Arc::clone(&message));
            }
        }
    }

    /// Tells every serving node of a model that has become servable.
    pub(crate) fn announce(&self) {
        let nodes: Vec<NodeId> = self.state().core.nodes().iter().map(|n| n.peer.id).collect();
        self.fetch_ahead(&nodes);
    }

    pub(crate) fn stats(&self) -> InferenceStats {
        let registered_models = self.catalogue.len();
        let state = self.state();
        let books = state.core.books();
        #[expect(clippy::cast_precision_loss, reason = "sums far below 2^53 ms")]
        let avg_response_time_ms = if books.ok == 0 { 0.0 } else { books.response_ms as f64 / books.ok as f64 };
        InferenceStats {
            registered_models,
            avg_response_time_ms,
            total_requests: books.total,
            ok: books.ok,
            failed: books.failed,
            shed: books.shed,
            expired: books.expired,
            active: state.core.active() as u64,
            queued: state.core.queued() as u64,
            serving_nodes: state.core.nodes().len(),
        }
    }

    /// What became of a request.
    pub(crate) async fn request(&self, id: &RequestId) -> Result<RequestView, InferenceError> {
        let now = self.deps.clock.now();
        if let Some(view) = self.state().core.view(now.monotonic_ms, id) {
            return Ok(view);
        }
        match store::get(&*self.deps.records, id).await? {
            Some(RequestRow::Finished { view, finished_ms }) if self.expires(finished_ms) > now.wall_ms => Ok(*view),
            Some(RequestRow::Finished { .. } | RequestRow::Unfinished(_)) | None => {
                Err(InferenceError::RequestNotFound(*id))
            }
        }
    }

    fn expires(&self, finished_ms: u64) -> u64 {
        let retention = u64::try_from(self.deps.config.result_retention.as_millis()).unwrap_or(u64::MAX);
        finished_ms.saturating_add(retention)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The machine's steps do not panic on any input (see its property test), so a poisoned lock holds good state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
