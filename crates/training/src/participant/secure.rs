//! The node's half of secure aggregation: training beside the exchange of keys, then the masked update, then the opening.
//!
//! ```text
//! begin context (durable) -> advert -> roster: (reveal -> reveals:) shares -> boxes -+-> masked update -> survivors: agreement -> opening
//!                         \-> train --------------------------------------------- -+
//! ```
//! The machine that decides is [`aivillage_privacy::secagg::participant`]; this carries its words. Messages may be lost: while
//! it waits, it repeats its last word now and then, and the coordinator answers a repetition with what comes next.

mod draws;
mod keys;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use aivillage_base::Architecture;
use aivillage_base::wire::secure::{SecureDown, SecureTerms, SecureUp};
use aivillage_base::wire::{Invitation, RoundKey, Up};
use aivillage_privacy::secagg::roster::Alarm;

use super::policy::Moment;
use super::{Participant, Prepared};
use crate::round::RESTARTED;

pub use draws::Draws;
pub use keys::{Contexts, Keys, MemoryContexts, MemoryPins, Pins, SystemRandom, changed};
pub use session::{Masking, Session};
pub(crate) use session::{differencing, work};

/// Pause before the last word is said again.
const REPEAT: Duration = Duration::from_secs(5);
/// Longest time that a coordinator may give for an attempt: a day, as jobs have it.
const DEADLINE_MAX: Duration = Duration::from_secs(86_400);
/// How much longer than its training a context may take until it is opened.
const OPENING_TIME: Duration = Duration::from_secs(600);
/// What an attempt under way hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// The next step.
    Message(SecureDown),
    /// The invitation came again: the last word was lost.
    Again,
}

/// How long an attempt may take on the node, whose training has until `deadline`.
pub(super) fn time(deadline: Duration) -> Duration {
    deadline.min(DEADLINE_MAX).saturating_mul(3) + OPENING_TIME
}

impl Participant {
    /// A step of a context that this node knows nothing of: it has restarted, or has had enough of it.
    pub(super) fn unknown_context(&self, key: RoundKey) {
        let this = self.clone();
        tokio::spawn(async move {
            let alarm = Alarm::new(RESTARTED, "this node has no keys for the round");
            this.raise(&key, &alarm).await;
        });
    }

    pub(super) async fn raise(&self, key: &RoundKey, alarm: &Alarm) {
        tracing::warn!(%key, check = alarm.check, detail = alarm.detail, "silent on this round from now on");
        let message = SecureUp::Alarm { check: alarm.check.to_owned(), detail: alarm.detail.clone() };
        self.tell(key, message).await;
    }

    /// Says the last word, if the owner's rules still allow it; false = they do not, and that was said instead.
    async fn word(&self, invitation: &Invitation, session: &Session) -> bool {
        match self.judge_now(invitation, Moment::Asked) {
            Ok(()) => {
                self.tell(&invitation.key, session.last().clone()).await;
                true
            }
            Err(refusal) => {
                self.decline(&invitation.key, refusal).await;
                false
            }
        }
    }

    async fn tell(&self, key: &RoundKey, message: SecureUp) {
        let (kind, note) = match &message {
            SecureUp::Advert(_) => ("advert", "takes part: keys for the round".to_owned()),
            SecureUp::Reveal(_) => ("reveal", "its nonce towards the order of who masks with whom".to_owned()),
            SecureUp::Shares(shares) => {
                ("shares", format!("shares of its keys, sealed to {} others", shares.boxes.len()))
            }
            SecureUp::Agreement(agreement) => {
                ("agreement", format!("vouches for the survivors {}", agreement.survivors))
            }
            SecureUp::Opening(opening) => ("opening", format!("opens {} shares", opening.shares.len())),
            SecureUp::Alarm { check, .. } => ("alarm", check.clone()),
        };
        self.say(kind, Up::Secure { key: key.clone(), message: Box::new(message) }, key, note).await;
    }

    /// Takes part in a round of secure aggregation, from its keys to the opening of the sum.
    pub(super) async fn take_part_masked(
        &self,
        invitation: Invitation,
        terms: SecureTerms,
        mut inbox: mpsc::Receiver<Heard>,
        cancel: &CancellationToken,
    ) {
        let key = invitation.key.clone();
        let mut session = match self.begin(&invitation, terms).await {
            Ok(session) => session,
            Err(alarm) => return self.raise(&key, &alarm).await,
        };
        let contexts = Arc::clone(&self.deps.keys.contexts);
        let mut settling = Some(tokio::task::spawn_blocking(move || contexts.settle()));
        if !self.word(&invitation, &session).await {
            return;
        }
        let training = self.fetch_and_train(invitation.clone(), cancel.clone());
        tokio::pin!(training);
        let mut trained = None;
        let mut delivered = false;
        let mut repeat = tokio::time::interval_at(tokio::time::Instant::now() + REPEAT, REPEAT);
        loop {
            let heard = tokio::select! {
                result = &mut training, if trained.is_none() && !delivered => {
                    match result {
                        Ok(prepared) => trained = Some(prepared),
                        Err(reason) => return self.failed(&key, reason).await,
                    }
                    None
                }
                heard = inbox.recv() => match heard {
                    Some(heard) => Some(heard),
                    None => return,
                },
                // While it trains under masks that it has, there is nothing to ask for.
                _ = repeat.tick() => (delivered || !session.has_masks()).then_some(Heard::Again),
            };
            let speaks = match heard {
                None => false,
                Some(Heard::Again) => true,
                Some(Heard::Message(message)) => match self.hear(&mut session, message).await {
                    Ok(new) => {
                        if new {
                            repeat.reset();
                        }
                        new
                    }
                    Err(alarm) => return self.raise(&key, &alarm).await,
                },
            };
            if speaks && !self.word(&invitation, &session).await {
                return;
            }
            if session.has_masks()
                && let Some(prepared) = trained.take()
            {
                match self.mask(&mut session, prepared, invitation.architecture.clone(), settling.take()).await {
                    Ok(masked) => delivered = self.deliver(&invitation, masked).await,
                    Err(alarm) => return self.raise(&key, &alarm).await,
                }
                if !delivered {
                    return;
                }
                repeat.reset();
            }
        }
    }

    /// Begins a context with a fresh registry.
    async fn begin(&self, invitation: &Invitation, terms: SecureTerms) -> Result<Session, Alarm> {
        self.deps.keys.registry.freshen().await?;
        Session::begin(invitation, terms, &self.deps.name, &self.deps.keys, &mut SystemRandom)
    }

    /// Takes a step of the coordinator; what others know of the registry is read before it is judged.
    async fn hear(&self, session: &mut Session, message: SecureDown) -> Result<bool, Alarm> {
        let keys = &self.deps.keys;
        if let SecureDown::Roster { adverts } = &message {
            let known = keys.registry.head().sequence;
            if adverts.iter().any(|advert| advert.registry.sequence > known) {
                keys.registry.refresh().await?;
            }
        }
        session.step(message, keys, &mut SystemRandom)
    }

    /// Masks an update once its context is durable, and keeps the state that belongs to it.
    async fn mask(
        &self,
        session: &mut Session,
        prepared: Prepared,
        architecture: Architecture,
        settling: Option<JoinHandle<Result<(), String>>>,
    ) -> Result<Prepared, Alarm> {
        if let Some(settling) = settling {
            let settled = settling.await.map_err(|e| e.to_string()).flatten();
            settled.map_err(|detail| Alarm::new("contexts", detail))?;
        }
        let masking = session.masking(&prepared)?;
        let store = Arc::clone(&self.deps.state);
        let work = move || {
            let masked = masking.mask(prepared);
            if !masked.state.is_empty() {
                store.put(&masked.mark(), &architecture, &masked.state)?;
            }
            Ok(masked)
        };
        let masked = tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string()).flatten();
        let mut masked = masked.map_err(|detail: String| Alarm::new("masking", detail))?;
        session.vouch(&mut masked.header, &self.deps.keys)?;
        Ok(masked)
    }
}
