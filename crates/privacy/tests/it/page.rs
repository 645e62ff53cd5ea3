//! What docs/threat-model.md says in numbers and names is true.

use std::collections::BTreeSet;

use aivillage_privacy::secagg::roster::COHORT_MIN;
use aivillage_privacy::secagg::threshold::{Assumptions, FULL_GRAPH_MAX, choose};

const PAGE: &str = include_str!("../../../../docs/threat-model.md");
const ATTACKS: [&str; 2] = [include_str!("attacks.rs"), include_str!("helped.rs")];

/// Cells of the page's tables, row by row.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    PAGE.lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn the_pages_cohorts_withstand_what_it_says() {
    let assumed = Assumptions::default();
    let mut sizes = Vec::new();
    for row in rows() {
        let numbers: Vec<usize> = row.iter().filter_map(|cell| cell.parse().ok()).collect();
        let [participants, threshold, corrupt, leave] = numbers[..] else { continue };
        let plan = choose(participants, &assumed).unwrap();
        assert_eq!(threshold, plan.threshold, "threshold of {participants}");
        // A lying coordinator has both secrets of somebody if the corrupt are 2t - n.
        let planned = (assumed.corrupt * participants as f64 + 1e-9) as usize;
        assert_eq!(corrupt, planned, "corrupt of {participants}");
        assert!(corrupt < 2 * threshold - participants, "corrupt of {participants}");
        assert_eq!(leave, participants - threshold.max(COHORT_MIN as usize), "leave of {participants}");
        sizes.push(participants);
    }
    assert!(sizes.starts_with(&[3, 4, 5, 6]) && sizes.len() > 8, "{sizes:?}");
}

#[test]
fn the_pages_large_cohorts_withstand_what_it_says() {
    let assumed = Assumptions::default();
    let mut sizes = Vec::new();
    for row in rows() {
        let numbers: Vec<usize> = row.iter().filter_map(|cell| cell.parse().ok()).collect();
        let [participants, neighbours, threshold, corrupt, leave] = numbers[..] else { continue };
        let plan = choose(participants, &assumed).unwrap();
        assert_eq!((neighbours, threshold), (plan.neighbours, plan.threshold), "plan of {participants}");
        let part = |share: f64| (share * participants as f64 + 1e-9) as usize;
        assert_eq!((corrupt, leave), (part(assumed.corrupt), part(assumed.dropout)), "of {participants}");
        assert!(participants > FULL_GRAPH_MAX as usize);
        sizes.push(participants);
    }
    assert_eq!(sizes, [129, 200, 320]);
}

#[test]
fn the_page_names_every_attack_and_no_other() {
    let name = |text: &'static str| text.split_once('(').map(|(name, _)| name);
    let tests: BTreeSet<&str> =
        ATTACKS.iter().flat_map(|file| file.split("#[test]\nfn ").skip(1)).filter_map(name).collect();
    let named: BTreeSet<&str> =
        rows().filter(|row| row.len() == 2).filter_map(|row| row[0].strip_prefix('`')?.strip_suffix('`')).collect();
    assert_eq!(named, tests);
}
