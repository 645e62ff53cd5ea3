//! The coordinator's half, without a state of its own: checks of what participants say, and the masks that a sum must lose.
//!
//! Promises: what is checked here is what the participants check of each other, so an honest one is not led into an alarm by
//! another's message; a secret is used only if it is the one that was committed to (the masking key gives the advertised
//! public key, the seed its commitment). Must not know how often it is asked, or where messages are kept.

use std::collections::BTreeMap;

use aivillage_base::NodeName;
use aivillage_base::wire::secure::{Advert, Agreement, Opening, SealedShares, Shares};
use zeroize::Zeroizing;

use super::keys::{self, KeyPair};
use super::mask::{MaskKey, Sign};
use super::participant::{OWN_MASK, pair_mask, share_index};
use super::roster::Roster;
use super::shamir::{self, Share, ShareError};
use super::signed::{Step, is_signed};
use super::texts::{opening_digest, shares_digest};

/// A sum that cannot be opened (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// More shares of this participant's secret are needed.
    #[error("{have} shares of the secret of {of} came, {need} are needed")]
    TooFew {
        /// Whose secret.
        of: NodeName,
        /// Shares that came.
        have: usize,
        /// The threshold.
        need: usize,
    },
    /// The shares do not make the secret that was committed to.
    #[error("the shares of the secret of {of} do not agree on it: {why}")]
    Wrong {
        /// Whose secret.
        of: NodeName,
        /// Why.
        why: String,
    },
}

/// What opens a sum.
#[derive(Debug)]
pub struct Unmasking {
    /// The streams that the sum must lose, each with the sign that takes it away.
    pub masks: Vec<(MaskKey, Sign)>,
    /// Holders whose shares were wrong, with whose secret they were of.
    pub wrong: Vec<(NodeName, NodeName)>,
}

/// Are these keys ones that others can work with, and nobody else's? Else honest participants would be led into an alarm.
///
/// # Errors
/// One sentence.
pub fn check_advert(advert: &Advert, others: &[&Advert]) -> Result<(), String> {
    let keys = |advert: &Advert| [advert.peer.id.0, advert.box_key.0, advert.mask_key.0, advert.nonce.0];
    let own = keys(advert);
    let twice = (1..own.len()).any(|at| own[..at].contains(&own[at]));
    if twice || others.iter().any(|other| keys(other).iter().any(|key| own.contains(key))) {
        return Err("one of its keys appears twice".to_owned());
    }
    let probe = KeyPair::from_seed(&[1; 32]);
    for key in [&advert.box_key.0, &advert.mask_key.0] {
        probe.shared(key).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Are these shares one for each neighbour, for this roster, signed by their sender?
///
/// # Errors
/// One sentence.
pub fn check_shares(roster: &Roster, from: usize, shares: &Shares) -> Result<(), String> {
    let advert = &roster.adverts()[from];
    if shares.roster != roster.hash() {
        return Err("the shares are for another roster".to_owned());
    }
    let expected = roster.neighbours(from).into_iter().map(|place| &roster.adverts()[place].peer.name);
    if !shares.boxes.iter().map(|sealed| &sealed.with).eq(expected) {
        return Err(format!("{} boxes came, not one for each neighbour in name order", shares.boxes.len()));
    }
    let signed =
        is_signed(&advert.peer.id, roster.context(), Step::Shares, &[&shares_digest(shares)], &shares.signature);
    if signed { Ok(()) } else { Err("the shares are not signed by their sender's enrolled key".to_owned()) }
}

/// The boxes for one participant, by the names of their senders, of what passed [`check_shares`].
#[must_use]
pub fn boxes_for<'s>(roster: &Roster, sent: impl Fn(&NodeName) -> Option<&'s Shares>, to: usize) -> Vec<SealedShares> {
    let name = &roster.adverts()[to].peer.name;
    let from = |place: usize| {
        let sender = &roster.adverts()[place].peer.name;
        let boxes = &sent(sender)?.boxes;
        let at = boxes.binary_search_by(|sealed| sealed.with.cmp(name)).ok()?;
        Some(SealedShares { with: sender.clone(), sealed: boxes[at].sealed })
    };
    roster.neighbours(to).into_iter().filter_map(from).collect()
}

/// Does this participant vouch for these survivors?
///
/// # Errors
/// One sentence.
pub fn check_agreement(
    roster: &Roster,
    survivors: &[NodeName],
    from: usize,
    agreement: &Agreement,
) -> Result<(), String> {
    if agreement.survivors != roster.survivors_hash(survivors) {
        return Err("it vouches for other survivors".to_owned());
    }
    let signed = roster.agrees(from, &agreement.survivors, &agreement.signature);
    if signed { Ok(()) } else { Err("its word is not signed by its enrolled key".to_owned()) }
}

/// Of whom a participant holds shares: its neighbours that sent some, and itself on the full graph; in name order.
fn holdings<'r>(roster: &'r Roster, sharers: &[NodeName], holder: usize) -> Vec<&'r NodeName> {
    let places = roster.holders(holder);
    let names = places.into_iter().map(|place| &roster.adverts()[place].peer.name);
    names.filter(|name| sharers.binary_search(name).is_ok()).collect()
}

/// Does this opening answer for these survivors, with a share of everybody whose shares its sender holds?
///
/// # Errors
/// One sentence.
pub fn check_opening(
    roster: &Roster,
    sharers: &[NodeName],
    survivors: &[NodeName],
    from: usize,
    opening: &Opening,
) -> Result<(), String> {
    if opening.survivors != roster.survivors_hash(survivors) {
        return Err("it answers for other survivors".to_owned());
    }
    if !opening.shares.iter().map(|share| &share.of).eq(holdings(roster, sharers, from)) {
        return Err(format!("{} shares came, not one of each neighbour that sent it some", opening.shares.len()));
    }
    let id = &roster.adverts()[from].peer.id;
    let digest = opening_digest(opening);
    let signed = is_signed(id, roster.context(), Step::Opening, &[&digest], &opening.signature);
    if signed { Ok(()) } else { Err("the shares are not signed by their sender's enrolled key".to_owned()) }
}

/// The masks that are left in the sum of the survivors' inputs: their own ones, and those with neighbours that left.
///
/// `commitments` are those of the survivors; `openings` passed [`check_opening`].
///
/// # Errors
/// [`Unopened`] for the first participant, in name order, whose secret is not rebuilt.
pub fn unmask(
    roster: &Roster,
    sharers: &[NodeName],
    survivors: &[NodeName],
    commitments: &BTreeMap<NodeName, [u8; 32]>,
    openings: &BTreeMap<NodeName, Opening>,
) -> Result<Unmasking, Unopened> {
    let mut shares: BTreeMap<&NodeName, Vec<Share>> = BTreeMap::new();
    for (holder, opening) in openings {
        let Some(place) = roster.index(holder) else { continue };
        for opened in &opening.shares {
            let share = Share { index: share_index(place), value: opened.share.0.0 };
            shares.entry(&opened.of).or_default().push(share);
        }
    }
    let (mut masks, mut wrong) = (Vec::new(), Vec::new());
    for name in sharers {
        let Some(place) = roster.index(name) else { continue };
        let survived = survivors.binary_search(name).is_ok();
        let of_whom: Vec<usize> = roster
            .neighbours(place)
            .into_iter()
            .filter(|other| survivors.binary_search(&roster.adverts()[*other].peer.name).is_ok())
            .collect();
        if !survived && of_whom.is_empty() {
            continue; // None of its masks is in the sum.
        }
        let advertised = roster.adverts()[place].mask_key.0;
        let is_right = |secret: &[u8; 32]| match survived {
            true => commitments.get(name).is_some_and(|commitment| *commitment == keys::commit(secret)),
            false => KeyPair::from_seed(secret).public() == advertised,
        };
        let found = shares.remove(name).unwrap_or_default();
        let (secret, bad) = rebuild(name, &found, roster.plan().threshold, is_right)?;
        for index in bad {
            let holder = roster.adverts()[usize::from(index) - 1].peer.name.clone();
            wrong.push((holder, name.clone()));
        }
        if survived {
            masks.push((MaskKey::derive(&secret, &roster.context().0, OWN_MASK), Sign::Subtract));
            continue;
        }
        let pair = KeyPair::from_seed(&secret);
        for other in of_whom {
            // The missing summand would have cancelled what the survivor put in: it is added in its stead.
            let advert = &roster.adverts()[other];
            let mask = pair_mask(&pair, roster.context(), place, (other, advert));
            masks.push(mask.map_err(|alarm| Unopened::Wrong { of: name.clone(), why: alarm.to_string() })?);
        }
    }
    Ok(Unmasking { masks, wrong })
}

type Rebuilt = (Zeroizing<[u8; 32]>, Vec<u16>);

fn rebuild(
    of: &NodeName,
    shares: &[Share],
    threshold: usize,
    is_right: impl Fn(&[u8; 32]) -> bool,
) -> Result<Rebuilt, Unopened> {
    let wrong = |why: ShareError| match why {
        ShareError::TooFew { have, need } => Unopened::TooFew { of: of.clone(), have, need },
        ShareError::IndexZero
        | ShareError::IndexTwice(_)
        | ShareError::Threshold { .. }
        | ShareError::Irreparable { .. } => Unopened::Wrong { of: of.clone(), why: why.to_string() },
    };
    let (secret, bad) = shamir::combine_checked(shares, threshold, is_right).map_err(wrong)?;
    Ok((Zeroizing::new(secret), bad))
}

/// Are there as many holders of each sharer's secrets among the sharers as rebuild one? Else a participant would be led into
/// an alarm. On the full graph that is so if they are as many as the quorum.
#[must_use]
pub fn all_held(roster: &Roster, sharers: &[NodeName]) -> bool {
    let shares: Vec<bool> =
        roster.adverts().iter().map(|advert| sharers.binary_search(&advert.peer.name).is_ok()).collect();
    let held = |place: usize| roster.holders(place).into_iter().filter(|holder| shares[*holder]).count();
    let threshold = roster.plan().threshold;
    (0..shares.len()).all(|place| !shares[place] || held(place) >= threshold)
}

/// Can everything be opened that has to be, by the shares of those who `answered`? Also asked of those who vouch for the
/// survivors: each survivor opens its shares only if so many of its neighbours do.
#[must_use]
pub fn is_enough(roster: &Roster, sharers: &[NodeName], survivors: &[NodeName], answered: &[NodeName]) -> bool {
    let threshold = roster.plan().threshold;
    sharers.iter().all(|name| {
        let Some(place) = roster.index(name) else { return true };
        let among = |set: &[NodeName], other: &usize| set.binary_search(&roster.adverts()[*other].peer.name).is_ok();
        let survived = survivors.binary_search(name).is_ok();
        if !survived && !roster.neighbours(place).iter().any(|other| among(survivors, other)) {
            return true; // None of its masks is in the sum.
        }
        roster.holders(place).iter().filter(|holder| among(answered, holder)).count() >= threshold
    })
}
