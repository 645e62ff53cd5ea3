//! One context of one node, without the network: each step of the coordinator in, the node's next word out.

use aivillage_base::wire::secure::{Advert, GraphKind, SecureDown, SecureTerms, SecureUp};
use aivillage_base::wire::{Invitation, LocalTraining, UpdateHeader};
use aivillage_base::{Digest, NodeName};
use aivillage_privacy::rand_core::CryptoRng;
use aivillage_privacy::secagg::mask::{MaskKey, Sign};
use aivillage_privacy::secagg::participant::Participant as Machine;
use aivillage_privacy::secagg::ring::Width;
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::Context;

use super::Keys;
use crate::participant::Prepared;
use crate::round::RESTARTED;
use crate::secure::{self, Counts};

/// A context under way: pure but for what [`Keys`] keep.
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    terms: SecureTerms,
    training: LocalTraining,
    /// What the round starts from.
    model: Digest,
    /// Hash of all that makes the update of it.
    work: Digest,
    last: SecureUp,
    /// A graph was drawn that nothing has come of yet.
    draws: bool,
}

/// What masks an update: computed where it may take its time.
#[derive(Debug)]
pub struct Masking {
    masks: Vec<(MaskKey, Sign)>,
    counts: Counts,
    width: Width,
}

impl Masking {
    /// The update under its masks, with what was measured behind its values.
    #[must_use]
    pub fn mask(&self, prepared: Prepared) -> Prepared {
        prepared.masked(&self.masks, self.counts, self.width)
    }
}

impl Session {
    /// Notes that this context is begun, then makes keys for it.
    ///
    /// # Errors
    /// [`Alarm`]: it was begun before, or that cannot be noted.
    pub fn begin(
        invitation: &Invitation,
        terms: SecureTerms,
        name: &NodeName,
        keys: &Keys,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Alarm> {
        let ctx = Context::of(invitation);
        match keys.contexts.begin(&ctx.0) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Alarm::new(RESTARTED, "this node has begun the round before, and has no keys for it"));
            }
            Err(detail) => return Err(Alarm::new("contexts", detail)),
        }
        let machine = Machine::begin(ctx, terms, name.clone(), keys.registry.head(), &*keys.signer, rng);
        let last = SecureUp::Advert(Box::new(machine.advert().clone()));
        let (model, training) = (invitation.model.digest, invitation.training.clone());
        Ok(Self { machine, terms, training, model, work: work(invitation, &terms), last, draws: false })
    }

    /// The last word: said again while nothing new is heard.
    #[must_use]
    pub fn last(&self) -> &SecureUp {
        &self.last
    }

    /// Takes a step of the coordinator; true = there is a new [`Self::last`] word to say.
    ///
    /// # Errors
    /// [`Alarm`]: silent from now on.
    pub fn step(&mut self, message: SecureDown, keys: &Keys, rng: &mut impl CryptoRng) -> Result<bool, Alarm> {
        let signer = &*keys.signer;
        self.last = match message {
            SecureDown::Roster { adverts } => {
                let vouch = |adverts: &[Advert]| {
                    adverts.iter().try_for_each(|advert| keys.registry.check(advert))?;
                    let peers: Vec<_> = adverts.iter().map(|advert| &advert.peer).collect();
                    keys.pins.check(&peers).map_err(|detail| Alarm::new("changed_key", detail))
                };
                let reveal = self.machine.roster(adverts, &vouch, signer)?;
                if !self.draws && self.terms.graph == GraphKind::Drawn {
                    keys.draws.take().map_err(|detail| Alarm::new("draws", detail))?;
                    self.draws = true;
                }
                match reveal {
                    Some(reveal) => SecureUp::Reveal(reveal),
                    None => SecureUp::Shares(self.machine.reveals(&[], signer, rng)?),
                }
            }
            SecureDown::Reveals { reveals } => SecureUp::Shares(self.machine.reveals(&reveals, signer, rng)?),
            SecureDown::Boxes { sharers, boxes } => {
                self.machine.boxes(&sharers, &boxes)?;
                return Ok(false);
            }
            SecureDown::Survivors { survivors } => {
                let agreement = self.machine.survivors(&survivors, signer)?;
                match keys.contexts.opened(&self.model.0) {
                    Ok(before) if before.is_none_or(|sum| sum == self.sum()) => {}
                    Ok(_) => return Err(differencing()),
                    Err(detail) => return Err(Alarm::new("contexts", detail)),
                }
                SecureUp::Agreement(agreement)
            }
            SecureDown::Agreements { agreed } => {
                let opening = self.machine.agreements(&agreed, signer)?;
                match keys.contexts.open(&self.model.0, &self.sum()) {
                    Ok(true) => {
                        if std::mem::take(&mut self.draws) {
                            keys.draws.give_back();
                        }
                        SecureUp::Opening(opening)
                    }
                    Ok(false) => return Err(differencing()),
                    Err(detail) => return Err(Alarm::new("contexts", detail)),
                }
            }
        };
        Ok(true)
    }

    /// Which sum the survivors' is: theirs, of this work.
    fn sum(&self) -> [u8; 32] {
        Digest::of(&[self.machine.survivor_keys(), self.work.0].concat()).0
    }

    /// The survivors that it answers for; empty before it was shown any.
    #[must_use]
    pub fn survivors(&self) -> &[NodeName] {
        self.machine.answers_for()
    }

    /// Can an update be masked?
    #[must_use]
    pub fn has_masks(&self) -> bool {
        self.machine.has_masks()
    }

    /// What masks this update.
    ///
    /// # Errors
    /// [`Alarm`]: the terms do not hold for it, or it is not the time.
    pub fn masking(&mut self, prepared: &Prepared) -> Result<Masking, Alarm> {
        let update = (prepared.header.weight, prepared.header.steps);
        let counts = Counts::of(&self.terms, &self.training, update).map_err(|why| Alarm::new("examples", why))?;
        let masks = self.machine.masks()?;
        let width = secure::check_terms(&self.terms).map_err(|detail| Alarm::new("terms", detail))?;
        Ok(Masking { masks, counts, width })
    }

    /// Vouches for a masked update: for this one, and no other.
    ///
    /// # Errors
    /// [`Alarm`]
    pub fn vouch(&mut self, header: &mut UpdateHeader, keys: &Keys) -> Result<(), Alarm> {
        header.secure = Some(self.machine.input(header.payload.digest.0, &*keys.signer)?);
        Ok(())
    }
}

/// Hash of all that makes a node's part of the sum from the model: how it trains and what its update is multiplied by, but not
/// for which job or attempt.
pub(crate) fn work(invitation: &Invitation, terms: &SecureTerms) -> Digest {
    let Invitation {
        key, recipe, architecture, training, data, seed, grids, local, personal, max_examples, clip, ..
    } = invitation;
    let made = (key.round, recipe, architecture, training, data, seed, grids, local, personal);
    let counted = (max_examples, clip, secure::multiplied(terms));
    Digest::of(&serde_json::to_vec(&(made, counted)).expect("invariant: wire messages serialise"))
}

/// Training is a function of the model: two sums over one model differ by the update of whoever is in one and not in the
/// other, and two that count the same nodes otherwise (`max_examples`, `clip`) are two equations with the same unknowns.
pub(crate) fn differencing() -> Alarm {
    Alarm::new(
        "differencing",
        "this node has opened another sum over the same model (of other nodes, or with other settings): together they would \
         show single updates; start from another model, which another seed gives where the job does not name one",
    )
}
