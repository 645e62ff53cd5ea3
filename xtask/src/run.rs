//! Running other programs: in the workspace's folder, without what `cargo run` left in the environment.
//!
//! Promises: an error names the command line and what the program answered. It must not know what
//! the programs are for.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// `cargo run` sets these for us; build scripts that watch them would rebuild for nothing when a
/// nested cargo inherits them.
const FROM_CARGO_RUN: [&str; 8] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// A command line with its environment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// Program and arguments, separated by single spaces: none of ours holds a space.
    pub(crate) words: &'a str,
    pub(crate) env: &'a [(&'a str, &'a str)],
}

impl<'a> Line<'a> {
    pub(crate) const fn new(words: &'a str) -> Self {
        Self { words, env: &[] }
    }

    fn command(&self, root: &Path) -> Command {
        let mut words = self.words.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(root);
        for name in FROM_CARGO_RUN {
            command.env_remove(name);
        }
        command.envs(self.env.iter().copied());
        command
    }

    /// Runs with our own terminal and waits.
    ///
    /// # Errors
    /// The program is missing, or ended otherwise than with 0.
    pub(crate) fn show(&self, root: &Path) -> Result<()> {
        let status = self
            .command(root)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot start `{}`", self.words))?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.words);
        }
        Ok(())
    }

    /// Runs and returns what the program wrote to its standard output.
    ///
    /// # Errors
    /// The program is missing, or ended otherwise than with 0 (with what it wrote to standard error),
    /// or did not write UTF-8.
    pub(crate) fn read(&self, root: &Path) -> Result<String> {
        let output = self
            .command(root)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", self.words))?;
        if !output.status.success() {
            bail!("`{}` ended with {}: {}", self.words, output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{}` did not write UTF-8", self.words))
    }

    /// Whether the program is there and answers with 0; writes nothing.
    pub(crate) fn answers(&self, root: &Path) -> bool {
        self.read(root).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Line;
    use crate::root;

    #[test]
    fn output_is_read() {
        let text = Line::new("cargo --version").read(&root()).expect("cargo runs");
        assert!(text.starts_with("cargo "), "{text}");
    }

    #[test]
    fn a_missing_program_and_a_failing_one_are_named() {
        let missing = Line::new("no-such-program-here --x").read(&root());
        assert!(format!("{:#}", missing.unwrap_err()).contains("`no-such-program-here --x`"));
        let failing = Line::new("cargo no-such-command-here").read(&root());
        let text = format!("{:#}", failing.unwrap_err());
        assert!(text.contains("`cargo no-such-command-here` ended with"), "{text}");
    }
}
