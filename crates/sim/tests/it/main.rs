//! The village, disturbed: every promise holds for every seed, every fault strikes, and each cure is needed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aivillage_sim::{FaultKind, Faults, Plan, Report, Tally, Violation, run};

mod lies;
mod twins;

/// Seeds of the test command.
const SEEDS: u64 = 1_000;

/// A number from the person who runs the tests: `SIM_SEED` to replay one seed, `SIM_SEEDS` to try more of them.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration to read the environment for them")]
fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number is needed"))
}

/// Steps at which coordinators must die, before and after, in some seed.
const STEPS: [&str; 14] = [
    "job_created",
    "job_changed",
    "round_opened",
    "roster_fixed",
    "graph_drawn",
    "sharers_fixed",
    "survivors_fixed",
    "agreements_fixed",
    "update_stored",
    "round_closed",
    "round_published",
    "job_ended",
    "request_accepted",
    "request_finished",
];

/// Runs seeds from 1 to `last` on all processors until all are done or `enough` has what it wants; in seed order.
fn seeds(
    last: u64,
    plan: impl Fn(u64) -> Plan + Sync,
    enough: impl Fn(&Result<Report, Violation>) -> bool + Sync,
) -> Vec<Result<Report, Violation>> {
    let next = AtomicU64::new(1);
    let results = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    let result = run(seed, plan(seed));
                    if enough(&result) {
                        next.store(last + 1, Ordering::Relaxed);
                    }
                    results.lock().expect("no worker panics with the lock").push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics with the lock");
    results.sort_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The models that everybody's updates give when nothing goes wrong.
fn undisturbed(seed: u64) -> Report {
    let plan = Plan { faults: Faults::none(), ..Plan::drawn(seed) };
    run(seed, plan).unwrap_or_else(|violation| panic!("{violation}"))
}

/// I5, second half: with everybody needed, a disturbed run ends in the undisturbed run's models.
fn check_models(report: &Report) {
    let plan = Plan::drawn(report.seed);
    if !plan.is_settled() {
        return;
    }
    let calm = undisturbed(report.seed);
    for ((job, _, models), (_, _, expected)) in report.jobs.iter().zip(&calm.jobs) {
        let common = models.len().min(expected.len());
        assert!(common == models.len() || plan.cancel_last, "{job} has more rounds than asked for");
        assert_eq!(
            models[..common],
            expected[..common],
            "{job}: replay: SIM_SEED={} cargo nextest run -p aivillage-sim replay",
            report.seed
        );
    }
}

#[test]
fn every_promise_holds_for_every_seed_and_every_fault_strikes() {
    let mut tally = Tally::default();
    let (mut abandoned, mut answered, mut stale, mut retained) = (0, 0, 0, 0);
    let (mut masked, mut dropped) = (0, 0);
    let mut strategies: BTreeMap<&str, u64> = BTreeMap::new();
    for result in seeds(asked("SIM_SEEDS").unwrap_or(SEEDS), Plan::drawn, Result::is_err) {
        let report = result.unwrap_or_else(|violation| panic!("{violation}"));
        *strategies.entry(report.strategy).or_default() += 1;
        stale += report.stale;
        masked += report.masked;
        dropped += report.dropped;
        retained += report.retained;
        check_models(&report);
        tally.add(&report.tally);
        abandoned += report.abandoned;
        answered += report.answered;
    }
    println!("{tally:?}; {abandoned} attempts given up, {answered} requests answered");
    println!("{masked} rounds summed under masks, {dropped} of them without somebody who had sent shares");
    println!("{stale} updates counted in a later round, {retained} kept; {strategies:?}");
    for name in aivillage_training::strategy::BUILT {
        assert!(strategies.contains_key(name), "{name} never ran");
    }
    for kind in FaultKind::ALL {
        assert!(tally.of(kind) > 0, "{kind:?} never struck");
    }
    for step in STEPS {
        for kind in [FaultKind::CrashBeforePersist, FaultKind::CrashAfterPersist] {
            assert!(tally.at_step(kind, step) > 0, "{kind:?} never struck at {step}");
        }
    }
    assert!(abandoned > 0 && answered > 0 && stale > 0 && retained > 0 && masked > 0 && dropped > 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        assert_eq!(run(seed, Plan::drawn(seed)).unwrap(), run(seed, Plan::drawn(seed)).unwrap());
    }
}

/// `SIM_SEED=17 cargo nextest run -p aivillage-sim replay` runs one seed and shows what came of it.
#[test]
fn replay() {
    let seed = asked("SIM_SEED").unwrap_or(1);
    println!("{:#?}", Plan::drawn(seed));
    let report = run(seed, Plan::drawn(seed)).unwrap_or_else(|violation| panic!("{violation}"));
    check_models(&report);
    println!("{report:#?}");
}
