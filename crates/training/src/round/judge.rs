//! What an attempt says to an update, and why it refuses one.

use aivillage_base::wire::LocalMetrics;

use super::*;

/// Pause of a carried member whose update comes while the model is made, in milliseconds.
pub(crate) const CARRIED_RETRY_MS: u64 = 250;

impl Round {
    /// What would be said to this update, judged by its header alone; None = its bytes are wanted.
    #[must_use]
    pub fn offer(&self, peer: &Peer, header: &UpdateHeader) -> Option<UpdateReply> {
        if self.is_helper(peer) {
            return self.offer_helped(header);
        }
        let refuse = |reason: &str, detail: String| Some(UpdateReply::Refused { reason: reason.to_owned(), detail });
        let Some(member) = self.members.get(&peer.name).filter(|m| m.record.peer == *peer) else {
            return refuse("not_invited", format!("{} was not invited to {}", peer.name, header.key));
        };
        match &member.record.state {
            MemberState::Counted(c) if c.is(header) => {
                return Some(UpdateReply::Accepted);
            }
            MemberState::Counted(_) => {
                return refuse("conflict", format!("another update of {} counts already", peer.name));
            }
            MemberState::Refused { reason, detail } => return refuse(reason, detail.clone()),
            MemberState::Declined(_) | MemberState::Failed { .. } | MemberState::Silent => {
                return refuse("late", format!("{} no longer waits for {}", header.key, peer.name));
            }
            MemberState::Carried if self.record.stage == Stage::Publishing => {
                return Some(UpdateReply::Retry { after_ms: CARRIED_RETRY_MS });
            }
            MemberState::Carried | MemberState::Invited => {}
        }
        if !self.collecting() {
            return refuse("late", format!("{} is closed", header.key));
        }
        if let Some((reason, detail)) = self.masked_fault(peer, header) {
            return refuse(reason, detail);
        }
        None
    }

    /// Takes an update whose bytes match its header. The reply is to be sent once the member's record is durable.
    pub fn update(
        &mut self,
        peer: &Peer,
        header: &UpdateHeader,
        payload: &Payload,
    ) -> (UpdateReply, Option<MemberRecord>) {
        if let Some(reply) = self.offer(peer, header) {
            return (reply, None);
        }
        if let Some((reason, detail)) = self.fault(header, payload) {
            return self.refuse(peer, reason, detail);
        }
        let counted = self.count(peer, header, payload);
        let record = self.open_member(peer).map(|member| {
            member.record.state = MemberState::Counted(counted);
            member.record.clone()
        });
        (UpdateReply::Accepted, record)
    }

    /// Refuses the update of a member whose update was wanted; it stays refused.
    pub fn refuse(&mut self, peer: &Peer, reason: &str, detail: String) -> (UpdateReply, Option<MemberRecord>) {
        let reply = UpdateReply::Refused { reason: reason.to_owned(), detail: detail.clone() };
        let record = self.open_member(peer).map(|member| {
            member.record.state = MemberState::Refused { reason: reason.to_owned(), detail };
            member.record.clone()
        });
        (reply, record)
    }

    fn count(&self, peer: &Peer, header: &UpdateHeader, payload: &Payload) -> Counted {
        let base = self.member(&peer.name).and_then(|m| m.base.as_ref()).map(|base| base.key.round);
        Counted {
            base,
            retain: header.retain && self.limits.retain,
            ..Counted::new(header, matches!(payload, Payload::Inline(_)))
        }
    }

    fn fault(&self, header: &UpdateHeader, payload: &Payload) -> Option<(&'static str, String)> {
        let terms = self.secure().map(|secure| &secure.terms);
        let want = self.limits.payload_bytes(terms);
        if header.payload.bytes != want {
            return Some(("wrong_size", format!("{} bytes were sent, {want} are needed", header.payload.bytes)));
        }
        if terms.is_some() {
            let told = header.weight > 0 || header.steps != 1 || header.initial_loss.is_some();
            let told = told || header.metrics != LocalMetrics::default();
            let detail = "what a node measures travels masked in this round, and this header tells it".to_owned();
            return told.then_some(("not_masked", detail));
        }
        if header.secure.is_some() {
            return Some(("masked", "the update is masked, and the round sums plain ones".to_owned()));
        }
        if header.weight == 0 || header.weight > self.limits.max_examples {
            let max = self.limits.max_examples;
            return Some(("bad_weight", format!("weight {} is outside 1 to {max}", header.weight)));
        }
        if header.steps == 0 {
            return Some(("bad_steps", "an update of 0 optimiser steps changes nothing".to_owned()));
        }
        if let Payload::Inline(bytes) = payload {
            let bound = self.limits.bound.unsigned_abs();
            let beyond = |q: &[u8; 4]| i32::from_le_bytes(*q).unsigned_abs() > bound;
            if let Some(i) = bytes.as_chunks::<4>().0.iter().position(beyond) {
                return Some(("out_of_range", format!("value {i} is outside the grid's ±{bound}")));
            }
        }
        None
    }

    /// A counted update proved unusable when it was summed.
    pub fn reject(&mut self, name: &NodeName, reason: &str, detail: String) -> Option<MemberRecord> {
        let member = self.members.get_mut(name)?;
        member.record.state = MemberState::Refused { reason: reason.to_owned(), detail };
        Some(member.record.clone())
    }
}
