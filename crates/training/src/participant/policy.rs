//! What a node allows, whatever a job says.
//!
//! Promise: pure, and closed: what the node does not know is refused. Must not know: how anything is trained or sent.

use aivillage_base::wire::{Declined, Invitation, LocalRule};
use serde::{Deserialize, Serialize};

use crate::secure;

/// What this node allows, whatever a job says: `policy` of node.yaml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodePolicy {
    /// May the coordinator see this node's single update?
    pub allow_plain_updates: bool,
    /// Recipes it trains; None = all, empty = none.
    pub allowed_recipes: Option<Vec<String>>,
    /// Most rounds of a job it takes part in; None = any number.
    pub max_rounds: Option<u32>,
    /// May the gateway keep this node's updates after their round, where a job asks for it?
    pub allow_retained_updates: bool,
}

impl Default for NodePolicy {
    /// Everything that this version can do is allowed, but to keep updates after their round.
    fn default() -> Self {
        Self { allow_plain_updates: true, allowed_recipes: None, max_rounds: None, allow_retained_updates: false }
    }
}

impl NodePolicy {
    /// Judges an invitation: pure, so that a preview says what a round would.
    ///
    /// # Errors
    /// The first rule that refuses, in a fixed order.
    pub fn judge(&self, invitation: &Invitation) -> Result<(), Declined> {
        let refuse = |rule: &str, reason: String| Err(Declined { rule: rule.to_owned(), reason });
        if let Some(technique) = invitation.privacy_techniques.iter().find(|name| **name != secure::TECHNIQUE) {
            return refuse(
                "privacy_techniques",
                format!("the round asks for `{technique}`, which this node's version does not build"),
            );
        }
        let secure = invitation.privacy_techniques.iter().any(|name| name == secure::TECHNIQUE);
        if secure != invitation.secure.is_some() {
            return refuse(
                "privacy_techniques",
                "the invitation names secure aggregation without its terms, or terms without naming it".to_owned(),
            );
        }
        if let Some(terms) = &invitation.secure
            && let Err(detail) = secure::check_terms(terms)
        {
            return refuse("privacy_techniques", detail);
        }
        if invitation.local == LocalRule::Unknown {
            return refuse(
                "local",
                "the strategy asks for something that this node's version does not know".to_owned(),
            );
        }
        if !self.allow_plain_updates && !secure {
            return refuse(
                "allow_plain_updates",
                "the coordinator would see this node's update, and this node does not allow that".to_owned(),
            );
        }
        if let Some(allowed) = &self.allowed_recipes
            && !allowed.contains(&invitation.recipe)
        {
            let list = allowed.join(", ");
            return refuse("allowed_recipes", format!("recipe `{}` is not among: {list}", invitation.recipe));
        }
        if let Some(max) = self.max_rounds
            && invitation.total_rounds > max
        {
            return refuse(
                "max_rounds",
                format!("the job has {} rounds, at most {max} are allowed", invitation.total_rounds),
            );
        }
        Ok(())
    }
}
