//! What the rules look at: the files of the checkout and the packages of the workspace.
//!
//! Promises: holds every file that git tracks or would add, and every workspace package with its
//! direct dependencies. The only part of tidy that reads files and starts programs; it must not know
//! the rules.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::Finding;
use crate::run::Line;

/// The largest file whose text the rules read, bytes: beyond, only the size is looked at.
pub(super) const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A file of the checkout.
#[derive(Debug)]
pub(super) struct File {
    /// From the workspace's folder, with `/`.
    pub(super) path: String,
    pub(super) bytes: u64,
    /// `None`: not UTF-8, or larger than [`TEXT_BYTES_MAX`].
    pub(super) text: Option<String>,
    /// Known to git; false = would be added.
    pub(super) tracked: bool,
}

/// Where a dependency is declared in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Normal,
    Dev,
    Build,
}

/// A direct dependency.
#[derive(Debug)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) section: Section,
}

/// A package of the workspace.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: String,
    /// Its folder, from the workspace's folder, with `/`.
    pub(super) folder: String,
    pub(super) dependencies: Vec<Dependency>,
}

/// The checkout.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
    pub(super) packages: Vec<Package>,
}

impl Tree {
    /// Reads the checkout at `root`.
    ///
    /// # Errors
    /// git or cargo is missing or refuses, or a file cannot be read.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut known = BTreeMap::new();
        for (words, tracked) in [("git ls-files -z --others --exclude-standard", false), ("git ls-files -z", true)] {
            let list = Line::new(words)
                .read(root)
                .context("the house rules read the list of files from git: check out by `git clone`")?;
            known.extend(list.split_terminator('\0').map(|path| (path.to_owned(), tracked)));
        }
        let mut files = Vec::with_capacity(known.len());
        for (path, tracked) in known {
            let place = root.join(&path);
            // Deleted but not yet committed, or a folder of its own (submodule): nothing to check.
            let Ok(meta) = std::fs::symlink_metadata(&place) else {
                continue;
            };
            if !meta.is_file() {
                continue;
            }
            let text = if meta.len() > TEXT_BYTES_MAX {
                None
            } else {
                let bytes = std::fs::read(&place).with_context(|| format!("cannot read {path}"))?;
                String::from_utf8(bytes).ok()
            };
            files.push(File { path, bytes: meta.len(), text, tracked });
        }
        let metadata = Line::new("cargo metadata --no-deps --format-version 1 --locked").read(root)?;
        let metadata = serde_json::from_str(&metadata).context("cargo metadata wrote no JSON")?;
        Ok(Self { files, packages: packages(&metadata)? })
    }

    pub(super) fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Path and text of each Rust file.
    pub(super) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(|file| file.path.ends_with(".rs"))
            .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    /// Applies the check of one Rust file to all of them.
    pub(super) fn each_rust(&self, check: fn(&str, &str) -> Vec<Finding>) -> Vec<Finding> {
        self.rust().flat_map(|(path, text)| check(path, text)).collect()
    }

    /// A tree of these files, all tracked, without packages: for the rules' tests.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(path, text)| File {
                path: (*path).to_owned(),
                bytes: text.len() as u64,
                text: Some((*text).to_owned()),
                tracked: true,
            })
            .collect();
        Self { files, packages: Vec::new() }
    }
}

/// Whether the file holds tests only: `tests.rs` beside the code, or anything below a `tests` folder.
pub(super) fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.split('/').rev().skip(1).any(|part| part == "tests")
}

/// The packages in the answer of `cargo metadata --no-deps`.
fn packages(metadata: &Value) -> Result<Vec<Package>> {
    let surprise = |what: &str| anyhow!("cargo metadata: no {what}; has its format changed?");
    let root = metadata["workspace_root"].as_str().ok_or_else(|| surprise("workspace_root"))?;
    let list = metadata["packages"].as_array().ok_or_else(|| surprise("packages"))?;
    list.iter()
        .map(|package| {
            let name = package["name"].as_str().ok_or_else(|| surprise("package name"))?;
            let manifest = package["manifest_path"].as_str().ok_or_else(|| surprise("manifest_path"))?;
            let dependencies = package["dependencies"].as_array().ok_or_else(|| surprise("dependencies"))?;
            Ok(Package {
                name: name.to_owned(),
                folder: Path::new(manifest)
                    .parent()
                    .and_then(|folder| folder.strip_prefix(root).ok())
                    .ok_or_else(|| surprise("manifest below the workspace's folder"))?
                    .to_string_lossy()
                    .replace('\\', "/"),
                dependencies: dependencies
                    .iter()
                    .map(|dependency| {
                        let name = dependency["name"].as_str().ok_or_else(|| surprise("dependency name"))?;
                        let section = match dependency["kind"].as_str() {
                            None => Section::Normal,
                            Some("dev") => Section::Dev,
                            Some("build") => Section::Build,
                            Some(_) => return Err(surprise("known kind of dependency")),
                        };
                        Ok(Dependency { name: name.to_owned(), section })
                    })
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Section, is_test_file, packages};

    #[test]
    fn packages_are_read_with_their_dependencies() {
        let metadata = json!({"workspace_root": "/w", "packages": [{
            "name": "a", "manifest_path": "/w/crates/a/Cargo.toml",
            "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}, {"name": "d", "kind": "build"}],
        }]});
        let found = packages(&metadata).expect("well formed");
        assert_eq!((found[0].name.as_str(), found[0].folder.as_str()), ("a", "crates/a"));
        let sections: Vec<_> = found[0].dependencies.iter().map(|one| (one.name.as_str(), one.section)).collect();
        assert_eq!(sections, [("b", Section::Normal), ("c", Section::Dev), ("d", Section::Build)]);
    }

    #[test]
    fn another_format_of_the_metadata_is_an_error() {
        assert!(packages(&json!({})).unwrap_err().to_string().contains("workspace_root"));
        let odd = json!({"workspace_root": "/w", "packages": [{
            "name": "a", "manifest_path": "/w/a/Cargo.toml", "dependencies": [{"name": "b", "kind": "new"}],
        }]});
        assert!(packages(&odd).unwrap_err().to_string().contains("known kind"));
    }

    #[test]
    fn test_files_are_told_by_their_place() {
        assert!(is_test_file("crates/a/src/round/tests.rs"));
        assert!(is_test_file("crates/a/tests/it/main.rs"));
        assert!(is_test_file("crates/a/src/round/tests/late.rs"));
        assert!(!is_test_file("crates/a/src/tests_of_strength.rs"));
        assert!(!is_test_file("crates/a/src/round.rs"));
    }
}
