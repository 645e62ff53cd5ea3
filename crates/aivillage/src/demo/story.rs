//! The demonstration in words: what happens, what came out, what it means, what to do next.

use std::path::Path;

use aivillage_base::Digest;
use console::style;

use super::chaos::Kill;
use super::compare::Comparison;
use super::federated::Run;
use super::serve::{Example, Served};
use super::{Outcome, Setting, draw};
use crate::cli::out;
use crate::cli::train::Live;
use crate::processes::Village;

/// Digits drawn side by side: four fit 80 columns.
const DRAWN: usize = 4;

/// Where the story goes: stdout, or stderr when stdout is for a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Story {
    json: bool,
}

impl Story {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    fn say(self, text: &str) {
        if self.json { out::note(text) } else { out::line(text) }
    }

    fn head(self, text: &str) {
        let styled = style(text).bold();
        let styled = if self.json { styled.for_stderr() } else { styled };
        self.say(&format!("\n{styled}"));
    }

    pub(crate) fn live(self, rounds: u32) -> Live {
        Live::new(rounds, self.json)
    }

    pub(crate) fn begin(self, setting: &Setting) {
        let (args, split) = (&setting.args, &setting.split);
        let rows: usize = split.shards.iter().map(|s| s.rows()).sum();
        self.head(&format!("{rows} rows of {} are dealt to {} nodes", setting.recipe.data.name(), args.nodes));
        self.say(&out::table(&header(setting).iter().map(String::as_str).collect::<Vec<_>>(), table(setting)));
        self.say(&format!(
            "Unequal on purpose (Dirichlet {}, seed {}); {} more rows are the test set, on which no node trains.",
            super::ALPHA,
            args.seed,
            split.test.rows()
        ));
    }

    pub(crate) fn village(self, setting: &Setting, village: &Village) {
        let (gateway, nodes) = village.pids();
        let args = &setting.args;
        self.head("A gateway and its nodes are running");
        self.say(&format!(
            "gateway: process {gateway}, {}; nodes: processes {}, joined with one-time tokens over mutual TLS",
            village.client().url(),
            nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        ));
        self.head(&format!(
            "They train {} together: {} rounds of {} local epochs",
            setting.recipe.describe(&setting.split.test),
            args.rounds,
            setting.recipe.training.epochs
        ));
        match args.plain {
            true => self.say("No row leaves its node. The gateway sees each node's update (`--plain`)."),
            false => {
                self.say("No row leaves its node, and no update in the clear: each travels under masks that only the sum of all");
                self.say(
                    "is free of (secure aggregation), so the gateway learns that sum and nothing else of any of them.",
                );
            }
        }
    }

    pub(crate) fn accuracies(self, setting: &Setting, run: &Run, comparison: &Comparison) {
        self.head("Accuracy on the common test set, same recipe for all");
        let percent = |share: f64| out::percent(Some(share));
        let mut rows: Vec<Vec<String>> = comparison
            .alone_last()
            .iter()
            .enumerate()
            .map(|(i, a)| {
                vec![format!("node-{} alone", i + 1), percent(*a), format!("{} rows", setting.split.shards[i].rows())]
            })
            .collect();
        rows.push(vec![
            "together (federated)".into(),
            percent(run.accuracy),
            format!("{} travelled", out::bytes(run.bytes)),
        ]);
        rows.push(vec![
            "all data in one place".into(),
            percent(comparison.central_last()),
            "what federated training avoids".into(),
        ]);
        self.say(&out::table(&["WHO", "ACCURACY", ""], rows));
        self.say(&meaning(setting, run, comparison));
    }

    pub(crate) fn served(self, setting: &Setting, served: &Served) {
        self.head("The nodes have fetched the model, verified it, and serve it");
        self.say(&format!(
            "POST /v1/federated/inference/submit: {} test rows answered by {}, {} right",
            served.rows,
            served.nodes.join(", "),
            out::percent(Some(served.accuracy))
        ));
        let test = &setting.split.test;
        if test.width() == 64 {
            for some in served.examples.chunks(DRAWN) {
                let digits: Vec<_> = some.iter().map(|e| (test.x(e.row..e.row + 1), caption(e, setting))).collect();
                self.say(&draw::side_by_side(&digits));
            }
        } else {
            let row = |e: &Example| {
                let name = |label: u64| name(setting, label);
                vec![
                    e.row.to_string(),
                    name(e.prediction),
                    out::percent(Some(e.probability)),
                    name(u64::from(e.label)),
                    e.node.clone(),
                ]
            };
            self.say(&out::table(
                &["ROW", "PREDICTION", "SURE", "TRUE", "BY"],
                served.examples.iter().map(row).collect(),
            ));
        }
    }

    pub(crate) fn chaos_begins(self) {
        self.head("The same job again, in fresh folders, while processes are killed with SIGKILL");
    }

    pub(crate) fn chaos_ends(self, undisturbed: &Run, disturbed: &Run, kills: &[Kill]) {
        for kill in kills {
            self.say(&format!("killed {} (process {}) at step {}", kill.process, kill.pid, kill.step));
        }
        self.say(&format!("undisturbed  BLAKE3 {}", undisturbed.blake3));
        self.say(&format!("disturbed    BLAKE3 {}", disturbed.blake3));
        if undisturbed.blake3 == disturbed.blake3 {
            self.say(&format!("Equal, bit by bit, after {} kills.", kills.len()));
        }
    }

    pub(crate) fn end(self, setting: &Setting, outcome: &Outcome, village: &Village, report: &Path) {
        let dir = &setting.dir;
        self.head(&format!("Done in {:.1} s. What next?", outcome.seconds));
        let blake3 = outcome.run.blake3.parse::<Digest>().map(|d| d.short()).unwrap_or_default();
        let mut pairs = vec![
            ("report", format!("{} (open it in a browser)", report.display())),
            ("model", format!("{} (BLAKE3 {blake3}…)", dir.join("model.safetensors").display())),
            ("what node-1 sent", dir.join("village/node-1/sent.log").display().to_string()),
        ];
        let data = dir.join("village/gateway");
        if setting.args.keep {
            pairs.push(("API and docs", format!("{}/docs", village.client().url())));
            pairs.push(("look around", format!("aivillage status --data {}", data.display())));
            pairs.push(("stop", "Ctrl-C".to_owned()));
        } else {
            pairs.push(("serve it again", format!("aivillage up --data {}", data.display())));
            pairs.push((
                "your own village",
                "aivillage up; then `aivillage token create`, `node join`, `train submit`".to_owned(),
            ));
            pairs.push(("remove everything", format!("rm -r {}", dir.display())));
        }
        self.say(&out::fields(&pairs));
    }
}

/// Name of a label: the digit, or `benign`.
pub(crate) fn name(setting: &Setting, label: u64) -> String {
    let names = setting.recipe.data.label_names();
    let index = usize::try_from(label).unwrap_or(usize::MAX);
    names.get(index).map_or_else(|| "?".to_owned(), |n| (*n).to_owned())
}

fn caption(example: &Example, setting: &Setting) -> String {
    let (said, is) = (name(setting, example.prediction), name(setting, u64::from(example.label)));
    let mark = if said == is { "✓" } else { "✗" };
    format!("says {said}, is {is} {mark}")
}

/// Heading of the table of the deal.
pub(crate) fn header(setting: &Setting) -> Vec<String> {
    let labels = setting.recipe.data.label_names().iter().map(|l| (*l).to_owned());
    ["node".to_owned()].into_iter().chain(labels).chain(["rows".to_owned()]).collect()
}

/// Rows of each label at each node; `·` for none.
pub(crate) fn table(setting: &Setting) -> Vec<Vec<String>> {
    let cell = |count: &usize| if *count == 0 { "·".to_owned() } else { count.to_string() };
    let row = |(i, counts): (usize, &Vec<usize>)| {
        let name = [format!("node-{}", i + 1)];
        let total = [counts.iter().sum::<usize>().to_string()];
        name.into_iter().chain(counts.iter().map(cell)).chain(total).collect()
    };
    setting.split.table.counts.iter().enumerate().map(row).collect()
}

/// One sentence: what the numbers mean. Made of computed figures only.
pub(crate) fn meaning(setting: &Setting, run: &Run, comparison: &Comparison) -> String {
    let percent = |share: f64| out::percent(Some(share));
    let (best, best_accuracy) = comparison.best_alone();
    let central = comparison.central_last();
    let gap = 100.0 * (central - run.accuracy);
    let against_best = match run.accuracy.total_cmp(&best_accuracy) {
        std::cmp::Ordering::Greater => "more than",
        std::cmp::Ordering::Equal => "as much as",
        std::cmp::Ordering::Less => "less than",
    };
    let against_central = if gap > 0.0 {
        format!("{gap:.1} points below what all data in one place would give")
    } else {
        format!("{:.1} points above what all data in one place gives", -gap)
    };
    format!(
        "Without showing each other a single row, {} nodes get {} right of what none of them has seen: {against_best} the best \
         of them alone (node-{}, {}), and {against_central} ({}).",
        setting.args.nodes,
        percent(run.accuracy),
        best + 1,
        percent(best_accuracy),
        percent(central),
    )
}
