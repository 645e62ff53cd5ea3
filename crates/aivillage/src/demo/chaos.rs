//! `--chaos`: the same job once more, in fresh folders, while gateway and nodes are killed with SIGKILL.
//!
//! A seed chooses who dies at which persisted step; the dead are started again in their folders, on their ports. When all
//! planned deaths have happened nobody dies any more, the job ends, and its model must be the undisturbed one, bit by bit.

use std::collections::BTreeMap;

use aivillage_base::rng::SeededRng;
use serde::Serialize;

use super::federated::{self, Run};
use super::story::Story;
use super::{Setting, plan};
use crate::crash::CrashPlan;
use crate::exit::{CliError, ExitCode};
use crate::processes::{Gone, Village, Who};

/// Fewest deaths that prove anything: the gateway twice, and a node.
const KILLS_MIN: usize = 3;
/// Rounds below which the planned steps may never come.
const ROUNDS_MIN: u32 = 8;
/// Steps that a gateway needs before its first round at the latest: its nodes' reports, its lease, the job.
const FIRST_STEPS: u64 = 12;

/// A death that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Kill {
    /// `gateway` or a node's name.
    pub(crate) process: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// Which persisted step: `before:12 round_closed`.
    pub(crate) step: String,
}

/// Deaths to come and deaths that were.
#[derive(Debug)]
pub(crate) struct Chaos {
    first: Vec<(Who, CrashPlan)>,
    /// What a process gets at its next start.
    next: BTreeMap<Who, CrashPlan>,
    pub(crate) kills: Vec<Kill>,
}

impl Chaos {
    fn new(seed: u64, nodes: u32, rounds: u32) -> Self {
        let mut rng = SeededRng::new("chaos", seed, &[]);
        let (nodes, rounds) = (u64::from(nodes), u64::from(rounds));
        let mut crash =
            |from: u64, width: u64| CrashPlan { before: rng.below(2) == 0, name: None, step: from + rng.below(width) };
        let gateway = [crash(FIRST_STEPS, rounds), crash(FIRST_STEPS, rounds)];
        // A node's steps are what it logs and sends: its report, then an answer and an update a round.
        let node = [crash(1, rounds / 3), crash(1, rounds / 3)];
        let a = rng.below(nodes);
        let b = (a + 1 + rng.below(nodes - 1)) % nodes;
        let who = |i: u64| Who::Node(usize::try_from(i).unwrap_or(0));
        Self {
            first: vec![(Who::Gateway, gateway[0].clone()), (who(a), node[0].clone()), (who(b), node[1].clone())],
            next: BTreeMap::from([(Who::Gateway, gateway[1].clone())]),
            kills: Vec::new(),
        }
    }

    /// Starts a process again that died as planned.
    pub(crate) async fn survive(&mut self, village: &mut Village, gone: &Gone) -> Result<(), CliError> {
        let Some(step) = gone.last_words.strip_prefix("crash-at ").filter(|_| gone.killed) else {
            return Err(village.fault(gone));
        };
        self.kills.push(Kill { process: village.name(gone.who).to_owned(), pid: gone.pid, step: step.to_owned() });
        village.restart(gone.who, self.next.remove(&gone.who)).await
    }

    fn check(&self) -> Result<(), CliError> {
        let gateway = self.kills.iter().any(|k| k.process == "gateway");
        let node = self.kills.iter().any(|k| k.process != "gateway");
        if self.kills.len() >= KILLS_MIN && gateway && node {
            return Ok(());
        }
        let message = format!("only {} of the planned deaths came before the job ended", self.kills.len());
        Err(CliError::new(ExitCode::Failed, message).hint("take more --rounds, or another --seed"))
    }
}

/// Are there enough rounds for the planned deaths to happen in?
pub(crate) fn check(rounds: u32) -> Result<(), CliError> {
    if rounds >= ROUNDS_MIN {
        return Ok(());
    }
    let message = format!("--chaos needs at least {ROUNDS_MIN} rounds for its deaths to happen in");
    Err(CliError::new(ExitCode::Usage, message).hint(format!("--rounds {ROUNDS_MIN}")))
}

/// Trains again in a disturbed village, and compares with the undisturbed `run`.
pub(crate) async fn run(setting: &Setting, story: &Story, run: &Run) -> Result<(Run, Vec<Kill>), CliError> {
    let mut chaos = Chaos::new(setting.args.seed, setting.args.nodes, setting.args.rounds);
    let mut village = Village::start(plan(setting, "disturbed")).await?;
    story.chaos_begins();
    for (who, crash) in std::mem::take(&mut chaos.first) {
        village.replace(who, crash).await?;
    }
    let disturbed = federated::train(setting, &mut village, story, Some(&mut chaos)).await?;
    village.stop().await;
    chaos.check()?;
    story.chaos_ends(run, &disturbed, &chaos.kills);
    if disturbed.blake3 != run.blake3 {
        let message =
            format!("the disturbed run ended in another model: {} instead of {}", disturbed.blake3, run.blake3);
        return Err(CliError::new(ExitCode::Bug, message)
            .hint(format!("please report this with the folder {}", setting.dir.display())));
    }
    Ok((disturbed, chaos.kills))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_plans_deaths_of_the_gateway_and_of_two_different_nodes() {
        for seed in 0..200 {
            let chaos = Chaos::new(seed, 2, ROUNDS_MIN);
            let who: Vec<_> = chaos.first.iter().map(|(who, _)| *who).collect();
            assert!(
                who.contains(&Who::Gateway) && who.contains(&Who::Node(0)) && who.contains(&Who::Node(1)),
                "{who:?}"
            );
            assert!(chaos.first.iter().all(|(_, plan)| plan.step >= 1));
            assert_eq!(chaos.first.len() + chaos.next.len(), 4);
        }
    }
}
