//! Rule: nothing unfinished is committed: macros that panic in place of code, left-over debugging, tests
//! that do not run, work markers in comments.

use super::rust::{Rust, Token};
use super::tree::Tree;
use super::{Finding, Rule};

const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
/// Written in two halves, so that this file does not break its own rule when searched as text.
const MARKERS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
/// Other files with comments.
const SCRIPTS: [&str; 7] = [".toml", ".yaml", ".yml", ".sh", ".py", ".ts", ".tsx"];

pub(super) const RULE: Rule = Rule {
    name: "unfinished",
    why: "what is announced in the code is never done, and a test that does not run proves nothing",
    mend: "finish it, refuse the case with an error that says why, or file an issue and delete the marker",
    check,
};

fn check(tree: &Tree) -> Vec<Finding> {
    let mut found = tree.each_rust(rust);
    for file in &tree.files {
        let is_script = SCRIPTS.iter().any(|end| file.path.ends_with(end)) || file.path.starts_with(".ci/");
        if let (true, Some(text)) = (is_script, &file.text) {
            found.extend(markers(&file.path, text));
        }
    }
    found
}

fn rust(path: &str, text: &str) -> Vec<Finding> {
    let rust = Rust::new(text);
    let tokens = rust.tokens();
    let mut found = markers(path, &rust.comments);
    let mut add = |token: &Token<'_>, what: String| {
        found.push(Finding { path: path.to_owned(), line: rust.line(token.at), what });
    };
    for three in tokens.windows(3) {
        // `dbg != x` compares; a macro's `!` is followed by a bracket.
        if MACROS.contains(&three[0].text) && three[1].text == "!" && three[2].text != "=" {
            add(&three[0], format!("`{}!`", three[0].text));
        }
    }
    for inside in Rust::attributes(&tokens) {
        let Some(first) = inside.first() else {
            continue;
        };
        let conditional = first.text == "cfg_attr" && inside.iter().any(|token| token.text == "ignore");
        if first.text == "ignore" || conditional {
            add(first, "`#[ignore]`: this test does not run".to_owned());
        }
    }
    found
}

/// The work markers in `text`, as whole words in capitals.
fn markers(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(marker) = words.find(|word| MARKERS.contains(word)) {
            found.push(Finding { path: path.to_owned(), line: index + 1, what: format!("work marker {marker}") });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::{MARKERS, check, rust};

    #[test]
    fn finished_code_is_accepted() {
        let text = "//! todo list in prose\nfn a() { let ignore = \"todo!()\"; if dbg != ignore {} }\n#[serde(rename = \"ignore\")]\n";
        assert_eq!(rust("a.rs", text), []);
    }

    #[test]
    fn placeholders_and_debugging_are_refused() {
        let text = "fn a() {\n    todo!();\n    std::unimplemented!(\"later\");\n    dbg!(x);\n}\n";
        let found: Vec<_> = rust("a.rs", text).into_iter().map(|one| (one.line, one.what)).collect();
        let expected = [(2, "`todo!`"), (3, "`unimplemented!`"), (4, "`dbg!`")];
        assert_eq!(found, expected.map(|(line, what)| (line, what.to_owned())));
    }

    #[test]
    fn tests_that_do_not_run_are_refused() {
        let text = "#[test]\n#[ignore]\nfn a() {}\n#[ignore = \"slow\"]\nfn b() {}\n#[cfg_attr(not(unix), ignore)]\nfn c() {}\n";
        let lines: Vec<_> = rust("a.rs", text).iter().map(|one| one.line).collect();
        assert_eq!(lines, [2, 4, 6]);
    }

    #[test]
    fn work_markers_are_refused_in_comments_and_scripts() {
        for marker in MARKERS {
            assert_eq!(rust("a.rs", &format!("// {marker}: later\n")).len(), 1);
            let script = format!("# {marker}(me) later\n");
            assert_eq!(check(&Tree::of(&[("deploy/run.sh", &script)])).len(), 1);
            assert_eq!(check(&Tree::of(&[("docs/rules.md", &script)])), []);
        }
    }
}
