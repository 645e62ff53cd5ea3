//! The house rules that no compiler keeps: one file for each rule under `tidy/`.
//!
//! ```text
//! git ls-files, cargo metadata -> Tree -> RULES (pure) -> findings -> file:line, rule, why, mend
//! ```
//!
//! Promises: a rule is a pure function of the [`tree::Tree`], tested with samples that it accepts and
//! samples that it refuses; every finding says where, what, why and how to mend it. Files that are not
//! yet committed are checked too, ignored ones are not. A rule must not read files or start programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};

use tree::Tree;

mod base_size;
mod big_file;
mod file_length;
mod front_page;
mod function_length;
mod import_walls;
mod lint_reason;
mod lockfile;
mod machine_path;
mod rust;
mod test_command;
mod tree;
mod unfinished;

/// A house rule.
#[derive(Debug)]
struct Rule {
    name: &'static str,
    why: &'static str,
    mend: &'static str,
    check: fn(&Tree) -> Vec<Finding>,
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// From the workspace's folder, with `/`.
    path: String,
    /// Counted from 1.
    line: usize,
    what: String,
}

const RULES: [Rule; 11] = [
    import_walls::RULE,
    front_page::RULE,
    file_length::RULE,
    function_length::RULE,
    unfinished::RULE,
    lint_reason::RULE,
    base_size::RULE,
    big_file::RULE,
    machine_path::RULE,
    lockfile::RULE,
    test_command::RULE,
];

/// Checks the checkout at `root` against every rule.
///
/// # Errors
/// git or cargo could not be asked, or a rule is broken: all findings are printed first.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let mut count = 0;
    for rule in &RULES {
        let mut findings = (rule.check)(&tree);
        findings.sort();
        count += findings.len();
        print!("{}", report(rule, &findings));
    }
    if count > 0 {
        bail!("{count} place(s) break a house rule (listed above)");
    }
    println!("house rules: {} rules, {} files, nothing to mend", RULES.len(), tree.files.len());
    Ok(())
}

/// The findings of one rule for people; why and mend once for all of them.
fn report(rule: &Rule, findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { path, line, what } in findings {
        let _ = writeln!(text, "{path}:{line}: [{}] {what}", rule.name);
    }
    if !findings.is_empty() {
        let _ = writeln!(text, "    why:  {}\n    mend: {}\n", rule.why, rule.mend);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Finding, RULES, report};

    #[test]
    fn a_report_says_where_what_why_and_how_to_mend() {
        let rule = &RULES[0];
        let finding = Finding { path: "a/b.rs".to_owned(), line: 7, what: "too much".to_owned() };
        let text = report(rule, &[finding]);
        assert!(text.starts_with("a/b.rs:7: [import-walls] too much\n"), "{text}");
        assert!(text.contains(rule.why) && text.contains(rule.mend), "{text}");
        assert_eq!(report(rule, &[]), "");
    }

    #[test]
    fn each_rule_has_its_own_name() {
        let mut names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
