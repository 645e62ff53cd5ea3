//! "Did you mean …?": the nearest valid name for an unknown one.

/// The nearest of `valid` to `given`, if any is near enough to be a likely slip.
///
/// A slip is a letter too many, too few, wrong or swapped (optimal string alignment distance, one for each four letters
/// and one more); among equals, and where no name is that near, Jaro-Winkler similarity decides (>= 0.75).
#[must_use]
pub fn nearest<'a>(given: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let slips_max = 1 + given.chars().count() / 4;
    valid
        .into_iter()
        .map(|name| {
            let slips = strsim::osa_distance(&given, name);
            let likeness = strsim::jaro_winkler(&given, name);
            (if slips <= slips_max { slips_max + 1 - slips } else { 0 }, likeness, name)
        })
        // One wrong letter of one or two is no slip but another name.
        .filter(|(slip, likeness, _)| *likeness >= 0.75 || (*slip > 0 && given.len() > 2))
        .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
        .map(|(.., name)| name)
}

/// A sentence for an unknown name: what it is, the nearest valid name, and all valid ones.
#[must_use]
pub fn unknown(what: &str, given: &str, valid: &[&str]) -> String {
    let all = valid.join(", ");
    match nearest(given, valid.iter().copied()) {
        Some(name) => format!("unknown {what} `{given}`: did you mean `{name}`? (valid: {all})"),
        None => format!("unknown {what} `{given}` (valid: {all})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_name() {
        assert_eq!(nearest("fedavgg", ["fedavg", "krum"]), Some("fedavg"));
        assert_eq!(nearest("zzz", ["fedavg", "krum"]), None);
        assert_eq!(nearest("mpl", ["simple_cnn", "mlp"]), Some("mlp"), "swapped letters beat letters in common");
        assert_eq!(nearest("hihg", ["low", "medium", "high", "ultra"]), Some("high"));
        assert!(unknown("recipe", "mpl", &["mlp"]).contains("did you mean `mlp`"));
    }
}
