//! Coordinators that lie in secure rounds: whatever they say, and whatever else goes wrong, nobody's two secrets are opened,
//! and what is published is the exact sum of its survivors.

use std::collections::BTreeMap;
use std::sync::Arc;

use aivillage_sim::lies::{Liar, Lie};
use aivillage_sim::{Plan, run};
use aivillage_training::strategy;
use aivillage_training::view::JobStatus;

/// Seeds by default.
const SEEDS: u64 = 1_000;

#[test]
fn no_lie_opens_an_update_or_changes_a_sum() {
    let mut alarms: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut completed, mut failed) = (0, 0);
    let names: Vec<String> = Lie::ALL.iter().map(|lie| format!("{lie:?}")).collect();
    let results = super::seeds(super::asked("SIM_SEEDS").unwrap_or(SEEDS), hostile, Result::is_err);
    for (seed, result) in (1..).zip(results) {
        let report = result.unwrap_or_else(|violation| panic!("{:?}: {violation}", lie_of(seed)));
        *alarms.entry(&names[place(seed)]).or_default() += report.alarms;
        for (_, status, _) in &report.jobs {
            completed += u32::from(*status == JobStatus::Completed);
            failed += u32::from(*status == JobStatus::Failed);
        }
    }
    println!("alarms by lie: {alarms:?}; {completed} jobs completed, {failed} failed by name");
    for lie in Lie::ALL {
        // Who trains otherwise has another context: the coordinator's own check finds that its keys do not belong here.
        let raised = alarms[format!("{lie:?}").as_str()];
        assert!(raised > 0 || lie == Lie::OtherTerms, "nobody noticed {lie:?}");
    }
    assert!(failed > 0 && completed > 0);
}

/// Control: without lies the same villages raise no alarm and finish.
#[test]
fn without_lies_the_same_villages_finish() {
    for seed in 1..=20 {
        let plan = Plan { conduct: Arc::new(aivillage_sim::conduct::Faithful), hostile: false, ..hostile(seed) };
        let report = run(seed, plan).unwrap();
        assert_eq!(report.alarms, 0);
        assert!(report.jobs.iter().all(|(_, status, _)| *status != JobStatus::Failed) && report.masked > 0);
    }
}

fn place(seed: u64) -> usize {
    usize::try_from(seed).expect("seeds are small") % Lie::ALL.len()
}

fn lie_of(seed: u64) -> Lie {
    Lie::ALL[place(seed)]
}

fn hostile(seed: u64) -> Plan {
    let drawn = Plan::drawn(seed);
    Plan {
        nodes: 5,
        min_participants: 4,
        strategy: strategy::named("fedavg", &serde_json::Map::new()).expect("a strategy without settings"),
        secure: true,
        drawn: drawn.drawn || matches!(lie_of(seed), Lie::ForgedNonce | Lie::SplitNonces),
        retain_updates: false,
        cancel_last: false,
        hostile: true,
        jobs: 1,
        rounds: 2,
        requests: 0,
        conduct: Arc::new(Liar { lie: lie_of(seed), once: seed % 5 < 2 }),
        ..drawn
    }
}
