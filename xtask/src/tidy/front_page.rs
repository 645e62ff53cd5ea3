//! Rule: every Rust file begins with `//!`, and the root file of every crate is a front page.
//!
//! The front page of a crate is its `lib.rs`; of a crate that is only a program, its `main.rs`.

use super::tree::Tree;
use super::{Finding, Rule};

/// The shortest front page of a crate, lines: below, purpose, promises and what it must not know do not
/// fit.
const FRONT_PAGE_LINES_MIN: usize = 8;

pub(super) const RULE: Rule = Rule {
    name: "front-page",
    why: "the reader decides in ten seconds whether this is the file to read",
    mend: "begin with `//!`: what it is for, what it promises, what it must not know",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    let mut found = tree.each_rust(file);
    for package in &tree.packages {
        let roots = ["lib.rs", "main.rs"].map(|name| format!("{}/src/{name}", package.folder));
        let root = roots.iter().find_map(|path| tree.file(path));
        let Some((root, text)) = root.and_then(|root| Some((root, root.text.as_deref()?))) else {
            continue;
        };
        let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
        if lines < FRONT_PAGE_LINES_MIN {
            found.push(Finding {
                path: root.path.clone(),
                line: 1,
                what: format!(
                    "the front page of crate `{}` has {lines} line(s) of `//!`, at least {FRONT_PAGE_LINES_MIN} are asked for",
                    package.name
                ),
            });
        }
    }
    found
}

fn file(path: &str, text: &str) -> Vec<Finding> {
    let first = text.lines().next().unwrap_or_default();
    let says_something = first.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty());
    if says_something {
        return Vec::new();
    }
    vec![Finding {
        path: path.to_owned(),
        line: 1,
        what: "the first line is not `//!` with the file's purpose".to_owned(),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Package, Tree};
    use super::{check, file};

    fn crate_with(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::of(files);
        tree.packages.push(Package { name: "a".to_owned(), folder: "crates/a".to_owned(), dependencies: Vec::new() });
        tree
    }

    #[test]
    fn a_purpose_in_the_first_line_is_accepted() {
        assert_eq!(file("a.rs", "//! What it is for.\nfn a() {}\n"), []);
    }

    #[test]
    fn a_file_without_a_purpose_is_refused() {
        for text in ["", "fn a() {}\n", "// no doc\n", "//!\nfn a() {}\n", "\n//! late\n"] {
            assert_eq!(file("build.rs", text).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn a_crate_needs_a_page_and_not_a_line() {
        let page = "//! x\n".repeat(8);
        assert_eq!(check(&crate_with(&[("crates/a/src/lib.rs", &page)])), []);
        let found = check(&crate_with(&[("crates/a/src/main.rs", "//! x\n//! y\n")]));
        assert!(found[0].what.contains("has 2 line(s)"), "{found:?}");
    }

    #[test]
    fn a_program_beside_a_library_needs_no_second_page() {
        let page = "//! x\n".repeat(8);
        let tree = crate_with(&[("crates/a/src/lib.rs", &page), ("crates/a/src/main.rs", "//! x\n")]);
        assert_eq!(check(&tree), []);
    }
}
