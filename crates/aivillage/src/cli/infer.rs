//! `aivillage infer`: rows in, predictions out.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::args::ClientArgs;
use super::out::{self, cell, items};
use super::read_document;
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};

/// Ask a model for predictions
#[derive(Debug, Args)]
pub struct InferArgs {
    /// A model of the catalogue
    model: String,
    /// JSON or YAML: a row, a list of rows, or {"inputs": …}
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// low, medium, high or ultra [else the gateway's default]
    #[arg(long, value_name = "LEVEL")]
    privacy_level: Option<String>,
    /// Longest time until the answer is of use, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    max_latency_ms: u64,
    /// Wait this long for the answer, in milliseconds; 0 = only submit and print the request's id
    #[arg(long, value_name = "MS", num_args = 0..=1, default_value_t = 30_000, default_missing_value = "30000")]
    wait: u64,
    #[command(flatten)]
    client: ClientArgs,
}

/// Pause between two looks at an unfinished request.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait that one call asks of the gateway.
const CALL_MAX_MS: u64 = 10_000;

pub(super) async fn run(args: InferArgs, environment: &Environment) -> Result<(), CliError> {
    let document = read_document(&args.input)?;
    let input = if document.is_object() { document } else { json!({ "inputs": document }) };
    let client = find(&args.client.connection, environment)?;
    let mut body = json!({
        "model_id": args.model,
        "input_data": input,
        "max_latency_ms": args.max_latency_ms,
    });
    if let Some(level) = &args.privacy_level {
        body["privacy_level"] = level.as_str().into();
    }
    let path = match args.wait {
        0 => "inference/submit".to_owned(),
        wait => format!("inference/submit?wait={}", wait.min(CALL_MAX_MS)),
    };
    let mut answer: Value = client.post(&path, &body).await?;
    if args.wait > 0 {
        answer = finished(&client, answer, args.wait.saturating_sub(CALL_MAX_MS)).await?;
    }
    if args.client.json {
        out::document(&answer);
    }
    match answer["status"].as_str() {
        Some("failed" | "expired") => {
            let why = cell(&answer["error"]);
            Err(CliError::new(ExitCode::Failed, format!("the request {}: {why}", cell(&answer["status"]))))
        }
        _ if args.client.json => Ok(()),
        Some("completed") => {
            show(&answer);
            Ok(())
        }
        _ => {
            out::line(&cell(&answer["request_id"]));
            out::note("submitted; GET /v1/federated/inference/result/ID has the answer");
            Ok(())
        }
    }
}

/// Looks again until the request has ended or `more_ms` have passed.
async fn finished(client: &Client, mut answer: Value, more_ms: u64) -> Result<Value, CliError> {
    let path = format!("inference/result/{}", cell(&answer["request_id"]));
    let mut left = Duration::from_millis(more_ms);
    while matches!(answer["status"].as_str(), Some("submitted" | "queued" | "processing")) && !left.is_zero() {
        tokio::time::sleep(PAUSE).await;
        left = left.saturating_sub(PAUSE);
        answer = client.get(&path).await?;
    }
    Ok(answer)
}

fn show(answer: &Value) {
    let predictions = items(&answer["result"], "predictions");
    let classes = predictions.iter().any(|p| !p["label"].is_null());
    let row = |(i, p): (usize, &Value)| match classes {
        true => vec![i.to_string(), cell(&p["label"]), out::percent(p["probability"].as_f64())],
        false => vec![i.to_string(), cell(&p["value"])],
    };
    let rows = predictions.iter().enumerate().map(row).collect();
    let header: &[&str] = if classes { &["ROW", "LABEL", "PROBABILITY"] } else { &["ROW", "VALUE"] };
    out::line(&out::table(header, rows));
    let metadata = &answer["metadata"];
    out::note(&format!(
        "by {} in {} ms, model {} {}",
        cell(&metadata["nodes_used"]),
        cell(&metadata["processing_time_ms"]),
        cell(&answer["model"]["id"]),
        cell(&answer["model"]["blake3"]).chars().take(12).collect::<String>(),
    ));
}
