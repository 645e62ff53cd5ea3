//! Rule: no text names a place of the machine it was written on.

use super::tree::Tree;
use super::{Finding, Rule};

/// Folders that exist on somebody's machine only; written in two halves, so that this file does not break its
/// own rule.
const PLACES: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

pub(super) const RULE: Rule = Rule {
    name: "machine-path",
    why: "what works at one place only breaks for everyone who clones the house",
    mend: "name it relative to the workspace, or take it as an argument",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for file in &tree.files {
        let Some(text) = &file.text else { continue };
        for (index, line) in text.lines().enumerate() {
            if let Some(place) = PLACES.iter().find(|place| begins_path(line, place)) {
                found.push(Finding {
                    path: file.path.clone(),
                    line: index + 1,
                    what: format!("path of one machine: {place}"),
                });
            }
        }
    }
    found
}

/// Whether `place` begins an absolute path in `line`: `docs/<place>` and `https://host/<place>` do not.
fn begins_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"_-.~/}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{PLACES, check};

    #[test]
    fn paths_of_a_machine_are_refused_in_any_text() {
        for place in PLACES {
            let text = format!("first\nsee \"{place}notes\"\n");
            let found = check(&Tree::of(&[("docs/a.md", &text)]));
            assert_eq!((found.len(), found[0].line), (1, 2), "{place}");
        }
    }

    #[test]
    fn relative_paths_and_addresses_are_accepted() {
        for place in PLACES {
            let text = format!("docs{place}a https://host{place}a ..{place}a ${{DIR}}{place}a\n");
            assert_eq!(check(&Tree::of(&[("docs/a.md", &text)])), [], "{text}");
        }
    }
}
