//! How lots are drawn for a sparse graph so that nobody can bend them (commit, then reveal).
//!
//! ```text
//! advert: commitment -> roster is fixed -> reveal: nonce, signed over the roster -> order = H(roster, all nonces)
//! ```
//! Promises: the order depends on the nonce of everybody on the roster, and each was fixed before its holder saw another
//! one, so one honest participant makes it uniform. Whoever sends nonces on can withhold them, and give the attempt up; it
//! can change none, and choose among none: there is no graph without all of them. All who have signed were shown one roster.
//! Must not know how often lots are drawn: each draw that is given up is another chance, so nodes bound their number.

use aivillage_base::NodeId;
use aivillage_base::wire::secure::{GraphKind, Hex, Reveal, Revealed};

use super::graph::Graph;
use super::roster::{Alarm, Listed, Roster};
use super::signed::{Context, Signer, Step, hash, is_signed, sign};

/// Binds one participant of one context to a nonce: another's commitment is of no use to it.
#[must_use]
pub fn commitment(ctx: Context, id: &NodeId, nonce: &Hex<32>) -> Hex<32> {
    Hex(hash(ctx, b"nonce commitment", &[&id.0, &nonce.0]))
}

/// The word by which a participant lets its nonce be known to whoever was shown this roster.
pub(super) fn reveal(listed: &Listed, nonce: Hex<32>, signer: &dyn Signer) -> Reveal {
    let roster = listed.hash();
    let signature = sign(signer, listed.context(), Step::Reveal, &[&roster.0, &nonce.0]);
    Reveal { roster, nonce, signature }
}

/// Is this what the participant at this place committed to, said to those on this roster?
///
/// # Errors
/// One sentence.
pub fn check(listed: &Listed, place: usize, revealed: &Revealed) -> Result<(), String> {
    let (advert, ctx) = (&listed.adverts()[place], listed.context());
    let Revealed { name, nonce, signature } = revealed;
    if advert.peer.name != *name {
        return Err(format!("the nonce of {name} came where that of {} belongs", advert.peer.name));
    }
    if commitment(ctx, &advert.peer.id, nonce) != advert.nonce {
        return Err(format!("the nonce of {name} is not the one that it committed to"));
    }
    let parts = [&listed.hash().0[..], &nonce.0];
    if !is_signed(&advert.peer.id, ctx, Step::Reveal, &parts, signature) {
        return Err(format!("{name} has not signed its nonce for this roster: it was shown another one"));
    }
    Ok(())
}

impl Listed {
    /// The roster with its graph: of everybody's nonces where lots are drawn, of none where all mask with all.
    ///
    /// # Errors
    /// [`Alarm`]: a nonce is missing, one too many, or not what its owner committed to and signed.
    pub fn draw(self, reveals: &[Revealed]) -> Result<Roster, Alarm> {
        let count = self.adverts().len();
        let needed = if self.is_drawn() { count } else { 0 };
        if reveals.len() != needed {
            let detail =
                format!("{} nonces came, {needed} are needed: without all of them there is no graph", reveals.len());
            return Err(Alarm::new("reveals", detail));
        }
        for (place, revealed) in reveals.iter().enumerate() {
            check(&self, place, revealed).map_err(|detail| Alarm::new("reveals", detail))?;
        }
        let roster = self.hash();
        let nonces = reveals.iter().map(|revealed| revealed.nonce.0.as_slice());
        let parts: Vec<&[u8]> = std::iter::once(roster.0.as_slice()).chain(nonces).collect();
        let order = hash(self.context(), b"graph", &parts);
        let graph = Graph::new(count, self.plan().neighbours, &order);
        // Everything from here on is bound to the graph as well.
        let hash = match self.terms().graph {
            GraphKind::Full => roster,
            GraphKind::Drawn => Hex(hash(self.context(), b"drawn roster", &parts)),
        };
        Ok(Roster::with_graph(self, graph, hash))
    }
}
