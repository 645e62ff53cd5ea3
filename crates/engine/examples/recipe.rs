//! The demonstration's question in one process: does federated training beat each node alone, and how near does it come to
//! all data in one place?
//!
//! `cargo run -p aivillage-engine --example recipe -- [digits|breast_cancer] [batch] [rate] [momentum] [hidden] [seeds]`
//! prints, for each seed, test accuracy of the best node alone, of federated averaging, and of all data in one place, with
//! the same recipe for all three: 40 rounds x 3 local epochs, or 120 epochs.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use aivillage_base::arch::{Architecture, Recipe};
use aivillage_base::time::SystemClock;
use aivillage_base::wire::LocalTraining;
use aivillage_engine::data::{Bundled, Dataset, Split, split};
use aivillage_engine::{LocalJob, evaluate, initial_values, local};

const ROUNDS: u32 = 40;
const LOCAL_EPOCHS: u32 = 3;
const NODES: usize = 6;
const ALPHA: f64 = 0.3;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).map_or(default, String::as_str).to_owned();
    let which = if arg(0, "digits") == "digits" { Bundled::Digits } else { Bundled::BreastCancer };
    let training = LocalTraining {
        epochs: LOCAL_EPOCHS,
        batch_size: arg(1, "32").parse()?,
        learning_rate: arg(2, "0.3").parse()?,
        momentum: arg(3, "0").parse()?,
        weight_decay: 0.0,
        proximal_mu: 0.0,
    };
    let hidden: usize = arg(4, "32").parse()?;
    let seeds: u64 = arg(5, "5").parse()?;
    let recipe = if hidden == 0 { Recipe::LogisticRegression } else { Recipe::Mlp { hidden: vec![hidden] } };
    let mut gaps = Vec::new();
    for seed in 1..=seeds {
        let parts = split(which, NODES, ALPHA, seed)?;
        let architecture = recipe.build(parts.test.input(), parts.test.task())?;
        let scores = compare(&architecture, &training, &parts, seed)?;
        let gap = 100.0 * (scores.central - scores.federated);
        let rows: Vec<usize> = parts.shards.iter().map(Dataset::rows).collect();
        println!(
            "seed {seed}: best alone {:.4}  federated {:.4}  central {:.4}  gap {gap:5.2}  rows {rows:?}  {}",
            scores.best_alone,
            scores.federated,
            scores.central,
            if scores.federated > scores.best_alone { "beats the best alone" } else { "DOES NOT beat the best alone" },
        );
        gaps.push(gap);
    }
    gaps.sort_by(f64::total_cmp);
    println!("{training:?} hidden {hidden}: median gap {:.2} points", gaps[gaps.len() / 2]);
    Ok(())
}

struct Scores {
    best_alone: f64,
    federated: f64,
    central: f64,
}

fn compare(architecture: &Architecture, training: &LocalTraining, parts: &Split, seed: u64) -> Result<Scores, Failure> {
    let accuracy = |values: &[f32]| -> Result<f64, Failure> {
        Ok(evaluate(architecture, values, &parts.test)?.accuracy.unwrap_or(f64::NAN))
    };
    let long = LocalTraining { epochs: ROUNDS * LOCAL_EPOCHS, ..training.clone() };
    let start = initial_values(architecture, seed)?;
    let mut best_alone = 0.0f64;
    for (i, shard) in parts.shards.iter().enumerate() {
        let values = train(architecture, &long, seed, 1, &format!("node-{}", i + 1), &start, shard)?;
        best_alone = best_alone.max(accuracy(&values)?);
    }
    let all = Dataset::concat(&parts.shards)?;
    let central = accuracy(&train(architecture, &long, seed, 1, "central", &start, &all)?)?;
    let mut model = start;
    for round in 1..=ROUNDS {
        let mut sum = vec![0.0f64; model.len()];
        for (i, shard) in parts.shards.iter().enumerate() {
            let values = train(architecture, training, seed, round, &format!("node-{}", i + 1), &model, shard)?;
            let weight = f64::from(u32::try_from(shard.rows())?) / f64::from(u32::try_from(all.rows())?);
            for (s, v) in sum.iter_mut().zip(&values) {
                *s += weight * f64::from(*v);
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "models are f32")]
        model.iter_mut().zip(&sum).for_each(|(m, s)| *m = *s as f32);
    }
    Ok(Scores { best_alone, federated: accuracy(&model)?, central })
}

fn train(
    architecture: &Architecture,
    training: &LocalTraining,
    seed: u64,
    round: u32,
    node: &str,
    values: &[f32],
    data: &Dataset,
) -> Result<Vec<f32>, Failure> {
    let job = LocalJob { architecture, training, seed, round, node };
    Ok(local(job, values, data, &SystemClock::new())?.values)
}
