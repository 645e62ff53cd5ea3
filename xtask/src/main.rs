//! `cargo xtask`: the one door to the house's own checks.
//!
//! - `cargo xtask test`: format, lints, tests, doc tests, docs and the house rules, in this order;
//!   stops at the first failure, names it, and prints what each step took. CI calls just that.
//! - `cargo xtask test --quick`: format, house rules and tests: the loop while writing.
//! - `cargo xtask tidy`: the house rules alone (a second); each lives in a file under `tidy/`.
//!
//! Promises: exit code 0 = all passed, 1 = a check failed, 2 = wrong usage; a missing tool is
//! installed or its installation is spelled out. It must not know any room of the house, and it has no
//! dependency beyond JSON and errors, so that it builds in seconds.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program: its output is its interface")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod run;
mod steps;
mod tidy;
mod tools;

const USAGE: &str = "\
usage: cargo xtask test [--quick]   every check of the house (--quick: format, house rules, tests)
       cargo xtask tidy             the house rules alone";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Test { quick: bool },
    Tidy,
    Help,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match parse(&words) {
        Ok(Command::Test { quick }) => steps::run(&root(), quick),
        Ok(Command::Tidy) => tidy::run(&root()),
        Ok(Command::Help) => {
            println!("{USAGE}");
            Ok(())
        }
        Err(problem) => {
            eprintln!("xtask: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[&str]) -> Result<Command, String> {
    match words {
        ["test"] => Ok(Command::Test { quick: false }),
        ["test", "--quick"] => Ok(Command::Test { quick: true }),
        ["tidy"] => Ok(Command::Tidy),
        ["help" | "--help" | "-h"] => Ok(Command::Help),
        [] => Err("no command given".to_owned()),
        ["test" | "tidy", rest @ ..] => Err(format!("unknown option `{}`", rest.join(" "))),
        [other, ..] => Err(format!("unknown command `{other}`")),
    }
}

/// The workspace's folder: the parent of this package.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("invariant: xtask/ lies in the workspace").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::{Command, parse};

    #[test]
    fn each_command_is_understood() {
        assert_eq!(parse(&["test"]), Ok(Command::Test { quick: false }));
        assert_eq!(parse(&["test", "--quick"]), Ok(Command::Test { quick: true }));
        assert_eq!(parse(&["tidy"]), Ok(Command::Tidy));
        assert_eq!(parse(&["--help"]), Ok(Command::Help));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(parse(&[]), Err("no command given".to_owned()));
        assert_eq!(parse(&["tset"]), Err("unknown command `tset`".to_owned()));
        assert_eq!(parse(&["test", "--fast"]), Err("unknown option `--fast`".to_owned()));
    }
}
