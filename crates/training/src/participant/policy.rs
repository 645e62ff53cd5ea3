//! What a node allows, whatever a job says: its owner's rules, judged before training starts and again before anything leaves.
//!
//! Promise: pure, and closed: what the node does not know is refused. No job, role or key is asked for here, so none can
//! override a rule. Must not know: how anything is trained or sent.

use aivillage_base::NodeId;
use aivillage_base::fixed::Grid;
use aivillage_base::wire::{Declined, Invitation, LocalRule, RoundKey, UpdateHeader};
use aivillage_privacy::refusal;
use aivillage_privacy::secagg::signed::Signer;

use super::hours;
use crate::secure;
use crate::spec::JobSpec;

pub use aivillage_base::wire::policy::{Hours, NodePolicy, RetainUpdates};

/// Longest reason of a refusal, in characters: it is stored and shown.
pub const REASON_MAX: usize = 500;

/// What may refuse a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// This version builds the privacy techniques that the round asks for.
    PrivacyTechniques,
    /// This version knows what the strategy asks of nodes.
    Local,
    /// The node still has the state that the round builds on.
    State,
    /// See [`NodePolicy`], as all that follow.
    RequireSecureAggregation,
    /// Fewest updates in a sum.
    MinCohort,
    /// Who may take masks away.
    Helpers,
    /// Who may ask.
    AllowedPublishers,
    /// For what.
    AllowedJobTypes,
    /// Which models.
    AllowedRecipes,
    /// Largest bound on an update.
    MaxClip,
    /// How often.
    MaxRounds,
    /// Updates after their round.
    RetainUpdates,
    /// When.
    Hours,
}

impl Rule {
    /// The rules that an owner sets, in the order in which they are asked.
    pub const OWNERS: [Self; 10] = [
        Self::RequireSecureAggregation,
        Self::MinCohort,
        Self::Helpers,
        Self::AllowedPublishers,
        Self::AllowedJobTypes,
        Self::AllowedRecipes,
        Self::MaxClip,
        Self::MaxRounds,
        Self::RetainUpdates,
        Self::Hours,
    ];

    /// Its name in node.yaml and in a job's status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PrivacyTechniques => "privacy_techniques",
            Self::Local => "local",
            Self::State => "state",
            Self::RequireSecureAggregation => "require_secure_aggregation",
            Self::MinCohort => "min_cohort",
            Self::Helpers => "helpers",
            Self::AllowedPublishers => "allowed_publishers",
            Self::AllowedJobTypes => "allowed_job_types",
            Self::AllowedRecipes => "allowed_recipes",
            Self::MaxClip => "max_clip",
            Self::MaxRounds => "max_rounds",
            Self::RetainUpdates => "retain_updates",
            Self::Hours => "hours",
        }
    }
}

/// A node's no, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule.
    pub rule: Rule,
    /// What it demands and what is asked.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn new(rule: Rule, reason: impl Into<String>) -> Self {
        Self { rule, reason: reason.into() }
    }

    /// The same, signed for this attempt.
    #[must_use]
    pub fn signed(self, signer: &dyn Signer, key: &RoundKey) -> Declined {
        let reason = self.reason.chars().take(REASON_MAX).collect();
        refusal::sign(signer, key, self.rule.name().to_owned(), reason)
    }
}

/// What is asked of a node, as far as its owner's rules look at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked<'a> {
    /// Who created the job.
    pub publisher: &'a str,
    /// Its type.
    pub job_type: &'a str,
    /// Its recipe.
    pub recipe: &'a str,
    /// Its rounds.
    pub total_rounds: u32,
    /// Fewest updates in a sum that is opened; None = the coordinator sees single ones.
    pub cohort_min: Option<u32>,
    /// Who takes the masks away.
    pub helper: AskedHelper,
    /// Bound on the norm of an update.
    pub clip: Option<f64>,
    /// Does it ask to keep updates after their round?
    pub retain_updates: bool,
}

/// Who takes the masks away in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedHelper {
    /// There is none.
    Nobody,
    /// A machine whose key is not known before the round.
    Some,
    /// The machine with this key.
    Known(NodeId),
}

impl<'a> From<&'a Invitation> for Asked<'a> {
    fn from(invitation: &'a Invitation) -> Self {
        Self {
            publisher: &invitation.publisher,
            job_type: &invitation.job_type,
            recipe: &invitation.recipe,
            // Whatever the job said of its length at first.
            total_rounds: invitation.total_rounds.max(invitation.key.round),
            cohort_min: invitation.secure.map(|terms| terms.cohort_min),
            helper: match invitation.secure.and_then(|terms| terms.helper) {
                Some(key) => AskedHelper::Known(key.id),
                None => AskedHelper::Nobody,
            },
            clip: invitation.clip,
            retain_updates: invitation.retain_updates,
        }
    }
}

impl<'a> From<&'a JobSpec> for Asked<'a> {
    fn from(spec: &'a JobSpec) -> Self {
        Self {
            publisher: &spec.publisher,
            job_type: crate::spec::STANDARD,
            recipe: spec.recipe_name(),
            total_rounds: spec.total_rounds,
            cohort_min: spec.secure.map(|_| spec.min_participants),
            helper: if spec.helper.is_some() { AskedHelper::Some } else { AskedHelper::Nobody },
            clip: spec.clip,
            retain_updates: spec.retain_updates,
        }
    }
}

/// When a round is judged.
#[derive(Debug, Clone, Copy)]
pub enum Moment<'a> {
    /// Before training starts, and before each word of secure aggregation leaves.
    Asked,
    /// Before this update leaves.
    Leaving(&'a UpdateHeader),
}

/// May the node take part in this round, at this moment? The one judge, of both moments.
///
/// # Errors
/// The first rule that refuses, in a fixed order.
pub fn judge(policy: &NodePolicy, wall_ms: u64, invitation: &Invitation, moment: Moment<'_>) -> Result<(), Refusal> {
    if let Some(refusal) = unable(invitation) {
        return Err(refusal);
    }
    let asked = Asked::from(invitation);
    for rule in Rule::OWNERS {
        if let Some(reason) = refused(policy, rule, &asked, wall_ms) {
            return Err(Refusal { rule, reason });
        }
    }
    match moment {
        Moment::Asked => Ok(()),
        Moment::Leaving(header) => as_judged(policy, invitation, header),
    }
}

/// What this version cannot do, whatever its owner allows.
#[must_use]
pub fn unable(invitation: &Invitation) -> Option<Refusal> {
    let named = |name: &String| name == secure::TECHNIQUE;
    if let Some(technique) = invitation.privacy_techniques.iter().find(|name| !named(name)) {
        let reason = format!("the round asks for `{technique}`, which this node's version does not build");
        return Some(Refusal::new(Rule::PrivacyTechniques, reason));
    }
    if invitation.privacy_techniques.iter().any(named) != invitation.secure.is_some() {
        let reason = "the invitation names secure aggregation without its terms, or terms without naming it";
        return Some(Refusal::new(Rule::PrivacyTechniques, reason));
    }
    if let Some(detail) = invitation.secure.and_then(|terms| secure::check_terms(&terms).err()) {
        return Some(Refusal::new(Rule::PrivacyTechniques, detail));
    }
    if invitation.grids.iter().any(|grid| *grid != Grid::default()) {
        let reason =
            "the round's grid is not the one that this node knows: another one could be chosen to read values by";
        return Some(Refusal::new(Rule::PrivacyTechniques, reason));
    }
    let unknown = "the strategy asks for something that this node's version does not know";
    (invitation.local == LocalRule::Unknown).then(|| Refusal::new(Rule::Local, unknown))
}

/// Why this rule of the owner refuses what is asked; None = it does not.
#[must_use]
pub fn refused(policy: &NodePolicy, rule: Rule, asked: &Asked<'_>, wall_ms: u64) -> Option<String> {
    match rule {
        Rule::PrivacyTechniques | Rule::Local | Rule::State => None,
        Rule::RequireSecureAggregation => (policy.require_secure_aggregation && asked.cohort_min.is_none())
            .then(|| "the coordinator would see this node's update, and this node does not allow that".to_owned()),
        Rule::MinCohort => {
            let least = policy.min_cohort?;
            match asked.cohort_min {
                None => Some(format!(
                    "the coordinator would see this node's update, which has to be one of a sum of at least {least}"
                )),
                Some(cohort) if cohort < least => {
                    Some(format!("sums of {cohort} updates may be opened, and this node asks for at least {least}"))
                }
                Some(_) => None,
            }
        }
        Rule::Helpers => {
            let trusted = match asked.helper {
                AskedHelper::Nobody => true,
                AskedHelper::Some => !policy.helpers.is_empty(),
                AskedHelper::Known(id) => policy.helpers.contains(&id),
            };
            let whose = match asked.helper {
                AskedHelper::Known(id) => format!("the machine with the key {id}"),
                AskedHelper::Nobody | AskedHelper::Some => "a helper".to_owned(),
            };
            (!trusted).then(|| {
                format!(
                    "{whose} would take the masks away, and its owner has not listed it: if it worked with the gateway, \
                     they could read this node's update"
                )
            })
        }
        // Whom the owner trusts besides is no business of a job's status.
        Rule::AllowedPublishers => (!allows(policy.allowed_publishers.as_ref(), asked.publisher))
            .then(|| format!("the job was created by `{}`, who is not among those it allows", asked.publisher)),
        Rule::AllowedJobTypes => unlisted("job type", policy.allowed_job_types.as_ref(), asked.job_type),
        Rule::AllowedRecipes => unlisted("recipe", policy.allowed_recipes.as_ref(), asked.recipe),
        Rule::MaxClip => {
            let most = policy.max_clip?;
            match asked.clip {
                None => Some(format!("nothing bounds the norm of its update, and a bound of at most {most} is needed")),
                Some(clip) if clip > most => {
                    Some(format!("its update would be bounded by a norm of {clip}, at most {most} is allowed"))
                }
                Some(_) => None,
            }
        }
        Rule::MaxRounds => {
            let most = policy.max_rounds.filter(|most| asked.total_rounds > *most)?;
            Some(format!("the job has {} rounds, at most {most} are allowed", asked.total_rounds))
        }
        Rule::RetainUpdates => (asked.retain_updates && policy.retain_updates == RetainUpdates::Never)
            .then(|| "the job asks to keep updates after their round, and this node never allows that".to_owned()),
        Rule::Hours => {
            let open = policy.hours.as_ref()?;
            (!hours::open(open, wall_ms)).then(|| hours::closed(open, wall_ms))
        }
    }
}

fn allows(list: Option<&Vec<String>>, name: &str) -> bool {
    list.is_none_or(|list| list.iter().any(|known| known == name))
}

fn unlisted(what: &str, list: Option<&Vec<String>>, name: &str) -> Option<String> {
    let known = list.filter(|list| !allows(Some(list), name))?;
    Some(format!("{what} `{name}` is not among: {}", known.join(", ")))
}

/// Is this the update that was judged when the round began? Whatever made it, on whatever path.
fn as_judged(policy: &NodePolicy, invitation: &Invitation, header: &UpdateHeader) -> Result<(), Refusal> {
    if header.key != invitation.key {
        let reason = format!("an update for {} is not what was asked for", header.key);
        return Err(Refusal::new(Rule::PrivacyTechniques, reason));
    }
    if header.secure.is_some() != invitation.secure.is_some() {
        let rule = match policy.require_secure_aggregation {
            true => Rule::RequireSecureAggregation,
            false => Rule::PrivacyTechniques,
        };
        return Err(Refusal::new(rule, "the update is not masked, or the round is not one of masked updates"));
    }
    if header.retain && !may_keep(policy, invitation) {
        return Err(Refusal::new(Rule::RetainUpdates, "the update would be kept after its round"));
    }
    Ok(())
}

/// May this node's update be kept after its round?
#[must_use]
pub fn may_keep(policy: &NodePolicy, invitation: &Invitation) -> bool {
    invitation.retain_updates && policy.retain_updates == RetainUpdates::IfAsked
}

#[cfg(test)]
mod tests;
