//! Rule: `Cargo.lock` is committed.

use super::tree::Tree;
use super::{Finding, Rule};

pub(super) const RULE: Rule = Rule {
    name: "lockfile",
    why: "the program that users build must be the one that was tested",
    mend: "`git add Cargo.lock`, and keep it out of .gitignore",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    if tree.file("Cargo.lock").is_some_and(|file| file.tracked) {
        return Vec::new();
    }
    vec![Finding { path: "Cargo.lock".to_owned(), line: 1, what: "not known to git".to_owned() }]
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::check;

    #[test]
    fn a_lock_file_known_to_git_is_accepted() {
        assert_eq!(check(&Tree::of(&[("Cargo.lock", "")])), []);
    }

    #[test]
    fn a_lock_file_that_is_missing_or_not_added_is_refused() {
        assert_eq!(check(&Tree::of(&[])).len(), 1);
        let mut tree = Tree::of(&[("Cargo.lock", "")]);
        tree.files[0].tracked = false;
        assert_eq!(check(&tree).len(), 1);
    }
}
