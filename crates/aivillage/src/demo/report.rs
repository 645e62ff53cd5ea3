//! The report: one HTML file with everything in it, curves as SVG, readable on a phone, light and dark.
//!
//! Promise: no script, no font, no picture is fetched from anywhere; every figure comes from the run.

use std::fmt::Write as _;

use super::story::{header, meaning, name, table};
use super::{Outcome, Setting};
use crate::cli::out;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d8dee6; --back: #fbfcfd; --card: #fff;
  --together: #0b7a5b; --central: #2f5fd0; --alone: #b9772a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa6b4; --line: #2c3540; --back: #12171d;
  --card: #1a2129; --together: #3ecf9f; --central: #7fa6ff; --alone: #e0a458; } }
body { margin: 0 auto; max-width: 52rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.lead { font-size: 1.1rem; } .soft { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.figures b { display: block; font-size: 1.5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .45rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
svg { width: 100%; max-width: 44rem; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2.2; } .thin { stroke-width: 1; opacity: .55; }
.together { stroke: var(--together); } .central { stroke: var(--central); } .alone { stroke: var(--alone); }
.key { display: flex; flex-wrap: wrap; gap: 1rem; } .key i { display: inline-block; width: 1.4rem; height: .25rem;
  vertical-align: middle; margin-right: .4rem; } .digits { display: flex; flex-wrap: wrap; gap: .8rem; }
.digits figure { margin: 0; text-align: center; } .digits svg { width: 5rem; height: 5rem; } .ink { fill: var(--ink); }
code { overflow-wrap: anywhere; }";

/// The whole document.
pub(crate) fn html(setting: &Setting, outcome: &Outcome) -> String {
    let args = &setting.args;
    let dataset = setting.recipe.data.name();
    let mut body = String::new();
    let _infallible = write!(
        body,
        "<h1>{} nodes train one model on {dataset}</h1>\n<p class=lead>{}</p>\n{}",
        args.nodes,
        escape(&meaning(setting, &outcome.run, &outcome.comparison)),
        figures(setting, outcome),
    );
    body.push_str("<h2>Accuracy on the common test set</h2>\n");
    body.push_str(&chart(outcome, args.rounds));
    body.push_str(
        "<p class=key><span><i style=\"background:var(--together)\"></i>together</span><span><i \
         style=\"background:var(--central)\"></i>all data in one place</span><span><i \
         style=\"background:var(--alone)\"></i>each node alone</span></p>\n",
    );
    let _infallible = write!(
        body,
        "<p class=soft>Across: rounds of {} epochs. Same recipe for all ({}, batch {}, learning rate {}); the last epoch counts.</p>\n\
         <h2>Who has what</h2>\n{}<p class=soft>Rows by label; dealt unequally on purpose (Dirichlet {}, seed {}). \
         {} more rows are the test set.</p>\n",
        setting.recipe.training.epochs,
        escape(&setting.recipe.describe(&setting.split.test)),
        setting.recipe.training.batch_size,
        setting.recipe.training.learning_rate,
        html_table(&header(setting), &table(setting)),
        super::ALPHA,
        args.seed,
        setting.split.test.rows(),
    );
    body.push_str(&examples(setting, outcome));
    body.push_str(&chaos(outcome));
    let _infallible = write!(
        body,
        "<h2>What is protected, and what is not yet</h2>\n<p>No row of data left its node; each node keeps a log of every \
         thing that it sent. {}</p>\n\
         <p class=soft>Model BLAKE3 <code>{}</code>. Made by <code>aivillage demo --dataset {dataset} --nodes {} --rounds {} \
         --seed {}</code>, version {}.</p>\n",
        updates(args.plain),
        outcome.run.blake3,
        args.nodes,
        args.rounds,
        args.seed,
        env!("CARGO_PKG_VERSION"),
    );
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta name=viewport \
         content=\"width=device-width, initial-scale=1\">\n<title>AIVillage: {dataset}</title>\n<style>{STYLE}\n</style>\n\
         </head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn figures(setting: &Setting, outcome: &Outcome) -> String {
    let percent = |share: f64| out::percent(Some(share));
    let figures = [
        (percent(outcome.run.accuracy), "together"),
        (percent(outcome.comparison.best_alone().1), "best node alone"),
        (percent(outcome.comparison.central_last()), "all data in one place"),
        (format!("{} × {}", setting.args.rounds, setting.recipe.training.epochs), "rounds × local epochs"),
        (out::bytes(outcome.run.bytes), "travelled"),
        (format!("{:.1} s", outcome.seconds), "in all"),
    ];
    let cards: String = figures.iter().map(|(figure, what)| format!("<div><b>{figure}</b>{what}</div>")).collect();
    format!("<div class=figures>{cards}</div>\n")
}

fn html_table(header: &[String], rows: &[Vec<String>]) -> String {
    let cells =
        |tag: &str, row: &[String]| -> String { row.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect() };
    let rows: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells("td", row))).collect();
    format!("<div class=scroll><table>\n<tr>{}</tr>\n{rows}</table></div>\n", cells("th", header))
}

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 24.0;
const EDGE: f64 = 10.0;

/// From rounds and accuracies to places in the picture.
struct Scale {
    rounds: f64,
    low: f64,
}

impl Scale {
    fn x(&self, round: f64) -> f64 {
        // A single round stands at the right edge.
        let share = if self.rounds > 1.0 { (round - 1.0) / (self.rounds - 1.0) } else { 1.0 };
        LEFT + share * (WIDTH - LEFT - EDGE)
    }

    fn y(&self, accuracy: f64) -> f64 {
        let share = (accuracy - self.low) / (1.0 - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - EDGE)
    }

    fn curve(&self, class: &str, points: impl Iterator<Item = (f64, f64)>) -> String {
        let places: Vec<_> = points.map(|(r, a)| format!("{:.1},{:.1}", self.x(r), self.y(a))).collect();
        format!("<polyline class=\"curve {class}\" points=\"{}\"/>\n", places.join(" "))
    }
}

fn chart(outcome: &Outcome, rounds: u32) -> String {
    let comparison = &outcome.comparison;
    let together = outcome.run.curve.iter().map(|(r, a)| (f64::from(*r), *a));
    let all = comparison.alone.iter().chain([&comparison.central]).flatten().copied();
    let lowest = all.chain(together.clone().map(|(_, a)| a)).fold(1.0f64, f64::min);
    // The axis begins at the tenth below the lowest point.
    let scale = Scale { rounds: f64::from(rounds), low: ((lowest * 10.0).floor() / 10.0).clamp(0.0, 0.9) };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"Accuracy by round: together {}, best node alone {}, all data \
         in one place {}\">\n",
        out::percent(Some(outcome.run.accuracy)),
        out::percent(Some(comparison.best_alone().1)),
        out::percent(Some(comparison.central_last())),
    );
    for step in 0..=4 {
        let accuracy = scale.low + (1.0 - scale.low) * f64::from(step) / 4.0;
        let y = scale.y(accuracy);
        let right = WIDTH - EDGE;
        let _infallible = writeln!(
            svg,
            "<line class=grid x1={LEFT} x2={right} y1={y:.1} y2={y:.1} /><text x={:.1} y={:.1} text-anchor=end>{:.0} %</text>",
            LEFT - 6.0,
            y + 4.0,
            100.0 * accuracy
        );
    }
    for (round, anchor) in [(1, "start"), (rounds, "end")] {
        let x = scale.x(f64::from(round));
        let _infallible =
            writeln!(svg, "<text x={x:.1} y={:.1} text-anchor={anchor}>round {round}</text>", HEIGHT - 6.0);
    }
    let by_round = |curve: &[f64]| -> Vec<(f64, f64)> { (1u32..).map(f64::from).zip(curve.iter().copied()).collect() };
    for curve in &comparison.alone {
        svg.push_str(&scale.curve("alone thin", by_round(curve).into_iter()));
    }
    svg.push_str(&scale.curve("central", by_round(&comparison.central).into_iter()));
    svg.push_str(&scale.curve("together", together));
    svg.push_str("</svg>\n");
    svg
}

fn examples(setting: &Setting, outcome: &Outcome) -> String {
    let served = &outcome.served;
    let mut text = format!(
        "<h2>The model at work</h2>\n<p>{} rows of the test set, asked over the API and answered by {}: {} right.</p>\n",
        served.rows,
        escape(&served.nodes.join(", ")),
        out::percent(Some(served.accuracy))
    );
    let test = &setting.split.test;
    if test.width() == 64 {
        text.push_str("<div class=digits>");
        for example in &served.examples {
            let mark = if example.prediction == u64::from(example.label) { "✓" } else { "✗" };
            let pixels = digit(test.x(example.row..example.row + 1));
            let _infallible = write!(
                text,
                "<figure>{pixels}<figcaption>says {}, is {} {mark}</figcaption></figure>",
                name(setting, example.prediction),
                name(setting, u64::from(example.label)),
            );
        }
        text.push_str("</div>\n");
        return text;
    }
    let header = ["row", "prediction", "sure", "true", "by"].map(str::to_owned);
    let rows: Vec<_> = served
        .examples
        .iter()
        .map(|e| {
            let (said, is) = (name(setting, e.prediction), name(setting, u64::from(e.label)));
            vec![e.row.to_string(), said, out::percent(Some(e.probability)), is, e.node.clone()]
        })
        .collect();
    text.push_str(&html_table(&header, &rows));
    text
}

fn digit(pixels: &[f32]) -> String {
    let mut svg = String::from("<svg viewBox=\"0 0 8 8\" aria-hidden=true>");
    for (i, pixel) in pixels.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        let (x, y) = (i % 8, i / 8);
        let _infallible = write!(svg, "<rect class=ink x={x} y={y} width=1 height=1 opacity=\"{pixel:.2}\"/>");
    }
    svg.push_str("</svg>");
    svg
}

fn chaos(outcome: &Outcome) -> String {
    let Some((disturbed, kills)) = &outcome.chaos else { return String::new() };
    let header = ["killed", "process", "at step"].map(str::to_owned);
    let rows: Vec<_> = kills.iter().map(|k| vec![k.process.clone(), k.pid.to_string(), k.step.clone()]).collect();
    format!(
        "<h2>The same job while processes are killed</h2>\n{}<p>Undisturbed <code>{}</code><br>Disturbed <code>{}</code></p>\n",
        html_table(&header, &rows),
        outcome.run.blake3,
        disturbed.blake3
    )
}

/// What the gateway saw of updates.
fn updates(plain: bool) -> &'static str {
    match plain {
        true => "The gateway saw each node's update.",
        false => {
            "Updates were summed under masks (secure aggregation): the gateway learnt their sum, and of each one its size and \
             how many values were clipped. What the finished model gives away about the data is not limited."
        }
    }
}
