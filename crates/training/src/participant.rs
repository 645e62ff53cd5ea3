//! The node's half of a round: policy, training, quantising, sending until there is a receipt.
//!
//! ```text
//! Invite -> judge (pure) -> answer -> fetch -> settle state -> train -> quantise -> keep state -> log -> send -> accepted | refused
//!              \-> declined
//! ```
//! One attempt a job at a time; a newer invitation replaces an older one, a repeated one is answered again. What is sent is
//! logged before it is sent, and judged once more. Training is a function of invitation, name, data and the [`state`] that the invitation names, so
//! a node that was killed anywhere computes the same bits again.
//!
//! - [`policy`] and [`hours`]: what the node allows; `outgoing`: all that leaves it; [`update`]: from received bytes to the update; [`state`]: what it keeps of a job;
//!   [`secure`]: secure aggregation.

mod helped;
pub mod hours;
pub(crate) mod outgoing;
pub mod policy;
mod registry;
pub mod secure;
pub mod state;
pub mod update;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::time::Clock;
use aivillage_base::wire::secure::SecureDown;
use aivillage_base::wire::{BlobRef, Down, Invitation, LocalMetrics, LocalRule, Receipt, RoundKey, Up};
use aivillage_base::{Digest, JobId, NodeName};

use crate::trainer::Trainer;
use outgoing::Pause;
use policy::{Moment, Refusal, Rule};
use secure::Heard;

pub use policy::NodePolicy;
pub use registry::{NoRegistry, Registry};
pub use secure::{Contexts, Draws, Keys, MemoryContexts, MemoryPins, Pins};
pub use state::{LocalState, MemoryState, NodeState};
pub use update::{Prepared, Received, prepare};

/// Something this node sends away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentEntry {
    /// `update`, `answer` or `failure`; of secure aggregation `advert`, `reveal`, `shares`, `agreement`, `opening`, `alarm`;
    /// of a helper `help`.
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
    /// What time it is, for the hours at which it takes part.
    pub clock: Arc<dyn Clock>,
    /// What it keeps of jobs from round to round.
    pub state: Arc<dyn NodeState>,
    /// What it brings to secure aggregation.
    pub keys: Keys,
}

/// Words of a context that wait for it, at most.
const WAITING_MAX: usize = 16;

#[derive(Debug)]
struct Active {
    key: RoundKey,
    cancel: CancellationToken,
    /// Of a round of secure aggregation: where its messages go.
    inbox: Option<mpsc::Sender<Heard>>,
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
            Down::Secure { key, message } => self.heard(key, message),
            Down::RoundClosed { key, .. } => self.drop_if(&key.job, |active| active.key == *key),
            Down::JobEnded { job, receipt, .. } => self.ended(job.clone(), receipt.clone()),
            Down::Welcome { .. }
            | Down::Heartbeat
            | Down::ModelReady { .. }
            | Down::Help(_)
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

    /// Nothing more of the job will be asked: its work stops, its personal model is made ready, its states go.
    fn ended(&self, job: JobId, receipt: Option<Receipt>) {
        self.drop_if(&job, |_| true);
        let this = self.clone();
        tokio::spawn(async move {
            // A training that still runs may keep a state: first it has to end.
            let Ok(permit) = this.permit().await else { return };
            let store = Arc::clone(&this.deps.state);
            let work = move || {
                let _permit = permit;
                if let Err(error) = state::end(&*store, &job, receipt.as_ref()) {
                    tracing::warn!(%job, error, "what this node kept of the job cannot be put away");
                }
            };
            // A panic in there has been reported, and nobody waits for the outcome.
            let _joined = tokio::task::spawn_blocking(work).await;
        });
    }

    /// A step of secure aggregation.
    fn heard(&self, key: &RoundKey, message: &SecureDown) {
        let inbox = self.lock().get(&key.job).filter(|a| a.key == *key).and_then(|a| a.inbox.clone());
        match inbox {
            // A full inbox loses the message: the last word is said again, and brings it once more.
            Some(inbox) => drop(inbox.try_send(Heard::Message(message.clone()))),
            None => self.unknown_context(key.clone()),
        }
    }

    fn invited(&self, invitation: Invitation) {
        let key = invitation.key.clone();
        let cancel = self.stop.child_token();
        let (inbox, heard) = match invitation.secure.filter(|terms| terms.helper.is_none()) {
            Some(_) => {
                let (sender, receiver) = mpsc::channel(WAITING_MAX);
                (Some(sender), Some(receiver))
            }
            None => (None, None),
        };
        {
            let mut active = self.lock();
            if let Some(known) = active.get(&key.job).filter(|a| a.key == key) {
                match &known.inbox {
                    Some(inbox) => drop(inbox.try_send(Heard::Again)),
                    None => {
                        drop(active);
                        self.answer_again(key);
                    }
                }
                return;
            }
            if active.get(&key.job).is_some_and(|a| a.key > key) {
                return; // It was overtaken on its way.
            }
            let next = Active { key: key.clone(), cancel: cancel.clone(), inbox };
            if let Some(older) = active.insert(key.job.clone(), next) {
                older.cancel.cancel();
            }
        }
        let this = self.clone();
        tokio::spawn(async move {
            let mut deadline = Duration::from_millis(invitation.deadline_ms);
            if heard.is_some() {
                deadline = secure::time(deadline);
            }
            tokio::select! {
                () = cancel.cancelled() => tracing::debug!(%key, "no longer wanted"),
                done = tokio::time::timeout(deadline, this.take_part(invitation, heard, &cancel)) => {
                    if done.is_err() {
                        tracing::warn!(%key, "the deadline has passed");
                    }
                }
            }
            this.drop_if(&key.job, |active| active.key == key);
        });
    }

    async fn take_part(
        &self,
        invitation: Invitation,
        heard: Option<mpsc::Receiver<Heard>>,
        cancel: &CancellationToken,
    ) {
        let key = invitation.key.clone();
        if let Err(refusal) = self.judge(&invitation).await {
            return self.decline(&key, refusal).await;
        }
        if let Some((terms, helper)) = invitation.secure.and_then(|terms| Some((terms, terms.helper?))) {
            return self.take_part_helped(invitation, (terms, helper), cancel).await;
        }
        if let (Some(terms), Some(heard)) = (invitation.secure, heard) {
            return self.take_part_masked(invitation, terms, heard, cancel).await;
        }
        if !self.logged(SentEntry::answer(&key, "takes part".to_owned())) {
            return;
        }
        let yes = Up::Answer { key: key.clone(), declined: None };
        let training = self.fetch_and_train(invitation.clone(), cancel.clone());
        // The answer only tells the coordinator to wait; the update itself says yes as well.
        let (_, prepared) = tokio::join!(self.deps.uplink.send(&yes), training);
        match prepared {
            Ok(prepared) => {
                self.deliver(&invitation, prepared).await;
            }
            Err(reason) => self.failed(&key, reason).await,
        }
    }

    async fn fetch_and_train(&self, invitation: Invitation, cancel: CancellationToken) -> Result<Prepared, String> {
        let (model, control) = self.fetch_all(&invitation).await?;
        tracing::info!(key = %invitation.key, model = %invitation.model.digest, "model received");
        self.train(invitation, model, control, cancel).await
    }

    /// The owner's policy; and a node that has lost its state of a job leaves it, rather than fail in each of its rounds.
    async fn judge(&self, invitation: &Invitation) -> Result<(), Refusal> {
        self.judge_now(invitation, Moment::Asked)?;
        if !LocalState::needed(invitation) {
            return Ok(());
        }
        let (store, asked) = (Arc::clone(&self.deps.state), invitation.clone());
        match tokio::task::spawn_blocking(move || state::missing(&*store, &asked)).await {
            Ok(Ok(Some(reason))) => Err(Refusal::new(Rule::State, reason)),
            // A store that cannot be read may be read later: training will say so if not.
            Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, String> {
        Arc::clone(&self.compute).acquire_owned().await.map_err(|_| "the node is stopping".to_owned())
    }

    /// Trains, and keeps the state that belongs to the update, so that it is durable before the update leaves.
    async fn train(
        &self,
        invitation: Invitation,
        model: Bytes,
        control: Option<Bytes>,
        cancel: CancellationToken,
    ) -> Result<Prepared, String> {
        let (permit, deps) = (self.permit().await?, self.deps.clone());
        let work = move || {
            // Moved in: this thread goes on when the attempt is cancelled, and must not be joined by another training.
            let _permit = permit;
            let needed = LocalState::needed(&invitation);
            let state = if needed { state::settle(&*deps.state, &invitation)? } else { LocalState::default() };
            let received = Received { model: &model, control: control.as_deref(), state: &state };
            let prepared = prepare(&*deps.trainer, &deps.name, &deps.policy, &invitation, received)?;
            if let Some(LocalMetrics { loss, accuracy, .. }) = prepared.personal {
                tracing::info!(key = %invitation.key, loss, accuracy, "personal model trained; accuracy is that before");
            }
            if cancel.is_cancelled() {
                return Err("no longer wanted".to_owned());
            }
            // A masked update gets its name when it is masked.
            if !prepared.state.is_empty() && invitation.secure.is_none() {
                deps.state.put(&prepared.mark(), &invitation.architecture, &prepared.state)?;
            }
            Ok(prepared)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| format!("training stopped: {e}"))?
    }

    /// The model, and the control variate where the strategy has one.
    async fn fetch_all(&self, invitation: &Invitation) -> Result<(Bytes, Option<Bytes>), String> {
        let control = match &invitation.local {
            LocalRule::Scaffold { control } => control.as_ref(),
            LocalRule::Plain | LocalRule::Ditto { .. } | LocalRule::Unknown => None,
        };
        let model = self.fetch(&invitation.model).await?;
        let control = match control {
            Some(blob) => Some(self.fetch(blob).await?),
            None => None,
        };
        Ok((model, control))
    }

    async fn fetch(&self, model: &BlobRef) -> Result<Bytes, String> {
        let mut pause = Pause::default();
        loop {
            match self.deps.uplink.fetch(model).await {
                Ok(bytes) => return Ok(bytes),
                Err(UplinkError::Refused(reason)) => {
                    return Err(format!("what the round starts from cannot be fetched: {reason}"));
                }
                Err(UplinkError::Unreachable(_)) => pause.wait(None).await,
                Err(UplinkError::Busy { after_ms }) => pause.wait(Some(after_ms)).await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
