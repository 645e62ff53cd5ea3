//! The node's half of secure aggregation: training beside the exchange of keys, then the masked update, then the opening.
//!
//! ```text
//! begin context (durable) -> advert -> roster: shares -> boxes -+-> masked update -> survivors: agreement -> opening
//!                         \-> train -------------------------- -+
//! ```
//! The machine that decides is [`aivillage_privacy::secagg::participant`]; this carries its words. Messages may be lost: while
//! it waits, it repeats its last word now and then, and the coordinator answers a repetition with what comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use aivillage_base::rng::os_bytes;
use aivillage_base::wire::secure::{Advert, SecureDown, SecureTerms, SecureUp};
use aivillage_base::wire::{Invitation, Peer, RoundKey, Up, UpdateHeader};
use aivillage_base::{Architecture, Digest, NodeId, NodeName};
use aivillage_privacy::rand_core::{CryptoRng, TryCryptoRng, TryRng};
use aivillage_privacy::secagg::mask::{MaskKey, Sign};
use aivillage_privacy::secagg::participant::Participant as Machine;
use aivillage_privacy::secagg::ring::Width;
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::{Context, Signer};

use super::policy::Moment;
use super::registry::Registry;
use super::{Participant, Prepared};
use crate::round::RESTARTED;
use crate::secure;

/// Pause before the last word is said again.
const REPEAT: Duration = Duration::from_secs(5);
/// Longest time that a coordinator may give for an attempt: a day, as jobs have it.
const DEADLINE_MAX: Duration = Duration::from_secs(86_400);
/// How much longer than its training a context may take until it is opened.
const OPENING_TIME: Duration = Duration::from_secs(600);

/// The keys by which a node knows the others.
///
/// # Behavior
/// - The first key of a name is remembered, durably, before `check` returns; from then on another key is refused.
pub trait Pins: Send + Sync + Debug {
    /// Is this the key of this name?
    ///
    /// # Errors
    /// One sentence: it is another one than before, or not on the node's roster.
    fn check(&self, peer: &Peer) -> Result<(), String>;
}

/// The contexts that a node has begun.
///
/// # Behavior
/// - `begin` returns after the context is durable, so that a node that restarts never begins one again.
pub trait Contexts: Send + Sync + Debug {
    /// Notes a context; false = it was begun before.
    ///
    /// # Errors
    /// One sentence; nothing of the context may be said then.
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String>;

    /// Which sum this node has opened that starts from this model; None = none yet.
    ///
    /// # Errors
    /// One sentence.
    fn opened(&self, model: &[u8; 32]) -> Result<Option<[u8; 32]>, String>;

    /// Notes, durably, which sum is about to be opened; false = another one was, and this one must not be. Of two that come
    /// at once only one is told yes.
    ///
    /// # Errors
    /// One sentence; nothing may be opened then.
    fn open(&self, model: &[u8; 32], sum: &[u8; 32]) -> Result<bool, String>;
}

/// What a node brings to secure aggregation.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs with the enrolled key.
    pub signer: Arc<dyn Signer>,
    /// The keys of others.
    pub pins: Arc<dyn Pins>,
    /// Contexts begun.
    pub contexts: Arc<dyn Contexts>,
    /// Enrolments.
    pub registry: Arc<dyn Registry>,
}

/// [`Pins`] in memory.
#[derive(Debug, Default)]
pub struct MemoryPins(Mutex<BTreeMap<NodeName, NodeId>>);

impl Pins for MemoryPins {
    fn check(&self, peer: &Peer) -> Result<(), String> {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *pins.entry(peer.name.clone()).or_insert(peer.id);
        drop(pins);
        if known == peer.id { Ok(()) } else { Err(changed(peer, &known)) }
    }
}

/// What is said of a key that is not the one remembered.
#[must_use]
pub fn changed(peer: &Peer, known: &NodeId) -> String {
    format!(
        "{} has the key {} now, and had {known} before: if it was enrolled anew, its owner can tell, and this node forgets \
         the old key when its pin is removed",
        peer.name, peer.id
    )
}

/// [`Contexts`] in memory.
#[derive(Debug, Default)]
pub struct MemoryContexts(Mutex<Begun>);

/// Contexts, and which sum was opened over which model.
type Begun = (BTreeSet<[u8; 32]>, BTreeMap<[u8; 32], [u8; 32]>);

impl MemoryContexts {
    fn lock(&self) -> std::sync::MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contexts for MemoryContexts {
    fn begin(&self, ctx: &[u8; 32]) -> Result<bool, String> {
        Ok(self.lock().0.insert(*ctx))
    }

    fn opened(&self, model: &[u8; 32]) -> Result<Option<[u8; 32]>, String> {
        Ok(self.lock().1.get(model).copied())
    }

    fn open(&self, model: &[u8; 32], sum: &[u8; 32]) -> Result<bool, String> {
        Ok(self.lock().1.entry(*model).or_insert(*sum) == sum)
    }
}

/// Randomness of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct SystemRandom;

impl TryRng for SystemRandom {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        os_bytes(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        os_bytes(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        os_bytes(out);
        Ok(())
    }
}

impl TryCryptoRng for SystemRandom {}

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

    async fn raise(&self, key: &RoundKey, alarm: &Alarm) {
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
                match self.mask(&mut session, prepared, invitation.architecture.clone()).await {
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

    /// Begins a context with the newest registry.
    async fn begin(&self, invitation: &Invitation, terms: SecureTerms) -> Result<Session, Alarm> {
        self.deps.keys.registry.refresh().await?;
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

    /// Masks an update, and keeps the state that belongs to it.
    async fn mask(
        &self,
        session: &mut Session,
        prepared: Prepared,
        architecture: Architecture,
    ) -> Result<Prepared, Alarm> {
        session.fits(&prepared)?;
        let masking = session.masking()?;
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

/// A context under way: pure but for what [`Keys`] keep.
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    terms: SecureTerms,
    /// What the round starts from.
    model: Digest,
    /// Hash of all that makes the update of it.
    work: Digest,
    last: SecureUp,
}

/// What masks an update: computed where it may take its time.
#[derive(Debug)]
pub struct Masking {
    masks: Vec<(MaskKey, Sign)>,
    terms: SecureTerms,
    width: Width,
}

impl Masking {
    /// The update under its masks, with what was measured behind its values.
    #[must_use]
    pub fn mask(&self, prepared: Prepared) -> Prepared {
        prepared.masked(&self.masks, &self.terms, self.width)
    }
}

impl Session {
    /// Notes that this context is begun, then makes keys for it.
    ///
    /// # Errors
    /// [`Alarm`]: it was begun before, or that cannot be noted.
    pub fn begin(
        invitation: &Invitation,
        terms: SecureTerms,
        name: &NodeName,
        keys: &Keys,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Alarm> {
        let ctx = Context::of(invitation);
        match keys.contexts.begin(&ctx.0) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Alarm::new(RESTARTED, "this node has begun the round before, and has no keys for it"));
            }
            Err(detail) => return Err(Alarm::new("contexts", detail)),
        }
        let machine = Machine::begin(ctx, terms, name.clone(), keys.registry.head(), &*keys.signer, rng);
        let last = SecureUp::Advert(Box::new(machine.advert().clone()));
        Ok(Self { machine, terms, model: invitation.model.digest, work: work(invitation, &terms), last })
    }

    /// The last word: said again while nothing new is heard.
    #[must_use]
    pub fn last(&self) -> &SecureUp {
        &self.last
    }

    /// Takes a step of the coordinator; true = there is a new [`Self::last`] word to say.
    ///
    /// # Errors
    /// [`Alarm`]: silent from now on.
    pub fn step(&mut self, message: SecureDown, keys: &Keys, rng: &mut impl CryptoRng) -> Result<bool, Alarm> {
        let signer = &*keys.signer;
        self.last = match message {
            SecureDown::Roster { adverts } => {
                let vouch = |advert: &Advert| {
                    keys.registry.check(advert)?;
                    keys.pins.check(&advert.peer).map_err(|detail| Alarm::new("changed_key", detail))
                };
                SecureUp::Shares(self.machine.roster(adverts, &vouch, signer, rng)?)
            }
            SecureDown::Boxes { sharers, boxes } => {
                self.machine.boxes(&sharers, &boxes)?;
                return Ok(false);
            }
            SecureDown::Survivors { survivors } => {
                let agreement = self.machine.survivors(&survivors, signer)?;
                match keys.contexts.opened(&self.model.0) {
                    Ok(before) if before.is_none_or(|sum| sum == self.sum()) => {}
                    Ok(_) => return Err(differencing()),
                    Err(detail) => return Err(Alarm::new("contexts", detail)),
                }
                SecureUp::Agreement(agreement)
            }
            SecureDown::Agreements { agreed } => {
                let opening = self.machine.agreements(&agreed, signer)?;
                match keys.contexts.open(&self.model.0, &self.sum()) {
                    Ok(true) => SecureUp::Opening(opening),
                    Ok(false) => return Err(differencing()),
                    Err(detail) => return Err(Alarm::new("contexts", detail)),
                }
            }
        };
        Ok(true)
    }

    /// Which sum the survivors' is: theirs, of this work.
    fn sum(&self) -> [u8; 32] {
        Digest::of(&[self.machine.survivor_keys(), self.work.0].concat()).0
    }

    /// The survivors that it answers for; empty before it was shown any.
    #[must_use]
    pub fn survivors(&self) -> &[NodeName] {
        self.machine.answers_for()
    }

    /// Do the terms hold for this update? With fewer examples than it has, the sum would be another than the plain one.
    ///
    /// # Errors
    /// [`Alarm`]
    pub fn fits(&self, prepared: &Prepared) -> Result<(), Alarm> {
        let (examples, most) = (prepared.header.weight, self.terms.weight_max);
        if !self.terms.by_examples || examples <= most {
            return Ok(());
        }
        let detail = format!("trained on {examples} rows, and the round counts at most {most}: report the data anew");
        Err(Alarm::new("examples", detail))
    }

    /// Can an update be masked?
    #[must_use]
    pub fn has_masks(&self) -> bool {
        self.machine.has_masks()
    }

    /// What masks the update.
    ///
    /// # Errors
    /// [`Alarm`]
    pub fn masking(&mut self) -> Result<Masking, Alarm> {
        let masks = self.machine.masks()?;
        let width = secure::check_terms(&self.terms).map_err(|detail| Alarm::new("terms", detail))?;
        Ok(Masking { masks, terms: self.terms, width })
    }

    /// Vouches for a masked update: for this one, and no other.
    ///
    /// # Errors
    /// [`Alarm`]
    pub fn vouch(&mut self, header: &mut UpdateHeader, keys: &Keys) -> Result<(), Alarm> {
        header.secure = Some(self.machine.input(header.payload.digest.0, &*keys.signer)?);
        Ok(())
    }
}

/// Hash of all that makes a node's part of the sum from the model: how it trains and what its update is multiplied by, but not
/// for which job or attempt.
fn work(invitation: &Invitation, terms: &SecureTerms) -> Digest {
    let Invitation {
        key, recipe, architecture, training, data, seed, grids, local, personal, max_examples, clip, ..
    } = invitation;
    let made = (key.round, recipe, architecture, training, data, seed, grids, local, personal);
    let counted = (max_examples, clip, terms.by_examples);
    Digest::of(&serde_json::to_vec(&(made, counted)).expect("invariant: wire messages serialise"))
}

/// Training is a function of the model: two sums over one model differ by the update of whoever is in one and not in the
/// other, and two that count the same nodes otherwise (`max_examples`, `clip`) are two equations with the same unknowns.
fn differencing() -> Alarm {
    Alarm::new(
        "differencing",
        "this node has opened another sum over the same model (of other nodes, or with other settings): together they would \
         show single updates; start from another model, which another seed gives where the job does not name one",
    )
}
