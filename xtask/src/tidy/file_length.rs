//! Rule: no Rust file over 500 lines, no file of tests over 800.
//!
//! Tests within the file count: once they are long they move to the sibling `NAME/tests.rs`.

use super::tree::{Tree, is_test_file};
use super::{Finding, Rule};

const CODE_LINES_MAX: usize = 500;
const TEST_LINES_MAX: usize = 800;

pub(super) const RULE: Rule = Rule {
    name: "file-length",
    why: "a file is read as a whole; past some screens nobody does",
    mend: "split it by the nouns in it, or move its tests to the sibling `NAME/tests.rs`",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    tree.each_rust(file)
}

fn file(path: &str, text: &str) -> Vec<Finding> {
    let limit = if is_test_file(path) { TEST_LINES_MAX } else { CODE_LINES_MAX };
    let lines = text.lines().count();
    if lines <= limit {
        return Vec::new();
    }
    vec![Finding { path: path.to_owned(), line: limit + 1, what: format!("{lines} lines, the limit is {limit}") }]
}

#[cfg(test)]
mod tests {
    use super::file;

    #[test]
    fn files_up_to_the_limit_are_accepted() {
        assert_eq!(file("src/a.rs", &"x\n".repeat(500)), []);
        assert_eq!(file("src/a/tests.rs", &"x\n".repeat(800)), []);
    }

    #[test]
    fn longer_files_are_refused_at_the_first_line_too_many() {
        let found = file("src/a.rs", &"x\n".repeat(501));
        assert_eq!((found[0].line, found[0].what.as_str()), (501, "501 lines, the limit is 500"));
        assert_eq!(file("tests/it/main.rs", &"x\n".repeat(801)).len(), 1);
    }
}
