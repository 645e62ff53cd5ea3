//! Rule: no function over 70 lines, from the line of its `fn` to its closing brace.

use super::rust::Rust;
use super::tree::Tree;
use super::{Finding, Rule};

const LINES_MAX: usize = 70;

pub(super) const RULE: Rule = Rule {
    name: "function-length",
    why: "what fits on a screen can be proofread",
    mend: "give a part of it a name of its own",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    tree.each_rust(file)
}

fn file(path: &str, text: &str) -> Vec<Finding> {
    Rust::new(text)
        .functions()
        .into_iter()
        .filter(|function| function.lines > LINES_MAX)
        .map(|function| Finding {
            path: path.to_owned(),
            line: function.line,
            what: format!("`{}` has {} lines, the limit is {LINES_MAX}", function.name, function.lines),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::file;

    fn function(lines: usize) -> String {
        format!("//! x\nfn long() {{\n{}}}\n", "    x();\n".repeat(lines - 2))
    }

    #[test]
    fn a_function_up_to_the_limit_is_accepted() {
        assert_eq!(file("a.rs", &function(70)), []);
    }

    #[test]
    fn a_longer_function_is_refused_by_name() {
        let found = file("a.rs", &function(71));
        assert_eq!((found[0].line, found[0].what.as_str()), (2, "`long` has 71 lines, the limit is 70"));
    }

    #[test]
    fn a_long_type_or_string_is_no_function() {
        let text = format!("const A: &str = \"fn a() {{\n{}}}\";\n", "x\n".repeat(90));
        assert_eq!(file("a.rs", &text), []);
    }
}
