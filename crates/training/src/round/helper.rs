//! The helper's part in an attempt: it is asked once the survivors are fixed, and its answer takes their masks away.
//!
//! `collecting -> unmasking (the helper's answer) -> publishing`. It is asked again, with the same words, until it has
//! answered or the attempt's time is up; what it answers is persisted with its receipt, like an update.

use aivillage_base::wire::helper::{HelpedInput, HelperKey};
use aivillage_base::wire::secure::MaskedInput;
use aivillage_privacy::secagg::helper;
use aivillage_privacy::secagg::signed::Context;

use super::*;
use crate::record::Helped;

/// Pause before an unanswered request is sent again, in milliseconds.
const ASK_MS: u64 = 5_000;

impl Round {
    /// The helper of this attempt, if it has one.
    #[must_use]
    pub fn helper(&self) -> Option<&Helped> {
        self.record.secure.as_ref()?.helper.as_ref()
    }

    /// Is it this very node?
    #[must_use]
    pub fn is_helper(&self, peer: &Peer) -> bool {
        self.helper().is_some_and(|helper| helper.peer == *peer)
    }

    /// Does it wait for the helper?
    #[must_use]
    pub fn wants_help(&self) -> bool {
        let waits = |helper: &Helped| helper.answer.is_none() && helper.refusal.is_none();
        self.record.stage == Stage::Unmasking && self.helper().is_some_and(waits)
    }

    /// Whom to ask (again) now; None = nobody.
    pub fn ask_again(&mut self, now: Now) -> Option<Peer> {
        let elapsed = self.elapsed(now);
        if !self.wants_help() || elapsed < self.asked_ms + ASK_MS {
            return None;
        }
        self.asked_ms = elapsed;
        Some(self.helper()?.peer.clone())
    }

    /// The updates of the survivors as the helper sees them, in name order.
    #[must_use]
    pub fn helped_inputs(&self) -> Vec<HelpedInput> {
        let Some(secure) = self.secure() else { return Vec::new() };
        let ctx = Context(secure.ctx.0);
        let input = |name: &NodeName| {
            let member = &self.members.get(name)?.record;
            let counted = member.counted()?;
            let Some(MaskedInput::Seed(input)) = &counted.masked else { return None };
            let payload = helper::commitment(ctx, &counted.payload.digest, &input.blind);
            Some(HelpedInput { peer: member.peer.clone(), payload, seed: input.seed.clone() })
        };
        secure.survivors.iter().filter_map(input).collect()
    }

    /// Does the sender vouch for this update and the box beside it?
    pub(super) fn seed_fault(&self, peer: &Peer, header: &UpdateHeader, key: &HelperKey) -> Option<&'static str> {
        let ctx = Context(self.secure()?.ctx.0);
        let Some(MaskedInput::Seed(input)) = &header.secure else {
            return Some("the round sums updates whose masks its helper takes away, and this one is not masked so");
        };
        let payload = helper::commitment(ctx, &header.payload.digest, &input.blind);
        let signed = helper::input_is_signed(&peer.id, ctx, key, &payload, &input.seed);
        (!signed).then_some("nobody enrolled vouches for this update and the box beside it")
    }

    /// What is said to the helper's answer, by its header; None = its bytes are wanted.
    pub(super) fn offer_helped(&self, header: &UpdateHeader) -> Option<UpdateReply> {
        let refuse = |reason: &str, detail: &str| {
            Some(UpdateReply::Refused { reason: reason.to_owned(), detail: detail.to_owned() })
        };
        let (Some(secure), Some(helper)) = (self.secure(), self.helper()) else {
            return refuse("not_invited", "the round has no helper");
        };
        if helper.answer.as_ref().is_some_and(|answer| answer.is(header)) {
            return Some(UpdateReply::Accepted);
        }
        if !self.wants_help() {
            return refuse("late", "the round waits for no answer of its helper");
        }
        let ctx = Context(secure.ctx.0);
        let Some(MaskedInput::Helper(sum)) = &header.secure else {
            return refuse("not_masked", "a helper sends sums of masks and nothing else");
        };
        let asked = helper::inputs_hash(ctx, &self.helped_inputs());
        if sum.inputs != asked || !helper::answer_is_signed(&helper.peer.id, ctx, &header.payload.digest, sum) {
            return refuse(
                "bad_signature",
                "the answer is not the helper's word for the updates that it was asked about",
            );
        }
        if header.payload.bytes != self.limits.payload_bytes(Some(&secure.terms)) {
            return refuse("wrong_size", "the answer has another size than an update");
        }
        None
    }

    /// Takes the helper's answer, whose bytes match its header. False = it was not wanted.
    pub fn take_help(&mut self, header: &UpdateHeader, payload: &Payload) -> bool {
        if self.offer_helped(header).is_some() {
            return false;
        }
        let answer = Counted::new(header, matches!(payload, Payload::Inline(_)));
        let helper = self.record.secure.as_mut().and_then(|secure| secure.helper.as_mut());
        helper.map(|helper| helper.answer = Some(answer)).is_some()
    }

    /// The helper refuses. False = that is no news.
    pub fn help_refused(&mut self, reason: String) -> bool {
        if !self.wants_help() {
            return false;
        }
        let helper = self.record.secure.as_mut().and_then(|secure| secure.helper.as_mut());
        helper.map(|helper| helper.refusal = Some(reason)).is_some()
    }

    /// What becomes of an attempt that waits for its helper; None = it does not.
    pub(super) fn help_verdict(&self, now: Now) -> Option<Verdict> {
        let helper = self.helper().filter(|_| self.record.stage == Stage::Unmasking)?;
        let name = &helper.peer.name;
        if let Some(reason) = &helper.refusal {
            let reason = format!("the helper {name} refuses to take the masks away: {reason}");
            return Some(Verdict::Abandon { reason, members_failed: true });
        }
        if helper.answer.is_some() {
            return Some(Verdict::Next);
        }
        if self.elapsed(now) < self.step_ms + self.limits.timeout_ms {
            return Some(Verdict::Wait);
        }
        let reason = format!("the helper {name} has not taken the masks away within the round's time");
        Some(Verdict::Abandon { reason, members_failed: false })
    }
}
