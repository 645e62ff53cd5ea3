//! Keying where the graph is drawn, with real participants: nobody shares before all have revealed, and who does not is named.

use aivillage_base::wire::secure::{RegistryHead, SecureDown, SecureUp};
use aivillage_privacy::secagg::participant::Participant;
use aivillage_privacy::secagg::signed::{Context, KeyInMemory, Signer as _};

use super::*;
use crate::participant::secure::SystemRandom;
use crate::secure::WITHSTANDS;

/// A word on its way to the coordinator.
type Said = (Peer, RoundKey, SecureUp);

struct Member {
    peer: Peer,
    signer: KeyInMemory,
    machine: Option<Participant>,
}

impl Member {
    fn new(text: &str) -> Self {
        let signer = KeyInMemory::new(&Digest::of(text.as_bytes()).0);
        Self { peer: Peer { id: signer.id(), name: name(text) }, signer, machine: None }
    }

    /// Its answer, if it has one.
    fn hear(&mut self, down: &Down) -> Option<(RoundKey, SecureUp)> {
        if let Down::Invite(invitation) = down {
            let (ctx, terms) = (Context::of(invitation), invitation.secure?);
            let (name, head) = (self.peer.name.clone(), RegistryHead::default());
            let machine = Participant::begin(ctx, terms, name, head, &self.signer, &mut SystemRandom);
            let advert = SecureUp::Advert(Box::new(machine.advert().clone()));
            self.machine = Some(machine);
            return Some((invitation.key.clone(), advert));
        }
        let Down::Secure { key, message } = down else { return None };
        let machine = self.machine.as_mut()?;
        let word = match &**message {
            SecureDown::Roster { adverts } => {
                SecureUp::Reveal(machine.roster(adverts.clone(), &|_| Ok(()), &self.signer).unwrap().unwrap())
            }
            SecureDown::Reveals { reveals } => {
                SecureUp::Shares(machine.reveals(reveals, &self.signer, &mut SystemRandom).unwrap())
            }
            SecureDown::Boxes { .. } | SecureDown::Survivors { .. } | SecureDown::Agreements { .. } => return None,
        };
        Some((key.clone(), word))
    }
}

struct Cohort {
    bench: Bench,
    members: Vec<Member>,
}

impl Cohort {
    /// Invited; their adverts are on their way.
    fn new(names: &[&str]) -> (Self, Vec<Said>) {
        let rules = Rules { full_graph_max: 0, ..RULES };
        let bench = Bench::under(rules, JobSpec { secure: Some(WITHSTANDS), ..spec(3, 10, 1) });
        let mut cohort = Self { bench, members: names.iter().map(|text| Member::new(text)).collect() };
        cohort.bench.step(Input::Started);
        for (member, text) in cohort.members.iter().zip(names) {
            let candidate = Candidate { peer: member.peer.clone(), ..candidate(text) };
            cohort.bench.step(Input::Joined(candidate));
        }
        let step = cohort.bench.step(Input::Initialised(crate::testing::linear(), blob("first")));
        let adverts = cohort.answers(&step);
        (cohort, adverts)
    }

    fn answers(&mut self, step: &Step) -> Vec<Said> {
        let mut answers = Vec::new();
        for effect in &step.effects {
            let Effect::Send(peer, down) = effect else { continue };
            let member = self.members.iter_mut().find(|member| member.peer == *peer).unwrap();
            answers.extend(member.hear(down).map(|(key, word)| (peer.clone(), key, word)));
        }
        answers
    }

    /// Brings these words; what is answered to them.
    fn say(&mut self, words: Vec<Said>) -> Vec<Said> {
        let mut answers = Vec::new();
        for (peer, key, word) in words {
            let step = self.bench.step(Input::Secure(peer, key, Box::new(word)));
            answers.extend(self.answers(&step));
        }
        answers
    }

    fn stage(&self) -> Stage {
        self.bench.job.round().unwrap().stage().clone()
    }
}

fn kinds(words: &[Said]) -> Vec<(&str, &'static str)> {
    let kind = |word: &SecureUp| match word {
        SecureUp::Reveal(_) => "reveal",
        SecureUp::Shares(_) => "shares",
        SecureUp::Advert(_) | SecureUp::Agreement(_) | SecureUp::Opening(_) | SecureUp::Alarm { .. } => "other",
    };
    words.iter().map(|(peer, _, word)| (peer.name.as_str(), kind(word))).collect()
}

#[test]
fn nobody_shares_before_everybody_on_the_roster_has_revealed() {
    let (mut cohort, adverts) = Cohort::new(&["a", "b", "c", "d"]);
    let mut reveals = cohort.say(adverts);
    assert_eq!(kinds(&reveals), ["a", "b", "c", "d"].map(|name| (name, "reveal")));
    let last = reveals.pop().unwrap();
    assert_eq!(kinds(&cohort.say(reveals.clone())), []);
    // A coordinator that dies asks again; what was revealed is revealed once more.
    cohort.bench.restart();
    assert_eq!(kinds(&cohort.say(reveals)), []);
    let shares = cohort.say(vec![last]);
    assert_eq!(kinds(&shares), ["a", "b", "c", "d"].map(|name| (name, "shares")));
    // The graph is fixed with its nonces: a restart takes the shares that were made for it.
    let step = cohort.bench.restart();
    assert_eq!(kinds(&cohort.answers(&step)), []);
    cohort.say(shares);
    assert_eq!(cohort.stage(), Stage::Collecting);
    let secure = cohort.bench.store.saved.attempts[0].secure.clone().unwrap();
    assert!(secure.drawn.is_some() && secure.sharers.len() == 4);
}

#[test]
fn a_nonce_that_is_withheld_ends_the_attempt_and_its_owner_is_left_out_of_the_next() {
    let (mut cohort, adverts) = Cohort::new(&["a", "b", "c", "d"]);
    let mut reveals = cohort.say(adverts);
    reveals.pop();
    cohort.say(reveals);
    let step = cohort.bench.step_at(10_000, Input::Tick);
    assert_eq!(cohort.stage(), Stage::Keying, "d has its time: {step:?}");
    cohort.bench.step_at(10_100, Input::Tick);
    let Stage::Abandoned { reason } = &cohort.bench.store.saved.attempts[0].stage else { panic!("it goes on") };
    assert!(reason.contains("3 of the 4 needed participants revealed their nonces (d did not"), "{reason}");
    let step = cohort.bench.step_at(11_000, Input::Tick);
    let adverts = cohort.answers(&step);
    assert_eq!(adverts.iter().map(|(peer, ..)| peer.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    // Without it the next attempt goes on, with other nonces.
    let reveals = cohort.say(adverts);
    assert_eq!(kinds(&cohort.say(reveals)), ["a", "b", "c"].map(|name| (name, "shares")));
    // Who comes back is asked again.
    assert!(cohort.bench.store.saved.record.withheld.contains(&name("d")));
    cohort.bench.step(Input::Joined(Candidate { peer: cohort.members[3].peer.clone(), ..candidate("d") }));
    assert!(cohort.bench.store.saved.record.withheld.is_empty());
}

#[test]
fn who_withheld_is_asked_again_where_nobody_can_be_spared() {
    let (mut cohort, adverts) = Cohort::new(&["a", "b", "c"]);
    let mut reveals = cohort.say(adverts);
    reveals.pop();
    cohort.say(reveals);
    cohort.bench.step_at(10_100, Input::Tick);
    assert!(cohort.bench.store.saved.record.withheld.contains(&name("c")));
    let step = cohort.bench.step_at(11_000, Input::Tick);
    assert_eq!(invited(&step).len(), 3);
}

#[test]
fn a_false_nonce_silences_its_sender_and_no_graph_is_drawn() {
    let (mut cohort, adverts) = Cohort::new(&["a", "b", "c", "d"]);
    let mut reveals = cohort.say(adverts);
    if let SecureUp::Reveal(reveal) = &mut reveals[1].2 {
        reveal.nonce.0[0] ^= 1;
    }
    assert_eq!(kinds(&cohort.say(reveals)), []);
    let Stage::Abandoned { reason } = &cohort.bench.store.saved.attempts[0].stage else { panic!("it goes on") };
    assert!(reason.contains("(b did not") && reason.contains("not the one that it committed to"), "{reason}");
}

#[test]
fn who_fails_after_it_has_revealed_stops_nobody() {
    let (mut cohort, adverts) = Cohort::new(&["a", "b", "c", "d", "e"]);
    let mut reveals = cohort.say(adverts);
    let last = reveals.pop().unwrap();
    cohort.say(reveals);
    cohort.bench.step(Input::Failed(cohort.members[0].peer.clone(), key(1, 1), "out of memory".into()));
    assert_eq!(kinds(&cohort.say(vec![last])).len(), 5);
}
