//! The part of a simulated coordinator that answers requests: the real machine, and a promise kept in the store.
//!
//! A request is stored before its id is given away, its outcome before anybody sees it; a new process takes over what an
//! earlier one promised.

use std::collections::BTreeMap;

use aivillage_base::ports::{Batch, Records, Scan, Sent};
use aivillage_base::time::Now;
use aivillage_base::wire::{BlobRef, Down, NodeType, Peer, PredictOutcome, PredictTask};
use aivillage_base::{ModelId, RequestId};
use aivillage_inference::config::Strategy;
use aivillage_inference::core::{Admission, Answer, Core, CoreConfig, Input, Output};
use aivillage_inference::plan::{Candidate, Needs};
use aivillage_inference::request::{ModelRef, Prediction, Predictions, PrivacyLevel, RequestStatus, RequestView};
use serde::{Deserialize, Serialize};

use crate::process::commit;
use crate::time::ready;
use crate::trainer;
use crate::world::{Halt, World};

/// Table of requests.
const REQUESTS: &str = "sim_requests";
/// Milliseconds until an answer is of no use.
const WITHIN_MS: u64 = 6_000;

/// A stored request.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Row {
    Unfinished { inputs: Vec<f32>, submitted_ms: u64 },
    Finished { inputs: Vec<f32>, view: Box<RequestView> },
}

/// A request on its way in.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) id: RequestId,
    pub(crate) inputs: Vec<f32>,
}

/// What serves, and with which bytes.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) bundle: BlobRef,
    pub(crate) values: Vec<f32>,
    pub(crate) peers: Vec<Peer>,
}

#[derive(Debug)]
pub(crate) struct Serving {
    core: Core,
    served: Served,
    inputs: BTreeMap<RequestId, Vec<f32>>,
    streams: BTreeMap<usize, u64>,
}

impl Serving {
    /// Takes over what an earlier process promised.
    pub(crate) fn start(world: &mut World, now: Now, _life: u64) -> Result<Self, Halt> {
        let config = CoreConfig { active_max: 8, per_node_in_flight: 2, strategy: Strategy::LeastLoaded };
        let served = world.served.clone();
        let mut serving = Self { core: Core::new(config), served, inputs: BTreeMap::new(), streams: BTreeMap::new() };
        for (id, row) in rows(world) {
            if let Row::Unfinished { inputs, submitted_ms } = row {
                let elapsed_ms = now.wall_ms.saturating_sub(submitted_ms);
                let admission = Admission { elapsed_ms, ..serving.admission(id) };
                serving.inputs.insert(id, inputs);
                serving.step(world, now, Input::Recover(admission))?;
                serving.step(world, now, Input::Start(id))?;
            }
        }
        Ok(serving)
    }

    fn admission(&self, request: RequestId) -> Admission {
        let model = ModelRef {
            id: ModelId::new("linear").expect("invariant: a valid id"),
            version: "1".into(),
            blake3: self.served.bundle.digest,
        };
        Admission {
            request,
            model,
            needs: Needs::default(),
            privacy: PrivacyLevel::Medium,
            within_ms: WITHIN_MS,
            elapsed_ms: 0,
            durable: true,
        }
    }

    pub(crate) fn submit(&mut self, world: &mut World, now: Now, submission: Submission) -> Result<(), Halt> {
        let Submission { id, inputs } = submission;
        if self.step(world, now, Input::Admit(self.admission(id)))? {
            return Ok(());
        }
        self.inputs.insert(id, inputs.clone());
        if !world.conduct.promises_after_commit() {
            world.witness.promised(id);
        }
        let mut batch = Batch::new("request_accepted");
        batch.put(REQUESTS, id.to_string(), &Row::Unfinished { inputs, submitted_ms: now.wall_ms });
        commit(world, batch)?.expect("invariant: this batch has no precondition");
        world.witness.promised(id);
        self.step(world, now, Input::Start(id))?;
        Ok(())
    }

    pub(crate) fn nodes(&mut self, world: &mut World, now: Now, streams: &BTreeMap<usize, u64>) -> Result<(), Halt> {
        self.streams = streams.clone();
        let candidate = |node: &usize| Candidate {
            peer: self.served.peers[*node].clone(),
            node_types: vec![NodeType::Edge],
            gflops: 1.0,
            memory_gb: 1.0,
            in_flight: 0,
            failures: 0,
        };
        let nodes = streams.keys().map(candidate).collect();
        self.step(world, now, Input::Nodes(nodes))?;
        Ok(())
    }

    pub(crate) fn lost(&mut self, world: &mut World, now: Now, node: usize) -> Result<(), Halt> {
        let id = self.served.peers[node].id;
        self.step(world, now, Input::Lost(id))?;
        Ok(())
    }

    pub(crate) fn tick(&mut self, world: &mut World, now: Now) -> Result<(), Halt> {
        self.step(world, now, Input::Tick)?;
        Ok(())
    }

    pub(crate) fn answered(
        &mut self,
        world: &mut World,
        now: Now,
        from: &Peer,
        request: RequestId,
        attempt: u32,
        outcome: PredictOutcome,
    ) -> Result<(), Halt> {
        let answer = match outcome {
            PredictOutcome::Done { outputs, .. } => {
                let predictions = outputs.iter().map(|row| Prediction::Value { value: row[0] }).collect();
                Answer::Done(Predictions { predictions })
            }
            PredictOutcome::Failed { reason, permanent } => Answer::Failed { reason, permanent },
        };
        self.step(world, now, Input::Answered { from: from.id, request, attempt, answer })?;
        Ok(())
    }

    /// One input and all that follows from it. True if a request was shed.
    fn step(&mut self, world: &mut World, now: Now, input: Input) -> Result<bool, Halt> {
        let mut inputs = vec![input];
        let mut shed = false;
        while let Some(input) = inputs.pop() {
            let outputs = self.core.step(now.monotonic_ms, input);
            world.witness.books(self.core.books(), self.core.active())?;
            for output in outputs {
                match output {
                    Output::Shed(_) => shed = true,
                    Output::Send { to, request, attempt, left_ms } => {
                        if self.send(world, &to, request, attempt, left_ms) != Sent::Queued {
                            let reason = "not connected".to_owned();
                            inputs.push(Input::Unsent { request, attempt, reason });
                        }
                    }
                    Output::Replanned { .. } => {}
                    Output::Finished { view, .. } => {
                        let id = view.request_id;
                        self.store(world, *view)?;
                        inputs.push(Input::Stored(id));
                    }
                }
            }
        }
        Ok(shed)
    }

    fn store(&mut self, world: &mut World, view: RequestView) -> Result<(), Halt> {
        let id = view.request_id;
        let inputs = self.inputs.remove(&id).unwrap_or_default();
        let mut batch = Batch::new("request_finished");
        batch.put(REQUESTS, id.to_string(), &Row::Finished { inputs, view: Box::new(view) });
        commit(world, batch)?.expect("invariant: this batch has no precondition");
        Ok(look(world)?)
    }

    fn send(&self, world: &mut World, to: &Peer, request: RequestId, attempt: u32, left_ms: u64) -> Sent {
        let Some(node) = self.served.peers.iter().position(|p| p == to) else { return Sent::NotConnected };
        let task = PredictTask {
            request,
            attempt,
            model_id: ModelId::new("linear").expect("invariant: a valid id"),
            model: self.served.bundle,
            rows: vec![self.inputs.get(&request).cloned().unwrap_or_default()],
            deadline_ms: left_ms,
        };
        let stream = self.streams.get(&node).copied();
        world.send_down(0, stream, node, Down::Predict(Box::new(task)))
    }
}

fn rows(world: &World) -> Vec<(RequestId, Row)> {
    let scan = Scan { prefix: "", after: None, limit: usize::MAX };
    let rows = ready(world.records.scan(REQUESTS, scan)).unwrap_or_default();
    let decode = |row: aivillage_base::ports::Row| {
        let id = row.key.parse().expect("invariant: keys of this table are request ids");
        (id, serde_json::from_slice(&row.value).expect("invariant: rows of this table were written here"))
    };
    rows.into_iter().map(decode).collect()
}

/// Shows the witness every outcome.
pub(crate) fn look(world: &mut World) -> crate::witness::Seen {
    for (_, row) in rows(world) {
        if let Row::Finished { inputs, view } = row {
            let expected = vec![Prediction::Value { value: trainer::predict(&world.served.values, &inputs) }];
            let right = match view.status {
                RequestStatus::Completed => view.result.as_ref().is_some_and(|r| r.predictions == expected),
                RequestStatus::Failed | RequestStatus::Expired => view.result.is_none(),
                RequestStatus::Queued | RequestStatus::Processing => false,
            };
            world.witness.outcome(&view, right)?;
        }
    }
    Ok(())
}

/// True if every stored request has its outcome.
pub(crate) fn all_finished(world: &World) -> bool {
    rows(world).iter().all(|(_, row)| matches!(row, Row::Finished { .. }))
}

/// How many requests were answered.
pub(crate) fn completed(world: &World) -> usize {
    let done = |row: &Row| matches!(row, Row::Finished { view, .. } if view.status == RequestStatus::Completed);
    rows(world).iter().filter(|(_, row)| done(row)).count()
}
