//! Which privacy techniques a job takes, with their parameters, and whether they go together with the rest of the job.

use aivillage_base::NodeName;
use aivillage_base::fixed::Grid;
use aivillage_base::suggest;
use aivillage_base::wire::secure::Withstands;
use aivillage_privacy::secagg::helper::HELPED_MAX;
use aivillage_privacy::secagg::roster;

use super::helped;
use super::{Faults, JobRequest, JobSpec, TECHNIQUES};
use crate::config::TrainingConfig;
use crate::secure::{self, COHORT_MAX, TECHNIQUE, WITHSTANDS};
use crate::strategy::Weighting;

/// Parameters of secure aggregation, keys of `privacy`.
const PARAMETERS: [&str; 5] = ["corrupt", "dropout", "clip", "variant", "helper"];

/// L2 norm that bounds an update where `byzantine_tolerance` has to be met without seeing updates, and no `clip` is given:
/// several times the norm of an honest round's change of a small network.
pub(super) const CLIP_DEFAULT: f64 = 10.0;

/// Secure aggregation as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Wished {
    pub(super) withstands: Withstands,
    clip: Option<f64>,
    pub(super) helper: Option<NodeName>,
}

impl Wished {
    /// The bound of an update's norm: the one that was asked for, or the operator's wish for robustness.
    pub(super) fn clip(&self, request: &JobRequest, config: &TrainingConfig) -> Option<f64> {
        let robust = request.strategy.is_none() && config.byzantine_tolerance;
        self.clip.or_else(|| robust.then_some(CLIP_DEFAULT))
    }
}

/// Reads `privacy_techniques` and `privacy`; None = a plain job.
pub(super) fn wished(request: &JobRequest, config: &TrainingConfig, faults: &mut Faults) -> Option<Wished> {
    let asked = match &request.privacy_techniques {
        None => config.enable_secure_aggregation,
        Some(list) => {
            for (i, technique) in list.iter().enumerate() {
                check_technique(&format!("/privacy_techniques/{i}"), technique, faults);
            }
            list.iter().any(|technique| technique == TECHNIQUE)
        }
    };
    if !asked {
        for key in request.privacy.keys() {
            let detail = if PARAMETERS.contains(&key.as_str()) {
                format!(
                    "`{key}` is a parameter of {TECHNIQUE}, which this job does not use: add the technique, or leave it out"
                )
            } else {
                unknown(key)
            };
            faults.privacy(&format!("/privacy/{key}"), &detail);
        }
        return None;
    }
    for key in request.privacy.keys().filter(|key| !PARAMETERS.contains(&key.as_str())) {
        faults.privacy(&format!("/privacy/{key}"), &unknown(key));
    }
    let helper = helped::wished(&request.privacy, faults);
    let mut number = |key: &str, low: f64, high: f64| {
        let value = request.privacy.get(key)?;
        let found = value.as_f64().filter(|v| (low..=high).contains(v));
        if found.is_none() {
            faults.privacy(
                &format!("/privacy/{key}"),
                &format!("{value} was given; a number from {low} to {high} is needed{}", helped::instead(key)),
            );
        }
        found
    };
    // Nodes take part against nothing less.
    let corrupt = number("corrupt", WITHSTANDS.corrupt, 0.49).unwrap_or(WITHSTANDS.corrupt);
    let dropout = number("dropout", 0.0, 0.49).unwrap_or(WITHSTANDS.dropout);
    let clip = number("clip", 1e-6, 1e6);
    Some(Wished { withstands: Withstands { corrupt, dropout, ..WITHSTANDS }, clip, helper })
}

fn unknown(key: &str) -> String {
    suggest::unknown("privacy parameter", key, &PARAMETERS)
}

fn check_technique(pointer: &str, technique: &str, faults: &mut Faults) {
    match technique {
        TECHNIQUE => {}
        "homomorphic_encryption" => faults.privacy(
            pointer,
            "homomorphic_encryption is not offered: secure aggregation protects single updates as well, at a fraction \
             of the cost",
        ),
        known if TECHNIQUES.contains(&known) => faults.privacy(
            pointer,
            &format!("`{known}` is known, but this version does not build it yet: use `{TECHNIQUE}`, or `[]` for none"),
        ),
        other => faults.invalid(pointer, &suggest::unknown("privacy technique", other, &TECHNIQUES)),
    }
}

/// What secure aggregation cannot do is said before anybody trains.
pub(super) fn check(spec: &JobSpec, faults: &mut Faults) {
    let Some(withstands) = spec.secure else { return };
    let rule = spec.strategy.rule();
    let name = spec.strategy.name();
    let instead = "send `\"privacy_techniques\": []` to train without (the coordinator then sees each node's update)";
    let Some(weighting) = rule.weighting() else {
        let why = if rule.buffer().is_some() && spec.helper.is_some() {
            helped::NOT_BUFFERED
        } else if rule.buffer().is_some() {
            "closes a round whenever enough updates are in, and masks need a cohort that is agreed on before"
        } else if rule.robust() {
            "has to see single updates, and under secure aggregation nobody does"
        } else {
            "weights each update by a power of its node's loss and divides by the norms of single updates, for which no bound \
             can be given before, as masks need"
        };
        faults.privacy(
            "/strategy/name",
            &format!(
                "strategy `{name}` {why}: choose fedavg, fedprox, fedavgm, fedadam, fedyogi, fedadagrad, fednova or scaffold (with \
                 `privacy: {{clip: ..}}` as a bound on what one node can do), or {instead}"
            ),
        );
        return;
    };
    if spec.clip.is_some() && rule.planes() > 1 {
        let detail = format!(
            "`clip` bounds the change of the weights, and strategy `{name}` sends more than that: leave clip out"
        );
        faults.privacy("/privacy/clip", &detail);
    }
    if spec.retain_updates {
        faults.privacy(
            "/retain_updates",
            "under secure aggregation nobody has single updates that could be kept: leave retain_updates out",
        );
    }
    if spec.min_participants < roster::COHORT_MIN {
        faults.privacy(
            "/min_participants",
            &format!(
                "secure aggregation needs at least {} participants, {} were asked for: of two, each learns the other's \
                 update from the sum; raise min_participants, or {instead}",
                roster::COHORT_MIN,
                spec.min_participants
            ),
        );
        return;
    }
    let most = if spec.helper.is_some() { HELPED_MAX } else { COHORT_MAX };
    if spec.max_participants > most {
        faults.privacy(
            "/max_participants",
            &format!(
                "secure aggregation takes up to {most} participants, {} were asked for: lower max_participants, or \
                 {instead}",
                spec.max_participants
            ),
        );
        return;
    }
    check_sizes(spec, withstands, weighting, faults);
}

/// A ring and a threshold for every size that a cohort of the job can have.
fn check_sizes(spec: &JobSpec, withstands: Withstands, weighting: Weighting, faults: &mut Faults) {
    for cohort in spec.min_participants..=spec.max_participants {
        match secure::terms(withstands, (spec.min_participants, cohort), weighting, spec.max_examples) {
            Err(overflow) => {
                let bound = Grid::default().bound;
                faults.privacy(
                    "/hyperparameters/max_examples",
                    &format!(
                        "{overflow} (values on the grid are up to ±{bound}): lower max_examples or max_participants"
                    ),
                );
                return;
            }
            // Larger cohorts are not always easier: each size has a threshold of its own.
            Ok(_) if spec.helper.is_some() => {}
            Ok(terms) => {
                if let Err(why) = roster::has_plan(&terms, cohort as usize) {
                    faults.privacy("/privacy", &format!("{why}; {}", helped::PROPOSED));
                    return;
                }
            }
        }
    }
}
