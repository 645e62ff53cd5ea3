//! The village, disturbed: every promise holds for every seed, every fault strikes, and each cure is needed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aivillage_sim::{FaultKind, Faults, Plan, Report, Tally, Violation, run};

mod twins;

/// Seeds of the test command.
const SEEDS: u64 = 200;

/// Runs all seeds on all processors; in seed order.
fn all_seeds(plan: impl Fn(u64) -> Plan + Sync) -> Vec<Result<Report, Violation>> {
    let next = AtomicU64::new(1);
    let results = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        return;
                    }
                    let result = run(seed, plan(seed));
                    results.lock().unwrap().push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
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
    if plan.min_participants < plan.nodes {
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
    let (mut abandoned, mut answered) = (0, 0);
    for result in all_seeds(Plan::drawn) {
        let report = result.unwrap_or_else(|violation| panic!("{violation}"));
        check_models(&report);
        tally.add(&report.tally);
        abandoned += report.abandoned;
        answered += report.answered;
    }
    println!("{SEEDS} seeds: {tally:?}; {abandoned} attempts given up, {answered} requests answered");
    for kind in FaultKind::ALL {
        assert!(tally.of(kind) > 0, "{kind:?} never struck");
    }
    assert!(abandoned > 0 && answered > 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        assert_eq!(run(seed, Plan::drawn(seed)).unwrap(), run(seed, Plan::drawn(seed)).unwrap());
    }
}

/// `SIM_SEED=17 cargo nextest run -p aivillage-sim replay` runs one seed and shows what came of it.
#[test]
#[expect(clippy::disallowed_methods, reason = "the seed to replay comes from the person who replays it")]
fn replay() {
    let seed = std::env::var("SIM_SEED").ok().map_or(1, |text| text.parse().expect("SIM_SEED is a number"));
    println!("{:#?}", Plan::drawn(seed));
    let report = run(seed, Plan::drawn(seed)).unwrap_or_else(|violation| panic!("{violation}"));
    check_models(&report);
    println!("{report:#?}");
}
