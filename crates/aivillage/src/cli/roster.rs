//! `aivillage roster`: who may be in a secure round, written down and signed outside of the gateway.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use aivillage_base::{NodeId, NodeName};
use aivillage_link::Identity;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::args::Connection;
use super::out::{self, items};
use crate::client::find;
use crate::config::Environment;
use crate::exit::{CliError, ExitCode};
use crate::folder::write_whole;
use crate::node::NodeFolder;
use crate::roster::{Roster, RosterError};

/// Fewer nodes than this are no cohort of secure aggregation.
const COHORT_MIN: usize = 3;

/// Who may be in a secure round: a file of names and keys, signed outside of the gateway
#[derive(Debug, Subcommand)]
pub enum RosterCommand {
    /// Write a roster of the nodes that a gateway has enrolled, or of those given
    Create(CreateArgs),
    /// Add a signature with a node's key
    Sign(SignArgs),
    /// Check a roster's signatures; show its nodes, its signers and its fingerprint
    Show(ShowArgs),
}

/// Of whom, and where to.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// File to write; it must not exist
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// A node and its key, as its owner says them; may be repeated [else all nodes of the gateway that are not revoked]
    #[arg(long = "node", value_name = "NAME=KEY", value_parser = named_key)]
    nodes: Vec<(NodeName, NodeId)>,
    #[command(flatten)]
    connection: Connection,
}

/// Which roster, and whose key.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The roster
    file: PathBuf,
    /// Folder of the node whose key signs
    #[arg(long, value_name = "DIR", required_unless_present = "key", conflicts_with = "key")]
    dir: Option<PathBuf>,
    /// File of the key that signs (identity.key)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Which roster.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The roster
    file: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// `NAME=KEY`.
fn named_key(text: &str) -> Result<(NodeName, NodeId), String> {
    let (name, key) = text.split_once('=').ok_or("write it as NAME=KEY")?;
    Ok((NodeName::new(name).map_err(|e| e.to_string())?, key.parse().map_err(|e| format!("{e}"))?))
}

pub(super) async fn run(command: RosterCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        RosterCommand::Create(args) => create(&args, environment).await,
        RosterCommand::Sign(args) => sign(&args, environment),
        RosterCommand::Show(args) => show(&args),
    }
}

async fn create(args: &CreateArgs, environment: &Environment) -> Result<(), CliError> {
    let mut nodes = BTreeMap::new();
    for (name, key) in &args.nodes {
        if nodes.insert(name.clone(), *key).is_some() {
            return Err(CliError::new(ExitCode::Usage, format!("{name} is given twice")));
        }
    }
    if args.nodes.is_empty() {
        nodes = enrolled(&args.connection, environment).await?;
    }
    let count = nodes.len();
    let roster = Roster::new(nodes).map_err(|why| CliError::new(ExitCode::Failed, format!("no roster: {why}")))?;
    let mut file = File::create_new(&args.output).map_err(|e| written(&args.output, &e))?;
    file.write_all(roster.render().as_bytes()).map_err(|e| written(&args.output, &e))?;
    out::line(&format!("{}: {count} nodes, fingerprint {}", args.output.display(), roster.fingerprint()));
    if count < COHORT_MIN {
        out::note(&format!("a secure round has at least {COHORT_MIN} participants: this roster allows none"));
    }
    out::note(&format!(
        "Before anybody signs: compare each key with what its owner sees (aivillage node pins --dir DIR), not with the \
         gateway. Then: aivillage roster sign {} --dir DIR",
        args.output.display()
    ));
    Ok(())
}

/// Names and keys of the nodes that a gateway has enrolled.
async fn enrolled(connection: &Connection, environment: &Environment) -> Result<BTreeMap<NodeName, NodeId>, CliError> {
    let list: Value = find(connection, environment)?.get("nodes").await?;
    let strange = || CliError::new(ExitCode::Failed, "the gateway lists a node whose name or key cannot be read");
    let living = items(&list, "nodes").iter().filter(|node| node["status"] != "revoked");
    let pair = |node: &Value| {
        Some((serde_json::from_value(node["name"].clone()).ok()?, node["node_id"].as_str()?.parse().ok()?))
    };
    living.map(|node| pair(node).ok_or_else(strange)).collect()
}

fn written(path: &Path, error: &std::io::Error) -> CliError {
    let told = CliError::new(ExitCode::Failed, format!("cannot write {}: {error}", path.display()));
    if error.kind() != std::io::ErrorKind::AlreadyExists {
        return told;
    }
    CliError { code: ExitCode::Conflict, ..told }
        .hint("a roster is not overwritten, others may have signed it: choose another name, or remove it")
}

fn read(path: &Path) -> Result<Roster, CliError> {
    Roster::read(path).map_err(|error| {
        let code = match &error {
            RosterError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ExitCode::NotFound
            }
            RosterError::Unreadable { .. } => ExitCode::Failed,
            RosterError::Damaged { .. } => ExitCode::Configuration,
            RosterError::BadSignature { .. } | RosterError::NotSigned { .. } => ExitCode::Refused,
        };
        CliError::new(code, error.to_string())
    })
}

fn sign(args: &SignArgs, environment: &Environment) -> Result<(), CliError> {
    let mut roster = read(&args.file).map_err(|e| {
        if e.code != ExitCode::Refused {
            return e;
        }
        e.hint("take the signatures out of the file if its nodes are right, and let all sign again")
    })?;
    let identity = match (&args.dir, &args.key) {
        (Some(dir), _) => NodeFolder::open(dir)?.sealed(environment.seal()).existing_identity()?,
        (None, Some(key)) if !key.exists() => {
            return Err(CliError::new(ExitCode::NotFound, format!("there is no key {}", key.display())));
        }
        (None, key) => Identity::open_or_create(key.as_deref().unwrap_or(Path::new("")), environment.seal().as_ref())
            .map_err(|e| CliError::new(ExitCode::Failed, e.to_string()))?,
    };
    if !roster.sign(&identity) {
        out::line(&format!("{} has signed {} before", identity.id(), args.file.display()));
        return Ok(());
    }
    write_whole(&args.file, roster.render().as_bytes()).map_err(|e| written(&args.file, &e))?;
    out::line(&format!("signed by {}, fingerprint {}", identity.id(), roster.fingerprint()));
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), CliError> {
    let roster = read(&args.file)?;
    let signers: Vec<Value> = roster.signers().map(|key| json!({"key": key, "name": roster.name_of(&key)})).collect();
    if args.json {
        out::document(&json!({
            "fingerprint": roster.fingerprint(),
            "nodes": roster.nodes().iter().map(|(name, key)| json!({"name": name, "key": key})).collect::<Vec<_>>(),
            "signers": signers,
        }));
        return Ok(());
    }
    let rows = roster.nodes().iter().map(|(name, key)| {
        let signed = if roster.signers().any(|by| by == *key) { "yes" } else { "-" };
        vec![name.to_string(), key.to_string(), signed.to_owned()]
    });
    out::line(&out::table(&["NAME", "KEY", "SIGNED"], rows.collect()));
    for key in roster.signers().filter(|key| roster.name_of(key).is_none()) {
        out::line(&format!("signed by {key}, which is none of these nodes"));
    }
    if signers.is_empty() {
        out::line("nobody has signed it");
    }
    out::line(&format!("fingerprint {}", roster.fingerprint()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_its_key_are_written_with_an_equals_sign() {
        let (name, key) = named_key(&format!("north={}", "0a".repeat(32))).unwrap();
        assert_eq!((name.as_str(), key), ("north", NodeId([10; 32])));
        for bad in ["north", "north=", "=00", "north=0a"] {
            assert!(named_key(bad).is_err(), "{bad}");
        }
    }
}
