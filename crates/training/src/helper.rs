//! The helper: the second aggregator of a round whose nodes agree on nothing before. It has the seeds of masks and never an
//! update; it answers with the sum of the masks of those whose updates came.
//!
//! ```text
//! Help -> check (terms, keys, boxes) -> note what is opened (durable) -> sum masks -> log -> send | refuse
//! ```
//! Nodes do not see whose updates are summed, so the helper alone keeps a coordinator from opening two sums that differ by
//! one of them: one request a context, one sum a model, remembered over restarts. The same request has the same answer, to the
//! bit.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use aivillage_base::Digest;
use aivillage_base::ports::{Uplink, UplinkError};
use aivillage_base::wire::helper::{HelpRequest, HelpedInput, HelperKey};
use aivillage_base::wire::secure::{MaskedInput, SecureUp};
use aivillage_base::wire::{
    BlobRef, Down, Invitation, LocalMetrics, LocalRule, RoundKey, Up, UpdateHeader, UpdateReply,
};
use aivillage_privacy::secagg::helper::{self, SealPair};
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::Context;

use crate::participant::outgoing::Pause;
use crate::participant::secure::{differencing, work};
use crate::participant::{Keys, SentEntry, SentLog};
use crate::secure::{Behind, check_terms};

/// Largest answer, in bytes: it is made in memory.
const ANSWER_MAX: u64 = 4 << 30;

/// What a helper runs on.
#[derive(Debug, Clone)]
pub struct HelperDeps {
    /// The way to the coordinator.
    pub uplink: Arc<dyn Uplink>,
    /// What it sends.
    pub log: Arc<dyn SentLog>,
    /// Its signature, the keys it knows nodes by, and what it has opened.
    pub keys: Keys,
}

/// A helper; cheap to clone.
#[derive(Debug, Clone)]
pub struct Helper {
    deps: HelperDeps,
    pair: Arc<SealPair>,
    /// Attempts that it is at work for.
    busy: Arc<Mutex<BTreeSet<RoundKey>>>,
    /// One sum at a time: it uses memory like an update.
    compute: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Helper {
    /// A helper that stops all its work when `stop` fires.
    #[must_use]
    pub fn new(deps: HelperDeps, stop: CancellationToken) -> Self {
        let pair = Arc::new(SealPair::of(&*deps.keys.signer));
        Self { deps, pair, busy: Arc::default(), compute: Arc::new(Semaphore::new(1)), stop }
    }

    /// What its report says of it.
    #[must_use]
    pub fn word(&self) -> HelperKey {
        self.pair.word()
    }

    /// Takes a message of the coordinator; returns at once. What is not for helpers is passed over.
    pub fn handle(&self, message: &Down) {
        let Down::Help(request) = message else { return };
        let key = request.invitation.key.clone();
        // One that comes again while it is at work is the same request, or has to wait.
        if !self.lock().insert(key.clone()) {
            return;
        }
        let (this, request) = (self.clone(), (**request).clone());
        tokio::spawn(async move {
            tokio::select! {
                () = this.stop.cancelled() => {}
                () = this.help(&key, request) => {}
            }
            this.lock().remove(&key);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<RoundKey>> {
        // The set is valid between any two statements, whatever panicked.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn help(&self, key: &RoundKey, request: HelpRequest) {
        let Ok(permit) = Arc::clone(&self.compute).acquire_owned().await else { return };
        let (keys, pair) = (self.deps.keys.clone(), Arc::clone(&self.pair));
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            answer(&request, &keys, &pair)
        });
        match work.await.unwrap_or_else(|e| Err(Alarm::new("masking", e.to_string()))) {
            Ok((header, payload)) => self.deliver(&header, payload).await,
            Err(alarm) => self.refuse(key, &alarm).await,
        }
    }

    async fn refuse(&self, key: &RoundKey, alarm: &Alarm) {
        tracing::warn!(%key, check = alarm.check, detail = alarm.detail, "takes no masks away");
        let entry = SentEntry { kind: "alarm", key: key.clone(), bytes: 0, digest: None, note: alarm.check.to_owned() };
        if !self.logged(&entry) {
            return;
        }
        let message = SecureUp::Alarm { check: alarm.check.to_owned(), detail: alarm.detail.clone() };
        let message = Up::Secure { key: key.clone(), message: Box::new(message) };
        // One try: while the coordinator waits it asks again.
        if let Err(error) = self.deps.uplink.send(&message).await {
            tracing::debug!(%key, %error, "refusal not delivered");
        }
    }

    async fn deliver(&self, header: &UpdateHeader, payload: Bytes) {
        let key = &header.key;
        let note = "the sum of masks".to_owned();
        let BlobRef { digest, bytes } = header.payload;
        if !self.logged(&SentEntry { kind: "help", key: key.clone(), bytes, digest: Some(digest), note }) {
            return;
        }
        let mut pause = Pause::default();
        loop {
            match self.deps.uplink.upload(header, payload.clone()).await {
                Ok(UpdateReply::Accepted) => return tracing::info!(%key, "masks taken away"),
                Ok(UpdateReply::Refused { detail: reason, .. }) | Err(UplinkError::Refused(reason)) => {
                    return tracing::warn!(%key, reason, "answer refused");
                }
                Ok(UpdateReply::Retry { after_ms }) | Err(UplinkError::Busy { after_ms }) => {
                    pause.wait(Some(after_ms)).await;
                }
                Err(UplinkError::Unreachable(_)) => pause.wait(None).await,
            }
        }
    }

    /// Writes what is about to be sent; false = it cannot be written, so it must not be sent.
    fn logged(&self, entry: &SentEntry) -> bool {
        let written = self.deps.log.record(entry);
        if let Err(error) = &written {
            tracing::error!(key = %entry.key, error, "the log of what is sent cannot be written: nothing is sent");
        }
        written.is_ok()
    }
}

/// What takes the masks of these updates away, after it is noted that they are opened for this request only. Blocking.
fn answer(request: &HelpRequest, keys: &Keys, pair: &SealPair) -> Result<(UpdateHeader, Bytes), Alarm> {
    let HelpRequest { invitation, inputs } = request;
    let Some(terms) = invitation.secure else {
        return Err(Alarm::new("terms", "the round has no terms of secure aggregation"));
    };
    let width = check_terms(&terms).map_err(|detail| Alarm::new("terms", detail))?;
    let values = values(invitation)? + Behind::len(terms.weighting);
    if values as u64 * width.bytes() as u64 > ANSWER_MAX {
        return Err(Alarm::new("size", format!("a sum of {values} values is more than this helper makes")));
    }
    let ctx = Context::of(invitation);
    let vouch = |inputs: &[HelpedInput]| {
        let peers: Vec<_> = inputs.iter().map(|input| &input.peer).collect();
        keys.pins.check(&peers).map_err(|detail| Alarm::new("changed_key", detail))
    };
    let masks = helper::open(ctx, &terms, inputs, pair, &vouch)?;
    let asked = helper::inputs_hash(ctx, inputs);
    let nodes: Vec<u8> = inputs.iter().flat_map(|input| input.peer.id.0).collect();
    let sum = Digest::of(&[nodes.as_slice(), &work(invitation, &terms).0].concat());
    let noted = |key: &[u8; 32], value: &[u8; 32]| {
        keys.contexts.open(key, value).map_err(|detail| Alarm::new("contexts", detail))
    };
    if !noted(&invitation.model.digest.0, &sum.0)? {
        return Err(differencing());
    }
    if !noted(&ctx.0, &asked.0)? {
        return Err(Alarm::new("two_sums", "this helper was asked for another sum of this round before"));
    }
    let payload = Bytes::from(helper::answer(&masks, width, values));
    let blob = BlobRef { digest: Digest::of(&payload), bytes: payload.len() as u64 };
    let word = helper::sign_answer(&*keys.signer, ctx, asked, &blob.digest);
    let told = UpdateHeader::new(invitation.key.clone(), blob, 0, LocalMetrics::default());
    Ok((UpdateHeader { secure: Some(MaskedInput::Helper(word)), ..told }, payload))
}

/// Values of an update of this round, without what lies behind them.
fn values(invitation: &Invitation) -> Result<usize, Alarm> {
    let layout = invitation.architecture.layout().map_err(|e| Alarm::new("architecture", e.to_string()))?;
    let shared = layout.iter().filter(|tensor| !invitation.personal.contains(&tensor.name));
    let shared: usize = shared.map(|tensor| tensor.len()).sum();
    let planes = match invitation.local {
        LocalRule::Scaffold { .. } => 2,
        LocalRule::Plain | LocalRule::Ditto { .. } => 1,
        LocalRule::Unknown => return Err(Alarm::new("local", "this version does not know the round's strategy")),
    };
    Ok(shared * planes)
}
