//! `aivillage status`: the house at a glance.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::args::ClientArgs;
use super::out::{self, cell, items};
use crate::client::{Client, find};
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};

/// The house at a glance
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Wait this many seconds for the gateway to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    #[command(flatten)]
    client: ClientArgs,
}

/// Pause between two looks for a gateway that is starting.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(args: &StatusArgs, environment: &Environment) -> Result<(), CliError> {
    let mut left = Duration::from_secs(args.wait);
    let (client, status) = loop {
        match ask(&args.client, environment).await {
            Err(error) if error.code == ExitCode::Unavailable && !left.is_zero() => {
                tokio::time::sleep(LOOK).await;
                left = left.saturating_sub(LOOK);
            }
            answer => break answer?,
        }
    };
    if args.client.json {
        out::document(&status);
    } else {
        out::line(&text(client.url(), &status));
    }
    Ok(())
}

async fn ask(args: &ClientArgs, environment: &Environment) -> Result<(Client, Value), CliError> {
    let client = find(&args.connection, environment)?;
    let status = client.get("status").await?;
    Ok((client, status))
}

fn text(url: &str, status: &Value) -> String {
    let participants = &status["training"]["participant_summary"];
    let jobs = &status["training"]["jobs"];
    let training = if status["training"].is_null() {
        off(status, "training")
    } else {
        format!(
            "{} running, {} waiting, {} completed, {} failed, {} cancelled",
            cell(&jobs["running"]),
            cell(&jobs["created"]),
            cell(&jobs["completed"]),
            cell(&jobs["failed"]),
            cell(&jobs["cancelled"])
        )
    };
    let statistics = &status["inference"]["statistics"];
    let inference = if status["inference"].is_null() {
        off(status, "inference")
    } else {
        format!(
            "{} models, {} serving nodes, {} requests ({} answered, {} failed), {:.1} ms on average",
            cell(&statistics["registered_models"]),
            cell(&statistics["serving_nodes"]),
            cell(&statistics["total_requests"]),
            cell(&statistics["ok"]),
            cell(&statistics["failed"]),
            statistics["avg_response_time_ms"].as_f64().unwrap_or(0.0),
        )
    };
    let mut pairs = vec![
        ("gateway", format!("{url}, version {}, up for {} s", cell(&status["version"]), cell(&status["uptime_s"]))),
        ("node link", cell(&status["config"]["link"])),
        ("configuration", cell(&status["config"]["source"])),
    ];
    if !status["training"].is_null() {
        pairs.push((
            "nodes",
            format!(
                "{} connected, {} offline, {} declared, {} in a round now",
                cell(&participants["connected"]),
                cell(&participants["offline"]),
                cell(&participants["declared"]),
                cell(&participants["active"])
            ),
        ));
    }
    pairs.push(("training", training));
    pairs.push(("inference", inference));
    let mut text = out::fields(&pairs);
    let unkept = items(status, "not_in_effect");
    if !unkept.is_empty() {
        text.push_str("\n\nConfigured, but not built in this version (`aivillage config check` says more):");
        let mut sections: Vec<(String, Vec<String>)> = Vec::new();
        for entry in unkept {
            let path = cell(&entry["key"]);
            let (section, key) = path.rsplit_once('.').unwrap_or(("", &path));
            match sections.iter_mut().find(|(name, _)| name == section) {
                Some((_, keys)) => keys.push(key.to_owned()),
                None => sections.push((section.to_owned(), vec![key.to_owned()])),
            }
        }
        for (section, keys) in sections {
            text.push_str(&format!("\n  {section}: {}", keys.join(", ")));
        }
    }
    text
}

fn off(status: &Value, part: &str) -> String {
    let why = out::present(&status["config"]["parts"][part]).map(|reason| format!(": {}", cell(reason)));
    format!("off{}", why.unwrap_or_default())
}
