//! The village: who lives in it, what it is asked to do, and the loop that lets time pass.

use std::collections::BTreeSet;
use std::sync::Arc;

use aivillage_base::ports::put_blob;
use aivillage_base::rng::SeededRng;
use aivillage_base::wire::{NodeType, Peer};
use aivillage_base::{Digest, JobId, NodeName, RequestId, bundle};
use aivillage_privacy::secagg::signed::{KeyInMemory, Signer as _};
use aivillage_training::participant::NodePolicy;
use aivillage_training::participant::policy::RetainUpdates;
use aivillage_training::record::{JobRecord, Life, RoundRecord, Stage};
use aivillage_training::recruit::Candidate;
use aivillage_training::spec::JobSpec;
use aivillage_training::view::JobStatus;
use aivillage_training::{Trainer, store};

use crate::events::{AtNode, AtProcess, Client, Event, Fate, Wire};
use crate::faults::{FaultKind, Tally};
use crate::node::{self, Node};
use crate::plan::Plan;
use crate::process::Process;
use crate::serving::{self, Served, Submission};
use crate::time::{SimClock, ready};
use crate::trainer::{FEATURES, architecture};
use crate::witness::{Breach, Violation};
use crate::world::{Asker, Halt, World};

mod nemesis;

/// Simulated time after the last fault within which all work must be done, in milliseconds.
const CALM_MS: u64 = 600_000;

/// What came of a run in which every promise held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Seed.
    pub seed: u64,
    /// Simulated time at the end, in milliseconds.
    pub ended_ms: u64,
    /// Each job with the models of its rounds.
    pub jobs: Vec<(JobId, JobStatus, Vec<Digest>)>,
    /// Strategy of its jobs.
    pub strategy: &'static str,
    /// Attempts that were given up.
    pub abandoned: usize,
    /// Updates that counted in a later round than the one they were made for.
    pub stale: usize,
    /// Rounds published whose updates were summed under masks.
    pub masked: usize,
    /// How often a node was silenced by what it was shown.
    pub alarms: u64,
    /// Masked rounds published without a node whose masked update had been declared lost.
    pub dropped: usize,
    /// Updates kept after their round.
    pub retained: usize,
    /// Requests that were answered.
    pub answered: usize,
    /// Faults by kind, as they struck.
    pub tally: Tally,
}

/// A village under way.
#[derive(Debug)]
pub struct Village {
    seed: u64,
    world: World,
    processes: Vec<Process>,
    nodes: Vec<Node>,
    jobs: Vec<JobSpec>,
    requests: Vec<Submission>,
}

/// The enrolled key of a node.
fn signer(node: usize) -> KeyInMemory {
    KeyInMemory::new(&Digest::of(format!("key of node {node}").as_bytes()).0)
}

fn peer(node: usize) -> Peer {
    let name = format!("node-{node}");
    Peer { id: signer(node).id(), name: NodeName::new(name).expect("invariant: a valid name") }
}

impl Village {
    /// A village at time zero.
    #[must_use]
    pub fn new(seed: u64, plan: Plan) -> Self {
        let peers: Vec<Peer> = (0..plan.nodes).map(peer).collect();
        let trainers: Vec<Arc<dyn Trainer>> = (0..plan.nodes).map(|n| (plan.trainer)(n as u64)).collect();
        let candidate = |n: usize| Candidate {
            peer: peers[n].clone(),
            data: trainers[n].data(),
            node_types: vec![NodeType::Edge],
            compute_gflops: 1.0,
            helper: None,
        };
        let candidates: Vec<Candidate> = (0..plan.nodes).map(candidate).collect();
        // Where somebody may be missing, one node's policy refuses every job.
        let strict = |n: usize| n == 0 && plan.min_participants + 1 == plan.nodes && seed.is_multiple_of(4);
        let policy = |n: usize| NodePolicy {
            max_rounds: strict(n).then_some(1),
            retain_updates: if n.is_multiple_of(2) { RetainUpdates::IfAsked } else { RetainUpdates::Withheld },
            ..NodePolicy::default()
        };
        let clock = Arc::<SimClock>::default();
        let node = |n: usize| {
            let keys = node::keys(signer(n), clock.clone());
            Node::new(n, peers[n].clone(), trainers[n].clone(), policy(n), keys, plan.coordinators)
        };
        let nodes = (0..plan.nodes).map(node).collect();
        let processes = (0..plan.coordinators).map(|i| Process::new(i, candidates.clone())).collect();
        let jobs = (0..plan.jobs).map(|j| plan.spec(j)).collect();
        let mut rng = SeededRng::new("requests", seed, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "rows are f32")]
        let request = |n: usize, rng: &mut SeededRng| Submission {
            id: RequestId::from_bits(n as u128 + 1),
            inputs: (0..FEATURES).map(|_| rng.unit() as f32).collect(),
        };
        let requests = (0..plan.requests).map(|n| request(n, &mut rng)).collect();
        let served = Served { peers, ..served() };
        let world = World::new(seed, clock, plan, served);
        Self { seed, world, processes, nodes, jobs, requests }
    }

    /// Lets time pass until all work is done.
    ///
    /// # Errors
    /// The first invariant that did not hold.
    pub fn run(mut self) -> Result<Report, Violation> {
        let result = self.pass().and_then(|()| self.report());
        result.map_err(|Breach { invariant, detail }| Violation {
            invariant,
            detail,
            at_ms: self.world.now(),
            seed: self.seed,
        })
    }

    fn pass(&mut self) -> Result<(), Breach> {
        let bytes = bundle::write(&architecture(), &self.world.served.values).expect("invariant: it is its own shape");
        ready(put_blob(&self.world.blobs, bytes.into())).expect("invariant: memory is not full");
        self.plan_life();
        self.plan_faults();
        let horizon = self.world.plan.faults.until_ms + CALM_MS;
        while let Some((at, event)) = self.world.queue.next() {
            // Where somebody lies a job may wait for nodes that were made to look like liars.
            if at > horizon && self.world.plan.hostile {
                return Ok(());
            }
            if at > horizon {
                let detail = format!("work is left {CALM_MS} ms after the last fault: {}", self.unfinished());
                return Err(Breach { invariant: "I7", detail });
            }
            self.world.clock.set(at);
            let looks = matches!(&event, Event::AtProcess(event) if matches!(**event, AtProcess::Tick { .. }));
            self.happen(event)?;
            if looks && self.done() {
                return Ok(());
            }
        }
        Err(Breach { invariant: "I7", detail: format!("nothing happens any more: {}", self.unfinished()) })
    }

    fn records(&self) -> Vec<JobRecord> {
        ready(store::jobs(&self.world.records)).unwrap_or_default()
    }

    fn done(&self) -> bool {
        let records = self.records();
        records.len() == self.jobs.len()
            && records.iter().all(|r| r.life.status().is_terminal())
            && self.requests.is_empty()
            && serving::all_finished(&self.world)
    }

    fn unfinished(&self) -> String {
        let line = |r: &JobRecord| format!("{} {:?} at {} rounds", r.spec.job_id, r.life, r.rounds_done);
        let jobs: Vec<String> = self.records().iter().map(line).collect();
        format!("{}; {} requests not submitted", jobs.join(", "), self.requests.len())
    }

    fn report(&mut self) -> Result<Report, Breach> {
        let records = self.records();
        serving::look(&mut self.world)?;
        self.world.witness.all_there(&records.iter().map(|r| r.spec.job_id.clone()).collect::<BTreeSet<_>>())?;
        let mut jobs = Vec::new();
        let (mut abandoned, mut stale, mut retained, mut masked, mut dropped) = (0, 0, 0, 0, 0);
        for record in records {
            let id = record.spec.job_id.clone();
            let cancelled = self.world.plan.cancel_last && self.jobs.last().is_some_and(|j| j.job_id == id);
            match &record.life {
                Life::Completed { .. } => {}
                Life::Cancelled if cancelled => {}
                Life::Failed { .. } | Life::Running if self.world.plan.hostile => {}
                life @ (Life::Created | Life::Running | Life::Failed { .. } | Life::Cancelled) => {
                    return Err(Breach { invariant: "I7", detail: format!("{id} ended as {life:?}") });
                }
            }
            let saved = ready(store::saved(&self.world.records, &id)).ok().flatten();
            let Some(saved) = saved else {
                return Err(Breach { invariant: "I1", detail: format!("{id} has vanished") });
            };
            let world = &self.world;
            let models = world.witness.replay(&*world.conduct, &world.blobs, &saved)?;
            stale += saved.attempts.iter().map(stale_updates).sum::<usize>();
            let done = saved.attempts.iter().filter(|a| matches!(a.stage, Stage::Done { .. }));
            for secure in done.filter_map(|attempt| attempt.secure.as_ref()) {
                masked += 1;
                dropped += usize::from(secure.survivors.len() < secure.sharers.len());
            }
            retained += saved.attempts.iter().map(|r| r.retained().count()).sum::<usize>();
            abandoned += saved.attempts.len() - models.len();
            jobs.push((id, record.life.status(), models));
        }
        // Disturbed runs create jobs in another order.
        jobs.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(Report {
            seed: self.seed,
            ended_ms: self.world.now(),
            jobs,
            strategy: self.world.plan.strategy.strategy.name(),
            abandoned,
            stale,
            masked,
            dropped,
            alarms: self.world.witness.alarms,
            retained,
            answered: serving::completed(&self.world),
            tally: self.world.net.tally.clone(),
        })
    }

    /// What a process did until it died, if it died.
    fn lives(&mut self, process: usize, result: Result<(), Halt>) -> Result<(), Breach> {
        match result {
            Ok(()) => Ok(()),
            Err(Halt::Breach(breach)) => Err(breach),
            Err(Halt::Died) => {
                self.kill_process(process);
                Ok(())
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Breach> {
        match event {
            Event::Wire(event) => self.at_wire(event),
            Event::AtNode(event) => self.at_node(event),
            Event::AtProcess(event) => self.at_process(*event),
            Event::Client(event) => self.at_client(event),
            Event::Fate(event) => self.fate(event),
        }
    }

    fn at_node(&mut self, event: AtNode) -> Result<(), Breach> {
        let world = &mut self.world;
        let nodes = &mut self.nodes;
        match event {
            AtNode::Down { process, stream, node, message } => {
                let node = &mut nodes[node];
                if world.net.cut[node.index] || !node.up || node.streams[process] != Some(stream) {
                    return Ok(());
                }
                node.down(world, process, &message)
            }
            AtNode::Reply { node, life, call, reply } => match awake(nodes, node, life) {
                Some(n) if !world.net.cut[node] => n.reply(world, call, reply),
                Some(_) | None => Ok(()),
            },
            AtNode::Unanswered { node, life, call } => {
                if let Some(node) = awake(nodes, node, life) {
                    node.unanswered(world, call);
                }
                Ok(())
            }
            AtNode::Trained { node, life, key } => {
                if let Some(node) = awake(nodes, node, life) {
                    node.trained(world, &key);
                }
                Ok(())
            }
            AtNode::Repeat { node, life, key } => {
                if let Some(node) = awake(nodes, node, life) {
                    node.repeated(world, &key);
                }
                Ok(())
            }
            AtNode::Predicted { node, life, process, task } => {
                if let Some(node) = awake(nodes, node, life) {
                    node.predicted(world, process, *task);
                }
                Ok(())
            }
        }
    }

    fn at_process(&mut self, event: AtProcess) -> Result<(), Breach> {
        let world = &mut self.world;
        let index = match event {
            AtProcess::Question { process, .. }
            | AtProcess::Wake { process, .. }
            | AtProcess::Tick { process, .. }
            | AtProcess::Made { process, .. } => process,
        };
        let process = &mut self.processes[index];
        if process.up && world.now() < process.frozen_until {
            world.queue.plan(process.frozen_until, event);
            return Ok(());
        }
        let alive = match event {
            AtProcess::Question { node, .. } => process.up && !world.net.cut[node],
            AtProcess::Wake { life, .. } | AtProcess::Tick { life, .. } | AtProcess::Made { life, .. } => {
                process.up && process.life == life
            }
        };
        if !alive {
            return Ok(());
        }
        let result = match event {
            AtProcess::Question { node, life, call, question, .. } => {
                process.question(world, Asker { node, life, call }, question)
            }
            AtProcess::Wake { .. } => process.wake(world),
            AtProcess::Tick { .. } => process.tick(world),
            AtProcess::Made { job, input, .. } => {
                process.made(world, job, *input);
                Ok(())
            }
        };
        self.lives(index, result)
    }
}

/// Updates of a published attempt that were made for an earlier one.
fn stale_updates(attempt: &RoundRecord) -> usize {
    let done = matches!(attempt.stage, Stage::Done { .. });
    attempt.members.iter().filter(|m| done && m.counted().is_some_and(|c| c.base.is_some())).count()
}

/// The node, if it still lives the life that the event was meant for.
fn awake(nodes: &mut [Node], node: usize, life: u64) -> Option<&mut Node> {
    Some(&mut nodes[node]).filter(|n| n.up && n.life == life)
}

/// The model that answers requests, in its own bytes.
fn served() -> Served {
    let values = vec![0.25, 1.0, -2.0, 0.5];
    let bytes = bundle::write(&architecture(), &values).expect("invariant: it is its own shape");
    let bundle = aivillage_base::wire::BlobRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
    Served { bundle, values, peers: Vec::new() }
}
