//! Two aggregators of different owners: the coordinator has the masked updates, the helper the seeds of their masks.
//!
//! ```text
//! node         seed s; y = x + mask(s, ctx), in Z_2^b; box = s sealed to the helper, bound to ctx, sender and digest of y
//! coordinator  the sum of all y, and one request: whose boxes
//! helper       opens the boxes, sums the masks: minus that sum is its answer
//! coordinator  the sum of all y plus the answer = the sum of all x
//! ```
//! One message of a node is all: no cohort has to agree before, and any number may leave. The price is a second owner: the
//! coordinator and the helper together can read each update.
//!
//! Promises: a seed masks one update, as sealing takes it; a box opens only for its sender, context, helper and update; the
//! helper's answer is a function of what it was asked. Must not know: which sums were opened before, which whoever calls
//! keeps, durably: here every box could be opened again and again.

use std::collections::BTreeSet;

use aivillage_base::wire::helper::{HelpedInput, HelpedSum, HelperKey, SealedInput, SealedSeed};
use aivillage_base::wire::secure::{Hex, SecureTerms};
use aivillage_base::{Digest, NodeId};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::keys::{self, KeyPair};
use super::mask::{self, MaskKey, Sign};
use super::ring::{self, Width};
use super::roster::{Alarm, COHORT_MIN};
use super::signed::{Context, Signer, hash, text_is_signed};

/// Most updates of one sum: what one request can name.
pub const HELPED_MAX: u32 = 10_000;
/// Purpose of the mask of a seed.
const MASK: &str = "helper's mask";
/// Purpose of the key of a box.
const BOX: &str = "helper's box";
/// What is signed to make a seal key of; the signature itself leaves nobody's machine.
const SEAL_SECRET: &[u8] = b"aivillage helper seal secret v1\0";
/// Front of what is signed to vouch for a seal key.
const SEAL_KEY: &[u8] = b"aivillage helper seal key v1\0";
/// Values summed at a time.
const BLOCK: usize = 16 * 1024;

/// The key pair that seeds are sealed to.
#[derive(Debug)]
pub struct SealPair {
    pair: KeyPair,
    word: HelperKey,
}

impl SealPair {
    /// The pair of this helper: the same in every process that runs on its key, so that boxes outlive a restart. It is made
    /// of a signature, which for Ed25519 (RFC 8032) is a function of key and text, and which nobody else can make.
    #[must_use]
    pub fn of(signer: &dyn Signer) -> Self {
        let secret = Zeroizing::new(signer.sign(SEAL_SECRET));
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(*secret).into());
        let pair = KeyPair::from_seed(&seed);
        let seal_key = Hex(pair.public());
        let signature = Hex(signer.sign(&seal_key_text(&seal_key)));
        Self { pair, word: HelperKey { id: signer.id(), seal_key, signature } }
    }

    /// What nodes are told of it.
    #[must_use]
    pub fn word(&self) -> HelperKey {
        self.word
    }
}

fn seal_key_text(key: &Hex<32>) -> Vec<u8> {
    [SEAL_KEY, key.0.as_slice()].concat()
}

/// Does the helper vouch for its seal key?
#[must_use]
pub fn is_vouched_for(helper: &HelperKey) -> bool {
    text_is_signed(&helper.id, &seal_key_text(&helper.seal_key), &helper.signature)
}

/// What masks one update.
pub struct Seed(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Seed {
    /// A fresh one.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self(seed)
    }

    /// What is added to the update.
    #[must_use]
    pub fn mask(&self, ctx: Context) -> (MaskKey, Sign) {
        (MaskKey::derive(&self.0, &ctx.0, MASK), Sign::Add)
    }

    /// Seals it to the helper, for the one update that it has masked.
    ///
    /// # Errors
    /// [`Alarm`]: the helper's key is nobody's, or is not vouched for.
    pub fn seal(
        self,
        ctx: Context,
        helper: &HelperKey,
        payload: &Digest,
        signer: &dyn Signer,
        rng: &mut impl CryptoRng,
    ) -> Result<SealedInput, Alarm> {
        if !is_vouched_for(helper) {
            return Err(Alarm::new("helper", "the helper's key does not vouch for the key that seeds are sealed to"));
        }
        let mut blind = Hex([0; 32]);
        rng.fill_bytes(&mut blind.0);
        let payload = commitment(ctx, payload, &blind);
        let pair = KeyPair::generate(rng);
        let key = Hex(pair.public());
        let id = signer.id();
        let secret = box_key(&pair, &helper.seal_key, ctx)?;
        let sealed = keys::seal(&secret, &bound(ctx, helper, &id, &payload, &key), self.0.as_ref(), rng);
        let sealed = Hex(sealed.try_into().expect("invariant: 32 bytes and what a box adds"));
        let signature = Hex(signer.sign(&input_text(ctx, helper, &payload, (&key, &sealed))));
        Ok(SealedInput { seed: SealedSeed { key, sealed, signature }, blind })
    }
}

/// What the helper is shown of an update: it binds the box to it, and says nothing of it to who has not `blind`.
#[must_use]
pub fn commitment(ctx: Context, payload: &Digest, blind: &Hex<32>) -> Hex<32> {
    Hex(hash(ctx, b"helped update", &[&payload.0, &blind.0]))
}

fn box_key(pair: &KeyPair, peer: &Hex<32>, ctx: Context) -> Result<Zeroizing<[u8; 32]>, Alarm> {
    let shared = pair.shared(&peer.0).map_err(|fault| Alarm::new("box", fault.to_string()))?;
    Ok(keys::derive(&shared, &ctx.0, BOX))
}

/// What a box is bound to.
fn bound(ctx: Context, helper: &HelperKey, sender: &NodeId, payload: &Hex<32>, key: &Hex<32>) -> [u8; 32] {
    hash(ctx, b"helper's box", &[&helper.id.0, &helper.seal_key.0, &sender.0, &payload.0, &key.0])
}

/// What its sender signs.
#[must_use]
pub fn input_text(
    ctx: Context,
    helper: &HelperKey,
    payload: &Hex<32>,
    (key, sealed): (&Hex<32>, &Hex<60>),
) -> [u8; 32] {
    hash(ctx, b"helped input", &[&helper.id.0, &helper.seal_key.0, &payload.0, &key.0, &sealed.0])
}

/// Does `id` vouch for the update behind this commitment and its box, in this context and for this helper?
#[must_use]
pub fn input_is_signed(id: &NodeId, ctx: Context, helper: &HelperKey, payload: &Hex<32>, seed: &SealedSeed) -> bool {
    let text = input_text(ctx, helper, payload, (&seed.key, &seed.sealed));
    text_is_signed(id, &text, &seed.signature)
}

/// Which inputs a helper answers for: no other list has this hash.
#[must_use]
pub fn inputs_hash(ctx: Context, inputs: &[HelpedInput]) -> Hex<32> {
    let mut parts: Vec<&[u8]> = Vec::with_capacity(inputs.len() * 6);
    for HelpedInput { peer, payload, seed } in inputs {
        let SealedSeed { key, sealed, signature } = seed;
        parts.extend([peer.name.as_str().as_bytes(), &peer.id.0, &payload.0, &key.0, &sealed.0, &signature.0]);
    }
    Hex(hash(ctx, b"helped inputs", &parts))
}

/// The masks of these updates, to be taken away. Whoever calls has noted, durably, that they are opened in this sum and in no
/// other.
///
/// # Errors
/// [`Alarm`]: the terms name another helper, the updates are too few or too many, named twice or out of order, not vouched
/// for by the keys they are said to be of (`vouch` says whether those are known, of all at once), or a box does not open.
pub fn open(
    ctx: Context,
    terms: &SecureTerms,
    inputs: &[HelpedInput],
    pair: &SealPair,
    vouch: &dyn Fn(&[HelpedInput]) -> Result<(), Alarm>,
) -> Result<Vec<(MaskKey, Sign)>, Alarm> {
    check(ctx, terms, inputs, &pair.word)?;
    vouch(inputs)?;
    inputs.iter().map(|input| mask_of(ctx, pair, input)).collect()
}

/// Everything of a request but whose keys these are and what is in the boxes.
fn check(ctx: Context, terms: &SecureTerms, inputs: &[HelpedInput], own: &HelperKey) -> Result<(), Alarm> {
    if terms.helper != Some(*own) {
        return Err(Alarm::new("helper", "the round's terms do not name this helper and its key"));
    }
    let count = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
    let (least, most) = (terms.cohort_min.max(COHORT_MIN), terms.cohort_max.min(HELPED_MAX));
    if !(least..=most).contains(&count) {
        let detail = format!("{count} updates are to be summed, which is outside {least} to {most}");
        return Err(Alarm::new("cohort", detail));
    }
    let mut ids = BTreeSet::new();
    for (i, HelpedInput { peer, payload, seed }) in inputs.iter().enumerate() {
        if i > 0 && inputs[i - 1].peer.name >= peer.name {
            return Err(Alarm::new("order", format!("{} is named twice, or out of order", peer.name)));
        }
        if peer.id == own.id || !ids.insert(peer.id) {
            return Err(Alarm::new("duplicate", format!("the key of {} is another participant's as well", peer.name)));
        }
        if !input_is_signed(&peer.id, ctx, own, payload, seed) {
            let detail = format!("the update of {} and its box are not signed by its key for this round", peer.name);
            return Err(Alarm::new("signature", detail));
        }
    }
    Ok(())
}

fn mask_of(ctx: Context, pair: &SealPair, input: &HelpedInput) -> Result<(MaskKey, Sign), Alarm> {
    let HelpedInput { peer, payload, seed } = input;
    let secret = box_key(&pair.pair, &seed.key, ctx)?;
    let opened = keys::open(&secret, &bound(ctx, &pair.word, &peer.id, payload, &seed.key), &seed.sealed.0);
    let opened = opened.map_err(|fault| Alarm::new("box", format!("of {}: {fault}", peer.name)))?;
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.copy_from_slice(&opened);
    Ok((Seed(bytes).mask(ctx).0, Sign::Subtract))
}

/// The helper's answer: what is added to the sum of `values` masked values, packed like an update.
#[must_use]
pub fn answer(masks: &[(MaskKey, Sign)], width: Width, values: usize) -> Vec<u8> {
    let size = width.bytes();
    let mut out = vec![0; values * size];
    let mut words = vec![0; BLOCK.min(values)];
    for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
        let words = &mut words[..out.len() / size];
        words.fill(0);
        mask::apply(masks, width, (i * BLOCK) as u64, words);
        ring::pack(words, width, out);
    }
    out
}

fn answer_text(ctx: Context, inputs: &Hex<32>, payload: &Digest) -> [u8; 32] {
    hash(ctx, b"helped sum", &[&inputs.0, &payload.0])
}

/// The helper's word for an answer with this digest.
#[must_use]
pub fn sign_answer(signer: &dyn Signer, ctx: Context, inputs: Hex<32>, payload: &Digest) -> HelpedSum {
    HelpedSum { inputs, signature: Hex(signer.sign(&answer_text(ctx, &inputs, payload))) }
}

/// Does the helper `id` vouch for this answer?
#[must_use]
pub fn answer_is_signed(id: &NodeId, ctx: Context, payload: &Digest, sum: &HelpedSum) -> bool {
    text_is_signed(id, &answer_text(ctx, &sum.inputs, payload), &sum.signature)
}
