//! The tools that the checks need: found, installed, or their installation spelled out.
//!
//! Promises: nothing of the machine is changed but by `cargo install cargo-nextest`, and that is said
//! first. It must not know the steps.

use std::path::Path;

use anyhow::{Result, bail};

use crate::run::Line;

/// Makes sure that what `cargo xtask test` calls is there.
///
/// # Errors
/// rustfmt or clippy is missing (the message says what to type), or nextest cannot be installed.
pub(crate) fn ensure(root: &Path, quick: bool) -> Result<()> {
    let components = [("rustfmt", "cargo fmt --version"), ("clippy", "cargo clippy --version")];
    let wanted = if quick { &components[..1] } else { &components[..] };
    let missing: Vec<&str> =
        wanted.iter().filter(|(_, probe)| !Line::new(probe).answers(root)).map(|(name, _)| *name).collect();
    if let Some(message) = how_to_install(&missing) {
        bail!(message);
    }
    if !Line::new("cargo nextest --version").answers(root) {
        let install = Line::new("cargo install cargo-nextest --locked");
        println!("xtask: cargo-nextest (runs the tests) is missing; `{}` takes a few minutes, once", install.words);
        install.show(root)?;
    }
    Ok(())
}

fn how_to_install(missing: &[&str]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "missing toolchain component: {}; type `rustup component add {}` \
         (without rustup: install them from where your cargo came from), then try again",
        missing.join(", "),
        missing.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::how_to_install;

    #[test]
    fn missing_components_come_with_the_line_to_type() {
        let text = how_to_install(&["rustfmt", "clippy"]).expect("two are missing");
        assert!(text.contains("`rustup component add rustfmt clippy`"), "{text}");
    }

    #[test]
    fn nothing_missing_needs_no_words() {
        assert_eq!(how_to_install(&[]), None);
    }
}
