//! `aivillage node`: be a node, or look after the nodes of a gateway.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::args::{ClientArgs, JoinArgs, LeaveArgs, PreviewArgs};
use super::out::{self, cell, items};
use super::segment;
use crate::client::find;
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::node;

mod pins;
mod preview;
mod rules;

/// Be a node, or look after the nodes of a gateway
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Join a gateway with a one-time token, and run; later: run again
    Join(JoinArgs),
    /// Leave for good: the gateway forgets this node
    Leave(LeaveArgs),
    /// Show exactly what would leave this machine for a job; nothing is sent
    Preview(PreviewArgs),
    /// List the keys by which this node knows others in secure rounds, or forget one; and this node's own key
    Pins(pins::PinsArgs),
    /// List the nodes of a gateway
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Show one node
    Show(NameArgs),
    /// Shut a node out at once
    Revoke(NameArgs),
}

/// Which nodes.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Wait (at most a minute) until this many nodes are connected
    #[arg(long, value_name = "NODES", default_value_t = 0)]
    wait: usize,
    #[command(flatten)]
    client: ClientArgs,
}

/// Longest wait for nodes.
const WAIT_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// Which node.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// The name it was enrolled under
    name: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: NodeCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        NodeCommand::Join(args) => node::join(node::JoinOptions { seal: environment.seal(), ..args.into() }).await,
        NodeCommand::Leave(args) => {
            node::leave(args.dir.clone(), environment.seal()).await?;
            out::line(&format!("left; {} may be removed (sent.log says what this node has sent)", args.dir.display()));
            Ok(())
        }
        NodeCommand::Preview(args) => preview::run(&args, environment).await,
        NodeCommand::Pins(args) => pins::run(&args, environment),
        NodeCommand::Ls(args) => list(&args, environment).await,
        NodeCommand::Show(args) => show(&args, environment).await,
        NodeCommand::Revoke(args) => {
            let client = find(&args.client.connection, environment)?;
            let path = format!("nodes/{}/revoke", segment("node's name", &args.name)?);
            let answer: Value = client.post(&path, &json!({})).await?;
            if args.client.json {
                out::document(&answer)
            } else {
                out::line(&format!("{} is revoked", args.name))
            }
            Ok(())
        }
    }
}

async fn list(args: &ListArgs, environment: &Environment) -> Result<(), CliError> {
    let client = find(&args.client.connection, environment)?;
    let mut left = WAIT_MAX;
    let list: Value = loop {
        let list: Value = client.get("nodes").await?;
        // A node that has connected is of use once it has said what it has.
        let there =
            items(&list, "nodes").iter().filter(|n| n["status"] == "connected" && !n["version"].is_null()).count();
        if there >= args.wait {
            break list;
        }
        if left.is_zero() {
            let message = format!("only {there} of {} nodes have connected within {} s", args.wait, WAIT_MAX.as_secs());
            return Err(
                CliError::new(ExitCode::Unavailable, message).hint("what the nodes say is on their own screens")
            );
        }
        tokio::time::sleep(LOOK).await;
        left = left.saturating_sub(LOOK);
    };
    let row = |n: &Value| {
        let data: Vec<_> =
            items(n, "data").iter().map(|d| format!("{} ({} rows)", cell(&d["name"]), cell(&d["rows"]))).collect();
        vec![
            cell(&n["name"]),
            cell(&n["status"]),
            cell(&n["node_types"]),
            n["compute_gflops"].as_f64().map_or_else(|| "-".into(), |g| format!("{g:.1}")),
            n["memory_gb"].as_f64().map_or_else(|| "-".into(), |g| format!("{g:.1}")),
            cell(&n["serves"]),
            if data.is_empty() { "-".into() } else { data.join(", ") },
            cell(&n["last_seen"]),
        ]
    };
    let rows = items(&list, "nodes").iter().map(row).collect();
    let header = ["NAME", "STATUS", "TYPES", "GFLOPS", "MEMORY GB", "SERVES", "DATA", "LAST SEEN"];
    out::listing(
        args.client.json,
        &list,
        &header,
        rows,
        "no nodes: invite one with `aivillage token create --role node --owner NAME`",
    );
    Ok(())
}

async fn show(args: &NameArgs, environment: &Environment) -> Result<(), CliError> {
    let list: Value = find(&args.client.connection, environment)?.get("nodes").await?;
    let node = items(&list, "nodes").iter().find(|n| n["name"] == args.name.as_str()).ok_or_else(|| {
        CliError::new(ExitCode::NotFound, format!("no node `{}` is enrolled", args.name)).hint("aivillage node ls")
    })?;
    if args.client.json {
        out::document(node);
        return Ok(());
    }
    let data: Vec<_> = items(node, "data")
        .iter()
        .map(|d| {
            format!(
                "{}: {} rows of shape {}, {}",
                cell(&d["name"]),
                cell(&d["rows"]),
                d["input"],
                cell(&d["task"]["kind"])
            )
        })
        .collect();
    let names = [
        "name",
        "node_id",
        "status",
        "node_types",
        "version",
        "cores",
        "compute_gflops",
        "memory_gb",
        "serves",
        "last_seen",
    ];
    let mut pairs: Vec<_> = names.iter().map(|n| (*n, cell(&node[*n]))).collect();
    pairs.push(("data", if data.is_empty() { "-".into() } else { data.join("; ") }));
    out::line(&out::fields(&pairs));
    Ok(())
}
