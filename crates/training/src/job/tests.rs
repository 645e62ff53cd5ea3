//! One job by hand: its whole life, what ends it, and what a restart remembers.

use super::*;
use crate::secure::FULL_GRAPH_MAX;
use crate::spec::JobSpec;
use crate::step::ComputePlan;
use crate::testing::{Store, at, blob, candidate, key, made, name, peer, record, spec, stored, update};

mod buffered;
mod drawn;
mod keeping;
mod sequences;

pub(super) const RULES: Rules =
    Rules { selection: Selection::CapabilityAware, silence_ms: 10_000, full_graph_max: FULL_GRAPH_MAX };

/// Oldest update that counts in asynchronous jobs, in rounds.
const STALENESS: u32 = 1;

/// A job with its store, by hand.
struct Bench {
    job: Job,
    rules: Rules,
    store: Store,
    ms: u64,
}

impl Bench {
    fn new(min: u32, rounds: u32) -> Self {
        Self::of(spec(min, 10, rounds))
    }

    /// The same, asynchronous: a model of every `size` updates that are at most [`STALENESS`] rounds old.
    fn buffered(size: u32, rounds: u32) -> Self {
        let config = serde_json::json!({"buffer_size": size, "max_staleness": STALENESS});
        let chosen = crate::strategy::named("fedbuff", config.as_object().unwrap()).unwrap();
        Self::of(JobSpec { strategy: chosen.strategy, ..spec(size, 10, rounds) })
    }

    fn of(spec: JobSpec) -> Self {
        Self::under(RULES, spec)
    }

    fn under(rules: Rules, spec: JobSpec) -> Self {
        let store = Store::new(record(spec));
        Self { job: Job::restore(at(0), store.saved.clone(), rules), rules, store, ms: 0 }
    }

    /// Starts it with these nodes and makes its first model: collecting.
    fn run(mut self, nodes: &[&str]) -> Self {
        self.step(Input::Started);
        for node in nodes {
            self.step(Input::Joined(candidate(node)));
        }
        self.step(Input::Initialised(crate::testing::linear(), blob("first")));
        self
    }

    /// Started, with these nodes, its first model made: collecting.
    fn running(min: u32, rounds: u32, nodes: &[&str]) -> Self {
        Self::new(min, rounds).run(nodes)
    }

    fn step(&mut self, input: Input) -> Step {
        self.ms += 1;
        self.step_at(self.ms, input)
    }

    fn step_at(&mut self, ms: u64, input: Input) -> Step {
        self.ms = ms;
        let step = self.job.step(at(ms), input);
        self.store.apply(step.changes.clone());
        step
    }

    fn update(&mut self, from: &str, key: &RoundKey) -> Step {
        let (header, payload) = update(key, [1, 2, 3, 4], 10);
        self.step(Input::Update(peer(from), header, payload))
    }

    fn publish_round(&mut self, nodes: &[&str], round: u32) {
        for node in nodes {
            self.update(node, &key(round, 1));
        }
        self.step(Input::Computed(key(round, 1), Ok(made(&format!("model {round}")))));
    }

    /// Kills it and starts it again from its store.
    fn restart(&mut self) -> Step {
        self.job = Job::restore(at(0), self.store.saved.clone(), self.rules);
        self.ms = 0;
        self.job.resume(at(0))
    }
}

fn invited(step: &Step) -> Vec<(&str, RoundKey)> {
    let mut found = Vec::new();
    for effect in &step.effects {
        if let Effect::Send(peer, Down::Invite(invitation)) = effect {
            found.push((peer.name.as_str(), invitation.key.clone()));
        }
    }
    found
}

fn plan(step: &Step) -> Option<&ComputePlan> {
    step.effects.iter().find_map(|e| if let Effect::Compute(plan) = e { Some(&**plan) } else { None })
}

fn asks_to_publish(step: &Step) -> bool {
    step.effects.iter().any(|e| matches!(e, Effect::Publish(_)))
}

fn deleted(step: &Step) -> Vec<Digest> {
    let digests = |e: &Effect| if let Effect::DeleteBlobs(d) = e { d.clone() } else { Vec::new() };
    step.effects.iter().flat_map(digests).collect()
}

#[track_caller]
fn late(step: &Step, says: &str) {
    match &step.reply {
        Some(UpdateReply::Refused { reason, detail }) => {
            assert_eq!(reason, "late");
            assert!(detail.contains(says), "{detail}");
        }
        other => panic!("{other:?} is not refused as late"),
    }
}

#[test]
fn it_goes_from_created_through_its_rounds_into_the_catalogue() {
    let mut bench = Bench::new(2, 2);
    assert_eq!(bench.job.status(), JobStatus::Created);
    let step = bench.step(Input::Joined(candidate("a")));
    assert!(step.changes.is_empty() && bench.job.round().is_none(), "without its turn it does nothing");
    bench.step(Input::Started);
    assert!(bench.job.waiting_for().unwrap().contains("2 participants are needed; 1 of 1"));
    let step = bench.step(Input::Joined(candidate("b")));
    assert!(matches!(step.effects[..], [Effect::Initialise(_)]));
    assert!(bench.step(Input::Tick).effects.is_empty(), "asked once");
    let step = bench.step(Input::Initialised(crate::testing::linear(), blob("first")));
    assert_eq!(invited(&step), [("a", key(1, 1)), ("b", key(1, 1))]);
    for round in 1..=2 {
        assert!(plan(&bench.update("a", &key(round, 1))).is_none());
        let step = bench.update("b", &key(round, 1));
        let plan = plan(&step).unwrap();
        assert_eq!(plan.accepted.len(), 2);
        let model_in = if round == 1 { blob("first") } else { blob("model 1") };
        assert_eq!((plan.key.clone(), plan.model_in), (key(round, 1), model_in));
        let step = bench.step(Input::Computed(key(round, 1), Ok(made(&format!("model {round}")))));
        assert_eq!(asks_to_publish(&step), round == 2);
    }
    assert!(!asks_to_publish(&bench.step(Input::Tick)), "asked once");
    assert!(asks_to_publish(&bench.step(Input::Retry)), "unless that did not work");
    let step = bench.step(Input::Published(Ok("job".into())));
    assert_eq!(bench.job.status(), JobStatus::Completed);
    let told = step.effects.iter().filter(|e| matches!(e, Effect::Send(_, Down::JobEnded { .. }))).count();
    assert_eq!(told, 2);
    assert_eq!(bench.store.saved.record, *bench.job.record());
    assert!(bench.store.payloads.is_empty() && bench.store.saved.members.is_empty());
}

#[test]
fn a_node_that_declines_is_not_asked_again_until_it_comes_back() {
    let mut bench = Bench::running(2, 1, &["a", "b"]);
    let no = crate::testing::declined("max_rounds", "too many");
    bench.step(Input::Answer(peer("b"), key(1, 1), Some(no)));
    assert!(bench.job.round().is_none());
    assert!(bench.job.waiting_for().unwrap().contains("declined by themselves: b (max_rounds)"));
    assert!(bench.store.saved.record.declined.contains_key(&name("b")));
    assert_eq!(bench.job.record().failures_in_row, 0, "a refusal is no failure");
    let step = bench.step(Input::Joined(candidate("c")));
    assert_eq!(invited(&step), [("a", key(1, 2)), ("c", key(1, 2))]);
    bench.step(Input::Left(peer("b")));
    bench.step(Input::Joined(candidate("b")));
    assert!(bench.store.saved.record.declined.is_empty());
}

#[test]
fn three_failed_attempts_in_a_row_end_the_job_and_a_published_round_forgives() {
    let mut bench = Bench::running(1, 2, &["a"]);
    let fail = |bench: &mut Bench, round, attempt| {
        bench.step(Input::Failed(peer("a"), key(round, attempt), "diverged in epoch 1".into()))
    };
    fail(&mut bench, 1, 1);
    fail(&mut bench, 1, 2);
    bench.update("a", &key(1, 3));
    bench.step(Input::Computed(key(1, 3), Ok(made("model 1"))));
    fail(&mut bench, 2, 1);
    fail(&mut bench, 2, 2);
    assert_eq!(bench.job.status(), JobStatus::Running);
    fail(&mut bench, 2, 3);
    let Life::Failed { reason } = &bench.store.saved.record.life else { panic!("{:?}", bench.job.status()) };
    assert!(reason.contains("3 attempts in a row failed") && reason.contains("diverged in epoch 1"), "{reason}");
}

#[test]
fn attempts_that_nobody_came_to_may_be_many() {
    let mut bench = Bench::running(2, 1, &["a", "b"]);
    for attempt in 1..=10u32 {
        assert_eq!(*bench.job.round().unwrap().key(), key(1, attempt));
        bench.step_at(u64::from(attempt) * 60_100, Input::Tick);
    }
    assert_eq!(bench.job.status(), JobStatus::Running);
}

#[test]
fn an_update_outside_the_grid_is_left_out_when_the_round_is_summed() {
    let mut bench = Bench::running(2, 1, &["a", "b", "c"]);
    let bad = |node: &str| ComputeError::BadUpdate { node: name(node), reason: "out_of_range", detail: "far".into() };
    for (i, node) in (0..).zip(["a", "b", "c"]) {
        let (header, payload) = stored(&key(1, 1), [i, 2, 3, 4], 10);
        assert!(bench.step(Input::Update(peer(node), header, payload)).kept);
    }
    let step = bench.step(Input::Computed(key(1, 1), Err(bad("b"))));
    let (lost, _) = stored(&key(1, 1), [1, 2, 3, 4], 10);
    assert_eq!(deleted(&step), [lost.payload.digest]);
    assert_eq!(plan(&step).unwrap().accepted.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    let step = bench.step(Input::Computed(key(1, 1), Err(bad("a"))));
    assert_eq!(deleted(&step).len(), 2, "what is left of the attempt goes too");
    assert_eq!(bench.job.record().failures_in_row, 1);
    assert_eq!(*bench.job.round().unwrap().key(), key(1, 2));
    let ended = &bench.store.saved.attempts[0];
    assert!(matches!(&ended.stage, Stage::Abandoned { reason } if reason.contains("1 usable updates, 2 needed")));
}

#[test]
fn a_computation_that_failed_or_came_late_changes_nothing() {
    let mut bench = Bench::running(1, 2, &["a"]);
    let step = bench.step(Input::Computed(key(1, 1), Ok(made("too early"))));
    assert!(step.changes.is_empty());
    bench.update("a", &key(1, 1));
    let step = bench.step(Input::Computed(key(1, 1), Err(ComputeError::Store("busy".into()))));
    assert!(plan(&step).is_some() && step.changes.is_empty(), "it is made again");
    bench.step(Input::Computed(key(1, 1), Ok(made("model 1"))));
    let step = bench.step(Input::Computed(key(1, 1), Ok(made("another"))));
    assert!(step.changes.is_empty());
    assert_eq!(bench.job.record().model, Some(blob("model 1")));
}

#[test]
fn it_can_be_cancelled_in_every_phase_and_stays_so() {
    let created = Bench::new(2, 2);
    let mut recruiting = Bench::new(2, 2);
    recruiting.step(Input::Started);
    let collecting = Bench::running(2, 2, &["a", "b"]);
    let mut publishing = Bench::running(2, 2, &["a", "b"]);
    publishing.update("a", &key(1, 1));
    publishing.update("b", &key(1, 1));
    let mut finishing = Bench::running(1, 1, &["a"]);
    finishing.publish_round(&["a"], 1);
    for mut bench in [created, recruiting, collecting, publishing, finishing] {
        bench.step(Input::Cancel);
        assert_eq!(bench.store.saved.record.life, Life::Cancelled);
        assert!(bench.job.round().is_none() && bench.store.saved.members.is_empty());
        assert!(bench.store.saved.attempts.iter().all(|r| !r.is_open()));
        let ended = bench.store.saved.clone();
        for input in [
            Input::Started,
            Input::Joined(candidate("z")),
            Input::Tick,
            Input::Retry,
            Input::Published(Ok("m".into())),
            Input::Computed(key(1, 1), Ok(made("m"))),
            Input::Cancel,
        ] {
            let step = bench.step(input);
            assert!(step.changes.is_empty() && step.effects.is_empty());
        }
        late(&bench.update("a", &key(9, 1)), "the job is cancelled");
        assert_eq!(bench.store.saved, ended);
    }
}

#[test]
fn updates_of_other_attempts_are_late_and_say_where_the_job_is() {
    let mut bench = Bench::running(1, 3, &["a"]);
    late(&bench.update("a", &key(2, 1)), "job round 2 attempt 1 is not open: the job is at round 1");
    bench.publish_round(&["a"], 1);
    let step = bench.update("a", &key(1, 1));
    assert_eq!((step.reply, step.kept), (Some(UpdateReply::Accepted), false), "its receipt was lost");
    let (other, payload) = update(&key(1, 1), [9, 9, 9, 9], 10);
    late(&bench.step(Input::Update(peer("a"), other, payload)), "the job is at round 2");
}

#[test]
fn an_update_of_an_attempt_that_was_given_up_will_not_count() {
    let mut bench = Bench::running(2, 1, &["a", "b"]);
    assert!(bench.update("a", &key(1, 1)).kept);
    bench.step_at(70_000, Input::Tick);
    assert_eq!(*bench.job.round().unwrap().key(), key(1, 2));
    late(&bench.update("a", &key(1, 1)), "not open");
}

#[test]
fn a_restart_answers_repeats_as_before_and_owes_what_was_owed() {
    let mut bench = Bench::running(1, 2, &["a"]);
    bench.publish_round(&["a"], 1);
    bench.restart();
    assert_eq!(bench.update("a", &key(1, 1)).reply, Some(UpdateReply::Accepted));
    bench.step(Input::Joined(candidate("a")));
    let step = bench.update("a", &key(2, 1));
    let owed = plan(&step).cloned();
    assert!(owed.is_some());
    assert_eq!(plan(&bench.restart()).cloned(), owed, "the model is still to be made");
    bench.step(Input::Computed(key(2, 1), Ok(made("model 2"))));
    assert!(asks_to_publish(&bench.restart()), "the catalogue is still to be told");
}

#[test]
fn a_stream_that_closed_late_does_not_take_a_newer_node_of_that_name_away() {
    let mut bench = Bench::new(1, 1);
    bench.step(Input::Started);
    let mut renewed = candidate("a");
    renewed.peer.id = peer("another-key").id;
    bench.step(Input::Joined(renewed));
    bench.step(Input::Left(peer("a")));
    let step = bench.step(Input::Initialised(crate::testing::linear(), blob("first")));
    assert_eq!(invited(&step), [("a", key(1, 1))]);
}

#[test]
fn a_member_that_comes_back_gets_its_invitation_again() {
    let mut bench = Bench::running(2, 1, &["a", "b"]);
    bench.step(Input::Left(peer("a")));
    let step = bench.step(Input::Joined(candidate("a")));
    assert_eq!(invited(&step), [("a", key(1, 1))]);
    bench.update("a", &key(1, 1));
    bench.step(Input::Left(peer("a")));
    let step = bench.step(Input::Joined(candidate("a")));
    assert!(invited(&step).is_empty(), "its update counts already");
}
