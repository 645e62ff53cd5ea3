//! All that leaves a node: judged, logged, sent until it is taken.
//!
//! Promise: an update is judged by the owner's rules before each try to send it, and so is each word of secure aggregation;
//! what cannot be logged is not sent. Answers, refusals, failures and alarms hold neither weights nor keys: no rule keeps
//! them back.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use aivillage_base::ports::UplinkError;
use aivillage_base::rng::os_bytes;
use aivillage_base::wire::{Invitation, RoundKey, Up, UpdateHeader, UpdateReply};

use super::policy::{self, Moment, Refusal};
use super::{Participant, Prepared, SentEntry};

/// First pause after a failed try; doubles up to [`PAUSE_MAX`], with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Participant {
    /// The owner's rules, now.
    pub(super) fn judge_now(&self, invitation: &Invitation, moment: Moment<'_>) -> Result<(), Refusal> {
        policy::judge(&self.deps.policy, self.deps.clock.now().wall_ms, invitation, moment)
    }

    /// An invitation that comes again says that the answer was lost or forgotten: without one, the coordinator would
    /// close the round without this node while it trains.
    pub(super) fn answer_again(&self, key: RoundKey) {
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

    /// Says no, signed.
    pub(super) async fn decline(&self, key: &RoundKey, refusal: Refusal) {
        tracing::info!(%key, rule = refusal.rule.name(), reason = refusal.reason, "declined");
        let note = format!("declined: {}", refusal.rule.name());
        let declined = Some(refusal.signed(&*self.deps.keys.signer, key));
        self.say("answer", Up::Answer { key: key.clone(), declined }, key, note).await;
    }

    pub(super) async fn failed(&self, key: &RoundKey, reason: String) {
        tracing::warn!(%key, reason, "training failed");
        let message = Up::TrainingFailed { key: key.clone(), reason: reason.clone() };
        self.say("failure", message, key, reason).await;
    }

    /// Writes what is about to be sent; false = it cannot be written, so it must not be sent.
    pub(super) fn logged(&self, entry: SentEntry) -> bool {
        let written = self.deps.log.record(&entry);
        if let Err(error) = &written {
            tracing::error!(key = %entry.key, error, "the log of what is sent cannot be written: nothing is sent");
        }
        written.is_ok()
    }

    /// Sends a message without weights until it is taken; logged before.
    pub(super) async fn say(&self, kind: &'static str, message: Up, key: &RoundKey, note: String) {
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

    /// Sends an update until there is a receipt or a refusal, from either side; true = it counts.
    pub(super) async fn deliver(&self, invitation: &Invitation, prepared: Prepared) -> bool {
        let Prepared { header, payload, .. } = prepared;
        let (key, mut logged) = (&header.key, false);
        let mut pause = Pause::default();
        loop {
            if let Err(refusal) = self.judge_now(invitation, Moment::Leaving(&header)) {
                self.decline(&invitation.key, refusal).await;
                return false;
            }
            logged = logged || self.logged(entry(&header));
            if !logged {
                return false;
            }
            match self.deps.uplink.upload(&header, payload.clone()).await {
                Ok(UpdateReply::Accepted) => {
                    tracing::info!(%key, digest = %header.payload.digest.short(), "update accepted");
                    return true;
                }
                Ok(UpdateReply::Refused { reason, detail }) => {
                    tracing::warn!(%key, reason, detail, "update refused");
                    return false;
                }
                Err(UplinkError::Refused(reason)) => {
                    tracing::warn!(%key, reason, "update refused");
                    return false;
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

/// What the log says of an update.
fn entry(header: &UpdateHeader) -> SentEntry {
    SentEntry {
        kind: "update",
        key: header.key.clone(),
        bytes: header.payload.bytes,
        digest: Some(header.payload.digest),
        note: note(header),
    }
}

/// What an update says beside its integers.
fn note(header: &UpdateHeader) -> String {
    if header.secure.is_some() {
        return format!("masked, {} values clipped", header.clipped);
    }
    let mut note = format!("weight {}, steps {}", header.weight, header.steps);
    if let Some(loss) = header.initial_loss {
        let _infallible = write!(note, ", initial loss {loss}");
    }
    if header.retain {
        note.push_str(", may be kept after its round");
    }
    note
}

/// A pause that grows with each wait, with jitter.
pub(crate) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pause {
    pub(crate) async fn wait(&mut self, asked_ms: Option<u64>) {
        let base = asked_ms.map_or(self.0, Duration::from_millis);
        let mut byte = [0u8; 1];
        os_bytes(&mut byte);
        tokio::time::sleep(base.mul_f64(0.5 + f64::from(byte[0]) / 255.0)).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}
