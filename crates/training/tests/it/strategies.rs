//! Strategies through the whole coordinator: server state, distances and ranks, with and without a restart after each
//! round. What nodes do for a strategy is tested where they do it.

use aivillage_training::StrategyChoice;
use aivillage_training::strategy::{BUILT, WITHOUT_SETTINGS, named};
use serde_json::{Map, json};

use crate::village::{Village, request};

/// Nodes enough for bulyan with one dishonest.
const NODES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const ROUNDS: u32 = 3;

#[tokio::test]
async fn whatever_the_strategy_a_restart_after_each_round_changes_no_bit() {
    let mut run = 0;
    for name in BUILT {
        let byzantine = (!WITHOUT_SETTINGS.contains(name)).then(|| ("byzantine".to_owned(), json!(1)));
        let config: Map<_, _> = byzantine.into_iter().collect();
        let rule = named(name, &config).unwrap().strategy;
        // These ask more of nodes than plain training, or do not say which updates make a round.
        let local = rule.rule().local();
        if local.control_variates
            || local.personal_lambda.is_some()
            || local.initial_loss
            || rule.rule().buffer().is_some()
        {
            continue;
        }
        let mut asked = request(ROUNDS, 7);
        asked.strategy = Some(StrategyChoice { name: (*name).to_owned(), config });
        let calm = Village::new(3, &NODES).await;
        let job = calm.training().create(asked.clone()).await.unwrap();
        let expected = calm.completed(&job).await;
        let mut disturbed = Village::new(3, &NODES).await;
        let job = disturbed.training().create(asked).await.unwrap();
        for rounds in 1..ROUNDS {
            disturbed.until(&job, |view| view.rounds_done >= rounds).await;
            disturbed.restart().await;
        }
        assert_eq!(disturbed.completed(&job).await, expected, "{name}");
        run += 1;
    }
    assert_eq!(run, 15);
}
