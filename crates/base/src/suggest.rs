//! "Did you mean …?": the nearest valid name for an unknown one.

/// The nearest of `valid` to `given`, if any is near enough to be a likely slip (Jaro-Winkler >= 0.75).
#[must_use]
pub fn nearest<'a>(given: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    valid
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&given, name), name))
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
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
        assert!(unknown("recipe", "mpl", &["mlp"]).contains("did you mean `mlp`"));
    }
}
