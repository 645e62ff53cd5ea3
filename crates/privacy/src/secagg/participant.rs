//! One participant of one context, as a pure machine that never says two different things.
//!
//! ```text
//! begin -> advert -> roster -> (reveal -> reveals ->) shares -> boxes -> masks, input -> survivors -> agreement
//!            \________\___________\__________________\________\______________\      -> agreements -> opening
//!                                                                              \-> alarm: silent for ever
//! ```
//! Promises: each step answers the first message of its kind; the same message again gets the same answer, another one is an
//! alarm, and after an alarm nothing is answered any more. Of nobody are both secrets opened. All secrets live in memory only
//! and are erased when the participant is dropped: whoever restarts has none, and stays silent on the contexts it had begun
//! (the caller keeps the list of those, and writes to it before the advert leaves).
//! Must not know: how messages travel, what the values mean.

use std::collections::BTreeMap;

use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use aivillage_base::NodeName;
use aivillage_base::wire::Peer;
use aivillage_base::wire::secure::{
    Advert, Agreed, Agreement, GraphKind, Hex, MaskedInput, OpenedShare, Opening, RegistryHead, Reveal, SealedShares,
    Secret, SecureTerms, Shares,
};

use super::draw::commitment;
use super::keys::{self, KeyPair};
use super::mask::{MaskKey, Sign};
use super::roster::{Alarm, Listed, Roster, advert_step, advert_text};
use super::signed::{Context, Signer, Step, sign};
use super::texts::opening_digest;

mod join;

/// Domain of the keys that shares are sealed with.
const BOX: &str = "aivillage secagg box v1";
/// Domain of pairwise masks.
pub(super) const PAIR_MASK: &str = "aivillage secagg pair mask v1";
/// Domain of own masks.
pub(super) const OWN_MASK: &str = "aivillage secagg own mask v1";

/// Says whether these are the enrolled keys of these names, under the registry of enrolments that the participant knows.
pub type Vouch<'a> = &'a dyn Fn(&[Advert]) -> Result<(), Alarm>;

/// What one participant holds of another's secrets.
struct Held {
    /// A share of the masking key.
    mask_key: Zeroizing<[u8; 32]>,
    /// A share of the seed of the own mask.
    seed: Zeroizing<[u8; 32]>,
}

/// What is known once the adverts are.
struct Shown {
    listed: Listed,
    /// What lets its nonce be known, where the graph is drawn.
    reveal: Option<Reveal>,
}

/// What is known once the roster is.
struct Joined {
    roster: Roster,
    index: usize,
    shares: Shares,
    /// By place: who it is a share of.
    held: BTreeMap<usize, Held>,
    /// By place: what the boxes to and from a neighbour are sealed under, computed once for both.
    box_secrets: BTreeMap<usize, Zeroizing<[u8; 32]>>,
}

/// A participant of one context.
pub struct Participant {
    ctx: Context,
    terms: SecureTerms,
    box_pair: KeyPair,
    mask_pair: KeyPair,
    seed: Zeroizing<[u8; 32]>,
    /// What the graph is drawn of; unknown to others until it is revealed.
    nonce: Hex<32>,
    advert: Advert,
    shown: Option<Shown>,
    joined: Option<Joined>,
    /// Who sent shares.
    sharers: Option<Vec<NodeName>>,
    input: Option<([u8; 32], MaskedInput)>,
    survivors: Option<(Vec<NodeName>, Agreement)>,
    opening: Option<Opening>,
    alarm: Option<Alarm>,
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { advert, joined, sharers, input, survivors, opening, alarm, .. } = self;
        f.debug_struct("Participant")
            .field("name", &advert.peer.name)
            .field("roster", &joined.as_ref().map(|j| j.roster.hash()))
            .field("sharers", &sharers.as_ref().map(Vec::len))
            .field("input", &input.is_some())
            .field("survivors", &survivors.as_ref().map(|(names, _)| names.len()))
            .field("opening", &opening.is_some())
            .field("alarm", alarm)
            .finish_non_exhaustive()
    }
}

impl Participant {
    /// Fresh keys for this context, signed with the `registry` of enrolments that it was shown. The caller has noted, durably,
    /// that it begins this context, and never did before.
    #[must_use]
    pub fn begin(
        ctx: Context,
        terms: SecureTerms,
        name: NodeName,
        registry: RegistryHead,
        signer: &dyn Signer,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let (box_pair, mask_pair) = (KeyPair::generate(rng), KeyPair::generate(rng));
        let (mut seed, mut nonce) = (Zeroizing::new([0; 32]), [0; 32]);
        rng.fill_bytes(seed.as_mut());
        rng.fill_bytes(&mut nonce);
        let nonce = Hex(nonce);
        let mut advert = Advert {
            peer: Peer { id: signer.id(), name },
            box_key: Hex(box_pair.public()),
            mask_key: Hex(mask_pair.public()),
            nonce: match terms.graph {
                GraphKind::Full => nonce,
                GraphKind::Drawn => commitment(ctx, &signer.id(), &nonce),
            },
            registry,
            signature: Hex([0; 64]),
        };
        advert.signature = sign(signer, ctx, advert_step(terms.graph), &[&advert_text(&advert)]);
        Self {
            ctx,
            terms,
            box_pair,
            mask_pair,
            seed,
            nonce,
            advert,
            shown: None,
            joined: None,
            sharers: None,
            input: None,
            survivors: None,
            opening: None,
            alarm: None,
        }
    }

    /// Step 0: its keys.
    #[must_use]
    pub fn advert(&self) -> &Advert {
        &self.advert
    }

    /// Its context.
    #[must_use]
    pub fn context(&self) -> Context {
        self.ctx
    }

    /// The alarm that silenced it.
    #[must_use]
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Remembers an alarm: the first one stays.
    fn silenced<T>(&mut self, result: Result<T, Alarm>) -> Result<T, Alarm> {
        if let Err(alarm) = &result {
            self.alarm.get_or_insert_with(|| alarm.clone());
        }
        result
    }

    fn alive(&self) -> Result<(), Alarm> {
        self.alarm.clone().map_or(Ok(()), Err)
    }

    /// Step 2, first half: the shares that others sent. From then on it has masks.
    ///
    /// # Errors
    /// [`Alarm`]: too few sharers, a box too many, missing or not openable, or other boxes came before.
    pub fn boxes(&mut self, sharers: &[NodeName], boxes: &[SealedShares]) -> Result<(), Alarm> {
        self.alive()?;
        let result = self.open(sharers, boxes);
        self.silenced(result)
    }

    fn open(&mut self, sharers: &[NodeName], boxes: &[SealedShares]) -> Result<(), Alarm> {
        if let Some(known) = &self.sharers {
            let other = || Alarm::new("equivocation", "a second set of sharers was sent for one context");
            return if known == sharers { Ok(()) } else { Err(other()) };
        }
        let joined = self.joined.as_ref().ok_or_else(|| Alarm::new("order", "boxes came before the roster"))?;
        let (roster, index) = (&joined.roster, joined.index);
        let places = roster.places(sharers, "sharers")?;
        if places.binary_search(&index).is_err() || places.len() < roster.quorum() {
            let (count, needed) = (places.len(), roster.quorum());
            return Err(Alarm::new(
                "sharers",
                format!("{count} sent shares, {needed} are needed, this one among them"),
            ));
        }
        let senders: Vec<usize> =
            roster.neighbours(index).iter().copied().filter(|n| places.binary_search(n).is_ok()).collect();
        let holders = senders.len() + usize::from(roster.holds_own());
        if holders < roster.plan().threshold {
            let needed = roster.plan().threshold;
            return Err(Alarm::new(
                "sharers",
                format!("{holders} holders of its secrets are left, {needed} are needed"),
            ));
        }
        if boxes.len() != senders.len() {
            let (found, needed) = (boxes.len(), senders.len());
            return Err(Alarm::new("boxes", format!("{found} boxes came, {needed} neighbours sent one")));
        }
        let mut opened = BTreeMap::new();
        for (sender, sealed) in senders.into_iter().zip(boxes) {
            let name = &roster.adverts()[sender].peer.name;
            if sealed.with != *name {
                return Err(Alarm::new("boxes", format!("a box of {} came where one of {name} belongs", sealed.with)));
            }
            let secret = &joined.box_secrets[&sender];
            let key = self.box_key(secret, (sender, index));
            let text = keys::open(&key, &aad(roster, (sender, index)), &sealed.sealed.0);
            let text = text.map_err(|e| Alarm::new("forged_box", format!("the box of {name}: {e}")))?;
            let (mask_key, seed) = text.split_first_chunk::<32>().ok_or_else(|| short_box(name))?;
            let seed: &[u8; 32] = seed.try_into().map_err(|_| short_box(name))?;
            opened.insert(sender, Held { mask_key: Zeroizing::new(*mask_key), seed: Zeroizing::new(*seed) });
        }
        if let Some(joined) = &mut self.joined {
            joined.held.append(&mut opened);
        }
        self.sharers = Some(sharers.to_vec());
        Ok(())
    }

    /// The survivors that it has given its word for; empty before.
    #[must_use]
    pub fn answers_for(&self) -> &[NodeName] {
        self.survivors.as_ref().map_or(&[], |(names, _)| names)
    }

    /// Hash of the survivors' enrolled keys: the same for the same participants in every context.
    #[must_use]
    pub fn survivor_keys(&self) -> [u8; 32] {
        let mut keys: Vec<[u8; 32]> = Vec::new();
        if let Some(joined) = &self.joined {
            let places = self.answers_for().iter().filter_map(|name| joined.roster.index(name));
            keys.extend(places.map(|place| joined.roster.adverts()[place].peer.id.0));
        }
        keys.sort_unstable();
        keys.iter()
            .fold(Sha256::new_with_prefix(b"aivillage survivors v1\0"), |hash, key| hash.chain_update(key))
            .finalize()
            .into()
    }

    /// Has it what [`Self::masks`] needs?
    #[must_use]
    pub fn has_masks(&self) -> bool {
        self.alarm.is_none() && self.sharers.is_some()
    }

    /// The streams that hide its values: its own, and one with each neighbour that sent shares.
    ///
    /// # Errors
    /// [`Alarm`]: it has no boxes yet, or a neighbour's key is weak.
    pub fn masks(&mut self) -> Result<Vec<(MaskKey, Sign)>, Alarm> {
        self.alive()?;
        let result = self.streams();
        self.silenced(result)
    }

    fn streams(&self) -> Result<Vec<(MaskKey, Sign)>, Alarm> {
        let (Some(joined), Some(_)) = (&self.joined, &self.sharers) else {
            return Err(Alarm::new("order", "masks were asked for before the boxes"));
        };
        let mut masks = vec![(MaskKey::derive(&self.seed, &self.ctx.0, OWN_MASK), Sign::Add)];
        for other in joined.held.keys().filter(|other| **other != joined.index) {
            let advert = &joined.roster.adverts()[*other];
            masks.push(pair_mask(&self.mask_pair, self.ctx, joined.index, (*other, advert))?);
        }
        Ok(masks)
    }

    /// Step 2, second half: vouches for the masked values with this digest.
    ///
    /// # Errors
    /// [`Alarm`]: it has no masks yet, or other values were masked before.
    pub fn input(&mut self, payload: [u8; 32], signer: &dyn Signer) -> Result<MaskedInput, Alarm> {
        self.alive()?;
        let result = self.vouch_for(payload, signer);
        self.silenced(result)
    }

    fn vouch_for(&mut self, payload: [u8; 32], signer: &dyn Signer) -> Result<MaskedInput, Alarm> {
        if let Some((known, input)) = &self.input {
            let other = || Alarm::new("two_inputs", "two different inputs would be masked with one key stream");
            return if *known == payload { Ok(input.clone()) } else { Err(other()) };
        }
        let (Some(joined), Some(_)) = (&self.joined, &self.sharers) else {
            return Err(Alarm::new("order", "an input was masked before the boxes came"));
        };
        let roster = joined.roster.hash();
        let signature = sign(signer, self.ctx, Step::Input, &[&roster.0, &payload]);
        let input = MaskedInput::Roster { roster, signature };
        self.input = Some((payload, input.clone()));
        Ok(input)
    }

    /// Step 3: gives its word for this set of survivors, and for no other.
    ///
    /// # Errors
    /// [`Alarm`]: it sent no input, is not among them, strangers are, they are too few, or another set came before.
    pub fn survivors(&mut self, survivors: &[NodeName], signer: &dyn Signer) -> Result<Agreement, Alarm> {
        self.alive()?;
        let result = self.agree(survivors, signer);
        self.silenced(result)
    }

    fn agree(&mut self, survivors: &[NodeName], signer: &dyn Signer) -> Result<Agreement, Alarm> {
        if let Some((known, agreement)) = &self.survivors {
            let other = || Alarm::new("equivocation", "a second set of survivors was sent for one context");
            return if known == survivors { Ok(agreement.clone()) } else { Err(other()) };
        }
        let (Some(joined), Some(sharers), Some(_)) = (&self.joined, &self.sharers, &self.input) else {
            return Err(Alarm::new("order", "survivors came before this one's input left"));
        };
        let roster = &joined.roster;
        let places = roster.places(survivors, "survivors")?;
        if let Some(stranger) = survivors.iter().find(|name| sharers.binary_search(name).is_err()) {
            return Err(Alarm::new("survivors", format!("{stranger} sent no shares and cannot have survived")));
        }
        if places.binary_search(&joined.index).is_err() {
            return Err(Alarm::new("survivors", "its own input is declared lost"));
        }
        if places.len() < roster.quorum() {
            let (count, needed) = (places.len(), roster.quorum());
            return Err(Alarm::new("survivors", format!("{count} survived, {needed} are needed")));
        }
        let hash = roster.survivors_hash(survivors);
        let signature = sign(signer, self.ctx, Step::Agreement, &[&roster.hash().0, &hash.0]);
        let agreement = Agreement { survivors: hash, signature };
        self.survivors = Some((survivors.to_vec(), agreement.clone()));
        Ok(agreement)
    }

    /// Step 4: enough others vouch for the same survivors, so it opens its shares: of each survivor the seed, of each that
    /// left the masking key.
    ///
    /// # Errors
    /// [`Alarm`]: a word that is false, twice, or of no neighbour; too few of them.
    pub fn agreements(&mut self, agreed: &[Agreed], signer: &dyn Signer) -> Result<Opening, Alarm> {
        self.alive()?;
        let result = self.give(agreed, signer);
        self.silenced(result)
    }

    fn give(&mut self, agreed: &[Agreed], signer: &dyn Signer) -> Result<Opening, Alarm> {
        if let Some(opening) = &self.opening {
            return Ok(opening.clone());
        }
        let (Some(joined), Some((survivors, agreement))) = (&self.joined, &self.survivors) else {
            return Err(Alarm::new("order", "agreements came before the survivors"));
        };
        let roster = &joined.roster;
        let names: Vec<NodeName> = agreed.iter().map(|word| word.name.clone()).collect();
        let places = roster.places(&names, "agreements")?;
        let mut holders = 0;
        for (place, word) in places.iter().zip(agreed) {
            if survivors.binary_search(&word.name).is_err() {
                return Err(Alarm::new("agreements", format!("{} is no survivor and has no say", word.name)));
            }
            if !roster.agrees(*place, &agreement.survivors, &word.signature) {
                let detail = format!("{} has not vouched for the survivors this one was shown", word.name);
                return Err(Alarm::new("agreements", detail));
            }
            holders += usize::from(joined.held.contains_key(place));
        }
        if holders < roster.plan().threshold {
            let needed = roster.plan().threshold;
            let detail = format!("{holders} holders of its secrets vouch for the survivors, {needed} are needed");
            return Err(Alarm::new("agreements", detail));
        }
        let shares = joined.held.iter().map(|(of, held)| {
            let of = &roster.adverts()[*of].peer.name;
            let survived = survivors.binary_search(of).is_ok();
            let share = if survived { &held.seed } else { &held.mask_key };
            OpenedShare { of: of.clone(), share: Secret(Hex(**share)) }
        });
        let shares: Vec<OpenedShare> = shares.collect();
        let mut opening = Opening { survivors: agreement.survivors, shares, signature: Hex([0; 64]) };
        opening.signature = sign(signer, self.ctx, Step::Opening, &[&opening_digest(&opening)]);
        self.opening = Some(opening.clone());
        Ok(opening)
    }
}

fn short_box(name: &NodeName) -> Alarm {
    Alarm::new("forged_box", format!("the box of {name} does not hold two shares of 32 bytes"))
}

/// A share's index: one more than the holder's place.
pub(super) fn share_index(place: usize) -> u16 {
    u16::try_from(place + 1).expect("invariant: a roster has at most 65,534 places")
}

fn index_bytes(place: usize) -> [u8; 8] {
    (place as u64).to_le_bytes()
}

/// What binds a box to its round, roster and pair.
fn aad(roster: &Roster, (from, to): (usize, usize)) -> Vec<u8> {
    [&roster.context().0[..], &roster.hash().0, &index_bytes(from), &index_bytes(to)].concat()
}

/// The stream between two participants: the one that comes first in name order adds it, the other subtracts it.
pub(super) fn pair_mask(
    own: &KeyPair,
    ctx: Context,
    index: usize,
    (other, advert): (usize, &Advert),
) -> Result<(MaskKey, Sign), Alarm> {
    let shared = own.shared(&advert.mask_key.0);
    let shared = shared.map_err(|e| Alarm::new("weak_key", format!("{}: {e}", advert.peer.name)))?;
    let sign = if index < other { Sign::Add } else { Sign::Subtract };
    Ok((MaskKey::derive(&shared, &ctx.0, PAIR_MASK), sign))
}
