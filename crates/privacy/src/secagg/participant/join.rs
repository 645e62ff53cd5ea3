//! From everybody's keys to shares of one's own: steps 0 and 1, and the reveal between them where the graph is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use aivillage_base::wire::secure::{Advert, Hex, Reveal, Revealed, SealedShares, Shares};

use super::{BOX, Held, Joined, Participant, Shown, Vouch, aad, index_bytes, share_index};
use crate::secagg::roster::{Alarm, Listed, Roster};
use crate::secagg::signed::{Signer, Step, hash, sign};
use crate::secagg::texts::shares_digest;
use crate::secagg::{draw, keys, shamir};

impl Participant {
    /// Step 0, second half: everybody's keys in. Where the graph is drawn its own nonce comes out, which everybody on this
    /// roster has to be shown; else nothing, and [`Self::reveals`] of none is what follows.
    ///
    /// # Errors
    /// [`Alarm`]: the adverts are not sound, its own entry is missing or changed, a key is not vouched for, or
    /// others came before.
    pub fn roster(
        &mut self,
        adverts: impl Into<Arc<[Advert]>>,
        vouch: Vouch<'_>,
        signer: &dyn Signer,
    ) -> Result<Option<Reveal>, Alarm> {
        self.alive()?;
        let result = self.list(adverts.into(), vouch, signer);
        self.silenced(result)
    }

    fn list(&mut self, adverts: Arc<[Advert]>, vouch: Vouch<'_>, signer: &dyn Signer) -> Result<Option<Reveal>, Alarm> {
        if let Some(shown) = &self.shown {
            let same = shown.listed.adverts() == &*adverts;
            let other = || Alarm::new("equivocation", "a second roster was sent for one context");
            return if same { Ok(shown.reveal.clone()) } else { Err(other()) };
        }
        let listed = Listed::new(self.ctx, &self.terms, adverts)?;
        if !listed.adverts().contains(&self.advert) {
            return Err(Alarm::new("own_entry", "its own keys are missing on the roster or changed"));
        }
        vouch(listed.adverts())?;
        let reveal = listed.is_drawn().then(|| draw::reveal(&listed, self.nonce, signer));
        self.shown = Some(Shown { listed, reveal: reveal.clone() });
        Ok(reveal)
    }

    /// Step 1: everybody's nonces in, where the graph is drawn; shares for the neighbours out.
    ///
    /// # Errors
    /// [`Alarm`]: no adverts came before, a nonce is missing or is not what its owner committed to and signed.
    pub fn reveals(
        &mut self,
        reveals: &[Revealed],
        signer: &dyn Signer,
        rng: &mut impl CryptoRng,
    ) -> Result<Shares, Alarm> {
        self.alive()?;
        let result = self.join(reveals, signer, rng);
        self.silenced(result)
    }

    fn join(&mut self, reveals: &[Revealed], signer: &dyn Signer, rng: &mut impl CryptoRng) -> Result<Shares, Alarm> {
        let shown = self.shown.as_ref().ok_or_else(|| Alarm::new("order", "nonces came before the roster"))?;
        let roster = shown.listed.clone().draw(reveals)?;
        if let Some(joined) = &self.joined {
            // Commitments leave no room for other nonces: it is the same roster.
            return Ok(joined.shares.clone());
        }
        let index = roster.index(&self.advert.peer.name);
        let index = index.ok_or_else(|| Alarm::new("own_entry", "its own keys are missing on the roster"))?;
        let holders = roster.holders(index);
        let places: Vec<u16> = holders.iter().map(|holder| share_index(*holder)).collect();
        let threshold = roster.plan().threshold;
        let split = |secret: &[u8; 32], rng: &mut _| {
            shamir::split(secret, threshold, &places, rng).map_err(|e| Alarm::new("threshold", e.to_string()))
        };
        let mask_keys = split(&self.mask_pair.seed(), rng)?;
        let seeds = split(&self.seed, rng)?;
        let (mut boxes, mut held) = (Vec::with_capacity(holders.len()), BTreeMap::new());
        let mut box_secrets = BTreeMap::new();
        for ((holder, mask_key), seed) in holders.iter().zip(&mask_keys).zip(&seeds) {
            if *holder == index {
                let own = Held { mask_key: Zeroizing::new(mask_key.value), seed: Zeroizing::new(seed.value) };
                held.insert(index, own);
                continue;
            }
            let text = Zeroizing::new([mask_key.value, seed.value].concat());
            let secret = self.box_secret(&roster, *holder)?;
            let key = self.box_key(&secret, (index, *holder));
            box_secrets.insert(*holder, secret);
            let sealed = keys::seal(&key, &aad(&roster, (index, *holder)), &text, rng);
            let sealed = Hex(sealed.try_into().expect("invariant: two shares of 32 bytes make a box of 92"));
            boxes.push(SealedShares { with: roster.adverts()[*holder].peer.name.clone(), sealed });
        }
        let mut shares =
            Shares { roster: roster.hash(), boxes, commitment: Hex(keys::commit(&self.seed)), signature: Hex([0; 64]) };
        shares.signature = sign(signer, self.ctx, Step::Shares, &[&shares_digest(&shares)]);
        self.joined = Some(Joined { roster, index, shares: shares.clone(), held, box_secrets });
        Ok(shares)
    }

    /// What the keys of the boxes to and from another derive from.
    fn box_secret(&self, roster: &Roster, other: usize) -> Result<Zeroizing<[u8; 32]>, Alarm> {
        let advert = &roster.adverts()[other];
        let shared = self.box_pair.shared(&advert.box_key.0);
        let shared = shared.map_err(|e| Alarm::new("weak_key", format!("{}: {e}", advert.peer.name)))?;
        Ok(keys::derive(&shared, &self.ctx.0, BOX))
    }

    /// The key of the box that goes from one to another. One key a direction: the two boxes of a pair never share a key.
    pub(super) fn box_key(&self, secret: &[u8; 32], (from, to): (usize, usize)) -> Zeroizing<[u8; 32]> {
        let salt = hash(self.ctx, b"box direction", &[&index_bytes(from), &index_bytes(to)]);
        keys::derive(secret, &salt, BOX)
    }
}
