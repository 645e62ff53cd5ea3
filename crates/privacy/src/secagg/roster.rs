//! Who takes part in one secure round: everybody's signed keys, the graph between them, the threshold.
//!
//! Both sides make the same [`Listed`] of the same adverts, and of it, with everybody's nonces where the graph is
//! [drawn](super::draw), the same [`Roster`]; or refuse them with the same [`Alarm`]. Only a roster has a graph. An index is a
//! place in name order; a share's index is one more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aivillage_base::NodeName;
use aivillage_base::wire::secure::{Advert, GraphKind, Hex, RegistryHead, SecureTerms};

use super::graph::Graph;
use super::signed::{Context, Step, hash, is_signed};
use super::threshold::{self, Adversary, Assumptions, Plan};

/// Why somebody stays silent on a context for ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{check}: {detail}")]
pub struct Alarm {
    /// Which check failed.
    pub check: &'static str,
    /// One sentence.
    pub detail: String,
}

impl Alarm {
    /// An alarm of this check.
    #[must_use]
    pub fn new(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, detail: detail.into() }
    }
}

/// Smallest cohort: of two, each would learn the other's update from the sum.
pub const COHORT_MIN: u32 = 3;

/// The participants of one context, before it is known who masks with whom.
#[derive(Debug, Clone)]
pub struct Listed {
    ctx: Context,
    terms: SecureTerms,
    /// Shared where many participants live in one process, as in a simulation.
    adverts: Arc<[Advert]>,
    hash: Hex<32>,
    plan: Plan,
}

/// The participants of one context, and who masks with whom.
#[derive(Debug, Clone)]
pub struct Roster {
    listed: Listed,
    hash: Hex<32>,
    graph: Graph,
}

/// The assumptions that terms speak of.
#[must_use]
pub fn assumptions(terms: &SecureTerms) -> Assumptions {
    let adversary = if terms.withstands.lying_coordinator { Adversary::SemiMalicious } else { Adversary::Curious };
    Assumptions {
        corrupt: terms.withstands.corrupt,
        dropout: terms.withstands.dropout,
        adversary,
        ..Assumptions::default()
    }
}

/// The same among `count` participants, of `terms.cohort_max` that were invited.
///
/// As many are taken to be corrupt as the terms allow among all that were invited: a coordinator that loses honest adverts
/// does not lose its friends' with them.
fn assumptions_among(terms: &SecureTerms, count: usize) -> Result<Assumptions, String> {
    let assumed = assumptions(terms);
    #[expect(clippy::cast_precision_loss, reason = "cohorts are small")]
    let corrupt = (assumed.corrupt * f64::from(terms.cohort_max) + 1e-9).floor() / (count.max(1) as f64);
    if corrupt >= 0.5 {
        return Err(format!(
            "of {} invited only {count} take part, and {} of those invited may be corrupt: no threshold withstands that",
            terms.cohort_max, assumed.corrupt
        ));
    }
    Ok(Assumptions { corrupt, ..assumed })
}

/// Is there a plan for so many? Answered faster than [`plan`], for whoever asks of many sizes.
///
/// # Errors
/// As [`plan`].
pub fn has_plan(terms: &SecureTerms, count: usize) -> Result<(), String> {
    // Where all can mask with all, a graph that is drawn comes to that in the end.
    let full = threshold::full(count, &assumptions_among(terms, count)?);
    if full.is_ok() && terms.withstands.neighbours.is_none() { Ok(()) } else { plan(terms, count).map(drop) }
}

/// Neighbours and threshold among `count` participants, of `terms.cohort_max` that were invited.
///
/// # Errors
/// No threshold withstands what the terms ask for: one sentence with the numbers.
pub fn plan(terms: &SecureTerms, count: usize) -> Result<Plan, String> {
    let assumptions = assumptions_among(terms, count)?;
    let plan = match (terms.graph, terms.withstands.neighbours) {
        (GraphKind::Full, None) => threshold::full(count, &assumptions),
        (GraphKind::Full, Some(k)) => return Err(format!("{k} neighbours were asked for on the graph that has all")),
        (GraphKind::Drawn, None) => threshold::sparse(count, &assumptions),
        (GraphKind::Drawn, Some(k)) => {
            threshold::with_neighbours(count, (k as usize).min(count.saturating_sub(1)), &assumptions)
        }
    };
    plan.map_err(|e| e.to_string())
}

/// What an advert's signature says it is: a nonce and a commitment to one look alike.
pub(super) fn advert_step(graph: GraphKind) -> Step {
    match graph {
        GraphKind::Full => Step::Advert,
        GraphKind::Drawn => Step::Commitment,
    }
}

/// The text that an advert's signature covers; the name, the only part of no fixed length, comes last.
pub(super) fn advert_text(advert: &Advert) -> Vec<u8> {
    let Advert { peer, box_key, mask_key, nonce, registry, signature: _ } = advert;
    let sequence = registry.sequence.to_le_bytes();
    let fixed = [peer.id.0, box_key.0, mask_key.0, nonce.0, registry.hash.0].concat();
    [fixed.as_slice(), &sequence, peer.name.as_str().as_bytes()].concat()
}

/// Is this advert signed by the key it names, for this context and this kind of graph?
#[must_use]
pub fn advert_is_signed(ctx: Context, graph: GraphKind, advert: &Advert) -> bool {
    is_signed(&advert.peer.id, ctx, advert_step(graph), &[&advert_text(advert)], &advert.signature)
}

/// Heads of one length must be one head, and whoever has seen none is not among those who have. Heads of different lengths
/// are for the participants to compare, who know what lies between.
fn one_registry(adverts: &[Advert]) -> Result<(), Alarm> {
    let mut first: BTreeMap<u64, &Advert> = BTreeMap::new();
    for advert in adverts {
        let other = first.entry(advert.registry.sequence).or_insert(advert);
        if other.registry != advert.registry {
            let (a, b, length) = (&other.peer.name, &advert.peer.name, advert.registry.sequence);
            let detail = format!("{a} and {b} were shown different registries of {length} enrolments and revocations");
            return Err(Alarm::new("fork", detail));
        }
    }
    match first.get(&0) {
        Some(none) if first.len() > 1 || none.registry != RegistryHead::default() => {
            let detail = format!("{} was shown no registry of enrolments, and others were", none.peer.name);
            Err(Alarm::new("fork", detail))
        }
        Some(_) | None => Ok(()),
    }
}

impl Listed {
    /// The participants of these adverts.
    ///
    /// # Errors
    /// Out of name order, twice the same name or key, too few or too many, a signature that does not fit, no threshold, two
    /// registries of enrolments.
    pub fn new(ctx: Context, terms: &SecureTerms, adverts: impl Into<Arc<[Advert]>>) -> Result<Self, Alarm> {
        let adverts: Arc<[Advert]> = adverts.into();
        let count = adverts.len();
        let (min, max) = (terms.cohort_min.max(COHORT_MIN) as usize, terms.cohort_max as usize);
        if !(min..=max).contains(&count) {
            return Err(Alarm::new("cohort", format!("{count} participants, and {min} to {max} were agreed on")));
        }
        if let Some(pair) = adverts.windows(2).find(|pair| pair[0].peer.name >= pair[1].peer.name) {
            let (a, b) = (&pair[0].peer.name, &pair[1].peer.name);
            return Err(Alarm::new("roster", format!("{b} comes after {a}: names must differ and be in order")));
        }
        let mut seen = BTreeSet::new();
        for advert in &*adverts {
            for key in [advert.peer.id.0, advert.box_key.0, advert.mask_key.0, advert.nonce.0] {
                if !seen.insert(key) {
                    return Err(Alarm::new("duplicate_key", format!("a key of {} appears twice", advert.peer.name)));
                }
            }
            if !advert_is_signed(ctx, terms.graph, advert) {
                let detail = format!("the advert of {} is not signed by its enrolled key", advert.peer.name);
                return Err(Alarm::new("signature", detail));
            }
        }
        one_registry(&adverts)?;
        let plan = plan(terms, count).map_err(|detail| Alarm::new("threshold", detail))?;
        let texts: Vec<Vec<u8>> = adverts.iter().map(advert_text).collect();
        let flat: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        Ok(Self { ctx, terms: *terms, hash: Hex(hash(ctx, b"roster", &flat)), adverts, plan })
    }

    /// The round's context.
    #[must_use]
    pub fn context(&self) -> Context {
        self.ctx
    }

    /// The round's terms.
    #[must_use]
    pub fn terms(&self) -> &SecureTerms {
        &self.terms
    }

    /// Hash of all adverts.
    #[must_use]
    pub fn hash(&self) -> Hex<32> {
        self.hash
    }

    /// Neighbours and threshold.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// All adverts, in name order.
    #[must_use]
    pub fn adverts(&self) -> &[Advert] {
        &self.adverts
    }

    /// A participant's place.
    #[must_use]
    pub fn index(&self, name: &NodeName) -> Option<usize> {
        self.adverts.binary_search_by(|advert| advert.peer.name.cmp(name)).ok()
    }

    /// Are there nonces to be revealed before there is a graph?
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        self.terms.graph == GraphKind::Drawn
    }
}

impl Roster {
    /// What [`Listed::draw`] makes.
    pub(super) fn with_graph(listed: Listed, graph: Graph, hash: Hex<32>) -> Self {
        Self { listed, hash, graph }
    }

    /// The round's context.
    #[must_use]
    pub fn context(&self) -> Context {
        self.listed.ctx
    }

    /// Hash of all adverts and, where the graph is drawn, all nonces: of who takes part and who masks with whom.
    #[must_use]
    pub fn hash(&self) -> Hex<32> {
        self.hash
    }

    /// Neighbours and threshold.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.listed.plan
    }

    /// All adverts, in name order.
    #[must_use]
    pub fn adverts(&self) -> &[Advert] {
        &self.listed.adverts
    }

    /// A participant's place.
    #[must_use]
    pub fn index(&self, name: &NodeName) -> Option<usize> {
        self.listed.index(name)
    }

    /// With whom this participant masks and shares, in name order.
    #[must_use]
    pub fn neighbours(&self, index: usize) -> Vec<usize> {
        self.graph.neighbours(index)
    }

    /// On the full graph everybody also holds a share of its own secrets; on a sparse one the threshold counts neighbours.
    #[must_use]
    pub fn holds_own(&self) -> bool {
        self.plan().neighbours + 1 == self.adverts().len()
    }

    /// Who holds shares of this participant's secrets, in name order.
    #[must_use]
    pub fn holders(&self, index: usize) -> Vec<usize> {
        let mut holders = self.neighbours(index);
        if self.holds_own() {
            let at = holders.partition_point(|other| *other < index);
            holders.insert(at, index);
        }
        holders
    }

    /// Smallest set that may go on: the agreed one, and on the full graph the threshold.
    #[must_use]
    pub fn quorum(&self) -> usize {
        let threshold = if self.holds_own() { self.plan().threshold } else { 0 };
        (self.listed.terms.cohort_min.max(COHORT_MIN) as usize).max(threshold)
    }

    /// The places of these names, which must be in name order.
    ///
    /// # Errors
    /// A name that is out of order or on no place, as an alarm of this check.
    pub fn places(&self, names: &[NodeName], check: &'static str) -> Result<Vec<usize>, Alarm> {
        if names.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Alarm::new(check, "names must differ and be in order"));
        }
        let place = |name| self.index(name).ok_or_else(|| Alarm::new(check, format!("{name} is not on the roster")));
        names.iter().map(place).collect()
    }

    /// Hash of a set of survivors.
    #[must_use]
    pub fn survivors_hash(&self, survivors: &[NodeName]) -> Hex<32> {
        let names: Vec<&[u8]> = survivors.iter().map(|name| name.as_str().as_bytes()).collect();
        Hex(hash(self.context(), b"survivors", &[&[self.hash.0.as_slice()], names.as_slice()].concat()))
    }

    /// Is this the word of `index` for these survivors?
    #[must_use]
    pub fn agrees(&self, index: usize, survivors: &Hex<32>, signature: &Hex<64>) -> bool {
        let id = &self.adverts()[index].peer.id;
        is_signed(id, self.context(), Step::Agreement, &[&self.hash.0, &survivors.0], signature)
    }
}
