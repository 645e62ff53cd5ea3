//! Rule: crates depend on each other only along the arrows of ARCHITECTURE.md.
//!
//! Also: heavy libraries stay behind the wall of the one crate that was made for them, and the tests of a
//! room cross no wall but to `storage`, whose memory store is their real neighbour.

use super::tree::{Dependency, Package, Section, Tree};
use super::{Finding, Rule};

pub(super) const RULE: Rule = Rule {
    name: "import-walls",
    why: "a wall crossed once is not a wall: rooms that know each other cannot be read or changed alone",
    mend: "move the shared word to `base`, or meet in aivillage's wiring; a new arrow needs a decision in \
           docs/adr, ARCHITECTURE.md and xtask/src/tidy/import_walls.rs",
    check,
};

/// Who may import whom. `aivillage` may import every room and is imported by none.
const ARROWS: [(&str, &[&str]); 13] = [
    ("base", &[]),
    ("privacy", &["base"]),
    ("link", &["base"]),
    ("fog", &["base"]),
    ("mesh", &["base"]),
    ("mixnet", &["base"]),
    ("training", &["base", "privacy", "fog"]),
    ("inference", &["base", "privacy", "fog"]),
    ("engine", &["base", "training", "inference"]),
    ("storage", &["base", "privacy", "fog", "training", "inference"]),
    ("gateway", &["base", "privacy", "fog", "training", "inference"]),
    ("sim", &["privacy", "base", "fog", "training", "inference", "storage"]),
    ("xtask", &[]),
];

/// Rooms whose tests may use `storage` (cargo allows the circle for tests).
const TESTED_ON_STORAGE: [&str; 5] = ["training", "inference", "fog", "link", "gateway"];

/// Libraries that one crate owns: the database and the tensors.
const OWNED: [(&str, &str); 2] = [("rusqlite", "storage"), ("ndarray", "engine")];

const BINARY: &str = "aivillage";

fn check(tree: &Tree) -> Vec<Finding> {
    let houses: Vec<&str> = tree.packages.iter().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for package in &tree.packages {
        let manifest = format!("{}/Cargo.toml", package.folder);
        let room = room(&package.name);
        let mut add = |needle: &str, what: String| {
            let line = line_of(tree, &manifest, needle);
            found.push(Finding { path: manifest.clone(), line, what });
        };
        if room != BINARY && arrows(room).is_none() {
            add("name", format!("crate `{room}` has no line in the table of who may import whom"));
            continue;
        }
        for dependency in &package.dependencies {
            if let Some(what) = wrong(package, dependency, &houses) {
                add(&dependency.name, what);
            }
        }
    }
    found
}

/// What is wrong with a dependency of a package; `None`: nothing.
fn wrong(package: &Package, dependency: &Dependency, houses: &[&str]) -> Option<String> {
    let (from, to) = (room(&package.name), room(&dependency.name));
    if let Some((library, owner)) = OWNED.iter().find(|(library, _)| *library == dependency.name) {
        return (from != *owner).then(|| format!("`{from}` depends on `{library}`, which only `{owner}` may"));
    }
    if !houses.contains(&dependency.name.as_str()) {
        return None;
    }
    let allowed = match arrows(from) {
        None => true,
        Some(arrows) => arrows.contains(&to),
    };
    let for_tests = dependency.section == Section::Dev && to == "storage" && TESTED_ON_STORAGE.contains(&from);
    if (allowed && to != BINARY) || for_tests {
        return None;
    }
    let how = match dependency.section {
        Section::Normal => "imports",
        Section::Dev => "imports for its tests",
        Section::Build => "imports for its build",
    };
    Some(format!("`{from}` {how} `{to}`"))
}

fn arrows(room: &str) -> Option<&'static [&'static str]> {
    ARROWS.iter().find(|(from, _)| *from == room).map(|(_, to)| *to)
}

/// `aivillage-base` is the room `base`.
fn room(package: &str) -> &str {
    package.strip_prefix("aivillage-").unwrap_or(package)
}

/// The first line of a manifest that begins with `needle`, counted from 1; 1 when none does.
fn line_of(tree: &Tree, manifest: &str, needle: &str) -> usize {
    let text = tree.file(manifest).and_then(|file| file.text.as_deref()).unwrap_or_default();
    let place = text.lines().position(|line| {
        let rest = line.trim_start().strip_prefix(needle);
        rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    });
    place.map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Dependency, Package, Section, Tree};
    use super::check;

    /// Checks a house in which `from` depends on `to`; returns what was found.
    fn arrow(from: &str, section: Section, to: &str) -> Vec<String> {
        let package = |name: &str, dependencies| Package {
            name: name.to_owned(),
            folder: format!("crates/{name}"),
            dependencies,
        };
        let dependency = Dependency { name: to.to_owned(), section };
        let mut tree = Tree::of(&[]);
        tree.packages.push(package(from, vec![dependency]));
        if to == "aivillage" || to.starts_with("aivillage-") {
            tree.packages.push(package(to, Vec::new()));
        }
        check(&tree).into_iter().map(|one| one.what).collect()
    }

    #[test]
    fn arrows_of_the_plan_are_accepted() {
        for (from, to) in [
            ("aivillage-training", "aivillage-fog"),
            ("aivillage-engine", "aivillage-training"),
            ("aivillage-sim", "aivillage-storage"),
            ("aivillage", "aivillage-engine"),
            ("aivillage-storage", "rusqlite"),
            ("aivillage-fog", "serde"),
        ] {
            assert_eq!(arrow(from, Section::Normal, to), [""; 0], "{from} -> {to}");
        }
    }

    #[test]
    fn walls_are_not_crossed() {
        for (from, to, what) in [
            ("aivillage-training", "aivillage-inference", "`training` imports `inference`"),
            ("aivillage-base", "aivillage-fog", "`base` imports `fog`"),
            ("aivillage-gateway", "aivillage-storage", "`gateway` imports `storage`"),
            ("aivillage-sim", "aivillage", "`sim` imports `aivillage`"),
            ("xtask", "aivillage-base", "`xtask` imports `base`"),
        ] {
            assert_eq!(arrow(from, Section::Normal, to), [what]);
        }
        let build = arrow("aivillage-fog", Section::Build, "aivillage-link");
        assert_eq!(build, ["`fog` imports for its build `link`"]);
    }

    #[test]
    fn tests_cross_no_wall_but_to_storage() {
        assert_eq!(arrow("aivillage-fog", Section::Dev, "aivillage-storage"), [""; 0]);
        assert_eq!(
            arrow("aivillage-fog", Section::Dev, "aivillage-training"),
            ["`fog` imports for its tests `training`"]
        );
        assert_eq!(arrow("aivillage-engine", Section::Dev, "aivillage-storage").len(), 1);
    }

    #[test]
    fn heavy_libraries_stay_with_their_owner() {
        assert_eq!(
            arrow("aivillage-gateway", Section::Dev, "rusqlite"),
            ["`gateway` depends on `rusqlite`, which only `storage` may"]
        );
        assert_eq!(arrow("aivillage", Section::Normal, "ndarray").len(), 1);
    }

    #[test]
    fn an_unknown_crate_must_be_planned_first() {
        assert_eq!(
            arrow("aivillage-attic", Section::Normal, "serde"),
            ["crate `attic` has no line in the table of who may import whom"]
        );
    }

    #[test]
    fn the_line_of_the_manifest_is_named() {
        let manifest = "[package]\nname = \"aivillage-base\"\n[dependencies]\naivillage-fog-x = \"1\"\naivillage-fog.workspace = true\n";
        let mut tree = Tree::of(&[("crates/base/Cargo.toml", manifest)]);
        for (name, folder, to) in
            [("aivillage-base", "crates/base", Some("aivillage-fog")), ("aivillage-fog", "crates/fog", None)]
        {
            let dependencies = to.map(|to| Dependency { name: to.to_owned(), section: Section::Normal });
            tree.packages.push(Package {
                name: name.to_owned(),
                folder: folder.to_owned(),
                dependencies: dependencies.into_iter().collect(),
            });
        }
        assert_eq!(check(&tree)[0].line, 5);
    }
}
