//! `aivillage helper`: take masks away for a gateway of another owner.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::JoinArgs;
use super::out;
use crate::config::Environment;
use crate::exit::CliError;
use crate::node::{self, NodeFolder};

/// Be the helper of a gateway of another owner: rounds in which neither of the two can read an update alone
#[derive(Debug, Subcommand)]
pub enum HelperCommand {
    /// Join a gateway with a one-time token, and run; later: run again
    Join(JoinArgs),
    /// Show this helper's key, which owners of nodes list in `privacy.helpers` of node.yaml
    Key(KeyArgs),
}

/// Whose key.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Folder of the helper
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A document for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: HelperCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        HelperCommand::Join(args) => {
            node::join(node::JoinOptions { seal: environment.seal(), helper: true, ..args.into() }).await
        }
        HelperCommand::Key(args) => {
            let id = NodeFolder::open(&args.dir)?.sealed(environment.seal()).identity()?.id();
            if args.json {
                out::document(&json!({ "helper_key": id }))
            } else {
                out::line(&id.to_string())
            }
            Ok(())
        }
    }
}
