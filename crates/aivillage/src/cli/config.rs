//! `aivillage config`: check, show, schema.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::out;
use crate::config::{self, ConfigError, Environment};
use crate::exit::{CliError, ExitCode};

/// The configuration: check it, show it, or its schema
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file and the environment, and name what is configured but not built in this version
    Check(ConfigArgs),
    /// Print every value that is in effect
    Show(ConfigArgs),
    /// Print the JSON Schema of federated.yaml
    Schema,
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The file [else config/federated.yaml, ../config/, /etc/aivillage/, else built-in values]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// A configuration's error as an exit.
pub(crate) fn broken(error: &ConfigError) -> CliError {
    CliError::new(ExitCode::Configuration, error.to_string())
}

pub(super) fn run(command: &ConfigCommand, environment: &Environment) -> Result<(), CliError> {
    match command {
        ConfigCommand::Check(args) => check(args, environment),
        ConfigCommand::Show(args) => show(args, environment),
        ConfigCommand::Schema => {
            out::document(&config::schema());
            Ok(())
        }
    }
}

fn check(args: &ConfigArgs, environment: &Environment) -> Result<(), CliError> {
    let loaded = config::load(args.config.as_deref(), environment).map_err(|e| broken(&e))?;
    let unkept = config::not_in_effect(&loaded.config);
    if args.json {
        out::document(&json!({ "valid": true, "source": loaded.describe(), "not_in_effect": unkept }));
        return Ok(());
    }
    out::line(&format!("{}: valid", loaded.describe()));
    if unkept.is_empty() {
        out::line("everything that it promises is in effect");
    } else {
        out::line(&format!("{} of its values promise what this version does not build yet:", unkept.len()));
    }
    for entry in &unkept {
        out::line(&format!("  {entry}"));
    }
    Ok(())
}

fn show(args: &ConfigArgs, environment: &Environment) -> Result<(), CliError> {
    let loaded = config::load(args.config.as_deref(), environment).map_err(|e| broken(&e))?;
    if args.json {
        out::document(&json!({ "source": loaded.describe(), "federated_systems": loaded.config }));
    } else {
        out::text(&format!("# {}\n{}", loaded.describe(), config::show(&loaded.config)));
    }
    Ok(())
}
