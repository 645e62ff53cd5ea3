//! The variant of secure aggregation with a helper, as a job asks for it: `privacy: {variant: two_helper, helper: NAME}`.

use aivillage_base::{NodeName, suggest};
use serde_json::{Map, Value};

use super::Faults;

/// Its name.
pub(super) const TWO_HELPER: &str = "two_helper";
/// The variant of a job that names none.
pub(super) const COHORT: &str = "cohort";

/// Said beside the refusal of what the cohort's own secret sharing cannot do.
pub(super) const PROPOSED: &str = "or let a second owner's machine take the masks away, which needs no threshold: \
     `privacy: {variant: two_helper, helper: NAME}` (docs/helpers.md)";

/// Why no asynchronous job has a helper yet.
pub(super) const NOT_BUFFERED: &str = "closes a round whenever enough updates are in, of nodes that began at different \
     models: a helper would have to weigh masks by how old each is, which this version does not build";

/// What else can be done about a value of this parameter that is refused.
pub(super) fn instead(key: &str) -> String {
    if key == "dropout" { format!("; {PROPOSED}") } else { String::new() }
}

/// The helper that a job names; None = none.
pub(super) fn wished(privacy: &Map<String, Value>, faults: &mut Faults) -> Option<NodeName> {
    let helped = match privacy.get("variant").map(Value::as_str) {
        None | Some(Some(COHORT)) => false,
        Some(Some(TWO_HELPER)) => true,
        Some(other) => {
            let given = other.map_or_else(|| privacy["variant"].to_string(), str::to_owned);
            let detail = suggest::unknown("variant of secure aggregation", &given, &[COHORT, TWO_HELPER]);
            faults.privacy("/privacy/variant", &detail);
            return None;
        }
    };
    if !helped {
        if privacy.contains_key("helper") {
            let detail = format!("a helper is named, and nothing for it to do: add `variant: {TWO_HELPER}`");
            faults.privacy("/privacy/helper", &detail);
        }
        return None;
    }
    for key in ["corrupt", "dropout"].into_iter().filter(|key| privacy.contains_key(*key)) {
        let detail = format!(
            "with a helper, any number of nodes may leave, and all but two may be corrupt: `{key}` is a parameter of the \
             variant `{COHORT}`; leave it out"
        );
        faults.privacy(&format!("/privacy/{key}"), &detail);
    }
    let name = privacy.get("helper").and_then(Value::as_str).and_then(|name| NodeName::new(name).ok());
    if name.is_none() {
        let detail = "a helper is needed: `helper: NAME`, the enrolled name of a machine that another owner runs with \
                      `aivillage helper join`, and whose key the nodes list (`privacy.helpers` in node.yaml)";
        faults.privacy("/privacy/helper", detail);
    }
    name
}
