//! What is persisted of a round of secure aggregation: what the coordinator has fixed, and what each member has said.

use serde::{Deserialize, Serialize};

use aivillage_base::NodeName;
use aivillage_base::wire::secure::{Advert, Agreed, Agreement, Hex, Opening, Reveal, SecureTerms, Shares};
use aivillage_base::wire::{Invitation, Peer};
use aivillage_privacy::secagg::signed::Context;

use super::Counted;
use crate::aggregate::Totals;

/// The course of a round of secure aggregation: each list is fixed once, by one persisted step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SecureRecord {
    /// The terms.
    pub terms: SecureTerms,
    /// The context that every message is bound to.
    pub ctx: Hex<32>,
    /// Whose keys are on the roster, in name order; empty until it is fixed.
    #[serde(default)]
    pub roster: Vec<NodeName>,
    /// Hash of the roster and of all nonces on it, where the graph is drawn; None until it is.
    #[serde(default)]
    pub drawn: Option<Hex<32>>,
    /// Who sent shares; empty until it is fixed.
    #[serde(default)]
    pub sharers: Vec<NodeName>,
    /// Whose inputs are in the sum; empty until it is fixed.
    #[serde(default)]
    pub survivors: Vec<NodeName>,
    /// Whose words are shown to the survivors; empty until it is fixed.
    #[serde(default)]
    pub agreed: Vec<Agreed>,
    /// Who takes the masks away; None = the cohort itself.
    #[serde(default)]
    pub helper: Option<Helped>,
    /// What was learnt beside the model, once the round is published.
    #[serde(default)]
    pub totals: Option<Totals>,
}

impl SecureRecord {
    /// Nothing is fixed yet but the terms, which `invitation` holds.
    #[must_use]
    pub fn new(terms: SecureTerms, invitation: &Invitation) -> Self {
        Self {
            terms,
            ctx: Hex(Context::of(invitation).0),
            roster: Vec::new(),
            drawn: None,
            sharers: Vec::new(),
            survivors: Vec::new(),
            agreed: Vec::new(),
            helper: None,
            totals: None,
        }
    }
}

/// The helper of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Helped {
    /// Who.
    pub peer: Peer,
    /// What takes the masks away, once it has come: bytes like an update's.
    #[serde(default)]
    pub answer: Option<Counted>,
    /// Why it gives none.
    #[serde(default)]
    pub refusal: Option<String>,
}

impl Helped {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(peer: Peer) -> Self {
        Self { peer, answer: None, refusal: None }
    }
}

/// What a member said in a round of secure aggregation; gone when the attempt has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SecureMember {
    /// Step 0.
    #[serde(default)]
    pub advert: Option<Advert>,
    /// Between steps 0 and 1, where the graph is drawn.
    #[serde(default)]
    pub reveal: Option<Reveal>,
    /// Step 1.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// Step 3.
    #[serde(default)]
    pub agreement: Option<Agreement>,
    /// Step 4.
    #[serde(default)]
    pub opening: Option<Opening>,
    /// Why it says no more.
    #[serde(default)]
    pub alarm: Option<String>,
}
