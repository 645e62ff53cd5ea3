//! Which strategy a job takes, and whether it goes together with the rest of the job.

use aivillage_base::wire::LocalTraining;
use serde_json::Map;

use super::{Faults, StrategyChoice};
use crate::config::TrainingConfig;
use crate::strategy::fedavg::FedAvg;
use crate::strategy::{self, Chosen, DISTANCES_COHORT_MAX, Needs, Strategy, StrategyFault};

/// The strategy that was asked for, or else the operator's; under secure aggregation one that works on a sum.
pub(super) fn resolve(
    choice: Option<&StrategyChoice>,
    config: &TrainingConfig,
    secure: bool,
    faults: &mut Faults,
) -> Chosen {
    let none = Map::new();
    let found = match choice {
        Some(choice) => strategy::named(&choice.name, &choice.config),
        None => strategy::named(&config.default_strategy, &none).and_then(|chosen| {
            let rule = chosen.strategy.rule();
            match (secure, config.byzantine_tolerance && !rule.robust()) {
                // Robust rules have to see updates; the bound of the norm stands in for them.
                (true, _) if rule.weighting().is_none() => strategy::named("fedavg", &none),
                (false, true) => strategy::named(strategy::ROBUST_DEFAULT, &none),
                (true, _) | (false, false) => Ok(chosen),
            }
        }),
    };
    let (pointer, named_by) = match choice {
        Some(_) => ("/strategy/name", ""),
        None => ("/strategy", "training.aggregation.default_strategy: "),
    };
    match found {
        Ok(chosen) => return chosen,
        Err(StrategyFault::Name(detail)) => faults.invalid(pointer, &format!("{named_by}{detail}")),
        Err(StrategyFault::Settings(found)) => {
            for fault in found {
                faults.invalid(&format!("/strategy/config/{}", fault.key), &format!("{named_by}{}", fault.detail));
            }
        }
    }
    // The request is refused; what is looked at for the rest of its faults does not matter.
    Chosen { strategy: Strategy::FedAvg(FedAvg {}), personal_tensors: Vec::new() }
}

/// Fewest members of a round. An asynchronous strategy closes when its buffer is full, so that is what it needs.
pub(super) fn min_participants(
    strategy: &Strategy,
    asked: Option<u32>,
    config: &TrainingConfig,
    faults: &mut Faults,
) -> u32 {
    let Some(buffer) = strategy.rule().buffer() else { return asked.unwrap_or(config.min_participants) };
    if let Some(asked) = asked.filter(|asked| *asked != buffer.size) {
        faults.invalid(
            "/min_participants",
            &format!(
                "strategy `{}` makes a model of every {} updates, whoever they come from, but min_participants is {asked}: \
                 leave min_participants out, or set buffer_size to {asked}",
                strategy.name(),
                buffer.size
            ),
        );
    }
    buffer.size
}

/// What a strategy needs of the cohort and of the local training is said before anybody trains.
pub(super) fn check(strategy: &Strategy, (min, max): (u32, u32), training: &LocalTraining, faults: &mut Faults) {
    let (rule, name) = (strategy.rule(), strategy.name());
    let (needed, why) = rule.cohort_min();
    if min < needed {
        faults.invalid(
            "/min_participants",
            &format!(
                "strategy `{name}` needs at least {needed} updates a round ({why}), but a round may close with {min}: \
                 raise min_participants to {needed}, or choose another strategy"
            ),
        );
    }
    let distances = match rule.needs() {
        Needs::Nothing | Needs::Norms => false,
        Needs::Distances | Needs::DistancesAndCentre => true,
    };
    if distances && max > DISTANCES_COHORT_MAX {
        faults.invalid(
            "/max_participants",
            &format!(
                "strategy `{name}` compares all updates of a round with each other, which is bounded at \
                 {DISTANCES_COHORT_MAX} of them: lower max_participants, or choose `median` or `trimmed_mean`"
            ),
        );
    }
    if let Err(detail) = rule.trains_with(training) {
        faults.invalid("/strategy/config", &detail);
    }
}
