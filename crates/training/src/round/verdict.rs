//! When an attempt closes, whom it reminds, and how it ends.

use super::*;

impl Round {
    /// Should it close, go on, or be given up?
    #[must_use]
    pub fn verdict(&self, now: Now) -> Verdict {
        if !self.collecting() {
            return self.step_verdict(now);
        }
        let elapsed = self.elapsed(now);
        let counted = self.counted().count();
        let open: Vec<&Member> = self.members.values().filter(|m| m.record.state == MemberState::Invited).collect();
        let needed = self.needed();
        let enough = counted >= needed;
        if self.limits.buffer.is_some() {
            // Every update that counts earns the attempt another timeout: told from what is stored, so restarts agree.
            let late = elapsed >= self.limits.timeout_ms.saturating_mul(counted as u64 + 1);
            return match enough {
                true => Verdict::Close,
                false if late || counted + open.len() < needed => self.abandon(counted, late),
                false => Verdict::Wait,
            };
        }
        let silent = |m: &&Member| !(m.connected && m.answered) && elapsed >= m.since_ms + self.limits.silence_ms;
        if enough && open.iter().all(silent) {
            return Verdict::Close;
        }
        let late = elapsed >= self.limits.timeout_ms;
        if late && enough {
            return Verdict::Close;
        }
        if counted + open.len() < needed || late {
            return self.abandon(counted, late);
        }
        Verdict::Wait
    }

    fn abandon(&self, counted: usize, late: bool) -> Verdict {
        let when = if late { "at the deadline " } else { "" };
        self.abandoned(format!("{when}{counted} of the {} needed updates counted", self.needed()))
    }

    /// Gives up for this reason, with what went wrong with members.
    pub(super) fn abandoned(&self, mut reason: String) -> Verdict {
        let (mut failures, mut members_failed) = (Vec::new(), false);
        for (name, member) in &self.members {
            members_failed |= member.has_failed();
            match &member.record.state {
                MemberState::Counted(_) => {
                    failures.extend(member.fault().map(|alarm| format!("{name} raised an alarm: {alarm}")));
                }
                MemberState::Failed { reason } => failures.push(format!("{name} failed: {reason}")),
                MemberState::Refused { detail, .. } => failures.push(format!("{name} was refused: {detail}")),
                MemberState::Declined(d) => failures.push(format!("{name} declined by {}: {}", d.rule, d.reason)),
                MemberState::Invited | MemberState::Carried | MemberState::Silent => {}
            }
        }
        for failure in failures {
            reason.push_str("; ");
            reason.push_str(&failure);
        }
        Verdict::Abandon { reason, members_failed }
    }

    /// Connected members that have not answered for `pause_ms` (their invitation may be lost) or, where updates are buffered,
    /// whose own time is up. Marks them as invited now.
    pub fn to_remind(&mut self, now: Now, pause_ms: u64) -> Vec<Peer> {
        let elapsed = self.elapsed(now);
        // Once there is a roster, members ask for what they miss.
        if !matches!(self.record.stage, Stage::Keying | Stage::Collecting) || self.listed.is_some() {
            return Vec::new();
        }
        let buffered = self.limits.buffer.is_some();
        let mut silent = Vec::new();
        for m in self.members.values_mut().filter(|m| m.connected && m.record.state == MemberState::Invited) {
            let late = buffered && elapsed >= m.until_ms;
            if late || (!m.answered && elapsed >= m.invited_ms + pause_ms) {
                m.answered &= !late;
                m.invited_ms = elapsed;
                m.until_ms = elapsed + self.limits.timeout_ms;
                silent.push(m.record.peer.clone());
            }
        }
        silent
    }

    /// Fixes the accepted set. Returns the members that are left out: for silence or, where updates are buffered, at work.
    pub fn close(&mut self, now: Now) -> Vec<MemberRecord> {
        self.record.stage = if self.secure().is_some() { Stage::Unmasking } else { Stage::Publishing };
        self.fix_survivors(now);
        let mut left_out = Vec::new();
        for member in self.members.values_mut().filter(|m| m.record.state == MemberState::Invited) {
            let carried = self.limits.buffer.is_some() && member.at_work();
            member.record.state = if carried { MemberState::Carried } else { MemberState::Silent };
            left_out.push(member.record.clone());
        }
        left_out
    }

    /// Members that were at work when the set was fixed and still are, with what they work on and the time they have left,
    /// in milliseconds.
    #[must_use]
    pub fn carried(&self, now: Now) -> BTreeMap<NodeName, (Base, u64)> {
        let elapsed = self.elapsed(now);
        let mut carried = BTreeMap::new();
        for (name, member) in &self.members {
            if member.record.state == MemberState::Carried && member.at_work() {
                let base = self.base_of(&member.record);
                carried.insert(name.clone(), (base, member.until_ms.saturating_sub(elapsed)));
            }
        }
        carried
    }

    fn base_of(&self, member: &MemberRecord) -> Base {
        let own = || Base { key: self.record.key.clone(), model: self.record.model_in };
        member.base.clone().unwrap_or_else(own)
    }

    /// Ends the attempt: folds members into the record.
    #[must_use]
    pub fn end(&self, now: Now, stage: Stage) -> RoundRecord {
        RoundRecord { stage, closed_ms: Some(now.wall_ms), members: self.members(), ..self.record(now) }
    }
}
