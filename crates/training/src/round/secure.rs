//! The steps of secure aggregation within an attempt: who has said what, whom it waits for, what it fixes next.
//!
//! `keying (adverts, then reveals where the graph is drawn, then shares) -> collecting -> unmasking (agreements, then openings) -> publishing`. A member that falls
//! silent is waited for as long as an invited one; who has raised an alarm is not waited for. Each list of
//! [`SecureRecord`] is fixed by one persisted step and never changes, so a restarted coordinator says the same again.

use std::sync::Arc;

use aivillage_base::wire::secure::{Advert, Agreed, MaskedInput, SecureDown, SecureUp};
use aivillage_privacy::secagg::coordinator;
use aivillage_privacy::secagg::roster::{self, Listed};
use aivillage_privacy::secagg::signed::{self, Context};

use super::*;
use crate::aggregate::Totals;
use crate::record::{SecureMember, SecureRecord};
use crate::step::Opened;

mod reveal;

/// An alarm that speaks of no fault: the node has restarted, and its keys of the round are gone.
pub const RESTARTED: &str = "restarted";

/// What a member has to act on next.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Its invitation.
    Invitation,
    /// A message of the protocol.
    Secure(SecureDown),
}

/// What became of a member's word.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// It is known, or its step is not open.
    Old,
    /// It is noted.
    New,
    /// It was an alarm: nothing more is taken from this member, whose record has changed.
    Silenced(MemberRecord),
    /// It was false, as no honest node's is: nothing more is taken from this member. With what was wrong.
    False(MemberRecord, String),
}

/// Which of a member's words a step waits for.
type Said = fn(&SecureMember) -> bool;

impl Round {
    /// What is agreed on, under secure aggregation.
    #[must_use]
    pub fn secure(&self) -> Option<&SecureRecord> {
        self.record.secure.as_ref()
    }

    /// Fewest counted updates: as the job asks, and as the threshold of the roster needs.
    pub(super) fn needed(&self) -> usize {
        self.roster.as_ref().map_or(self.limits.min, |roster| roster.quorum().max(self.limits.min))
    }

    /// What this member has to act on now, if there is something it has not answered yet.
    #[must_use]
    pub fn due(&self, name: &NodeName) -> Option<Due> {
        let member = self.members.get(name)?;
        let Some(secure) = self.secure().filter(|secure| secure.helper.is_none()) else {
            let waits = self.collecting() && member.record.state == MemberState::Invited;
            return waits.then_some(Due::Invitation);
        };
        let said = member.record.secure.as_deref();
        if said.is_some_and(|said| said.alarm.is_some()) {
            return None;
        }
        let on = |list: &[NodeName]| list.binary_search(name).is_ok();
        let owes = |has_said: Said| !said.is_some_and(has_said);
        match self.record.stage {
            Stage::Keying if secure.roster.is_empty() => {
                (member.record.state == MemberState::Invited).then_some(Due::Invitation)
            }
            Stage::Keying => {
                let waits = on(&secure.roster) && owes(self.keying_word());
                waits.then(|| Due::Secure(self.keying_message()))
            }
            Stage::Collecting => {
                let waits = on(&secure.sharers) && member.record.state == MemberState::Invited;
                waits.then(|| self.boxes_message(name).map(Due::Secure)).flatten()
            }
            Stage::Unmasking if !on(&secure.survivors) => None,
            Stage::Unmasking if secure.agreed.is_empty() => owes(|said| said.agreement.is_some())
                .then(|| Due::Secure(SecureDown::Survivors { survivors: secure.survivors.clone() })),
            // Who has not agreed opens nothing: it was not shown the survivors, or does not believe in them.
            Stage::Unmasking => {
                let agreed = said.is_some_and(|said| said.agreement.is_some() && said.opening.is_none());
                agreed.then(|| Due::Secure(SecureDown::Agreements { agreed: secure.agreed.clone() }))
            }
            Stage::Publishing | Stage::Done { .. } | Stage::Abandoned { .. } => None,
        }
    }

    fn boxes_message(&self, name: &NodeName) -> Option<SecureDown> {
        let (secure, roster) = (self.secure()?, self.roster.as_ref()?);
        let sent = |name: &NodeName| {
            let counts = secure.sharers.binary_search(name).is_ok();
            self.members.get(name).filter(|_| counts)?.said()?.shares.as_ref()
        };
        let boxes = coordinator::boxes_for(roster, sent, roster.index(name)?);
        Some(SecureDown::Boxes { sharers: secure.sharers.clone(), boxes })
    }

    /// A member says something of the protocol. What does not fit the open step is no news; what is false silences its
    /// sender. News is persisted with the step that it completes: a restarted coordinator asks for it again.
    pub fn say(&mut self, now: Now, peer: &Peer, message: &SecureUp) -> Word {
        let elapsed = self.elapsed(now);
        let Some(member) = self.members.get(&peer.name).filter(|m| m.record.peer == *peer) else { return Word::Old };
        let mut said = member.record.secure.as_deref().cloned().unwrap_or_default();
        if said.alarm.is_some() || !self.waits() {
            return Word::Old;
        }
        let heard = self.judge_word(peer, message, &mut said);
        let Some(member) = self.members.get_mut(&peer.name) else { return Word::Old };
        // Who speaks is here, and at work on what it was told last.
        (member.connected, member.answered) = (true, true);
        if heard == Ok(true) {
            member.since_ms = elapsed;
        }
        let fault = match heard {
            Ok(false) => return Word::Old,
            Ok(true) => None,
            Err(fault) => Some(fault),
        };
        if let Some((check, detail)) = fault {
            let reason = format!("{check}: {detail}");
            if member.record.state == MemberState::Invited {
                member.record.state = match check.as_str() {
                    RESTARTED => MemberState::Silent,
                    _ => MemberState::Failed { reason: reason.clone() },
                };
            }
            said.alarm = Some(reason.clone());
            member.record.secure = Some(Box::new(said));
            return match message {
                SecureUp::Alarm { .. } => Word::Silenced(member.record.clone()),
                SecureUp::Advert(_)
                | SecureUp::Reveal(_)
                | SecureUp::Shares(_)
                | SecureUp::Agreement(_)
                | SecureUp::Opening(_) => Word::False(member.record.clone(), reason),
            };
        }
        member.record.secure = Some(Box::new(said));
        Word::New
    }

    /// Notes a member's word if it is news; an error is what silences it: the check and a sentence.
    fn judge_word(&self, peer: &Peer, message: &SecureUp, said: &mut SecureMember) -> Result<bool, (String, String)> {
        let Some(secure) = self.secure() else { return Ok(false) };
        let stage = &self.record.stage;
        let placed = self.roster.as_ref().and_then(|roster| Some((roster, roster.index(&peer.name)?)));
        let survived = secure.survivors.binary_search(&peer.name).is_ok();
        let fault = |check: &str, detail: String| Err((check.to_owned(), detail));
        match message {
            SecureUp::Advert(advert) => {
                if *stage != Stage::Keying || self.listed.is_some() || said.advert.as_ref() == Some(advert) {
                    return Ok(false);
                }
                if advert.peer != *peer || !roster::advert_is_signed(Context(secure.ctx.0), secure.terms.graph, advert)
                {
                    let detail = "its keys are not signed by its enrolled key for this context".to_owned();
                    return fault("signature", detail);
                }
                let others = self.members.values().filter(|m| m.record.peer != *peer).filter_map(Member::said);
                let others: Vec<&Advert> = others.filter_map(|said| said.advert.as_ref()).collect();
                if let Err(detail) = coordinator::check_advert(advert, &others) {
                    return fault("keys", detail);
                }
                said.advert = Some((**advert).clone());
            }
            SecureUp::Reveal(reveal) => return self.judge_reveal(peer, reveal, said),
            SecureUp::Shares(shares) => {
                let Some((roster, place)) = placed.filter(|_| *stage == Stage::Keying) else { return Ok(false) };
                if said.shares.is_some() {
                    return Ok(false);
                }
                if let Err(detail) = coordinator::check_shares(roster, place, shares) {
                    return fault("shares", detail);
                }
                said.shares = Some(shares.clone());
            }
            SecureUp::Agreement(agreement) => {
                let open = *stage == Stage::Unmasking && survived && said.agreement.is_none();
                let Some((roster, place)) = placed.filter(|_| open) else { return Ok(false) };
                if let Err(detail) = coordinator::check_agreement(roster, &secure.survivors, place, agreement) {
                    return fault("agreement", detail);
                }
                said.agreement = Some(agreement.clone());
            }
            SecureUp::Opening(opening) => {
                let open = *stage == Stage::Unmasking && survived && said.opening.is_none();
                let Some((roster, place)) = placed.filter(|_| open) else { return Ok(false) };
                let checked = coordinator::check_opening(roster, &secure.sharers, &secure.survivors, place, opening);
                if let Err(detail) = checked {
                    return fault("opening", detail);
                }
                said.opening = Some(opening.clone());
            }
            SecureUp::Alarm { check, detail } => return fault(check, detail.clone()),
        }
        Ok(true)
    }

    /// Who of `names` has said it, in name order, and whether anybody who has not is still waited for.
    fn heard<'n>(&self, now: Now, names: impl Iterator<Item = &'n NodeName>, said: Said) -> (Vec<NodeName>, bool) {
        let elapsed = self.elapsed(now);
        let (mut heard, mut waiting) = (Vec::new(), false);
        for name in names {
            let Some(member) = self.members.get(name) else { continue };
            let out = match member.record.state {
                MemberState::Invited | MemberState::Counted(_) => false,
                MemberState::Declined(_)
                | MemberState::Failed { .. }
                | MemberState::Refused { .. }
                | MemberState::Carried
                | MemberState::Silent => true,
            };
            if !out && member.said().is_some_and(said) {
                heard.push(name.clone());
            } else {
                let silent = elapsed >= self.step_ms.max(member.since_ms) + self.limits.silence_ms;
                let alarmed = member.said().is_some_and(|said| said.alarm.is_some());
                waiting |= !(silent || alarmed || out);
            }
        }
        (heard, waiting)
    }

    /// Who has said what the open step of keying or unmasking waits for, and whether somebody is still waited for.
    fn step_state(&self, now: Now) -> (Vec<NodeName>, bool) {
        let Some(secure) = self.secure() else { return (Vec::new(), false) };
        match self.record.stage {
            Stage::Keying if secure.roster.is_empty() => {
                self.heard(now, self.members.keys(), |said| said.advert.is_some())
            }
            Stage::Keying if self.roster.is_none() => self.reveal_state(now, secure),
            Stage::Keying => self.heard(now, secure.roster.iter(), |said| said.shares.is_some()),
            Stage::Unmasking if secure.agreed.is_empty() => {
                self.heard(now, secure.survivors.iter(), |said| said.agreement.is_some())
            }
            Stage::Unmasking => {
                let agreed = secure.agreed.iter().map(|word| &word.name);
                self.heard(now, agreed, |said| said.opening.is_some())
            }
            Stage::Collecting | Stage::Publishing | Stage::Done { .. } | Stage::Abandoned { .. } => (Vec::new(), false),
        }
    }

    /// Are these enough to go on? Costs as much as the graph has edges.
    fn is_enough(&self, heard: &[NodeName]) -> bool {
        match (&self.record.stage, self.secure(), &self.roster) {
            (Stage::Keying, _, None) => heard.len() >= self.keying_needed(),
            (Stage::Keying, _, Some(roster)) => heard.len() >= self.needed() && coordinator::all_held(roster, heard),
            (Stage::Unmasking, Some(secure), Some(roster)) => {
                coordinator::is_enough(roster, &secure.sharers, &secure.survivors, heard)
            }
            _ => false,
        }
    }

    /// Should the step of keying or unmasking be closed?
    pub(super) fn step_verdict(&self, now: Now) -> Verdict {
        if let Some(verdict) = self.help_verdict(now) {
            return verdict;
        }
        let (heard, waiting) = self.step_state(now);
        let elapsed = self.elapsed(now);
        let keying = self.record.stage == Stage::Keying;
        let since_ms = if keying { 0 } else { self.step_ms };
        let late = elapsed >= since_ms + self.limits.timeout_ms;
        let Some(secure) = self.secure().filter(|_| late || !waiting) else { return Verdict::Wait };
        if self.is_enough(&heard) {
            return Verdict::Next;
        }
        let (what, needed) = match (keying, secure.roster.is_empty(), secure.agreed.is_empty()) {
            (true, true, _) => ("sent keys", self.limits.min),
            (true, false, _) if self.roster.is_none() => ("revealed their nonces", self.keying_needed()),
            (true, false, _) => ("sent shares of their keys", self.needed()),
            (false, _, true) => ("vouch for the survivors", self.needed()),
            (false, _, false) => ("opened their shares", self.needed()),
        };
        let when = if late { "at the deadline " } else { "" };
        let missing = match heard.len() >= needed {
            true => ", but too few of one participant's neighbours".to_owned(),
            false => self.withheld_in_words(),
        };
        self.abandoned(format!("{when}{} of the {needed} needed participants {what}{missing}", heard.len()))
    }

    /// Fixes what the open step has brought. Returns the records of all who have spoken in it, and of all who are left out.
    ///
    /// # Errors
    /// What was brought cannot be used: a sentence.
    pub fn next(&mut self, now: Now) -> Result<Vec<MemberRecord>, String> {
        if self.helper().is_some() {
            self.record.stage = Stage::Publishing;
            return Ok(Vec::new());
        }
        let (heard, _) = self.step_state(now);
        self.step_ms = self.elapsed(now);
        let Some(mut secure) = self.record.secure.clone() else { return Ok(Vec::new()) };
        let spoken = heard.iter().filter_map(|name| Some(self.members.get(name)?.record.clone()));
        let mut changed: Vec<MemberRecord> = spoken.collect();
        match self.record.stage {
            Stage::Keying => {
                if secure.roster.is_empty() {
                    secure.roster = heard.clone();
                    self.record.secure = Some(secure.clone());
                    let adverts = heard.iter().filter_map(|name| self.members.get(name)?.said()?.advert.clone());
                    let listed = Listed::new(Context(secure.ctx.0), &secure.terms, adverts.collect::<Vec<_>>());
                    let listed = listed.map_err(|alarm| alarm.to_string())?;
                    if !listed.is_drawn() {
                        self.roster = Some(Arc::new(listed.clone().draw(&[]).map_err(|alarm| alarm.to_string())?));
                    }
                    self.listed = Some(Arc::new(listed));
                } else if self.roster.is_none() {
                    secure.drawn = Some(self.draw()?);
                } else {
                    secure.sharers = heard.clone();
                    self.record.stage = Stage::Collecting;
                }
                for member in self.members.values_mut().filter(|m| m.record.state == MemberState::Invited) {
                    if heard.binary_search(&member.record.peer.name).is_err() {
                        member.record.state = MemberState::Silent;
                        changed.push(member.record.clone());
                    }
                }
            }
            Stage::Unmasking if secure.agreed.is_empty() => {
                let word = |name: &NodeName| {
                    let agreement = self.members.get(name)?.said()?.agreement.clone()?;
                    Some(Agreed { name: name.clone(), signature: agreement.signature })
                };
                secure.agreed = heard.iter().filter_map(word).collect();
            }
            Stage::Unmasking => self.record.stage = Stage::Publishing,
            Stage::Collecting | Stage::Publishing | Stage::Done { .. } | Stage::Abandoned { .. } => {}
        }
        self.record.secure = Some(secure);
        Ok(changed)
    }

    /// The survivors are those whose updates count.
    pub(super) fn fix_survivors(&mut self, now: Now) {
        let survivors: Vec<NodeName> = self.counted().map(|(name, _)| name.clone()).collect();
        self.step_ms = self.elapsed(now);
        self.asked_ms = self.step_ms;
        if let Some(secure) = &mut self.record.secure {
            secure.survivors = survivors;
        }
    }

    /// Whose sum is about to be opened; None before.
    #[must_use]
    pub fn opening(&self) -> Option<Vec<NodeName>> {
        let asked = |secure: &SecureRecord| secure.helper.is_some() && !secure.survivors.is_empty();
        let secure = self.secure().filter(|secure| !secure.agreed.is_empty() || asked(secure))?;
        Some(secure.survivors.clone())
    }

    /// What was learnt beside the model.
    pub fn note_totals(&mut self, totals: Option<Totals>) {
        if let Some(secure) = &mut self.record.secure {
            secure.totals = totals;
        }
    }

    /// Everything that opens the sum.
    #[must_use]
    pub fn opened(&self) -> Option<Opened> {
        let secure = self.secure()?;
        let help = secure.helper.as_ref().and_then(|helper| Some((helper.peer.name.clone(), helper.answer.clone()?)));
        let said = |name: &NodeName| self.members.get(name)?.said();
        let advert = |name: &NodeName| said(name)?.advert.clone();
        let commitment = |name: &NodeName| Some((name.clone(), said(name)?.shares.as_ref()?.commitment));
        let opening = |name: &NodeName| Some((name.clone(), said(name)?.opening.clone()?));
        Some(Opened {
            terms: secure.terms,
            ctx: secure.ctx,
            help,
            adverts: secure.roster.iter().filter_map(advert).collect(),
            reveals: Self::revealed(secure, &self.members),
            sharers: secure.sharers.clone(),
            commitments: secure.survivors.iter().filter_map(commitment).collect(),
            openings: secure.survivors.iter().filter_map(opening).collect(),
        })
    }

    /// Does a member vouch for this masked update?
    pub(super) fn masked_fault(&self, peer: &Peer, header: &UpdateHeader) -> Option<(&'static str, String)> {
        let secure = self.secure()?;
        if let Some(key) = &secure.terms.helper {
            return self.seed_fault(peer, header, key).map(|fault| ("bad_signature", fault.to_owned()));
        }
        let roster = self.roster.as_ref()?;
        let Some(MaskedInput::Roster { roster: masked_for, signature }) = &header.secure else {
            let detail = "the round sums masked updates, and this one is not masked: nothing of it is kept".to_owned();
            return Some(("not_masked", detail));
        };
        let ctx = Context(secure.ctx.0);
        let known = *masked_for == roster.hash();
        let payload = &header.payload.digest.0;
        if !known || !signed::input_is_signed(&peer.id, ctx, masked_for, payload, signature) {
            let detail = "nobody enrolled vouches for this update on this roster".to_owned();
            return Some(("bad_signature", detail));
        }
        None
    }
}

impl Member {
    /// The alarm it has raised, unless it had only restarted.
    pub(super) fn fault(&self) -> Option<&str> {
        let alarm = self.said()?.alarm.as_deref()?;
        let restarted = alarm.strip_prefix(RESTARTED).is_some_and(|rest| rest.starts_with(':'));
        (!restarted).then_some(alarm)
    }

    /// Did it fail, rather than fall silent?
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.record.state, MemberState::Failed { .. } | MemberState::Refused { .. }) || self.fault().is_some()
    }

    fn said(&self) -> Option<&SecureMember> {
        self.record.secure.as_deref()
    }
}
