//! Tests of the scanner: what is code, what is a comment, what stands in quotes.

use super::{Function, Rust};

/// The tokens of `text`, joined by spaces.
fn tokens(text: &str) -> String {
    let rust = Rust::new(text);
    let words: Vec<String> = rust.tokens().iter().map(|token| token.text.to_owned()).collect();
    words.join(" ")
}

#[test]
fn strings_of_every_kind_are_not_code() {
    assert_eq!(tokens(r#"a("fn b() {", c)"#), "a ( , c )");
    assert_eq!(tokens(r#"a("\" fn", b"x\\", c"y") z"#), "a ( , b , c ) z");
    assert_eq!(tokens(r##"a(r"\", r#"x " fn"#, br"q") z"##), "a ( , , ) z");
}

#[test]
fn a_raw_identifier_and_a_word_that_ends_in_r_begin_no_raw_string() {
    assert_eq!(tokens("r#type x"), "r # type x");
    assert_eq!(tokens(r#"for"\"" z"#), "for z");
}

#[test]
fn characters_are_quoted_and_lifetimes_are_code() {
    assert_eq!(tokens(r"['{', '\'', 'ä', '€', b'}'] z"), "[ , , , , b ] z");
    assert_eq!(tokens("&'a str 'outer: loop"), "& ' a str ' outer : loop");
}

#[test]
fn comments_are_kept_apart_with_their_lines() {
    let text = "a /* b /* c */ d */ e // f \"\ng";
    assert_eq!(tokens(text), "a e g");
    let comments = Rust::new(text).comments;
    assert_eq!(comments.trim_end(), "  /* b /* c */ d */   // f \"");
    assert_eq!(comments.len(), text.len());
}

#[test]
fn what_is_left_open_ends_with_the_file() {
    for text in ["a \"b", "a /* b", "a r#\"b", "a '\\", "a \"b\\", "a '", "a /"] {
        assert!(tokens(text).starts_with('a'), "{text}");
    }
}

#[test]
fn attributes_are_found_inner_outer_and_over_lines() {
    let rust = Rust::new("#![a(b)]\n#[c = \"]\"]\n#[d(\n  e[0]\n)] fn f() { x[0] }");
    let tokens = rust.tokens();
    let found: Vec<String> =
        Rust::attributes(&tokens).iter().map(|inside| inside.iter().map(|token| token.text).collect()).collect();
    assert_eq!(found, ["a(b)", "c=", "d(e[0])"]);
    assert_eq!(rust.line(Rust::attributes(&tokens)[2][0].at), 3);
}

#[test]
fn functions_are_measured_from_their_name_to_their_brace() {
    let text = "struct S { f: fn(u8) -> u8 }\nfn a(x: [u8; 3])\nwhere\n    u8: Copy,\n{\n    \"}\";\n    // }\n    fn b() {}\n}\ntrait T { fn c(); }\n";
    let expected =
        [("a", 2, 8), ("b", 8, 1)].map(|(name, line, lines)| Function { name: name.to_owned(), line, lines });
    assert_eq!(Rust::new(text).functions(), expected);
}
