//! The messages between a coordinator and its nodes, as they travel over any transport.
//!
//! Every message is a hint that may be lost or repeated: each names what it is about (job, round, attempt, request), so
//! receiving it twice is safe. Unknown fields are ignored on this wire (a newer side may say more), unlike at the HTTP API.
//! Weights never travel inside a message: only their digest and length do.

use serde::{Deserialize, Serialize};

use crate::arch::{Architecture, Task};
use crate::digest::Digest;
use crate::fixed::Grid;
use crate::ids::{JobId, ModelId, NodeId, NodeName, RequestId};
use helper::{HelpRequest, HelperKey};
use policy::NodePolicy;
use secure::{Hex, MaskedInput, SecureDown, SecureTerms, SecureUp};

pub mod helper;
pub mod policy;
pub mod secure;

/// Bytes that can be fetched by their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3 of the bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub bytes: u64,
}

/// One attempt at one round of one job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoundKey {
    /// The job.
    pub job: JobId,
    /// Counts from 1, gap-free.
    pub round: u32,
    /// Counts from 1 within the round.
    pub attempt: u32,
}

impl std::fmt::Display for RoundKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} round {} attempt {}", self.job, self.round, self.attempt)
    }
}

/// Who a node is, as its certificate proves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Its Ed25519 key.
    pub id: NodeId,
    /// The name it was enrolled under.
    pub name: NodeName,
}

/// How a node trains locally.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalTraining {
    /// Passes over the node's rows, at least 1.
    pub epochs: u32,
    /// Rows a step, at least 1; the last batch of an epoch may be smaller.
    pub batch_size: u32,
    /// Step size of plain SGD, positive.
    pub learning_rate: f64,
    /// Momentum of SGD, in [0, 1); its state starts at zero every round.
    pub momentum: f64,
    /// L2 penalty added to the gradient, >= 0.
    pub weight_decay: f64,
    /// mu of the proximal term mu/2 * |w - w_received|^2 added to the loss, >= 0 (FedProx, Li et al. 2020).
    #[serde(default)]
    pub proximal_mu: f64,
}

/// What a strategy asks of a node beside training on its rows. A demand that a later version adds is a new kind here, never
/// a new field elsewhere: a node that does not know it reads [`Self::Unknown`] and declines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LocalRule {
    /// Nothing.
    #[default]
    Plain,
    /// Gradients are corrected by control variates, whose change is the second plane of the update (SCAFFOLD,
    /// Karimireddy et al. 2020).
    Scaffold {
        /// The server's control variate, a bundle in the model's shape; None = zero.
        control: Option<BlobRef>,
    },
    /// The node also trains a personal model that stays with it, drawn towards the received one (Ditto, Li et al. 2021).
    Ditto {
        /// Strength of the pull, > 0.
        lambda: f64,
    },
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The coordinator's word that an update counted in a published round: what a node kept for it is valid from then on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Receipt {
    /// The attempt the update was made for.
    pub key: RoundKey,
    /// BLAKE3 of its integers.
    pub digest: Digest,
}

/// What data a job needs; absent fields ask for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRequirements {
    /// Name of the data set, as in node.yaml.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Shape of one example: `[features]` or `[channels, height, width]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Vec<usize>>,
    /// Number of class labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Fewest rows a node must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rows: Option<u64>,
}

/// What a node says about one data set it holds: its shape, never its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Name, as in node.yaml.
    pub name: String,
    /// Number of training rows.
    pub rows: u64,
    /// Shape of one example.
    pub input: Vec<usize>,
    /// Classification or regression.
    pub task: Task,
}

/// Kinds of node; a node may be several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeType {
    /// Battery-powered device.
    Mobile,
    /// Small machine near the data.
    Edge,
    /// Server.
    Cloud,
    /// Has an accelerator.
    Gpu,
}

impl NodeType {
    /// All kinds with their names.
    pub const ALL: [(&'static str, Self); 4] =
        [("mobile", Self::Mobile), ("edge", Self::Edge), ("cloud", Self::Cloud), ("gpu", Self::Gpu)];
}

/// What a node can do, as it measured itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Version of the program.
    pub version: String,
    /// Kinds of node it is.
    pub node_types: Vec<NodeType>,
    /// Measured f32 matrix-product speed, in 10^9 operations a second.
    pub compute_gflops: f64,
    /// Memory of the machine, in 2^30 bytes.
    pub memory_gb: f64,
    /// Logical processors.
    pub cores: u32,
    /// Does it take inference requests?
    pub serves: bool,
    /// Data it would train on.
    pub data: Vec<DataSummary>,
    /// What its owner allows, for whoever asks before a round; None = it does not say.
    #[serde(default)]
    pub policy: Option<NodePolicy>,
    /// Of a helper: the key that seeds are sealed to.
    #[serde(default)]
    pub helper: Option<HelperKey>,
}

/// An invitation to train: everything a node needs to decide and to compute, and nothing that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// Which attempt at which round.
    pub key: RoundKey,
    /// The job's name, for people.
    pub job_name: String,
    /// Who created the job, as the gateway knows them, for the node's policy.
    #[serde(default)]
    pub publisher: String,
    /// Type of the job, for the node's policy.
    #[serde(default)]
    pub job_type: String,
    /// Name of the recipe, for the node's policy.
    pub recipe: String,
    /// The model's shape.
    pub architecture: Architecture,
    /// The model to start from.
    pub model: BlobRef,
    /// How to train.
    pub training: LocalTraining,
    /// Which data.
    pub data: DataRequirements,
    /// The job's seed; a node's randomness derives from it, the round and the node's enrolled name.
    pub seed: u64,
    /// The grid of each tensor, in layout order.
    pub grids: Vec<Grid>,
    /// What the strategy asks beside training.
    #[serde(default)]
    pub local: LocalRule,
    /// True if the strategy needs the loss of the received model on the node's rows.
    #[serde(default)]
    pub initial_loss: bool,
    /// Names of tensors that stay on the node (FedPer, FedBN), in layout order: not part of the update.
    #[serde(default)]
    pub personal: Vec<String>,
    /// The newest update of this very node that counted in a published round of this job.
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// True if the job asks to keep updates after their round, for auditors; the node decides for its own.
    #[serde(default)]
    pub retain_updates: bool,
    /// Largest weight (number of examples) that counts.
    pub max_examples: u32,
    /// Largest L2 norm of the change of the weights, kept by the node on the integers it sends; None = no bound.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Privacy techniques of this round, by name; empty = the coordinator sees this node's update.
    pub privacy_techniques: Vec<String>,
    /// The terms of secure aggregation, if it is one of the techniques.
    #[serde(default)]
    pub secure: Option<SecureTerms>,
    /// Total rounds of the job.
    pub total_rounds: u32,
    /// Milliseconds left when this message was sent.
    pub deadline_ms: u64,
}

/// An inference request for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictTask {
    /// The request.
    pub request: RequestId,
    /// Which try this is, from 1; a repeated send keeps its number.
    pub attempt: u32,
    /// The model, by id for logs and by digest for truth.
    pub model_id: ModelId,
    /// The bundle.
    pub model: BlobRef,
    /// Rows of input values, each as long as the model's input.
    pub rows: Vec<Vec<f32>>,
    /// Milliseconds left when this message was sent.
    pub deadline_ms: u64,
}

/// Coordinator to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Down {
    /// First message of a stream; `heartbeat_ms` is the longest silence to expect.
    Welcome {
        /// Id of the coordinator.
        coordinator: String,
        /// Longest pause between two messages, in milliseconds.
        heartbeat_ms: u64,
    },
    /// Nothing to say, still here.
    Heartbeat,
    /// Train, if your policy allows.
    Invite(Box<Invitation>),
    /// The next step of secure aggregation.
    Secure {
        /// Which attempt.
        key: RoundKey,
        /// What it is about.
        message: Box<SecureDown>,
    },
    /// Sum masks, as a round's helper.
    Help(Box<HelpRequest>),
    /// What you do for this round is no longer wanted.
    RoundClosed {
        /// Which attempt.
        key: RoundKey,
        /// Why: `published`, `abandoned`, `cancelled`.
        outcome: String,
    },
    /// The job has ended; nothing more of it will be asked.
    JobEnded {
        /// The job.
        job: JobId,
        /// Its final status.
        status: String,
        /// The newest update of this very node that counted in a published round of this job.
        #[serde(default)]
        receipt: Option<Receipt>,
    },
    /// A model of the catalogue that a worker may fetch ahead.
    ModelReady {
        /// Its id.
        model_id: ModelId,
        /// Its bundle.
        model: BlobRef,
    },
    /// Predict.
    Predict(Box<PredictTask>),
    /// The coordinator goes away: come back after this pause.
    Goodbye {
        /// Milliseconds to wait before the next try.
        retry_after_ms: u64,
    },
}

/// Node to coordinator, without weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Up {
    /// Who and what I am; sent after every connect.
    Report(Box<NodeReport>),
    /// I will train, or not and why.
    Answer {
        /// Which attempt.
        key: RoundKey,
        /// None = yes; else which of the node's rules refuses, and a sentence.
        declined: Option<Declined>,
    },
    /// I tried and failed: do not wait for me in this attempt.
    TrainingFailed {
        /// Which attempt.
        key: RoundKey,
        /// One sentence without data.
        reason: String,
    },
    /// A step of secure aggregation.
    Secure {
        /// Which attempt.
        key: RoundKey,
        /// What it says.
        message: Box<SecureUp>,
    },
    /// The result of a [`PredictTask`].
    Prediction {
        /// The request.
        request: RequestId,
        /// Which try.
        attempt: u32,
        /// The outcome.
        outcome: PredictOutcome,
    },
    /// I leave for good: forget me, revoke my certificate.
    Leave,
}

/// A node's refusal to take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declined {
    /// Name of the rule, e.g. `allowed_recipes`.
    pub rule: String,
    /// What it demands and what the job asks.
    pub reason: String,
    /// By the node's enrolled key, over attempt, rule and reason; zeros, which no key signs, where none was sent.
    #[serde(default = "unsigned")]
    pub signature: Hex<64>,
}

fn unsigned() -> Hex<64> {
    Hex([0; 64])
}

/// What came of a prediction on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum PredictOutcome {
    /// Output rows, one for each input row: class probabilities, or one value.
    Done {
        /// The rows.
        outputs: Vec<Vec<f32>>,
        /// Time of the computation on the node, in microseconds.
        compute_us: u64,
    },
    /// It did not work here; another node may do better.
    Failed {
        /// One sentence.
        reason: String,
        /// True if no node can do better (the input does not fit the model).
        permanent: bool,
    },
}

/// The front of an update; its integers follow as a stream of bytes: little-endian i32, tensors in layout order without
/// those that stay on the node, and then, where the strategy has a second plane, the same tensors again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateHeader {
    /// Which attempt.
    pub key: RoundKey,
    /// BLAKE3 and length of the integers: 4 bytes each.
    pub payload: BlobRef,
    /// Weight of the update: number of examples, 1 to the job's `max_examples`.
    pub weight: u32,
    /// How many values were clipped to the grid's bound.
    pub clipped: u64,
    /// Optimiser steps of the local training, at least 1.
    #[serde(default = "one")]
    pub steps: u32,
    /// Loss of the received model on the node's rows before training, if the invitation asked for it; finite.
    #[serde(default)]
    pub initial_loss: Option<f64>,
    /// True if this update may be kept after its round.
    #[serde(default)]
    pub retain: bool,
    /// What the node measured.
    pub metrics: LocalMetrics,
    /// Of a masked update: who vouches for it. Then `weight`, `steps`, `initial_loss` and `metrics` say nothing (0, 1, none,
    /// zeros): they travel masked, behind the values.
    #[serde(default)]
    pub secure: Option<MaskedInput>,
}

fn one() -> u32 {
    1
}

/// What a node measured while it trained: self-declared, for curves and never for the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalMetrics {
    /// Mean loss over the last local epoch.
    pub loss: f64,
    /// Share of the node's own rows that the received model classified right, 0 to 1; None for regression.
    pub accuracy: Option<f64>,
    /// Time of local training, in milliseconds.
    pub train_ms: u64,
}

impl UpdateHeader {
    /// The front of a plain update: one step, nothing clipped, not to be kept.
    #[must_use]
    pub fn new(key: RoundKey, payload: BlobRef, weight: u32, metrics: LocalMetrics) -> Self {
        Self { key, payload, weight, clipped: 0, steps: 1, initial_loss: None, retain: false, metrics, secure: None }
    }
}

/// What the coordinator says to an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum UpdateReply {
    /// It is stored and will count once (also said to a repeated identical update).
    Accepted,
    /// It will never count.
    Refused {
        /// Machine-readable reason, e.g. `late`, `wrong_size`, `digest_mismatch`.
        reason: String,
        /// One sentence: what, why, what to do.
        detail: String,
    },
    /// Not now.
    Retry {
        /// Milliseconds to wait.
        after_ms: u64,
    },
}

#[cfg(test)]
mod tests;
