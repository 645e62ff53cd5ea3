//! Rule: no file over 1 MiB but the data sets in `data/`.

use super::tree::Tree;
use super::{Finding, Rule};

const BYTES_MAX: u64 = 1 << 20;
const DATA: &str = "data/";

pub(super) const RULE: Rule = Rule {
    name: "big-file",
    why: "git keeps every version for ever, and everyone who clones downloads it",
    mend: "fetch it by a script with its digest, or put a data set that must ship into data/",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    tree.files
        .iter()
        .filter(|file| file.bytes > BYTES_MAX && !file.path.starts_with(DATA))
        .map(|file| Finding {
            path: file.path.clone(),
            line: 1,
            what: format!("{} bytes, the limit is {BYTES_MAX}", file.bytes),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{BYTES_MAX, check};

    #[test]
    fn only_data_may_be_big() {
        let mut tree = Tree::of(&[("data/digits.csv", "x"), ("docs/film.gif", "x"), ("docs/a.png", "x")]);
        tree.files[0].bytes = BYTES_MAX + 1;
        tree.files[1].bytes = BYTES_MAX + 1;
        tree.files[2].bytes = BYTES_MAX;
        let found = check(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "docs/film.gif");
    }
}
