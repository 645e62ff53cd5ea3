//! Participants against a coordinator that says anything to anybody, in any order, with one of the participants on its side.
//!
//! What always holds: one answer a step and participant, whatever is asked again; after an alarm the same alarm for ever;
//! and of no honest participant are shares of both secrets opened, by so many that with what corrupt ones hold both could
//! be rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use aivillage_base::NodeName;
use aivillage_base::wire::secure::{Advert, Agreed, Agreement, MaskedInput, Opening, Reveal, SealedShares, Shares};
use aivillage_privacy::secagg::coordinator;
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::roster::{Alarm, Listed, Roster};
use aivillage_privacy::secagg::signed::{KeyInMemory, Signer as _};

use super::super::cohort::{CTX, Cohort, SHOWN, name, signer, values};
use super::super::testing::TestRng;
use super::coordinator::change_advert;
use super::{Choices, Reached};

/// First answers of one participant.
#[derive(Default)]
struct Answers {
    listed: Option<Option<Reveal>>,
    roster: Option<Roster>,
    shares: Option<Shares>,
    boxes: Option<()>,
    input: Option<MaskedInput>,
    agreement: Option<Agreement>,
    opening: Option<Opening>,
}

struct World {
    cohort: Cohort,
    count: usize,
    /// How many participants the coordinator knows everything of: none, or the last one. It has a second machine with the same
    /// keys, at the end of all lists, and so can give two different words.
    corrupt: usize,
    answers: Vec<Answers>,
    signers: Vec<KeyInMemory>,
    reached: Reached,
}

pub(crate) fn run(data: &[u8]) -> Reached {
    let mut choices = Choices::of(data);
    let mut world = World::new(3 + choices.below(5), u64::from(choices.byte()));
    while choices.are_left() {
        let who = choices.below(world.answers.len());
        match choices.below(9) {
            0 => (0..world.answers.len()).for_each(|i| world.go_on(i)),
            1 => world.go_on(who),
            2 => world.show_roster(who, &mut choices),
            3 => world.show_boxes(who, &mut choices),
            4 => world.mask(who, choices.byte() & 3),
            5 => world.show_survivors(who, &mut choices),
            6 => world.show_agreements(who, &mut choices),
            7 => world.look_for_masks(who),
            _ => world.share(who),
        }
        world.nobody_is_laid_bare();
    }
    world.reached
}

/// What a step gave is its first answer or its like; what it refused silences for ever.
fn heed<T: PartialEq + Clone + Debug>(
    machine: &Participant,
    before: Option<&Alarm>,
    answer: &Result<T, Alarm>,
    first: &mut Option<T>,
    reached: &mut Reached,
) {
    match answer {
        Ok(answer) => {
            assert!(before.is_none() && machine.alarm().is_none(), "it answers after {before:?}");
            assert_eq!(first.get_or_insert_with(|| answer.clone()), answer, "two answers to one step");
            reached.answers += 1;
        }
        Err(alarm) => {
            assert_eq!(machine.alarm(), Some(alarm));
            assert!(before.is_none_or(|before| before == alarm), "{before:?} became {alarm:?}");
            assert!(!machine.has_masks());
            reached.refusals += 1;
        }
    }
    let _printed = format!("{machine:?}");
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let mut cohort = Cohort::new(seed, values(count, 2));
        let corrupt = count / 5;
        let mut signers: Vec<KeyInMemory> = (0..count).map(signer).collect();
        if corrupt > 0 {
            // The same random numbers make the same keys.
            let last = signer(count - 1);
            let [one, twin] = [(); 2].map(|()| {
                let mut same = TestRng::new(seed + 256);
                Participant::begin(CTX, cohort.terms, name(count - 1), SHOWN, &last, &mut same)
            });
            assert_eq!(one.advert(), twin.advert());
            cohort.adverts[count - 1] = one.advert().clone();
            cohort.machines[count - 1] = one;
            cohort.machines.push(twin);
            signers.push(last);
        }
        let answers = cohort.machines.iter().map(|_| Answers::default()).collect();
        Self { cohort, count, corrupt, answers, signers, reached: Reached::default() }
    }

    fn names(&self) -> Vec<NodeName> {
        (0..self.count).map(name).collect()
    }

    /// The next step of one participant, as an honest coordinator would bring it.
    fn go_on(&mut self, who: usize) {
        let answers = &self.answers[who];
        match answers {
            Answers { listed: None, .. } => self.roster(who, self.cohort.adverts.clone()),
            Answers { shares: None, .. } => self.share(who),
            Answers { boxes: None, .. } => {
                let (sharers, boxes) = self.boxes_of(who);
                self.boxes(who, &sharers, &boxes);
            }
            Answers { input: None, .. } => {
                self.look_for_masks(who);
                self.mask(who, 0);
            }
            Answers { agreement: None, .. } => self.survivors(who, &self.senders()),
            Answers { .. } => self.agreements(who, &self.words(None)),
        }
    }

    fn roster(&mut self, who: usize, adverts: Vec<Advert>) {
        let enrolled: BTreeMap<_, _> = (0..self.count).map(|i| (name(i), self.signers[i].id())).collect();
        let is_known = |advert: &Advert| enrolled.get(&advert.peer.name) == Some(&advert.peer.id);
        let vouch = |adverts: &[Advert]| match adverts.iter().all(is_known) {
            true => Ok(()),
            false => Err(Alarm::new("changed_key", "a stranger")),
        };
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.roster(adverts.clone(), &vouch, &self.signers[who]);
        if answer.is_ok() && answers.roster.is_none() {
            let listed = Listed::new(CTX, &self.cohort.terms, adverts);
            answers.roster = listed.and_then(|listed| listed.draw(&[])).ok();
        }
        heed(machine, before.as_ref(), &answer, &mut answers.listed, &mut self.reached);
    }

    /// The graph is full: there are no nonces to be revealed.
    fn share(&mut self, who: usize) {
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.reveals(&[], &self.signers[who], &mut TestRng::new(who as u64));
        heed(machine, before.as_ref(), &answer, &mut answers.shares, &mut self.reached);
    }

    /// Who has sent shares, and the boxes of those for one participant.
    fn boxes_of(&self, who: usize) -> (Vec<NodeName>, Vec<SealedShares>) {
        let sent = (0..self.count).filter_map(|i| Some((name(i), self.answers[i].shares.clone()?)));
        let sent: BTreeMap<NodeName, Shares> = sent.collect();
        let place = self.answers[who].roster.as_ref().and_then(|r| Some((r, r.index(&name(who.min(self.count - 1)))?)));
        let boxes =
            place.map_or_else(Vec::new, |(roster, place)| coordinator::boxes_for(roster, |name| sent.get(name), place));
        (sent.into_keys().collect(), boxes)
    }

    fn boxes(&mut self, who: usize, sharers: &[NodeName], boxes: &[SealedShares]) {
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.boxes(sharers, boxes);
        heed(machine, before.as_ref(), &answer, &mut answers.boxes, &mut self.reached);
    }

    fn look_for_masks(&mut self, who: usize) {
        let machine = &mut self.cohort.machines[who];
        let ready = machine.has_masks();
        let masks = machine.masks();
        assert_eq!(masks.is_ok(), ready, "{masks:?}");
    }

    fn mask(&mut self, who: usize, payload: u8) {
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.input([payload; 32], &self.signers[who]);
        heed(machine, before.as_ref(), &answer, &mut answers.input, &mut self.reached);
    }

    fn senders(&self) -> Vec<NodeName> {
        (0..self.count).filter(|i| self.answers[*i].input.is_some()).map(name).collect()
    }

    fn survivors(&mut self, who: usize, survivors: &[NodeName]) {
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.survivors(survivors, &self.signers[who]);
        heed(machine, before.as_ref(), &answer, &mut answers.agreement, &mut self.reached);
    }

    /// Everybody's words, of the two machines of the last one the one for the same survivors as `like`.
    fn words(&self, like: Option<&Agreement>) -> Vec<Agreed> {
        let word = |i: usize| {
            let of = |machine: usize| self.answers.get(machine)?.agreement.as_ref();
            let twin = (i + 1 == self.count).then(|| of(self.count)).flatten();
            let twin = twin.filter(|twin| like.is_some_and(|like| like.survivors == twin.survivors));
            Some(Agreed { name: name(i), signature: twin.or_else(|| of(i))?.signature })
        };
        (0..self.count).filter_map(word).collect()
    }

    fn agreements(&mut self, who: usize, agreed: &[Agreed]) {
        let (machine, answers) = (&mut self.cohort.machines[who], &mut self.answers[who]);
        let before = machine.alarm().cloned();
        let answer = machine.agreements(agreed, &self.signers[who]);
        self.reached.opened += usize::from(answer.is_ok());
        heed(machine, before.as_ref(), &answer, &mut answers.opening, &mut self.reached);
    }

    fn show_roster(&mut self, who: usize, choices: &mut Choices<'_>) {
        let mut adverts = self.cohort.adverts.clone();
        let other = adverts[choices.below(self.count)].clone();
        change_advert(&mut adverts[choices.below(self.count)], &other, choices);
        choices.list(&mut adverts);
        self.roster(who, adverts);
    }

    fn show_boxes(&mut self, who: usize, choices: &mut Choices<'_>) {
        let (sharers, boxes) = self.boxes_of(who);
        let mut sharers = choices.some_of(&sharers);
        let mut boxes: Vec<_> = boxes.into_iter().filter(|sealed| sharers.contains(&sealed.with)).collect();
        choices.list(&mut sharers);
        choices.list(&mut boxes);
        let at = choices.below(boxes.len());
        if let Some(sealed) = boxes.get_mut(at).filter(|_| choices.byte() & 1 == 1) {
            choices.flip(&mut sealed.sealed.0);
        }
        self.boxes(who, &sharers, &boxes);
    }

    fn show_survivors(&mut self, who: usize, choices: &mut Choices<'_>) {
        let all = if choices.byte() & 1 == 0 { self.senders() } else { self.names() };
        let mut survivors = choices.some_of(&all);
        if choices.byte() & 7 == 7 {
            choices.list(&mut survivors);
        }
        self.survivors(who, &survivors);
    }

    fn show_agreements(&mut self, who: usize, choices: &mut Choices<'_>) {
        let own = self.answers[who].agreement.clone();
        let all = self.words(own.as_ref());
        let mut agreed = choices.some_of(&all);
        if choices.byte() & 7 == 7 {
            choices.list(&mut agreed);
            let at = choices.below(agreed.len());
            if let Some(word) = agreed.get_mut(at) {
                choices.flip(&mut word.signature.0);
            }
        }
        self.agreements(who, &agreed);
    }

    /// Counts, of each honest participant, the honest holders that have opened a share of the one secret and of the other.
    fn nobody_is_laid_bare(&self) {
        let honest = self.count - self.corrupt;
        let (mut seeds, mut keys) = (BTreeMap::<&NodeName, BTreeSet<usize>>::new(), BTreeMap::new());
        for holder in 0..honest {
            let Some(opening) = &self.answers[holder].opening else { continue };
            let survivors = self.cohort.machines[holder].answers_for();
            for share in &opening.shares {
                let secret = if survivors.contains(&share.of) { &mut seeds } else { &mut keys };
                secret.entry(&share.of).or_default().insert(holder);
            }
        }
        for victim in 0..honest {
            let Some(roster) = &self.answers[victim].roster else { continue };
            let known = |holders: Option<&BTreeSet<usize>>| holders.map_or(0, BTreeSet::len) + self.corrupt;
            let victim = name(victim);
            let both = [known(seeds.get(&victim)), known(keys.get(&victim))];
            assert!(both.iter().any(|known| *known < roster.plan().threshold), "{victim}: both secrets, {both:?}");
        }
    }
}
