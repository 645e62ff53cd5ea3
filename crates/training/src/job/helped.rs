//! What the helper of an attempt says.

use super::*;

impl Job {
    /// Its answer: stored like an update, and the attempt goes on to its model.
    pub(super) fn helped(&mut self, now: Now, peer: &Peer, header: &UpdateHeader, payload: Payload, step: &mut Step) {
        let Some(round) = &mut self.round else { return };
        step.kept = round.take_help(header, &payload);
        if step.kept {
            step.changes.push(Change::Round(Box::new(round.record(now))));
            if let Payload::Inline(bytes) = payload {
                step.changes.push(Change::Payload(round.key().clone(), peer.name.clone(), bytes));
            }
        }
        step.reply = Some(UpdateReply::Accepted);
        self.advance(now, step);
    }

    /// Its refusal, which ends the attempt; nothing else is asked of it in words.
    pub(super) fn helper_said(&mut self, now: Now, message: &SecureUp, step: &mut Step) {
        let Some(round) = &mut self.round else { return };
        let SecureUp::Alarm { check, detail } = message else { return };
        if round.help_refused(format!("{check}: {detail}")) {
            self.advance(now, step);
        }
    }
}
