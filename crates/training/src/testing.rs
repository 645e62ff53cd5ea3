//! Small things that the tests of this room build again and again.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Map;

use aivillage_base::arch::Recipe;
use aivillage_base::fixed::{Grid, to_bytes};
use aivillage_base::ports::Payload;
use aivillage_base::time::Now;
use aivillage_base::wire::secure::Hex;
use aivillage_base::wire::{
    BlobRef, DataRequirements, DataSummary, Declined, Invitation, LocalMetrics, LocalRule, LocalTraining, NodeType,
    Peer, RoundKey, UpdateHeader,
};
use aivillage_base::{Architecture, Digest, JobId, NodeId, NodeName, Task};

use crate::record::{JobRecord, MemberRecord, Saved};
use crate::recruit::Candidate;
use crate::round::StartPoint;
use crate::spec::{JobRequest, JobSpec, ModelChoice, Start};
use crate::step::{Change, Made};

/// The clocks `ms` after the start.
pub(crate) fn at(ms: u64) -> Now {
    Now { monotonic_ms: ms, wall_ms: 1_700_000_000_000 + ms }
}

/// Three features, one target: four parameters in two tensors.
pub(crate) fn linear() -> Architecture {
    Recipe::LinearRegression.build(&[3], Task::Regression).unwrap()
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn peer(text: &str) -> Peer {
    Peer { id: NodeId(Digest::of(text.as_bytes()).0), name: name(text) }
}

pub(crate) fn candidate(text: &str) -> Candidate {
    Candidate {
        peer: peer(text),
        data: vec![DataSummary { name: "rows".into(), rows: 10, input: vec![3], task: Task::Regression }],
        node_types: vec![NodeType::Edge],
        compute_gflops: 1.0,
        helper: None,
    }
}

pub(crate) fn key(round: u32, attempt: u32) -> RoundKey {
    RoundKey { job: JobId::new("job").unwrap(), round, attempt }
}

pub(crate) fn blob(text: &str) -> BlobRef {
    BlobRef { digest: Digest::of(text.as_bytes()), bytes: text.len() as u64 }
}

/// Where an attempt of the linear model starts.
pub(crate) fn start() -> StartPoint {
    StartPoint {
        model: blob("model"),
        state: Vec::new(),
        grids: vec![Grid::default(); 2],
        examples_max: None,
        secure: None,
    }
}

/// What a round makes, by name.
pub(crate) fn made(text: &str) -> Made {
    Made { model: blob(text), state: Vec::new(), totals: None }
}

/// An update of four integers with its bytes.
pub(crate) fn update(key: &RoundKey, values: [i32; 4], weight: u32) -> (UpdateHeader, Payload) {
    let bytes = Bytes::from(to_bytes(&values));
    let payload = BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    let metrics = LocalMetrics { loss: 0.5, accuracy: None, train_ms: 3 };
    (UpdateHeader::new(key.clone(), payload, weight, metrics), Payload::Inline(bytes))
}

/// The same, in the blob store.
pub(crate) fn stored(key: &RoundKey, values: [i32; 4], weight: u32) -> (UpdateHeader, Payload) {
    let (header, _) = update(key, values, weight);
    let payload = Payload::Stored(header.payload);
    (header, payload)
}

/// An invitation to the first attempt of a plain job of one round, over two features.
pub(crate) fn invitation() -> Invitation {
    Invitation {
        key: key(1, 1),
        job_name: "job".into(),
        publisher: "ada".into(),
        job_type: "standard".into(),
        recipe: "linear_regression".into(),
        grids: vec![Grid::default(); 2],
        architecture: Recipe::LinearRegression.build(&[2], Task::Regression).unwrap(),
        model: blob("model"),
        training: LocalTraining {
            epochs: 1,
            batch_size: 1,
            learning_rate: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            proximal_mu: 0.0,
        },
        data: DataRequirements::default(),
        seed: 1,
        max_examples: 10,
        local: LocalRule::Plain,
        initial_loss: false,
        personal: Vec::new(),
        receipt: None,
        retain_updates: false,
        clip: None,
        privacy_techniques: Vec::new(),
        secure: None,
        total_rounds: 1,
        deadline_ms: 60_000,
    }
}

/// `rounds` rounds of at least `min` and at most `max` members, at most 60 s an attempt.
pub(crate) fn spec(min: u32, max: u32, rounds: u32) -> JobSpec {
    JobSpec {
        job_id: JobId::new("job").unwrap(),
        job_name: "a job".into(),
        publisher: "ada".into(),
        start: Start::Recipe(Recipe::LinearRegression),
        total_rounds: rounds,
        min_participants: min,
        max_participants: max,
        mobile_friendly: true,
        data: DataRequirements::default(),
        strategy: crate::strategy::Strategy::FedAvg(crate::strategy::fedavg::FedAvg {}),
        personal_tensors: Vec::new(),
        retain_updates: false,
        secure: None,
        helper: None,
        clip: None,
        training: LocalTraining {
            epochs: 1,
            batch_size: 8,
            learning_rate: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            proximal_mu: 0.0,
        },
        max_examples: 100,
        round_timeout_ms: 60_000,
        seed: 7,
    }
}

pub(crate) fn record(spec: JobSpec) -> JobRecord {
    JobRecord::new(spec, at(0).wall_ms)
}

/// A store of one job: what its changes amount to.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) saved: Saved,
    /// Members and small updates by attempt and name, as the tables hold them.
    members: BTreeMap<(RoundKey, NodeName), MemberRecord>,
    pub(crate) payloads: BTreeMap<(RoundKey, NodeName), Bytes>,
}

impl Store {
    pub(crate) fn new(record: JobRecord) -> Self {
        Self { saved: Saved::new(record), members: BTreeMap::new(), payloads: BTreeMap::new() }
    }

    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Job(record) => self.saved.record = *record,
                Change::Round(record) | Change::Noted(record) => {
                    self.saved.attempts.retain(|r| r.key != record.key);
                    self.saved.attempts.push(*record);
                    self.saved.attempts.sort_by(|a, b| a.key.cmp(&b.key));
                }
                Change::Member(key, member) | Change::Words(key, member) => {
                    self.members.insert((key, member.peer.name.clone()), *member);
                }
                Change::Payload(key, node, bytes) => {
                    self.payloads.insert((key, node), bytes);
                }
                Change::Forget(key, nodes) => {
                    for node in nodes {
                        self.members.remove(&(key.clone(), node.clone()));
                        self.payloads.remove(&(key.clone(), node));
                    }
                }
                Change::Fold(key, nodes) => {
                    for node in nodes {
                        self.members.remove(&(key.clone(), node));
                    }
                }
            }
        }
        let open = self.saved.attempts.iter().rev().find(|r| r.is_open()).map(|r| r.key.clone());
        let of_open = self.members.iter().filter(|((key, _), _)| Some(key) == open.as_ref());
        self.saved.members = of_open.map(|(_, member)| member.clone()).collect();
    }
}

/// A request without faults.
pub(crate) fn request() -> JobRequest {
    JobRequest {
        job_id: None,
        job_name: "a job".into(),
        publisher: "ada".into(),
        model_architecture: ModelChoice::Named("mlp".into()),
        total_rounds: None,
        min_participants: None,
        max_participants: None,
        privacy_techniques: Some(Vec::new()),
        mobile_friendly: true,
        job_type: None,
        dataset_requirements: DataRequirements::default(),
        strategy: None,
        retain_updates: false,
        hyperparameters: Map::new(),
        privacy: Map::new(),
        seed: None,
    }
}

/// A refusal; the machines take it for signed, as their shells verify it.
pub(crate) fn declined(rule: &str, reason: &str) -> Declined {
    Declined { rule: rule.into(), reason: reason.into(), signature: Hex([7; 64]) }
}
