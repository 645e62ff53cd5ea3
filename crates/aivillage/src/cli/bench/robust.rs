//! `aivillage bench robust`: what each strategy makes of nodes that are not honest, on real data.
//!
//! Promise: every figure follows from the seeds; a rule "holds" against an attack if its accuracy is within
//! [`WITHIN`] of its own run without attack, and cases in which it does not are shown like the others.

mod attacks;
mod village;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aivillage_engine::data::Bundled;
use aivillage_training::strategy::{self, Strategy};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use self::attacks::Attack;
use self::village::{Deal, Setting, Village};
use crate::cli::out;
use crate::demo::DatasetName;
use crate::exit::{CliError, ExitCode};

/// Loss of accuracy that counts as none: three points.
const WITHIN: f64 = 0.03;

/// Which cases.
#[derive(Debug, Args)]
pub struct RobustArgs {
    /// Nodes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(5..=100))]
    nodes: u16,
    /// Nodes that are not honest [default: 30 %]
    #[arg(long, value_name = "N")]
    byzantine: Option<u16>,
    /// Rounds of each run
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Runs of each case, with seeds 1, 2, ..; their mean counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,
    /// Data set; may be repeated [default: both]
    #[arg(long, value_enum)]
    dataset: Vec<DatasetName>,
    /// How rows are dealt; may be repeated [default: both]
    #[arg(long, value_enum)]
    deal: Vec<Deal>,
    /// Attack; may be repeated [default: all]; runs without attack are always made
    #[arg(long, value_enum)]
    attack: Vec<Attack>,
    /// Strategy; may be repeated [default: fedavg and all robust ones]
    #[arg(long)]
    strategy: Vec<String>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// A strategy as it takes part, with the settings for this many dishonest nodes.
struct Entry {
    strategy: Strategy,
    config: Value,
    /// Why its own conditions are not met, if they are not.
    beyond: Option<String>,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Row {
    dataset: &'static str,
    deal: &'static str,
    strategy: &'static str,
    settings: Value,
    attack: &'static str,
    /// Mean accuracy over the seeds.
    accuracy: f64,
    /// The same without attack.
    clean: f64,
    /// Within three points of it?
    holds: bool,
    /// Accuracy of each seed.
    runs: Vec<f64>,
    /// Why the rule's own condition is not met.
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond: Option<String>,
}

pub(super) fn run(args: &RobustArgs) -> Result<(), CliError> {
    let nodes = usize::from(args.nodes);
    let dishonest = args.byzantine.map_or(nodes * 3 / 10, usize::from);
    if dishonest == 0 || 2 * dishonest >= nodes {
        let message = format!("{dishonest} of {nodes} nodes: at least one and fewer than half can be dishonest here");
        return Err(CliError::new(ExitCode::Usage, message));
    }
    let entries = entries(&args.strategy, nodes, dishonest)?;
    let setting = Setting { dishonest, rounds: args.rounds };
    let rows = figures(args, &entries, setting).map_err(|e| CliError::new(ExitCode::Failed, e))?;
    let document = json!({
        "benchmark": "robust", "version": env!("CARGO_PKG_VERSION"), "nodes": nodes, "byzantine": dishonest,
        "rounds": args.rounds, "seeds": args.seeds, "within_points": 100.0 * WITHIN, "rows": rows,
    });
    if args.json {
        out::document(&document);
    } else {
        tell(&rows);
    }
    Ok(())
}

fn entries(names: &[String], nodes: usize, dishonest: usize) -> Result<Vec<Entry>, CliError> {
    let robust = |name: &&str| named(name, nodes, dishonest).is_ok_and(|e| e.strategy.rule().robust());
    let names: Vec<&str> = if names.is_empty() {
        std::iter::once("fedavg").chain(strategy::BUILT.iter().copied().filter(robust)).collect()
    } else {
        names.iter().map(String::as_str).collect()
    };
    names.into_iter().map(|name| named(name, nodes, dishonest)).collect()
}

/// A strategy with the settings that its owner would choose against `dishonest` of `nodes` nodes.
fn named(name: &str, nodes: usize, dishonest: usize) -> Result<Entry, CliError> {
    let mut beyond = None;
    let config = match name {
        // A little more than the share, so that rounding down drops all of them.
        #[expect(clippy::cast_precision_loss, reason = "at most 100 nodes")]
        "trimmed_mean" => json!({ "beta": (dishonest as f64 + 0.5) / nodes as f64 }),
        "krum" | "multi_krum" => json!({ "byzantine": dishonest }),
        "bulyan" => {
            let most = nodes.saturating_sub(3) / 4;
            if most < dishonest {
                beyond =
                    Some(format!("{nodes} nodes allow byzantine {most} (n >= 4f + 3), and {dishonest} are dishonest"));
            }
            json!({ "byzantine": most.min(dishonest) })
        }
        _ => json!({}),
    };
    let map = config.as_object().cloned().unwrap_or_default();
    let chosen = strategy::named(name, &map).map_err(|fault| crate::offline::strategy_fault(&fault))?;
    Ok(Entry { strategy: chosen.strategy, config, beyond })
}

/// A case: indices of village and strategy, and the attack.
type Case = (usize, usize, Attack);

fn figures(args: &RobustArgs, entries: &[Entry], setting: Setting) -> Result<Vec<Row>, String> {
    let datasets: Vec<Bundled> = if args.dataset.is_empty() {
        vec![Bundled::Digits, Bundled::BreastCancer]
    } else {
        args.dataset.iter().map(|d| d.bundled()).collect()
    };
    let deals = if args.deal.is_empty() { vec![Deal::Even, Deal::ByLabel] } else { args.deal.clone() };
    let wanted = |a: &Attack| args.attack.is_empty() || args.attack.contains(a) || *a == Attack::None;
    let attacks: Vec<Attack> = Attack::ALL.into_iter().filter(wanted).collect();
    let mut places = Vec::new();
    let mut villages = Vec::new();
    for dataset in datasets {
        for deal in &deals {
            places.push((dataset, *deal));
            for seed in 1..=u64::from(args.seeds) {
                villages.push(Village::new(dataset, *deal, usize::from(args.nodes), seed)?);
            }
        }
    }
    let cases: Vec<Case> = (0..villages.len())
        .flat_map(|v| {
            (0..entries.len()).flat_map({
                let attacks = &attacks;
                move |e| attacks.iter().map(move |a| (v, e, *a))
            })
        })
        .collect();
    let found = all(&cases, |(v, e, attack)| villages[v].accuracy(&entries[e].strategy, attack, setting))?;
    let seeds = usize::from(args.seeds);
    let runs_of = |place: usize, entry: usize, attack: Attack| -> Vec<f64> {
        let of = |(case, accuracy): (&Case, &f64)| {
            (case.0 / seeds == place && case.1 == entry && case.2 == attack).then_some(*accuracy)
        };
        cases.iter().zip(&found).filter_map(of).collect()
    };
    let mut rows = Vec::new();
    for (place, (dataset, deal)) in places.iter().enumerate() {
        for (index, entry) in entries.iter().enumerate() {
            let clean = mean(&runs_of(place, index, Attack::None));
            for attack in &attacks {
                let runs = runs_of(place, index, *attack);
                let accuracy = mean(&runs);
                rows.push(Row {
                    dataset: dataset.name(),
                    deal: deal.name(),
                    strategy: entry.strategy.name(),
                    settings: entry.config.clone(),
                    attack: attack.name(),
                    accuracy,
                    clean,
                    holds: accuracy >= clean - WITHIN,
                    runs,
                    beyond: entry.beyond.clone(),
                });
            }
        }
    }
    Ok(rows)
}

/// `work` for every case on all cores; results in the order of the cases.
fn all(cases: &[Case], work: impl Fn(Case) -> Result<f64, String> + Sync) -> Result<Vec<f64>, String> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(cases.len()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    let result = work(*case);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / u32::try_from(values.len().max(1)).map_or(f64::INFINITY, f64::from)
}

/// One table a data set and deal: strategies down, attacks across; `*` = does not hold.
fn tell(rows: &[Row]) {
    let mut from = 0;
    while from < rows.len() {
        let place = (rows[from].dataset, rows[from].deal);
        let until = rows[from..].iter().position(|r| (r.dataset, r.deal) != place).map_or(rows.len(), |n| from + n);
        let part = &rows[from..until];
        let attacks: Vec<&str> = part.iter().take_while(|r| r.strategy == part[0].strategy).map(|r| r.attack).collect();
        let header: Vec<&str> = std::iter::once("strategy").chain(attacks.iter().copied()).collect();
        let lines = part
            .chunks(attacks.len())
            .map(|chunk| {
                let cell = |r: &Row| format!("{:.1}{}", 100.0 * r.accuracy, if r.holds { " " } else { "*" });
                std::iter::once(chunk[0].strategy.to_owned()).chain(chunk.iter().map(cell)).collect()
            })
            .collect();
        out::line(&format!("{}, dealt {}: accuracy in %, * = more than 3 points below no attack", place.0, place.1));
        out::line(&format!("{}\n", out::table(&header, lines)));
        from = until;
    }
}
