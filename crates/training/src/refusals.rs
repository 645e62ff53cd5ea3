//! Nodes' refusals as the coordinator sees them: is one its node's, and how many would refuse a job before anybody is asked.
//!
//! Promise: pure. What is foretold binds nobody: nodes come and go, and only they judge.

use std::collections::BTreeMap;

use aivillage_base::wire::policy::NodePolicy;
use aivillage_base::wire::{Declined, NodeReport, NodeType, Peer, RoundKey};
use aivillage_privacy::refusal;

use crate::participant::policy::{Asked, REASON_MAX, Rule, refused};
use crate::recruit::fits;
use crate::spec::JobSpec;

/// Longest name of a rule that refuses, in bytes.
const RULE_MAX: usize = 40;

/// Why a refusal does not count; None = it does.
#[must_use]
pub fn fault_of(from: &Peer, key: &RoundKey, declined: &Declined) -> Option<&'static str> {
    if declined.rule.len() > RULE_MAX || declined.reason.chars().count() > REASON_MAX {
        return Some("it is longer than a refusal may be");
    }
    (!refusal::is_signed(&from.id, key, declined)).then_some("it is not signed by the node's enrolled key")
}

/// A rule by which too many nodes would refuse a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule.
    pub rule: Rule,
    /// How many nodes refuse by it.
    pub nodes: usize,
    /// A sentence: why, how many would accept, how many are needed.
    pub detail: String,
}

/// What is said of a job that fewer nodes would accept than it needs, though their data fits; hours are not looked at, as
/// they come round. Empty = enough would, or too few are known for their rules to matter.
#[must_use]
pub fn foretold<'a>(spec: &JobSpec, reports: impl Iterator<Item = &'a NodeReport>) -> Vec<Warning> {
    let fitting = |report: &&NodeReport| {
        let mobile = report.node_types.contains(&NodeType::Mobile);
        (spec.mobile_friendly || !mobile) && report.data.iter().any(|data| fits(data, &spec.data))
    };
    let (mut known, mut accepting) = (0, 0);
    let mut refusing: BTreeMap<&'static str, (Rule, usize, String)> = BTreeMap::new();
    for report in reports.filter(fitting) {
        let mut refusals = report.policy.iter().flat_map(|policy| refusals(policy, spec)).peekable();
        known += 1;
        accepting += usize::from(refusals.peek().is_none());
        for (rule, reason) in refusals {
            refusing.entry(rule.name()).or_insert((rule, 0, reason)).1 += 1;
        }
    }
    let needed = spec.min_participants as usize;
    if accepting >= needed {
        return Vec::new();
    }
    let warning = |(rule, nodes, reason): (Rule, usize, String)| Warning {
        detail: format!(
            "{nodes} of {known} nodes whose data fits would refuse by `{}` ({reason}); {accepting} would accept, and {needed} \
             are needed",
            rule.name()
        ),
        rule,
        nodes,
    };
    refusing.into_values().map(warning).collect()
}

fn refusals(policy: &NodePolicy, spec: &JobSpec) -> impl Iterator<Item = (Rule, String)> {
    let lasting = Rule::OWNERS.into_iter().filter(|rule| *rule != Rule::Hours);
    lasting.filter_map(move |rule| Some((rule, refused(policy, rule, &Asked::from(spec), 0)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn report(policy: Option<NodePolicy>) -> NodeReport {
        NodeReport {
            helper: None,
            policy,
            version: "test".into(),
            node_types: vec![NodeType::Edge],
            compute_gflops: 1.0,
            memory_gb: 1.0,
            cores: 1,
            serves: false,
            data: testing::candidate("a").data,
        }
    }

    #[test]
    fn rules_are_foretold_only_where_they_leave_too_few() {
        let strict = NodePolicy { min_cohort: Some(5), max_rounds: Some(1), ..NodePolicy::default() };
        let at_night = NodePolicy { hours: Some(Vec::new()), ..NodePolicy::default() };
        let reports = [report(Some(strict.clone())), report(Some(strict)), report(None), report(Some(at_night))];
        let warned = |min| foretold(&testing::spec(min, 9, 3), reports.iter());
        assert_eq!(warned(2), []);
        let rules: Vec<_> = warned(3).into_iter().map(|w| (w.rule, w.nodes)).collect();
        assert_eq!(rules, [(Rule::MaxRounds, 2), (Rule::MinCohort, 2)]);
        let detail = &warned(3)[0].detail;
        assert!(detail.contains("2 of 4 nodes") && detail.contains("2 would accept, and 3 are needed"), "{detail}");
        assert_eq!(foretold(&testing::spec(3, 9, 3), [].iter()), [], "nobody is known: no rule refuses");
    }

    #[test]
    fn nodes_whose_data_does_not_fit_are_not_counted() {
        let never = NodePolicy { allowed_recipes: Some(Vec::new()), ..NodePolicy::default() };
        let mut spec = testing::spec(1, 9, 3);
        spec.data.dataset = Some("elsewhere".into());
        assert_eq!(foretold(&spec, [report(Some(never))].iter()), []);
    }
}
