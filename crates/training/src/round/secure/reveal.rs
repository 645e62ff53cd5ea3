//! Keying where the graph is drawn: everybody on the roster reveals its nonce before anybody shares keys.
//!
//! The graph needs the nonce of everybody on the roster: an attempt in which one is missing is given up, and whoever withheld
//! it is left out of the next ones. To go on without it would let the coordinator choose among graphs.

use aivillage_base::wire::secure::{Hex, Reveal, Revealed, SecureDown};
use aivillage_privacy::secagg::draw;
use aivillage_privacy::secagg::roster::Roster;

use super::*;

/// Names that a reason tells, at most.
const NAMED_MAX: usize = 5;

impl Round {
    /// The participants of the adverts that were fixed; None before.
    pub(in crate::round) fn fixed_adverts(
        record: &RoundRecord,
        members: &BTreeMap<NodeName, Member>,
    ) -> Option<Arc<Listed>> {
        let secure = record.secure.as_ref().filter(|secure| !secure.roster.is_empty())?;
        let adverts = secure.roster.iter().filter_map(|name| members.get(name)?.said()?.advert.clone());
        Listed::new(Context(secure.ctx.0), &secure.terms, adverts.collect::<Vec<_>>()).ok().map(Arc::new)
    }

    /// Their roster; None before its graph was drawn.
    pub(in crate::round) fn fixed_roster(
        listed: &Listed,
        record: &RoundRecord,
        members: &BTreeMap<NodeName, Member>,
    ) -> Option<Arc<Roster>> {
        let secure = record.secure.as_ref().filter(|secure| !listed.is_drawn() || secure.drawn.is_some())?;
        listed.clone().draw(&Self::revealed(secure, members)).ok().map(Arc::new)
    }

    /// The nonces that came, in name order; none where all mask with all.
    pub(super) fn revealed(secure: &SecureRecord, members: &BTreeMap<NodeName, Member>) -> Vec<Revealed> {
        let revealed = |name: &NodeName| {
            let Reveal { nonce, signature, .. } = members.get(name)?.said()?.reveal.as_ref()?;
            Some(Revealed { name: name.clone(), nonce: *nonce, signature: *signature })
        };
        secure.roster.iter().filter_map(revealed).collect()
    }

    /// Is the roster fixed, and its graph not drawn yet?
    fn revealing(&self) -> bool {
        self.record.stage == Stage::Keying && self.listed.is_some() && self.roster.is_none()
    }

    /// Which word those on the roster owe.
    pub(super) fn keying_word(&self) -> Said {
        match self.revealing() {
            true => |said| said.reveal.is_some(),
            false => |said| said.shares.is_some(),
        }
    }

    /// How many have to speak before there is a roster with a graph.
    pub(super) fn keying_needed(&self) -> usize {
        match &self.listed {
            Some(listed) if self.revealing() => listed.adverts().len(),
            Some(_) | None => self.limits.min,
        }
    }

    /// What it answers.
    pub(super) fn keying_message(&self) -> SecureDown {
        if let (Some(secure), true) = (self.secure(), self.roster.is_some())
            && secure.drawn.is_some()
        {
            return SecureDown::Reveals { reveals: Self::revealed(secure, &self.members) };
        }
        SecureDown::Roster { adverts: self.listed.as_ref().map(|l| l.adverts().to_vec()).unwrap_or_default() }
    }

    /// Notes a nonce if it is news.
    pub(super) fn judge_reveal(
        &self,
        peer: &Peer,
        reveal: &Reveal,
        said: &mut SecureMember,
    ) -> Result<bool, (String, String)> {
        let listed = self.listed.as_ref().filter(|_| self.revealing() && said.reveal.is_none());
        let Some((listed, place)) = listed.and_then(|listed| Some((listed, listed.index(&peer.name)?))) else {
            return Ok(false);
        };
        let Reveal { nonce, signature, .. } = *reveal;
        let revealed = Revealed { name: peer.name.clone(), nonce, signature };
        draw::check(listed, place, &revealed).map_err(|detail| ("reveal".to_owned(), detail))?;
        said.reveal = Some(reveal.clone());
        Ok(true)
    }

    /// Whose nonces are there, whoever has failed since: what was revealed cannot be taken back.
    pub(super) fn reveal_state(&self, now: Now, secure: &SecureRecord) -> (Vec<NodeName>, bool) {
        let (_, waiting) = self.heard(now, secure.roster.iter(), |said| said.reveal.is_some());
        (Self::revealed(secure, &self.members).into_iter().map(|one| one.name).collect(), waiting)
    }

    /// Draws the graph. Returns the hash of all that it comes from.
    pub(super) fn draw(&mut self) -> Result<Hex<32>, String> {
        let (Some(secure), Some(listed)) = (self.secure(), &self.listed) else {
            return Err("nobody is on the roster".to_owned());
        };
        let roster = (**listed).clone().draw(&Self::revealed(secure, &self.members));
        let roster = roster.map_err(|alarm| alarm.to_string())?;
        let hash = roster.hash();
        self.roster = Some(Arc::new(roster));
        Ok(hash)
    }

    /// Who is on the roster and has not revealed its nonce, though it may well be there; nobody where none is waited for.
    #[must_use]
    pub fn withheld(&self) -> Vec<NodeName> {
        let Some(secure) = self.secure().filter(|_| self.revealing()) else { return Vec::new() };
        let withholds = |name: &&NodeName| {
            // Who has restarted has nothing to reveal, and can begin anew.
            let member = self.members.get(*name).filter(|m| m.record.state != MemberState::Silent);
            member.is_some_and(|m| m.said().is_none_or(|said| said.reveal.is_none()))
        };
        secure.roster.iter().filter(withholds).cloned().collect()
    }

    /// The same for people.
    pub(super) fn withheld_in_words(&self) -> String {
        let withheld = self.withheld();
        if withheld.is_empty() {
            return String::new();
        }
        let more = withheld.len().saturating_sub(NAMED_MAX);
        let names: Vec<&str> = withheld.iter().take(NAMED_MAX).map(NodeName::as_str).collect();
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!(" ({}{rest} did not, and the graph needs everybody's)", names.join(", "))
    }
}
