//! The node's half of a round: policy, training, quantising, sending until there is a receipt.
//!
//! ```text
//! Invite -> judge (pure) -> answer -> fetch model -> train -> quantise -> log -> send -> accepted | refused
//!              \-> declined
//! ```
//! One attempt a job at a time; a newer invitation replaces an older one, a repeated one is answered again. What is sent is
//! logged before it is sent. Because training is a function of invitation, name and data, a node that was killed computes
//! the same bits again, so nothing of an attempt needs to survive on the node.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use aivillage_base::arch::TensorSpec;
use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::rng::os_bytes;
use aivillage_base::wire::{
    BlobRef, Declined, Down, Invitation, LocalMetrics, RoundKey, Up, UpdateHeader, UpdateReply,
};
use aivillage_base::{Digest, JobId, NodeName, bundle, fixed};

use crate::trainer::{TrainError, Trainer};

/// First pause after a failed try; doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What this node allows, whatever a job says: `policy` of node.yaml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodePolicy {
    /// May the coordinator see this node's single update?
    pub allow_plain_updates: bool,
    /// Recipes it trains; None = all, empty = none.
    pub allowed_recipes: Option<Vec<String>>,
    /// Most rounds of a job it takes part in; None = any number.
    pub max_rounds: Option<u32>,
}

impl Default for NodePolicy {
    /// Everything that this version can do is allowed.
    fn default() -> Self {
        Self { allow_plain_updates: true, allowed_recipes: None, max_rounds: None }
    }
}

impl NodePolicy {
    /// Judges an invitation: pure, so that a preview says what a round would.
    ///
    /// # Errors
    /// The first rule that refuses, in a fixed order.
    pub fn judge(&self, invitation: &Invitation) -> Result<(), Declined> {
        let refuse = |rule: &str, reason: String| Err(Declined { rule: rule.to_owned(), reason });
        if let Some(technique) = invitation.privacy_techniques.first() {
            return refuse(
                "privacy_techniques",
                format!("the round asks for `{technique}`, which this node's version does not build"),
            );
        }
        if !self.allow_plain_updates {
            return refuse(
                "allow_plain_updates",
                "the coordinator would see this node's update, and this node does not allow that".to_owned(),
            );
        }
        if let Some(allowed) = &self.allowed_recipes
            && !allowed.contains(&invitation.recipe)
        {
            let list = allowed.join(", ");
            return refuse("allowed_recipes", format!("recipe `{}` is not among: {list}", invitation.recipe));
        }
        if let Some(max) = self.max_rounds
            && invitation.total_rounds > max
        {
            return refuse(
                "max_rounds",
                format!("the job has {} rounds, at most {max} are allowed", invitation.total_rounds),
            );
        }
        Ok(())
    }
}

/// Something this node sends away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentEntry {
    /// `update`, `answer` or `failure`.
    pub kind: &'static str,
    /// Which attempt.
    pub key: RoundKey,
    /// Bytes of weights in it.
    pub bytes: u64,
    /// Their BLAKE3, if there are any.
    pub digest: Option<Digest>,
    /// What was said, for messages without weights.
    pub note: String,
}

impl SentEntry {
    /// An answer without weights.
    fn answer(key: &RoundKey, note: String) -> Self {
        Self { kind: "answer", key: key.clone(), bytes: 0, digest: None, note }
    }
}

/// The node's plain log of what it sends.
///
/// # Behavior
/// - `record` returns after the entry is written; nothing is sent if it fails.
pub trait SentLog: Send + Sync + Debug {
    /// Writes one entry.
    ///
    /// # Errors
    /// One sentence.
    fn record(&self, entry: &SentEntry) -> Result<(), String>;
}

/// What a participant runs on.
#[derive(Debug, Clone)]
pub struct ParticipantDeps {
    /// The way to the coordinator.
    pub uplink: Arc<dyn Uplink>,
    /// Training on this node's data.
    pub trainer: Arc<dyn Trainer>,
    /// The name it was enrolled under.
    pub name: NodeName,
    /// What it allows.
    pub policy: NodePolicy,
    /// What it sends.
    pub log: Arc<dyn SentLog>,
}

/// What a node would send, and everything the coordinator would learn from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The front of the update.
    pub header: UpdateHeader,
    /// Its integers, little-endian i32 in layout order.
    pub payload: Bytes,
}

/// Trains and quantises, without sending anything. Blocking.
///
/// # Errors
/// A sentence that contains no data.
pub fn prepare(
    trainer: &dyn Trainer,
    name: &NodeName,
    invitation: &Invitation,
    model: &[u8],
) -> Result<Prepared, String> {
    let (architecture, values) = bundle::read(model).map_err(|e| e.to_string())?;
    if architecture != invitation.architecture {
        return Err("the model's architecture is not the invitation's".to_owned());
    }
    let outcome = trainer.train(invitation, name.as_str(), &values).map_err(|e: TrainError| e.to_string())?;
    let layout = architecture.layout().map_err(|e| e.to_string())?;
    if outcome.values.len() != values.len() || invitation.grids.len() != layout.len() {
        return Err("the trained model has another shape than the invitation's".to_owned());
    }
    let changes: Vec<f32> = outcome.values.iter().zip(&values).map(|(new, old)| new - old).collect();
    let (integers, clipped) = quantise(&layout, invitation, &changes)?;
    let payload = Bytes::from(fixed::to_bytes(&integers));
    Ok(Prepared {
        header: UpdateHeader {
            clipped,
            ..UpdateHeader::new(
                invitation.key.clone(),
                BlobRef { digest: Digest::of(&payload), bytes: payload.len() as u64 },
                outcome.examples.clamp(1, invitation.max_examples),
                finite(outcome.metrics),
            )
        },
        payload,
    })
}

/// JSON has no NaN; a measurement that is none is left out or zero.
fn finite(metrics: LocalMetrics) -> LocalMetrics {
    LocalMetrics {
        loss: if metrics.loss.is_finite() { metrics.loss } else { f64::MAX },
        accuracy: metrics.accuracy.filter(|a| a.is_finite()),
        train_ms: metrics.train_ms,
    }
}

fn quantise(layout: &[TensorSpec], invitation: &Invitation, changes: &[f32]) -> Result<(Vec<i32>, u64), String> {
    let mut integers = Vec::with_capacity(changes.len());
    let mut clipped = 0;
    let mut at = 0;
    for (tensor, grid) in layout.iter().zip(&invitation.grids) {
        let part = &changes[at..at + tensor.len()];
        clipped += grid.quantise(part, &mut integers).map_err(|e| format!("tensor {}: {e}", tensor.name))?;
        at += tensor.len();
    }
    Ok((integers, clipped))
}

#[derive(Debug)]
struct Active {
    key: RoundKey,
    cancel: CancellationToken,
}

/// The node's half; cheap to clone.
#[derive(Debug, Clone)]
pub struct Participant {
    deps: ParticipantDeps,
    active: Arc<Mutex<HashMap<JobId, Active>>>,
    /// One training at a time: it uses all the cores it was given.
    compute: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Participant {
    /// A participant that stops all its work when `stop` fires.
    #[must_use]
    pub fn new(deps: ParticipantDeps, stop: CancellationToken) -> Self {
        Self { deps, active: Arc::default(), compute: Arc::new(Semaphore::new(1)), stop }
    }

    /// Takes a message of the coordinator that concerns training; returns at once.
    pub fn handle(&self, message: &Down) {
        match message {
            Down::Invite(invitation) => self.invited((**invitation).clone()),
            Down::RoundClosed { key, .. } => self.drop_if(&key.job, |active| active.key == *key),
            Down::JobEnded { job, .. } => self.drop_if(job, |_| true),
            Down::Welcome { .. }
            | Down::Heartbeat
            | Down::ModelReady { .. }
            | Down::Predict(_)
            | Down::Goodbye { .. } => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Active>> {
        // The map is valid between any two statements, whatever panicked.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_if(&self, job: &JobId, condition: impl Fn(&Active) -> bool) {
        let mut active = self.lock();
        if active.get(job).is_some_and(condition)
            && let Some(gone) = active.remove(job)
        {
            gone.cancel.cancel();
        }
    }

    fn invited(&self, invitation: Invitation) {
        let key = invitation.key.clone();
        let cancel = self.stop.child_token();
        {
            let mut active = self.lock();
            if active.get(&key.job).is_some_and(|a| a.key == key) {
                drop(active);
                self.answer_again(key);
                return;
            }
            let next = Active { key: key.clone(), cancel: cancel.clone() };
            if let Some(older) = active.insert(key.job.clone(), next) {
                older.cancel.cancel();
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            let deadline = Duration::from_millis(invitation.deadline_ms);
            tokio::select! {
                () = cancel.cancelled() => tracing::debug!(%key, "no longer wanted"),
                done = tokio::time::timeout(deadline, this.take_part(invitation)) => {
                    if done.is_err() {
                        tracing::warn!(%key, "the deadline has passed");
                    }
                }
            }
            this.drop_if(&key.job, |active| active.key == key);
        });
    }

    /// An invitation that comes again says that the answer was lost or forgotten: without one, the coordinator would
    /// close the round without this node while it trains.
    fn answer_again(&self, key: RoundKey) {
        if !self.logged(SentEntry::answer(&key, "takes part, said again".to_owned())) {
            return;
        }
        let (uplink, stop) = (Arc::clone(&self.deps.uplink), self.stop.clone());
        tokio::spawn(async move {
            let yes = Up::Answer { key, declined: None };
            // One try: if it is lost, the next reminder asks for another.
            tokio::select! {
                () = stop.cancelled() => {}
                _lost = uplink.send(&yes) => {}
            }
        });
    }

    async fn take_part(&self, invitation: Invitation) {
        let key = invitation.key.clone();
        if let Err(declined) = self.deps.policy.judge(&invitation) {
            tracing::info!(%key, rule = declined.rule, reason = declined.reason, "declined by this node's policy");
            let note = format!("declined: {}", declined.rule);
            self.say("answer", Up::Answer { key: key.clone(), declined: Some(declined) }, &key, note).await;
            return;
        }
        if !self.logged(SentEntry::answer(&key, "takes part".to_owned())) {
            return;
        }
        let yes = Up::Answer { key: key.clone(), declined: None };
        // The answer only tells the coordinator to wait; the update itself says yes as well.
        let (_, model) = tokio::join!(self.deps.uplink.send(&yes), self.fetch(&invitation.model));
        let prepared = match model {
            Ok(model) => self.train(invitation, model).await,
            Err(reason) => Err(reason),
        };
        match prepared {
            Ok(prepared) => self.deliver(prepared).await,
            Err(reason) => {
                tracing::warn!(%key, reason, "training failed");
                let message = Up::TrainingFailed { key: key.clone(), reason: reason.clone() };
                self.say("failure", message, &key, reason).await;
            }
        }
    }

    async fn train(&self, invitation: Invitation, model: Bytes) -> Result<Prepared, String> {
        let _permit = self.compute.acquire().await.map_err(|_| "the node is stopping".to_owned())?;
        let (trainer, name) = (Arc::clone(&self.deps.trainer), self.deps.name.clone());
        let work = move || prepare(&*trainer, &name, &invitation, &model);
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("training stopped: {e}"))?
    }

    async fn fetch(&self, model: &BlobRef) -> Result<Bytes, String> {
        let mut pause = Pause::default();
        loop {
            match self.deps.uplink.fetch(model).await {
                Ok(bytes) => return Ok(bytes),
                Err(UplinkError::Refused(reason)) => return Err(format!("the model cannot be fetched: {reason}")),
                Err(UplinkError::Unreachable(_)) => pause.wait(None).await,
                Err(UplinkError::Busy { after_ms }) => pause.wait(Some(after_ms)).await,
            }
        }
    }

    /// Writes what is about to be sent; false = it cannot be written, so it must not be sent.
    fn logged(&self, entry: SentEntry) -> bool {
        let written = self.deps.log.record(&entry);
        if let Err(error) = &written {
            tracing::error!(key = %entry.key, error, "the log of what is sent cannot be written: nothing is sent");
        }
        written.is_ok()
    }

    /// Sends a message without weights until it is taken; logged before.
    async fn say(&self, kind: &'static str, message: Up, key: &RoundKey, note: String) {
        if !self.logged(SentEntry { kind, ..SentEntry::answer(key, note) }) {
            return;
        }
        let mut pause = Pause::default();
        loop {
            match self.deps.uplink.send(&message).await {
                Ok(()) | Err(UplinkError::Refused(_)) => return,
                Err(UplinkError::Unreachable(_)) => pause.wait(None).await,
                Err(UplinkError::Busy { after_ms }) => pause.wait(Some(after_ms)).await,
            }
        }
    }

    /// Sends an update until there is a receipt or a refusal.
    async fn deliver(&self, prepared: Prepared) {
        let Prepared { header, payload } = prepared;
        let key = &header.key;
        let entry = SentEntry {
            kind: "update",
            key: key.clone(),
            bytes: header.payload.bytes,
            digest: Some(header.payload.digest),
            note: format!("weight {}", header.weight),
        };
        if !self.logged(entry) {
            return;
        }
        let mut pause = Pause::default();
        loop {
            match self.deps.uplink.upload(&header, payload.clone()).await {
                Ok(UpdateReply::Accepted) => {
                    tracing::info!(%key, digest = %header.payload.digest.short(), "update accepted");
                    return;
                }
                Ok(UpdateReply::Refused { reason, detail }) => {
                    tracing::warn!(%key, reason, detail, "update refused");
                    return;
                }
                Err(UplinkError::Refused(reason)) => {
                    tracing::warn!(%key, reason, "update refused");
                    return;
                }
                Ok(UpdateReply::Retry { after_ms }) | Err(UplinkError::Busy { after_ms }) => {
                    pause.wait(Some(after_ms)).await;
                }
                Err(UplinkError::Unreachable(reason)) => {
                    tracing::debug!(%key, reason, "update not delivered, trying again");
                    pause.wait(None).await;
                }
            }
        }
    }
}

/// Growing pauses with jitter, so that nodes cut off together do not come back together.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    async fn wait(&mut self, asked_ms: Option<u64>) {
        let base = asked_ms.map_or(self.0, Duration::from_millis);
        let mut byte = [0u8; 1];
        os_bytes(&mut byte);
        tokio::time::sleep(base.mul_f64(0.5 + f64::from(byte[0]) / 255.0)).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests;
