//! A cohort in memory: participants, a coordinator that keeps everything it is told, and the sum in the end.

use std::collections::{BTreeMap, BTreeSet};

use aivillage_base::wire::secure::{
    Advert, Agreed, Agreement, GraphKind, Hex, MaskedInput, Opening, RegistryHead, Reveal, Revealed, SealedShares,
    SecureTerms, Shares, Weighting, Withstands,
};
use aivillage_base::{Digest, NodeName};
use aivillage_privacy::secagg::coordinator::{self, Unmasking, Unopened};
use aivillage_privacy::secagg::draw;
use aivillage_privacy::secagg::mask;
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::ring::{self, Width};
use aivillage_privacy::secagg::roster::{Alarm, Listed, Roster};
use aivillage_privacy::secagg::signed::{Context, KeyInMemory};

use super::testing::TestRng;

pub(crate) const CTX: Context = Context([7; 32]);

/// The registry that all are shown.
pub(crate) const SHOWN: RegistryHead = RegistryHead { sequence: 3, hash: Hex([3; 32]) };

pub(crate) fn terms(count: u32) -> SecureTerms {
    SecureTerms {
        version: 1,
        cohort_min: 3,
        cohort_max: count,
        bits: 40,
        weighting: Weighting::Examples,
        examples_max: 100,
        graph: GraphKind::Full,
        helper: None,
        withstands: Withstands { corrupt: 0.2, dropout: 0.25, lying_coordinator: true, neighbours: None },
    }
}

/// The same, where the graph is drawn.
pub(crate) fn drawn(count: u32) -> SecureTerms {
    SecureTerms { graph: GraphKind::Drawn, ..terms(count) }
}

pub(crate) fn name(i: usize) -> NodeName {
    NodeName::new(format!("node-{i:04}")).unwrap()
}

pub(crate) fn signer(i: usize) -> KeyInMemory {
    KeyInMemory::new(&Digest::of(name(i).as_str().as_bytes()).0)
}

/// Everybody is who they say.
pub(crate) fn vouch(_: &[Advert]) -> Result<(), Alarm> {
    Ok(())
}

/// A round with everything that was said in it.
pub(crate) struct Cohort {
    pub(crate) ctx: Context,
    pub(crate) terms: SecureTerms,
    pub(crate) width: Width,
    pub(crate) rng: TestRng,
    pub(crate) machines: Vec<Participant>,
    pub(crate) signers: Vec<KeyInMemory>,
    pub(crate) values: Vec<Vec<i64>>,
    pub(crate) adverts: Vec<Advert>,
    pub(crate) reveals: Vec<Revealed>,
    pub(crate) shares: BTreeMap<NodeName, Shares>,
    pub(crate) inputs: BTreeMap<NodeName, (Vec<u8>, MaskedInput)>,
    pub(crate) agreements: BTreeMap<NodeName, Agreement>,
    pub(crate) openings: BTreeMap<NodeName, Opening>,
}

impl Cohort {
    /// A cohort of these values, one vector a participant, that has begun.
    pub(crate) fn new(seed: u64, values: Vec<Vec<i64>>) -> Self {
        Self::with(seed, terms(u32::try_from(values.len()).unwrap()), values)
    }

    pub(crate) fn with(seed: u64, terms: SecureTerms, values: Vec<Vec<i64>>) -> Self {
        let mut rng = TestRng::new(seed);
        let signers: Vec<KeyInMemory> = (0..values.len()).map(signer).collect();
        let begin =
            |(i, signer): (usize, &KeyInMemory)| Participant::begin(CTX, terms, name(i), SHOWN, signer, &mut rng);
        let machines: Vec<Participant> = signers.iter().enumerate().map(begin).collect();
        let adverts = machines.iter().map(|machine| machine.advert().clone()).collect();
        Self {
            ctx: CTX,
            terms,
            width: Width::B40,
            rng,
            machines,
            signers,
            values,
            adverts,
            reveals: Vec::new(),
            shares: BTreeMap::new(),
            inputs: BTreeMap::new(),
            agreements: BTreeMap::new(),
            openings: BTreeMap::new(),
        }
    }

    pub(crate) fn listed(&self) -> Listed {
        Listed::new(self.ctx, &self.terms, self.adverts.clone()).unwrap()
    }

    pub(crate) fn roster(&self) -> Roster {
        self.listed().draw(&self.reveals).unwrap()
    }

    /// One participant is shown the keys.
    pub(crate) fn show(&mut self, i: usize, adverts: Vec<Advert>) -> Result<Option<Reveal>, Alarm> {
        self.machines[i].roster(adverts, &vouch, &self.signers[i])
    }

    /// One participant is shown the nonces.
    pub(crate) fn show_nonces(&mut self, i: usize, reveals: &[Revealed]) -> Result<Shares, Alarm> {
        self.machines[i].reveals(reveals, &self.signers[i], &mut self.rng)
    }

    /// All are shown the keys and, where the graph is drawn, reveal their nonces.
    pub(crate) fn reveal(&mut self) {
        for i in 0..self.adverts.len() {
            if let Some(Reveal { nonce, signature, .. }) = self.show(i, self.adverts.clone()).unwrap() {
                let revealed = Revealed { name: name(i), nonce, signature };
                draw::check(&self.listed(), i, &revealed).unwrap();
                self.reveals.push(revealed);
            }
        }
    }

    /// Step 1, of everybody on the roster but `away`.
    pub(crate) fn share(&mut self, away: &BTreeSet<usize>) {
        self.reveal();
        let roster = self.roster();
        for i in 0..self.adverts.len() {
            if !away.contains(&i) {
                let shares = self.show_nonces(i, &self.reveals.clone()).unwrap();
                coordinator::check_shares(&roster, i, &shares).unwrap();
                self.shares.insert(name(i), shares);
            }
        }
    }

    pub(crate) fn sharers(&self) -> Vec<NodeName> {
        self.shares.keys().cloned().collect()
    }

    pub(crate) fn boxes(&self, i: usize) -> Vec<SealedShares> {
        coordinator::boxes_for(&self.roster(), |name| self.shares.get(name), i)
    }

    /// Step 2, of everybody that sent shares but `away`.
    pub(crate) fn mask(&mut self, away: &BTreeSet<usize>) {
        for i in self.places(&self.sharers()) {
            let (sharers, boxes) = (self.sharers(), self.boxes(i));
            self.machines[i].boxes(&sharers, &boxes).unwrap();
            if !away.contains(&i) {
                self.send(i);
            }
        }
    }

    /// One participant masks its values and vouches for them.
    pub(crate) fn send(&mut self, i: usize) {
        let masks = self.machines[i].masks().unwrap();
        let mut words = self.values[i].clone();
        mask::apply(&masks, self.width, 0, &mut words);
        let mut bytes = vec![0; words.len() * self.width.bytes()];
        ring::pack(&words, self.width, &mut bytes);
        let input = self.machines[i].input(Digest::of(&bytes).0, &self.signers[i]).unwrap();
        self.inputs.insert(name(i), (bytes, input));
    }

    pub(crate) fn survivors(&self) -> Vec<NodeName> {
        self.inputs.keys().cloned().collect()
    }

    /// Step 3, of every survivor but `away`.
    pub(crate) fn agree(&mut self, away: &BTreeSet<usize>) {
        let (roster, survivors) = (self.roster(), self.survivors());
        for i in self.places(&survivors) {
            if !away.contains(&i) {
                let agreement = self.machines[i].survivors(&survivors, &self.signers[i]).unwrap();
                coordinator::check_agreement(&roster, &survivors, i, &agreement).unwrap();
                self.agreements.insert(name(i), agreement);
            }
        }
    }

    pub(crate) fn agreed(&self) -> Vec<Agreed> {
        let word =
            |(name, agreement): (&NodeName, &Agreement)| Agreed { name: name.clone(), signature: agreement.signature };
        self.agreements.iter().map(word).collect()
    }

    /// Step 4, of everybody that has agreed but `away`.
    pub(crate) fn open(&mut self, away: &BTreeSet<usize>) {
        let roster = self.roster();
        let agreed = self.agreed();
        for i in self.places(&self.agreements.keys().cloned().collect::<Vec<_>>()) {
            if !away.contains(&i) {
                let opening = self.machines[i].agreements(&agreed, &self.signers[i]).unwrap();
                coordinator::check_opening(&roster, &self.sharers(), &self.survivors(), i, &opening).unwrap();
                self.openings.insert(name(i), opening);
            }
        }
    }

    pub(crate) fn unmasking(&self) -> Result<Unmasking, Unopened> {
        let commitments = self.shares.iter().map(|(name, shares)| (name.clone(), shares.commitment.0)).collect();
        coordinator::unmask(&self.roster(), &self.sharers(), &self.survivors(), &commitments, &self.openings)
    }

    /// The sum of the masked inputs without what `unmasking` takes away.
    pub(crate) fn sum(&self, unmasking: &Unmasking) -> Vec<i64> {
        let mut sums = vec![0; self.values[0].len()];
        for (bytes, _) in self.inputs.values() {
            ring::unpack_add(bytes, self.width, &mut sums);
        }
        mask::apply(&unmasking.masks, self.width, 0, &mut sums);
        ring::centre_all(&mut sums, self.width);
        sums
    }

    /// What the sum has to be.
    pub(crate) fn plain(&self) -> Vec<i64> {
        let mut sums = vec![0; self.values[0].len()];
        for i in self.places(&self.survivors()) {
            for (sum, value) in sums.iter_mut().zip(&self.values[i]) {
                *sum += value;
            }
        }
        sums
    }

    pub(crate) fn places(&self, names: &[NodeName]) -> Vec<usize> {
        (0..self.adverts.len()).filter(|i| names.contains(&name(*i))).collect()
    }

    /// A whole round without anybody leaving.
    pub(crate) fn run(&mut self) {
        let nobody = BTreeSet::new();
        self.share(&nobody);
        self.mask(&nobody);
        self.agree(&nobody);
        self.open(&nobody);
    }
}

/// `count` vectors of `len` values.
pub(crate) fn values(count: usize, len: usize) -> Vec<Vec<i64>> {
    let value = |i: usize, j: usize| (i as i64 * 31 + j as i64 * 17) % 1_000 - 500;
    (0..count).map(|i| (0..len).map(|j| value(i, j)).collect()).collect()
}
