//! A simulated node: the real decisions and the real preparation of an update, on simulated time.
//!
//! Follows `training::participant`: a newer invitation replaces an older one, a repeated one is answered again, an update
//! is sent until there is a receipt or a refusal. A node that dies forgets everything but the state it kept of its jobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use aivillage_base::wire::secure::{SecureDown, SecureUp};
use aivillage_base::wire::{Down, Invitation, LocalRule, Peer, PredictOutcome, PredictTask, RoundKey, Up, UpdateReply};
use aivillage_base::{JobId, bundle};
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::KeyInMemory;
use aivillage_training::Trainer;
use aivillage_training::participant::policy::{Moment, Refusal, judge};
use aivillage_training::participant::secure::Session;
use aivillage_training::participant::state::{end, settle};
use aivillage_training::participant::{
    Draws, Keys, MemoryContexts, MemoryPins, MemoryState, NoRegistry, NodePolicy, NodeState as _, Prepared, Received,
    prepare,
};
use aivillage_training::round::RESTARTED;
use bytes::Bytes;

use crate::events::{AtNode, Question, Reply, Wire};
use crate::time::{SimClock, ready};
use crate::trainer;
use crate::witness::Breach;
use crate::world::{Asker, World};

/// First time an answer is waited for, in milliseconds; grows with each try.
const PATIENCE_MS: u64 = 400;
/// Longest such time, in milliseconds.
const PATIENCE_MS_MAX: u64 = 4_000;
/// Pause before the last word of secure aggregation is said again, in milliseconds.
const REPEAT_MS: u64 = 1_000;
/// How much longer than its training a round of secure aggregation may take, in milliseconds.
const PATIENCE_SECURE_MS: u64 = 60_000;

/// What the node does for one job.
#[derive(Debug)]
struct Work {
    invitation: Box<Invitation>,
    /// The coordinator that asked last.
    process: usize,
    deadline_ms: u64,
    model: Option<Bytes>,
    /// The server's control variate, where the strategy has one.
    control: Option<Bytes>,
    prepared: Option<Prepared>,
    /// Keys of the round, under secure aggregation.
    session: Option<Session>,
    /// An update waits for its masks.
    waits: bool,
}

/// A question without an answer yet.
#[derive(Debug)]
struct Call {
    key: RoundKey,
    question: Question,
    tries: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) peer: Peer,
    pub(crate) policy: NodePolicy,
    pub(crate) trainer: Arc<dyn Trainer>,
    /// Its disk: what it keeps when it dies.
    state: MemoryState,
    keys: Keys,
    pub(crate) up: bool,
    pub(crate) life: u64,
    /// The open stream to each process.
    pub(crate) streams: Vec<Option<u64>>,
    work: BTreeMap<JobId, Work>,
    calls: BTreeMap<u64, Call>,
}

/// What a node brings to secure aggregation.
pub(crate) fn keys(signer: KeyInMemory, clock: Arc<SimClock>) -> Keys {
    Keys {
        signer: Arc::new(signer),
        pins: Arc::<MemoryPins>::default(),
        contexts: Arc::<MemoryContexts>::default(),
        registry: Arc::new(NoRegistry),
        draws: Arc::new(Draws::new(clock)),
    }
}

impl Node {
    pub(crate) fn new(
        index: usize,
        peer: Peer,
        trainer: Arc<dyn Trainer>,
        policy: NodePolicy,
        keys: Keys,
        processes: usize,
    ) -> Self {
        Self {
            keys,
            index,
            peer,
            policy,
            trainer,
            state: MemoryState::default(),
            up: false,
            life: 0,
            streams: vec![None; processes],
            work: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    pub(crate) fn boot(&mut self, world: &mut World) {
        self.up = true;
        self.life += 1;
        for process in 0..self.streams.len() {
            world.soon(1, 50, Wire::Dial { node: self.index, life: self.life, process });
        }
    }

    pub(crate) fn die(&mut self) {
        self.up = false;
        self.work.clear();
        self.calls.clear();
        self.streams.fill(None);
    }

    pub(crate) fn down(&mut self, world: &mut World, process: usize, message: &Down) -> Result<(), Breach> {
        match message {
            Down::Invite(invitation) => self.invited(world, process, invitation)?,
            Down::Secure { key, message } => self.stepped(world, process, key, message)?,
            Down::RoundClosed { key, .. } => {
                if self.work.get(&key.job).is_some_and(|w| w.invitation.key == *key) {
                    self.drop_work(&key.job);
                }
            }
            Down::JobEnded { job, receipt, .. } => {
                self.drop_work(job);
                end(&self.state, job, receipt.as_ref()).map_err(|e| Breach { invariant: "node state", detail: e })?;
            }
            Down::Predict(task) => {
                let (node, life) = (self.index, self.life);
                world.soon(5, 150, AtNode::Predicted { node, life, process, task: task.clone() });
            }
            Down::Welcome { .. } | Down::Heartbeat | Down::Help(_) | Down::ModelReady { .. } | Down::Goodbye { .. } => {
            }
        }
        Ok(())
    }

    fn drop_work(&mut self, job: &JobId) {
        self.work.remove(job);
        self.calls.retain(|_, call| call.key.job != *job);
    }

    fn invited(&mut self, world: &mut World, process: usize, invitation: &Invitation) -> Result<(), Breach> {
        let key = &invitation.key;
        world.witness.invited(&world.records, key)?;
        let yes = Up::Answer { key: key.clone(), declined: None };
        if let Some(work) = self.work.get_mut(&key.job)
            && work.invitation.key == *key
            && work.session.is_some()
        {
            work.process = process;
            self.repeat(world, key);
            return Ok(());
        }
        if let Some(work) = self.work.get_mut(&key.job)
            && work.invitation.key == *key
        {
            work.process = process;
            self.say(world, process, yes);
            return Ok(());
        }
        self.drop_work(&key.job);
        if let Err(refusal) = judge(&self.policy, world.now(), invitation, Moment::Asked) {
            self.decline(world, process, key, refusal);
            return Ok(());
        }
        let mut session = None;
        if let Some(terms) = invitation.secure {
            let begun = Session::begin(invitation, terms, &self.peer.name, &self.keys, &mut world.secrets);
            match begun {
                Ok(begun) => session = Some(begun),
                Err(alarm) => {
                    self.raise(world, process, key, &alarm);
                    return Ok(());
                }
            }
        }
        let secure = session.is_some();
        let work = Work {
            invitation: Box::new(invitation.clone()),
            process,
            deadline_ms: world.now() + invitation.deadline_ms,
            model: None,
            control: None,
            prepared: None,
            session,
            waits: false,
        };
        self.work.insert(key.job.clone(), work);
        match secure {
            true => {
                self.repeat(world, key);
                world.soon(
                    REPEAT_MS,
                    REPEAT_MS * 2,
                    AtNode::Repeat { node: self.index, life: self.life, key: key.clone() },
                );
            }
            false => self.say(world, process, yes),
        }
        self.call(world, key.clone(), Question::Fetch(invitation.model));
        Ok(())
    }

    fn upload(&mut self, world: &mut World, key: &RoundKey, update: Prepared) {
        let Some(work) = self.work.get(&key.job) else { return };
        let (process, moment) = (work.process, Moment::Leaving(&update.header));
        if let Err(refusal) = judge(&self.policy, world.now(), &work.invitation, moment) {
            self.drop_work(&key.job);
            self.decline(world, process, key, refusal);
            return;
        }
        self.call(world, key.clone(), Question::Upload(Box::new(update.header), update.payload));
    }

    fn decline(&self, world: &mut World, process: usize, key: &RoundKey, refusal: Refusal) {
        let declined = Some(refusal.signed(&*self.keys.signer, key));
        self.say(world, process, Up::Answer { key: key.clone(), declined });
    }

    /// Says something once; if it is lost, a reminder will ask for it again.
    fn say(&self, world: &mut World, process: usize, up: Up) {
        let call = world.next_call();
        world.ask(Asker { node: self.index, life: self.life, call }, process, &Question::Say(up));
    }

    fn call(&mut self, world: &mut World, key: RoundKey, question: Question) {
        let id = world.next_call();
        self.calls.insert(id, Call { key, question, tries: 0 });
        self.try_call(world, id);
    }

    fn try_call(&mut self, world: &mut World, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let Some(work) = self.work.get(&call.key.job) else { return };
        call.tries += 1;
        let patience = (PATIENCE_MS * call.tries).min(PATIENCE_MS_MAX);
        world.ask(Asker { node: self.index, life: self.life, call: id }, work.process, &call.question);
        world.soon(patience, patience * 2, AtNode::Unanswered { node: self.index, life: self.life, call: id });
    }

    /// Tries again what has no answer, until the attempt's deadline.
    pub(crate) fn unanswered(&mut self, world: &mut World, id: u64) {
        let Some(call) = self.calls.get(&id) else { return };
        let job = call.key.job.clone();
        if self.work.get(&job).is_some_and(|w| world.now() >= w.deadline_ms) {
            self.drop_work(&job);
        }
        self.try_call(world, id);
    }

    pub(crate) fn reply(&mut self, world: &mut World, id: u64, reply: Reply) -> Result<(), Breach> {
        let Some(Call { key, question, .. }) = self.calls.get(&id) else { return Ok(()) };
        let key = key.clone();
        match reply {
            // Its `Unanswered` is planned already: that is the pause.
            Reply::Busy | Reply::Update(UpdateReply::Retry { .. }) => {}
            Reply::Blob(bytes) => {
                self.calls.remove(&id);
                if let Some(work) = self.work.get_mut(&key.job) {
                    if work.model.is_none() {
                        work.model = Some(bytes);
                        if let LocalRule::Scaffold { control: Some(control) } = &work.invitation.local {
                            let question = Question::Fetch(*control);
                            self.call(world, key, question);
                            return Ok(());
                        }
                    } else {
                        work.control = Some(bytes);
                    }
                    world.soon(30, 900, AtNode::Trained { node: self.index, life: self.life, key });
                }
            }
            Reply::Refused(reason) => {
                self.calls.remove(&id);
                self.failed(world, &key, reason);
            }
            Reply::Update(said) => {
                if let (Question::Upload(header, _), UpdateReply::Accepted) = (question, &said) {
                    world.witness.receipt(&world.records, header, &self.peer)?;
                }
                // A masked update is not the last word.
                let goes_on =
                    said == UpdateReply::Accepted && self.work.get(&key.job).is_some_and(|w| w.session.is_some());
                match goes_on {
                    true => drop(self.calls.remove(&id)),
                    false => self.drop_work(&key.job),
                }
            }
        }
        Ok(())
    }

    fn failed(&mut self, world: &mut World, key: &RoundKey, reason: String) {
        if let Some(work) = self.work.get(&key.job) {
            let process = work.process;
            self.drop_work(&key.job);
            self.say(world, process, Up::TrainingFailed { key: key.clone(), reason });
        }
    }

    pub(crate) fn trained(&mut self, world: &mut World, key: &RoundKey) {
        let Some(work) = self.work.get_mut(&key.job).filter(|w| w.invitation.key == *key) else { return };
        let (Some(model), None) = (&work.model, &work.prepared) else { return };
        // One step of simulated time: a real node that dies inside of it finds the state kept, or trains again.
        let made = settle(&self.state, &work.invitation).and_then(|state| {
            let received = Received { model, control: work.control.as_deref(), state: &state };
            let made = prepare(&*self.trainer, &self.peer.name, &self.policy, &work.invitation, received)?;
            if !made.state.is_empty() && work.session.is_none() {
                self.state.put(&made.mark(), &work.invitation.architecture, &made.state)?;
            }
            Ok(made)
        });
        match made {
            Ok(prepared) => {
                work.prepared = Some(prepared.clone());
                if work.session.is_some() {
                    work.waits = true;
                    self.mask(world, key);
                    return;
                }
                world.witness.payload(&prepared.payload);
                self.upload(world, key, prepared);
            }
            Err(reason) => self.failed(world, key, reason),
        }
    }

    /// Says its last word of a round of secure aggregation once more.
    fn repeat(&self, world: &mut World, key: &RoundKey) {
        let Some(work) = self.work.get(&key.job).filter(|w| w.invitation.key == *key) else { return };
        let Some(session) = &work.session else { return };
        let message = Box::new(session.last().clone());
        self.say(world, work.process, Up::Secure { key: key.clone(), message });
    }

    /// Nothing new was heard for a while.
    pub(crate) fn repeated(&mut self, world: &mut World, key: &RoundKey) {
        let over = |w: &Work| world.now() >= w.deadline_ms + PATIENCE_SECURE_MS;
        match self.work.get(&key.job).filter(|w| w.invitation.key == *key) {
            None => return,
            Some(work) if over(work) => return self.drop_work(&key.job),
            Some(_) => {}
        }
        self.repeat(world, key);
        let event = AtNode::Repeat { node: self.index, life: self.life, key: key.clone() };
        world.soon(REPEAT_MS, REPEAT_MS * 2, event);
    }

    fn raise(&self, world: &mut World, process: usize, key: &RoundKey, alarm: &Alarm) {
        let message = SecureUp::Alarm { check: alarm.check.to_owned(), detail: alarm.detail.clone() };
        self.say(world, process, Up::Secure { key: key.clone(), message: Box::new(message) });
    }

    fn stepped(
        &mut self,
        world: &mut World,
        process: usize,
        key: &RoundKey,
        message: &SecureDown,
    ) -> Result<(), Breach> {
        let work = self.work.get_mut(&key.job).filter(|w| w.invitation.key == *key);
        let Some((work, session)) = work.and_then(|w| Some((w.process = process, w.session.as_mut()?))) else {
            self.raise(world, process, key, &Alarm::new(RESTARTED, "no keys for the round"));
            return Ok(());
        };
        let () = work;
        match session.step(message.clone(), &self.keys, &mut world.secrets) {
            Ok(true) => {
                if let SecureUp::Opening(opening) = session.last() {
                    world.witness.opening(key, &self.peer, session.survivors(), opening)?;
                }
                self.repeat(world, key);
            }
            Ok(false) => self.mask(world, key),
            Err(alarm) if world.plan.hostile => {
                world.witness.alarms += 1;
                self.drop_work(&key.job);
                self.raise(world, process, key, &alarm);
            }
            // Whatever dies and whatever is lost, nobody here lies.
            Err(alarm) => {
                let detail = format!("{} was led into an alarm by an honest coordinator: {alarm}", self.peer.name);
                return Err(Breach { invariant: "one answer", detail });
            }
        }
        Ok(())
    }

    /// Masks and sends the update, if both it and the masks are there.
    fn mask(&mut self, world: &mut World, key: &RoundKey) {
        let Some(work) = self.work.get_mut(&key.job).filter(|w| w.invitation.key == *key && w.waits) else { return };
        let (Some(session), Some(plain)) = (&mut work.session, &work.prepared) else { return };
        if !session.has_masks() {
            return;
        }
        let made = session.masking(plain).and_then(|masking| {
            let mut masked = masking.mask(plain.clone());
            if !masked.state.is_empty() {
                let kept = self.state.put(&masked.mark(), &work.invitation.architecture, &masked.state);
                kept.map_err(|detail| Alarm::new("state", detail))?;
            }
            session.vouch(&mut masked.header, &self.keys)?;
            Ok(masked)
        });
        work.waits = false;
        match made {
            Ok(masked) => {
                world.witness.masked(&masked.payload, plain);
                self.upload(world, key, masked);
            }
            Err(alarm) => {
                let process = work.process;
                self.drop_work(&key.job);
                self.raise(world, process, key, &alarm);
            }
        }
    }

    pub(crate) fn predicted(&self, world: &mut World, process: usize, task: PredictTask) {
        let model = ready(aivillage_base::ports::Blobs::read(&world.blobs, &task.model.digest)).ok().flatten();
        let outcome = match model.map(|bytes| bundle::read(&bytes)) {
            Some(Ok((_, values))) => {
                let outputs = task.rows.iter().map(|row| vec![trainer::predict(&values, row)]).collect();
                PredictOutcome::Done { outputs, compute_us: 50 }
            }
            Some(Err(error)) => PredictOutcome::Failed { reason: error.to_string(), permanent: true },
            None => PredictOutcome::Failed { reason: "the model is missing".into(), permanent: false },
        };
        let (request, attempt) = (task.request, task.attempt);
        self.say(world, process, Up::Prediction { request, attempt, outcome });
    }
}
