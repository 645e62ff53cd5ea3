//! Any sequence of inputs, with restarts anywhere: what must always be true of a job.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::record::MemberState;

const NODES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Op {
    Start,
    Join(usize),
    Leave(usize),
    Yes(usize),
    No(usize),
    Fail(usize),
    /// From whom; how many attempts ago; which of two updates; in the blob store?
    Update(usize, usize, i32, bool),
    /// From whom, for whatever it was invited to.
    Due(usize),
    /// Out of the grid's range.
    Wild(usize),
    Initialised,
    Computed(bool),
    Published(bool),
    Cancel,
    Pass(u64),
    Retry,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    prop_oneof![
        2 => Just(Op::Start),
        4 => node.clone().prop_map(Op::Join),
        1 => node.clone().prop_map(Op::Leave),
        2 => node.clone().prop_map(Op::Yes),
        1 => node.clone().prop_map(Op::No),
        1 => node.clone().prop_map(Op::Fail),
        8 => (node.clone(), prop_oneof![5 => Just(0usize), 1 => 1usize..3], 0..2i32, any::<bool>())
            .prop_map(|(n, ago, which, stored)| Op::Update(n, ago, which, stored)),
        1 => node.prop_map(Op::Wild),
        3 => Just(Op::Initialised),
        4 => prop::bool::weighted(0.8).prop_map(Op::Computed),
        1 => any::<bool>().prop_map(Op::Published),
        1 => prop::bool::weighted(0.1).prop_map(|yes| if yes { Op::Cancel } else { Op::Retry }),
        2 => prop_oneof![Just(1_000u64), Just(6_000), Just(30_000), Just(61_000)].prop_map(Op::Pass),
        1 => Just(Op::Restart),
    ]
}

/// What mostly happens where a buffer fills: nodes work, and some are slower than others.
fn work() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    prop_oneof![
        6 => node.clone().prop_map(Op::Yes),
        8 => node.prop_map(Op::Due),
        6 => Just(Op::Computed(true)),
        1 => op(),
    ]
}

/// What was seen of an attempt so far.
#[derive(Debug, Default)]
struct Seen {
    counted: BTreeMap<NodeName, BlobRef>,
    closed: bool,
}

struct World {
    bench: Bench,
    keys: Vec<RoundKey>,
    seen: BTreeMap<RoundKey, Seen>,
    headers: Vec<(Peer, UpdateHeader)>,
}

impl World {
    fn new(min: u32, buffered: bool) -> Self {
        let bench = if buffered { Bench::buffered(min, 4) } else { Bench::new(min, 3) };
        Self { bench, keys: vec![key(1, 1)], seen: BTreeMap::new(), headers: Vec::new() }
    }

    fn key(&self, ago: usize) -> RoundKey {
        self.keys[self.keys.len().saturating_sub(1 + ago)].clone()
    }

    fn input(&mut self, op: Op) -> Option<Input> {
        let now = self.key(0);
        let who = |n: usize| peer(NODES[n]);
        Some(match op {
            Op::Start => Input::Started,
            Op::Join(n) => Input::Joined(candidate(NODES[n])),
            Op::Leave(n) => Input::Left(who(n)),
            Op::Yes(n) => Input::Answer(who(n), now, None),
            Op::No(n) => Input::Answer(who(n), now, Some(crate::testing::declined("rule", "no"))),
            Op::Fail(n) => Input::Failed(who(n), now, "broke".into()),
            Op::Update(n, ago, which, in_blobs) => {
                let make = if in_blobs { stored } else { update };
                let (header, payload) = make(&self.key(ago), [which, 2, 3, i32::try_from(n).unwrap()], 10);
                self.headers.push((who(n), header.clone()));
                Input::Update(who(n), header, payload)
            }
            Op::Due(n) => {
                let member = self.bench.job.round().and_then(|round| round.member(&who(n).name));
                let key = member.map_or(&now, |m| m.works_on(&now)).clone();
                let (header, payload) = update(&key, [7, 2, 3, i32::try_from(n).unwrap()], 10);
                self.headers.push((who(n), header.clone()));
                Input::Update(who(n), header, payload)
            }
            Op::Wild(n) => {
                let (header, payload) = update(&now, [i32::MAX; 4], 10);
                Input::Update(who(n), header, payload)
            }
            Op::Initialised => Input::Initialised(crate::testing::linear(), blob("first")),
            Op::Computed(ok) => {
                let model = blob(&format!("model of {now}"));
                let first = self.bench.job.round().and_then(|r| r.counted().next().map(|(n, _)| n.clone()));
                let bad = |node| ComputeError::BadUpdate { node, reason: "damaged", detail: "damaged".into() };
                Input::Computed(
                    now,
                    first
                        .filter(|_| !ok)
                        .map_or(Ok(Made { model, state: Vec::new(), totals: None }), |node| Err(bad(node))),
                )
            }
            Op::Published(true) => Input::Published(Ok("job".into())),
            Op::Published(false) => Input::Published(Err("full".into())),
            Op::Cancel => Input::Cancel,
            Op::Pass(ms) => {
                self.bench.ms += ms;
                Input::Tick
            }
            Op::Retry => Input::Retry,
            Op::Restart => return None,
        })
    }

    fn apply(&mut self, op: Op) {
        let before = self.bench.store.saved.clone();
        let step = match self.input(op) {
            Some(input) => self.bench.step(input),
            None => {
                let step = self.bench.restart();
                self.bench.store.apply(step.changes.clone());
                step
            }
        };
        if before.record.life.status().is_terminal() {
            assert_eq!(before, self.bench.store.saved, "terminal is terminal");
            assert!(step.effects.is_empty());
        }
        self.look();
    }

    /// Checks everything that must hold between two steps.
    fn look(&mut self) {
        let saved = &self.bench.store.saved;
        assert_eq!(saved.record, *self.bench.job.record(), "what decides is what is stored");
        let open: Vec<_> = saved.attempts.iter().filter(|r| r.is_open()).collect();
        assert!(open.len() <= 1, "one attempt at a time");
        assert_eq!(open.first().map(|r| &r.key), self.bench.job.round().map(Round::key));
        let mut model = blob("first");
        let mut rounds = 0;
        let mut previous: Option<&RoundKey> = None;
        for attempt in &saved.attempts {
            let expected = match previous {
                Some(p) if p.round == rounds + 1 => key(p.round, p.attempt + 1),
                Some(_) | None => key(rounds + 1, 1),
            };
            assert_eq!(attempt.key, expected, "rounds and attempts have no gaps");
            assert_eq!(attempt.model_in, model, "each round starts from the model of the one before");
            if let Stage::Done { model_out, .. } = &attempt.stage {
                assert_eq!(*model_out, blob(&format!("model of {}", attempt.key)));
                model = *model_out;
                rounds += 1;
            }
            previous = Some(&attempt.key);
        }
        assert_eq!(rounds, saved.record.rounds_done);
        if let Some(current) = self.bench.job.round() {
            assert_eq!(current.members(), saved.members);
            if self.keys.last() != Some(current.key()) {
                self.keys.push(current.key().clone());
            }
        }
        self.accepted_sets();
        self.counted_once_and_fresh();
        self.restart_is_equivalent();
    }

    /// An update counts in one published round, at most [`STALENESS`] rounds after the one it was made for; what a member
    /// at work may still fetch is among what must stay.
    fn counted_once_and_fresh(&self) {
        let saved = &self.bench.store.saved;
        let mut made_for = BTreeSet::new();
        for attempt in saved.attempts.iter().filter(|r| matches!(r.stage, Stage::Done { .. })) {
            for member in attempt.members.iter().filter(|m| m.counted().is_some()) {
                let key = member.works_on(&attempt.key);
                assert!(made_for.insert((member.peer.name.clone(), key.clone())), "counted twice: {key}");
                assert!(attempt.key.round - key.round <= STALENESS);
                let staleness = member.counted().unwrap().contribution(attempt.key.round).staleness;
                assert_eq!(staleness, attempt.key.round - key.round);
            }
        }
        let needed = self.bench.job.needed();
        assert!(self.bench.job.offered().keys().all(|digest| needed.contains(digest)));
        let bases = saved.members.iter().filter_map(|m| m.base.as_ref());
        assert!(
            bases
                .into_iter()
                .all(|base| needed.contains(&base.model.digest) && base.key.round < saved.record.rounds_done + 1)
        );
    }

    fn accepted_sets(&mut self) {
        let saved = &self.bench.store.saved;
        for attempt in &saved.attempts {
            let members = if attempt.is_open() { &saved.members } else { &attempt.members };
            let seen = self.seen.entry(attempt.key.clone()).or_default();
            let mut counted = BTreeMap::new();
            for member in members {
                match &member.state {
                    MemberState::Counted(c) => {
                        let twice = counted.insert(member.peer.name.clone(), c.payload);
                        assert!(twice.is_none(), "a member counts once");
                    }
                    MemberState::Refused { reason, .. } if reason == "damaged" => {
                        assert!(seen.closed, "only a closed set can lose a member");
                        seen.counted.remove(&member.peer.name);
                    }
                    MemberState::Refused { .. }
                    | MemberState::Invited
                    | MemberState::Declined(_)
                    | MemberState::Failed { .. }
                    | MemberState::Carried
                    | MemberState::Silent => {}
                }
            }
            for (node, payload) in &seen.counted {
                assert_eq!(counted.get(node), Some(payload), "what counts stays as it is");
            }
            assert!(!seen.closed || counted.len() == seen.counted.len(), "a closed set takes nobody in");
            seen.counted = counted;
            seen.closed = attempt.stage != Stage::Collecting;
            if let Stage::Done { .. } = attempt.stage {
                assert!(seen.counted.len() >= saved.record.spec.min_participants as usize);
            }
        }
    }

    /// A job read from the store now says to every update what the living one says, and owes the same model.
    fn restart_is_equivalent(&self) {
        let now = at(self.bench.ms);
        let mut restored = Job::restore(now, self.bench.store.saved.clone(), RULES);
        for (peer, header) in &self.headers {
            assert_eq!(restored.offer(peer, header), self.bench.job.offer(peer, header), "{header:?}");
        }
        let publishing = self.bench.job.round().is_some_and(|r| *r.stage() == Stage::Publishing);
        assert_eq!(plan(&restored.resume(now)).is_some(), publishing);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_of_inputs_breaks_a_job(
        min in 1u32..4,
        buffered in any::<bool>(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(min, buffered);
        for op in ops {
            world.apply(op);
        }
    }
}

#[test]
fn no_sequence_of_inputs_breaks_an_asynchronous_job_and_members_at_work_are_carried() {
    let stale = Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
    let run = |(size, ops): (u32, Vec<Op>)| {
        let mut world = World::new(size, true);
        let joins = (0..NODES.len()).map(Op::Join);
        for op in [Op::Start].into_iter().chain(joins).chain([Op::Initialised]).chain(ops) {
            world.apply(op);
        }
        let counted =
            world.bench.store.saved.attempts.iter().flat_map(|r| &r.members).filter_map(MemberRecord::counted);
        stale.set(stale.get() + counted.filter(|c| c.base.is_some()).count());
        Ok(())
    };
    runner.run(&(1u32..4, prop::collection::vec(work(), 1..120)), run).unwrap();
    assert!(stale.get() > 100, "only {} updates counted in a later round", stale.get());
}

/// Runs a job of three rounds with three faithful nodes, killed and restored after every `every`-th step.
fn faithful(every: usize) -> Vec<(RoundKey, BlobRef, Vec<BlobRef>)> {
    let mut bench = Bench::new(3, 3);
    let join = |bench: &mut Bench| {
        bench.step(Input::Started);
        for node in &NODES[..3] {
            bench.step(Input::Joined(candidate(node)));
        }
    };
    join(&mut bench);
    for turn in 1..2_000 {
        let input = match (bench.job.round(), bench.job.record().model) {
            (Some(round), _) if *round.stage() == Stage::Publishing => {
                let sum: Vec<String> = round.counted().map(|(_, c)| c.payload.digest.short()).collect();
                Input::Computed(round.key().clone(), Ok(made(&sum.join("+"))))
            }
            (Some(round), _) => {
                let from = NODES[turn % 3];
                let value = i32::try_from(round.key().round).unwrap();
                let (header, payload) = update(round.key(), [value, 0, 0, i32::from(from.as_bytes()[0])], 10);
                Input::Update(peer(from), header, payload)
            }
            (None, None) => Input::Initialised(crate::testing::linear(), blob("first")),
            (None, Some(_)) => Input::Published(Ok("job".into())),
        };
        bench.step(input);
        if bench.job.status() == JobStatus::Completed {
            return published(&bench.store.saved.attempts);
        }
        if turn % every == 0 {
            let step = bench.restart();
            bench.store.apply(step.changes);
            join(&mut bench);
        }
    }
    panic!("the job does not end")
}

fn published(attempts: &[RoundRecord]) -> Vec<(RoundKey, BlobRef, Vec<BlobRef>)> {
    let counted = |r: &RoundRecord| r.members.iter().filter_map(|m| Some(m.counted()?.payload)).collect();
    attempts
        .iter()
        .map(|r| {
            let Stage::Done { model_out, .. } = &r.stage else { panic!("{:?} in a job of faithful nodes", r.stage) };
            (r.key.clone(), *model_out, counted(r))
        })
        .collect()
}

#[test]
fn a_restart_after_any_step_ends_in_the_same_models() {
    let undisturbed = faithful(usize::MAX);
    assert_eq!(undisturbed.len(), 3);
    for every in 1..6 {
        assert_eq!(faithful(every), undisturbed, "killed after every {every} steps");
    }
}
