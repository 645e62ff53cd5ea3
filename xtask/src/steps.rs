//! `cargo xtask test`: the steps, in their order, timed, until the first failure.
//!
//! Promises: each step is announced with the exact command that runs it, so that it can be repeated
//! alone; a failure names the step and the mend. It must not know what a step checks.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::run::Line;
use crate::{tidy, tools};

/// One check.
#[derive(Debug)]
struct Step {
    name: &'static str,
    /// `None`: the house rules, which run in this process.
    line: Option<Line<'static>>,
    mend: &'static str,
}

const FORMAT: Step =
    Step { name: "format", line: Some(Line::new("cargo fmt --all --check")), mend: "run `cargo fmt --all`" };
const LINTS: Step = Step {
    name: "lints",
    line: Some(Line::new("cargo clippy --workspace --all-targets --locked -- -D warnings")),
    mend: "mend what clippy names above; a lint that is wrong here gets `#[expect(.., reason = \"..\")]`",
};
const ORACLES: Step = Step {
    name: "oracles",
    line: Some(Line::new("python3 crates/training/tests/oracle/prepare.py")),
    mend: "install Python 3.11 or newer with venv, and let it reach a package index this once",
};
const TESTS: Step = Step {
    name: "tests",
    line: Some(Line::new("cargo nextest run --workspace --locked")),
    mend: "repeat one test by `cargo nextest run -p PACKAGE NAME`",
};
const DOC_TESTS: Step = Step {
    name: "doc tests",
    line: Some(Line::new("cargo test --doc --workspace --locked")),
    mend: "mend the example in the doc comment named above",
};
const DOCS: Step = Step {
    name: "docs",
    line: Some(Line { words: "cargo doc --workspace --no-deps --locked", env: &[("RUSTDOCFLAGS", "-D warnings")] }),
    mend: "mend the link or the mark-up that rustdoc names above",
};
const HOUSE_RULES: Step =
    Step { name: "house rules", line: None, mend: "mend what is listed above; repeat alone by `cargo xtask tidy`" };

/// The whole test: cheap steps first, so that a slip is named early.
const ALL: [Step; 7] = [FORMAT, LINTS, ORACLES, TESTS, DOC_TESTS, DOCS, HOUSE_RULES];
/// While writing: the house rules take a second and come before the tests.
const QUICK: [Step; 4] = [FORMAT, HOUSE_RULES, ORACLES, TESTS];

/// Runs the checks; `quick` = format, house rules and tests (with their oracles) only.
///
/// # Errors
/// A tool is missing and cannot be installed, or a step failed.
pub(crate) fn run(root: &Path, quick: bool) -> Result<()> {
    tools::ensure(root, quick)?;
    let steps: &[Step] = if quick { &QUICK } else { &ALL };
    let mut times = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let place = format!("[{}/{}] {}", index + 1, steps.len(), step.name);
        println!("\n=== {place}: {}", step.command());
        let started = now();
        let outcome = match step.line {
            Some(line) => line.show(root),
            None => tidy::run(root),
        };
        times.push((step.name, started.elapsed()));
        if let Err(cause) = outcome {
            println!("\n{}", table(&times));
            return Err(anyhow!("step {place} FAILED: {cause:#}\n  mend: {}", step.mend));
        }
    }
    println!("\n{}\nall {} steps passed", table(&times), steps.len());
    Ok(())
}

impl Step {
    /// What to type to repeat this step alone.
    fn command(&self) -> String {
        let Some(line) = self.line else {
            return "cargo xtask tidy".to_owned();
        };
        let env: String = line.env.iter().map(|(name, value)| format!("{name}=\"{value}\" ")).collect();
        format!("{env}{}", line.words)
    }
}

fn table(times: &[(&str, Duration)]) -> String {
    let total: Duration = times.iter().map(|(_, took)| *took).sum();
    times
        .iter()
        .copied()
        .chain([("total", total)])
        .map(|(name, took)| format!("{name:<12} {:>7.1} s", took.as_secs_f64()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[expect(clippy::disallowed_methods, reason = "a stopwatch for people: no check depends on what it shows")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ALL, QUICK, table};

    #[test]
    fn the_whole_test_runs_these_commands_in_this_order() {
        let commands: Vec<String> = ALL.iter().map(super::Step::command).collect();
        assert_eq!(
            commands,
            [
                "cargo fmt --all --check",
                "cargo clippy --workspace --all-targets --locked -- -D warnings",
                "python3 crates/training/tests/oracle/prepare.py",
                "cargo nextest run --workspace --locked",
                "cargo test --doc --workspace --locked",
                "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps --locked",
                "cargo xtask tidy",
            ]
        );
    }

    #[test]
    fn the_quick_test_is_a_part_of_the_whole() {
        let whole: Vec<String> = ALL.iter().map(super::Step::command).collect();
        assert!(QUICK.iter().all(|step| whole.contains(&step.command())));
    }

    #[test]
    fn times_are_listed_with_their_sum() {
        let times = [("format", Duration::from_millis(1_500)), ("tests", Duration::from_secs(60))];
        assert_eq!(table(&times), "format           1.5 s\ntests           60.0 s\ntotal           61.5 s");
    }
}
