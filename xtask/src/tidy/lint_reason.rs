//! Rule: a lint is switched off only with a reason: `#[expect(lint, reason = "..")]`.
//!
//! Clippy asks for the same; here it also holds for code that this machine does not compile.

use super::rust::{Rust, Token};
use super::tree::Tree;
use super::{Finding, Rule};

pub(super) const RULE: Rule = Rule {
    name: "lint-reason",
    why: "an exception without its reason is copied, and nobody dares to remove it",
    mend: "write `#[expect(lint, reason = \"..\")]`, which also warns once the lint has nothing to say",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    tree.each_rust(file)
}

fn file(path: &str, text: &str) -> Vec<Finding> {
    let rust = Rust::new(text);
    let tokens = rust.tokens();
    Rust::attributes(&tokens)
        .into_iter()
        .filter_map(|inside| Some((inside, switch(inside)?)))
        .filter(|(inside, _)| !inside.iter().any(|token| token.text == "reason"))
        .map(|(_, token)| Finding {
            path: path.to_owned(),
            line: rust.line(token.at),
            what: format!("`{}(..)` without a reason", token.text),
        })
        .collect()
}

/// The `allow` or `expect` of an attribute, also within `cfg_attr`.
fn switch<'t>(inside: &'t [Token<'t>]) -> Option<&'t Token<'t>> {
    let is_switch = |token: &Token<'_>| matches!(token.text, "allow" | "expect");
    let conditional = inside.first()?.text == "cfg_attr";
    let place = inside.windows(2).position(|two| is_switch(&two[0]) && two[1].text == "(")?;
    (place == 0 || conditional).then(|| &inside[place])
}

#[cfg(test)]
mod tests {
    use super::file;

    #[test]
    fn an_exception_with_its_reason_is_accepted() {
        let text = "#![expect(clippy::print_stdout, reason = \"a program\")]\n#[allow(\n  dead_code,\n  reason = \"x\"\n)]\nfn a() { x.expect(\"y\"); }\n";
        assert_eq!(file("a.rs", text), []);
    }

    #[test]
    fn an_exception_without_a_reason_is_refused() {
        let text = "#[allow(dead_code)]\nfn a() {}\n#![expect(unused)]\n#[cfg_attr(test, allow(unused))]\n";
        let lines: Vec<_> = file("a.rs", text).iter().map(|one| one.line).collect();
        assert_eq!(lines, [1, 3, 4]);
    }

    #[test]
    fn the_word_in_a_text_is_no_exception() {
        assert_eq!(file("a.rs", "// #[allow(x)]\nconst A: &str = \"#[allow(x)]\";\n"), []);
    }
}
