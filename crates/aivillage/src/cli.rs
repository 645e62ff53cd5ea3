//! The command line: what `aivillage` understands, and which module answers.
//!
//! ```text
//! main.rs ─ parse ─> Command ─┬─ up, node join        long-running, crate::up and crate::node
//!                             ├─ status, train, models, infer, token, node ls ...   clients of a gateway's HTTP API
//!                             ├─ config, data, aggregate, roster, completions     need no gateway
//!                             └─ demo, bench          start processes of this same program
//! ```
//!
//! Promise: results go to stdout (one JSON document with `--json`), everything else to stderr; a failure is a
//! [`CliError`] with an exit code of its own and, where one can do something, what to do. Must not know: how rooms work.

mod aggregate;
pub mod args;
pub mod bench;
mod config;
mod data;
mod helper;
mod infer;
mod models;
mod node;
pub mod out;
mod roster;
mod status;
mod token;
pub(crate) mod train;
pub mod watch;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::Environment;
use crate::demo;
use crate::exit::{CliError, ExitCode};
use args::UpArgs;

/// Federated training and inference on your own machines.
#[derive(Debug, Parser)]
#[command(name = "aivillage", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// See the whole idea work: a gateway and node processes on this machine train one model on real data
    Demo(demo::DemoArgs),
    /// Run a gateway on this machine: API, coordinators, node link, one built-in node
    Up(UpArgs),
    /// The house at a glance: who is there, what runs, what does not
    Status(status::StatusArgs),
    /// Let nodes, clients and operators in
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Be a node, or look after the nodes of a gateway
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Be the helper of a gateway of another owner: neither of the two can read an update alone
    #[command(subcommand)]
    Helper(helper::HelperCommand),
    /// Look at the data of a node before it joins
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Train one model on data that stays where it is
    #[command(subcommand)]
    Train(train::TrainCommand),
    /// The catalogue of models
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// Who may be in a secure round: a file of names and keys, signed outside of the gateway
    #[command(subcommand)]
    Roster(roster::RosterCommand),
    /// Ask a model for predictions
    Infer(infer::InferArgs),
    /// Recompute a round from files: any strategy, the coordinator's own code, no gateway
    Aggregate(aggregate::AggregateArgs),
    /// The configuration: check it, show it, or its schema
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Measure this version on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Completions for a shell, on stdout
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Does it run for long and serve others? Such commands log what they do; the others keep quiet.
    #[must_use]
    pub fn serves(&self) -> bool {
        match self {
            Self::Up(_) | Self::Node(node::NodeCommand::Join(_)) | Self::Helper(helper::HelperCommand::Join(_)) => true,
            Self::Demo(_)
            | Self::Status(_)
            | Self::Token(_)
            | Self::Node(_)
            | Self::Helper(_)
            | Self::Data(_)
            | Self::Train(_)
            | Self::Models(_)
            | Self::Roster(_)
            | Self::Infer(_)
            | Self::Aggregate(_)
            | Self::Config(_)
            | Self::Bench(_)
            | Self::Completions { .. } => false,
        }
    }
}

/// Does what the command line says.
///
/// # Errors
/// With the exit code and what to do.
pub async fn run(command: Command, environment: Environment) -> Result<(), CliError> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Up(args) => crate::up::run(args.into(), environment).await,
        Command::Status(args) => status::run(&args, &environment).await,
        Command::Token(command) => token::run(command, &environment).await,
        Command::Node(command) => node::run(command, &environment).await,
        Command::Helper(command) => helper::run(command, &environment).await,
        Command::Data(command) => data::run(&command),
        Command::Train(command) => train::run(command, &environment).await,
        Command::Models(command) => models::run(command, &environment).await,
        Command::Roster(command) => roster::run(command, &environment).await,
        Command::Infer(args) => infer::run(args, &environment).await,
        Command::Aggregate(args) => aggregate::run(&args),
        Command::Config(command) => config::run(&command, &environment),
        Command::Bench(command) => bench::run(command).await,
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "aivillage", &mut script);
    out::text(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Reads a text file that a command line names.
pub(crate) fn read_text(path: &std::path::Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::NotFound { ExitCode::NotFound } else { ExitCode::Failed };
        CliError::new(code, format!("cannot read {}: {e}", path.display()))
            .hint("check the file's name and permissions")
    })
}

/// A JSON or YAML document in a file; faults of the syntax are shown with line and caret.
pub(crate) fn read_document(path: &std::path::Path) -> Result<serde_json::Value, CliError> {
    let text = read_text(path)?;
    serde_saphyr::from_str(&text).map_err(|e| {
        CliError::new(ExitCode::Configuration, syntax(path, &text, &e)).hint("mend the line, then try again")
    })
}

/// A syntax error as people like to see it: place, line, caret.
fn syntax(path: &std::path::Path, text: &str, error: &serde_saphyr::Error) -> String {
    let why = error.without_snippet().to_string();
    let why = why.lines().next().unwrap_or_default();
    let Some(location) = error.location() else { return format!("{}: {why}", path.display()) };
    let (line, column) = (location.line() as usize, location.column() as usize);
    let excerpt = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let margin = line.to_string().len();
    format!(
        "{why}\n{:margin$}--> {}:{line}:{column}\n{:margin$} |\n{line} | {excerpt}\n{:margin$} | {:skip$}^",
        "",
        path.display(),
        "",
        "",
        "",
        skip = column.saturating_sub(1),
    )
}

/// One path segment of a URL: what the API takes as an id or a name.
///
/// # Errors
/// Text that no id can be.
pub(crate) fn segment<'a>(what: &str, text: &'a str) -> Result<&'a str, CliError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !text.is_empty() && text.len() <= 128 && text.chars().all(fits) {
        return Ok(text);
    }
    Err(CliError::new(
        ExitCode::Usage,
        format!("`{text}` cannot be a {what}: letters, digits, `.`, `_` and `-` are possible"),
    ))
}

#[cfg(test)]
mod tests;
