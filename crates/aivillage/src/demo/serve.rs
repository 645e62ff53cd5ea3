//! The trained model at work: the common test set, classified by the nodes over the public API.

use std::ops::Range;

use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::{Value, json};

use super::Setting;
use super::federated::Run;
use crate::client::Client;
use crate::exit::{CliError, ExitCode};
use crate::processes::Village;

/// Rows a request: several requests, so that several nodes serve.
const ROWS: usize = 64;
/// Examples that are shown.
const SHOWN: usize = 8;

/// What the nodes answered.
#[derive(Debug)]
pub(crate) struct Served {
    /// Share of the test set that they classified right.
    pub(crate) accuracy: f64,
    /// Rows of the test set.
    pub(crate) rows: usize,
    /// A few of them; a wrong one among them, if there is one.
    pub(crate) examples: Vec<Example>,
    /// Nodes that answered.
    pub(crate) nodes: Vec<String>,
}

/// One row of the test set.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Example {
    /// Index in the test set.
    pub(crate) row: usize,
    /// What the model says.
    pub(crate) prediction: u64,
    /// What it is.
    pub(crate) label: u32,
    /// The model's probability for what it says.
    pub(crate) probability: f64,
    /// The node that answered.
    pub(crate) node: String,
}

pub(crate) async fn run(setting: &Setting, village: &Village, run: &Run) -> Result<Served, CliError> {
    let test = &setting.split.test;
    let parts = (0..test.rows()).step_by(ROWS).map(|start| start..(start + ROWS).min(test.rows()));
    // At once, as clients do: the gateway spreads them over the nodes.
    let answers = try_join_all(parts.map(|rows| part(setting, village.client(), run, rows))).await?;
    Ok(summary(answers.into_iter().flatten().collect()))
}

/// One request: these rows of the test set.
async fn part(setting: &Setting, client: &Client, run: &Run, rows: Range<usize>) -> Result<Vec<Example>, CliError> {
    let test = &setting.split.test;
    let labels = test.labels().unwrap_or_default();
    let inputs: Vec<&[f32]> = test.x(rows.clone()).chunks(test.width()).collect();
    let body = json!({
        "model_id": run.model_id,
        "input_data": { "inputs": inputs },
        "privacy_level": "medium",
        "max_latency_ms": 10_000,
    });
    let answer: Value = client.post("inference/submit?wait=10000&client_id=demo", &body).await?;
    let predictions = answer["result"]["predictions"].as_array().filter(|p| p.len() == rows.len());
    let predictions = predictions.ok_or_else(|| unanswered(&answer))?;
    if answer["model"]["blake3"] != run.blake3.as_str() {
        return Err(CliError::new(ExitCode::Bug, format!("another model has answered: {}", answer["model"])));
    }
    let node = answer["metadata"]["nodes_used"][0].as_str().unwrap_or("-");
    let example = |(row, p): (usize, &Value)| Example {
        row,
        prediction: p["label"].as_u64().unwrap_or(u64::MAX),
        label: labels.get(row).copied().unwrap_or(u32::MAX),
        probability: p["probability"].as_f64().unwrap_or(0.0),
        node: node.to_owned(),
    };
    Ok(rows.zip(predictions).map(example).collect())
}

fn unanswered(answer: &Value) -> CliError {
    let why = answer["error"].as_str().unwrap_or("no reason given");
    CliError::new(ExitCode::Failed, format!("the request for predictions is {}: {why}", answer["status"]))
        .hint("a loaded machine may need longer: try again")
}

fn is_right(example: &Example) -> bool {
    example.prediction == u64::from(example.label)
}

fn summary(all: Vec<Example>) -> Served {
    let rows = all.len();
    let count = |n: usize| u32::try_from(n).map_or(f64::INFINITY, f64::from);
    let right = all.iter().filter(|e| is_right(e)).count();
    let mut nodes: Vec<String> = all.iter().map(|e| e.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    // Evenly over the test set, and a mistake, if there is one: nobody shall think that there are none.
    let step = rows.div_ceil(SHOWN).max(1);
    let mut examples: Vec<Example> = all.iter().step_by(step).cloned().collect();
    if let (Some(wrong), true) = (all.iter().find(|e| !is_right(e)), examples.iter().all(is_right)) {
        examples.pop();
        examples.push(wrong.clone());
    }
    Served { accuracy: count(right) / count(rows), rows, examples, nodes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_always_among_the_examples() {
        let example = |row: usize| Example {
            row,
            prediction: u64::from(row == 13),
            label: 0,
            probability: 0.9,
            node: format!("node-{}", row % 2),
        };
        let served = summary((0..20).map(example).collect());
        assert!(served.examples.iter().any(|e| e.row == 13));
        assert!((served.accuracy - 0.95).abs() < 1e-9);
        assert_eq!(served.nodes, ["node-0", "node-1"]);
    }
}
