//! `aivillage`: parse, log, run, exit. Everything else is in the library, where tests can reach it.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use aivillage::cli::{self, Cli, Command};
use aivillage::config::Environment;
use aivillage::exit::{CliError, ExitCode};
use clap::Parser as _;
use tracing_subscriber::filter::LevelFilter;

fn main() -> std::process::ExitCode {
    // Exits with code 2 by itself on a wrong command line, and with 0 after --help.
    let command = Cli::parse().command;
    // A panic has printed where it happened; what is left is the exit code that says: a bug.
    match catch_unwind(AssertUnwindSafe(|| start(command))) {
        Ok(Ok(())) => std::process::ExitCode::SUCCESS,
        Ok(Err(error)) => {
            // Faults of a configuration begin each with that word themselves.
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let _written = writeln!(std::io::stderr(), "error: {text}");
            std::process::ExitCode::from(error.code as u8)
        }
        Err(_) => {
            let _written =
                writeln!(std::io::stderr(), "error: this is a bug of aivillage; please report the lines above");
            std::process::ExitCode::from(ExitCode::Bug as u8)
        }
    }
}

fn start(command: Command) -> Result<(), CliError> {
    let environment = Environment::read().map_err(|e| CliError::new(ExitCode::Configuration, e.to_string()))?;
    log(&command, environment.production);
    let mut builder = match command {
        // Rooms block nowhere on the runtime: two threads carry a gateway, and each costs memory.
        Command::Up(_) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        // Training runs on blocking threads; everything else of a node or a client is one task at a time.
        Command::Demo(_)
        | Command::Status(_)
        | Command::Token(_)
        | Command::Node(_)
        | Command::Helper(_)
        | Command::Data(_)
        | Command::Train(_)
        | Command::Models(_)
        | Command::Roster(_)
        | Command::Infer(_)
        | Command::Aggregate(_)
        | Command::Config(_)
        | Command::Bench(_)
        | Command::Completions { .. } => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build().map_err(|e| {
        CliError::new(ExitCode::Failed, format!("cannot start: {e}"))
            .hint("are there too many processes or open files?")
    })?;
    let result = runtime.block_on(cli::run(command, environment));
    // What still runs on a blocking thread (a training step, a read of stdin) must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// Logs to stderr: what happens for those that serve, warnings for the others; JSON in production.
fn log(command: &Command, production: bool) {
    let level = if command.serves() { LevelFilter::INFO } else { LevelFilter::WARN };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    if production {
        builder.json().with_target(true).init();
    } else {
        builder.with_ansi(console::colors_enabled_stderr()).init();
    }
}
