//! Rule: the test command in the README is the one that `.ci/run` calls, and that is all `.ci/run` tests.

use super::tree::Tree;
use super::{Finding, Rule};

const COMMAND: &str = "cargo xtask test";
const CI: &str = ".ci/run";
const README: &str = "README.md";

pub(super) const RULE: Rule = Rule {
    name: "test-command",
    why: "a check that only CI knows fails where nobody can repeat it",
    mend: "`.ci/run` ends with the line `cargo xtask test`, and a code block of README.md shows it",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    let text = |path: &str| tree.file(path).and_then(|file| file.text.as_deref());
    let mut found = Vec::new();
    let mut add = |path: &str, line: usize, what: String| {
        found.push(Finding { path: path.to_owned(), line, what });
    };
    match text(CI) {
        None => add(CI, 1, "missing".to_owned()),
        Some(script) => {
            let calls: Vec<(usize, &str)> = calls(script);
            for (line, call) in calls.iter().filter(|(_, call)| *call != COMMAND) {
                add(CI, *line, format!("calls `{call}`, not `{COMMAND}`"));
            }
            if calls.is_empty() {
                add(CI, 1, format!("does not call `{COMMAND}`"));
            }
        }
    }
    match text(README) {
        None => add(README, 1, "missing".to_owned()),
        Some(page) if !shown(page).any(|line| line == COMMAND) => {
            add(README, 1, format!("no code block shows `{COMMAND}`"));
        }
        Some(_) => {}
    }
    found
}

/// The lines of a script that call cargo, counted from 1.
fn calls(script: &str) -> Vec<(usize, &str)> {
    let lines = script.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| line.split(' ').next() == Some("cargo")).collect()
}

/// The lines in the fenced code blocks of a page, without prompt and remark.
fn shown(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with("```") {
            inside = !inside;
            return None;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        inside.then(|| line.split(" #").next().unwrap_or(line).trim())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{CI, README, check};

    const SCRIPT: &str = "#!/usr/bin/env bash\n# cargo test is not called\ncommand -v cargo\ncargo xtask test\n";
    const PAGE: &str = "# x\n```sh\n$ cargo xtask test   # everything\n```\n";

    #[test]
    fn one_command_in_both_is_accepted() {
        assert_eq!(check(&Tree::of(&[(CI, SCRIPT), (README, PAGE)])), []);
    }

    #[test]
    fn another_command_in_ci_is_refused() {
        let script = format!("{SCRIPT}cargo xtask test --quick\n");
        let found = check(&Tree::of(&[(CI, &script), (README, PAGE)]));
        assert_eq!((found.len(), found[0].line), (1, 5));
        assert_eq!(check(&Tree::of(&[(CI, "echo ok\n"), (README, PAGE)])).len(), 1);
    }

    #[test]
    fn a_readme_that_does_not_show_it_in_a_block_is_refused() {
        let prose = "Run cargo xtask test.\n```sh\ncargo test\n```\ncargo xtask test\n";
        assert_eq!(check(&Tree::of(&[(CI, SCRIPT), (README, prose)]))[0].path, README);
    }

    #[test]
    fn missing_files_are_named() {
        let paths: Vec<_> = check(&Tree::of(&[])).into_iter().map(|one| one.path).collect();
        assert_eq!(paths, [CI, README]);
    }
}
