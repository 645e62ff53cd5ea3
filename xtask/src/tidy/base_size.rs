//! Rule: the crate of shared words, `base`, stays under 2,500 lines: 2,000 of types, the rest the messages of secure aggregation.
//!
//! Sibling files of tests do not count: the cap is on what every room must know, not on its proof.

use super::tree::{Tree, is_test_file};
use super::{Finding, Rule};

const FOLDER: &str = "crates/base/";
const LINES_MAX: usize = 2_500;

pub(super) const RULE: Rule = Rule {
    name: "base-size",
    why: "a crate of shared types becomes the drawer for everything, and every room waits for it",
    mend: "move what one room alone uses into that room, and long tests to the sibling `NAME/tests.rs`",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    let lines: usize = tree
        .rust()
        .filter(|(path, _)| path.starts_with(FOLDER) && !is_test_file(path))
        .map(|(_, text)| text.lines().count())
        .sum();
    if lines <= LINES_MAX {
        return Vec::new();
    }
    vec![Finding {
        path: format!("{FOLDER}src/lib.rs"),
        line: 1,
        what: format!("the crate has {lines} lines, the limit is {LINES_MAX}"),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    #[test]
    fn lines_of_base_are_summed_over_its_files() {
        let (half, tests) = ("x\n".repeat(1_250), "x\n".repeat(700));
        let files = [("crates/base/src/a.rs", &*half), ("crates/base/src/b.rs", &*half)];
        assert_eq!(check(&Tree::of(&files)), []);
        let more = [files[0], files[1], ("crates/base/src/b/tests.rs", &tests), ("crates/fog/src/a.rs", &half)];
        assert_eq!(check(&Tree::of(&more)), []);
        let over = [files[0], files[1], ("crates/base/src/c.rs", "x\n")];
        assert_eq!(check(&Tree::of(&over))[0].what, "the crate has 2501 lines, the limit is 2500");
    }
}
