//! `aivillage status`: the house at a glance.

use serde_json::Value;

use super::args::ClientArgs;
use super::out::{self, cell, items};
use crate::client::find;
use crate::config::Environment;
use crate::exit::CliError;

pub(super) async fn run(args: &ClientArgs, environment: &Environment) -> Result<(), CliError> {
    let client = find(&args.connection, environment)?;
    let status: Value = client.get("status").await?;
    if args.json {
        out::document(&status);
    } else {
        out::line(&text(client.url(), &status));
    }
    Ok(())
}

fn text(url: &str, status: &Value) -> String {
    let participants = &status["training"]["participant_summary"];
    let jobs = &status["training"]["jobs"];
    let training = match &status["training"] {
        Value::Null => off(status, "training"),
        _ => format!(
            "{} running, {} waiting, {} completed, {} failed, {} cancelled",
            cell(&jobs["running"]),
            cell(&jobs["created"]),
            cell(&jobs["completed"]),
            cell(&jobs["failed"]),
            cell(&jobs["cancelled"])
        ),
    };
    let statistics = &status["inference"]["statistics"];
    let inference = match &status["inference"] {
        Value::Null => off(status, "inference"),
        _ => format!(
            "{} models, {} serving nodes, {} requests ({} answered, {} failed), {:.1} ms on average",
            cell(&statistics["registered_models"]),
            cell(&statistics["serving_nodes"]),
            cell(&statistics["total_requests"]),
            cell(&statistics["ok"]),
            cell(&statistics["failed"]),
            statistics["avg_response_time_ms"].as_f64().unwrap_or(0.0),
        ),
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
    match &status["config"]["parts"][part] {
        Value::Null => "off".to_owned(),
        reason => format!("off: {}", cell(reason)),
    }
}
