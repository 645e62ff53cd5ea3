//! A job's status for people, from its records and what its task knows beside them: pure.

use crate::actor::Snapshot;
use crate::record::{Life, RoundRecord};
use crate::view::{JobView, Phase, RoundView};

/// The job with its ended attempts and the one under way.
pub(crate) fn job_view(snapshot: Snapshot, rounds: &[RoundRecord]) -> JobView {
    let Snapshot { record, mut current, waiting_for } = snapshot;
    let ended: Vec<RoundView> =
        rounds.iter().filter(|r| r.closed_ms.is_some()).map(|r| r.view(&r.members, r.elapsed_ms)).collect();
    let reason = match &record.life {
        Life::Failed { reason } => Some(reason.clone()),
        Life::Created => Some(waiting_for.clone().unwrap_or_else(|| "waiting for its turn".to_owned())),
        Life::Running | Life::Completed { .. } | Life::Cancelled => waiting_for.clone(),
    };
    if current.is_none() && record.life == Life::Running && record.rounds_done < record.spec.total_rounds {
        current = Some(RoundView {
            secure: record.spec.secure.is_some(),
            weight: None,
            round: record.rounds_done + 1,
            attempt: record.attempts + 1,
            phase: Phase::Recruiting,
            reason: waiting_for,
            members: Vec::new(),
            loss: None,
            accuracy: None,
            bytes: 0,
            model: None,
            opened_ms: None,
            closed_ms: None,
            elapsed_ms: 0,
        });
    }
    let model_id = match &record.life {
        Life::Completed { model_id } => Some(model_id.clone()),
        Life::Created | Life::Running | Life::Failed { .. } | Life::Cancelled => None,
    };
    JobView {
        status: record.life.status(),
        reason,
        rounds_done: record.rounds_done,
        best_round: best_round(&ended),
        current,
        rounds: ended,
        model: record.model,
        model_id,
        created_ms: record.created_ms,
        ended_ms: record.ended_ms,
        spec: record.spec,
    }
}

/// The round whose model did best when the next round's members received it.
fn best_round(rounds: &[RoundView]) -> Option<u32> {
    rounds
        .iter()
        .filter(|r| r.phase == Phase::Done && r.round > 1)
        .filter_map(|r| Some((r.round - 1, r.accuracy?)))
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        .map(|(round, _)| round)
}
