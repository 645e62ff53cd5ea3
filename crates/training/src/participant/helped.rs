//! The node's half of a round with a helper: one masked update, and beside it the seed of its mask, sealed to the helper.
//!
//! ```text
//! train -> note model and helper, begin context (both durable) -> mask -> seal -> deliver
//! ```
//! Until the context is begun nothing of it has left, so a node that is killed while it trains begins anew. After that it
//! sends the same bytes again and again, and if it dies first, nothing more on this context.

use std::sync::Arc;

use aivillage_base::Digest;
use aivillage_base::wire::helper::HelperKey;
use aivillage_base::wire::secure::{MaskedInput, SecureTerms};
use aivillage_base::wire::{Invitation, Up};
use aivillage_privacy::secagg::helper::Seed;
use aivillage_privacy::secagg::roster::Alarm;
use aivillage_privacy::secagg::signed::Context;
use tokio_util::sync::CancellationToken;

use super::secure::{Keys, SystemRandom, differencing, work};
use super::state::NodeState;
use super::{Participant, Prepared, SentEntry};
use crate::round::RESTARTED;
use crate::secure::{Counts, check_terms};

impl Participant {
    /// Takes part in a round with a helper.
    pub(super) async fn take_part_helped(
        &self,
        invitation: Invitation,
        (terms, helper): (SecureTerms, HelperKey),
        cancel: &CancellationToken,
    ) {
        let key = invitation.key.clone();
        if !self.logged(SentEntry::answer(&key, "takes part".to_owned())) {
            return;
        }
        let yes = Up::Answer { key: key.clone(), declined: None };
        let training = self.fetch_and_train(invitation.clone(), cancel.clone());
        let (_, prepared) = tokio::join!(self.deps.uplink.send(&yes), training);
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => return self.failed(&key, reason).await,
        };
        let (keys, store, asked) = (self.deps.keys.clone(), Arc::clone(&self.deps.state), invitation.clone());
        let sealing = move || sealed(&asked, (&terms, &helper), prepared, &keys, &*store);
        let sealed = tokio::task::spawn_blocking(sealing).await;
        match sealed.unwrap_or_else(|e| Err(Alarm::new("masking", e.to_string()))) {
            Ok(sealed) => {
                self.deliver(&invitation, sealed).await;
            }
            Err(alarm) => self.raise(&key, &alarm).await,
        }
    }
}

/// The update under a fresh mask, with the seed for the helper; its state is kept. Blocking.
fn sealed(
    invitation: &Invitation,
    (terms, helper): (&SecureTerms, &HelperKey),
    prepared: Prepared,
    keys: &Keys,
    store: &dyn NodeState,
) -> Result<Prepared, Alarm> {
    let (ctx, mut random) = (Context::of(invitation), SystemRandom);
    let width = check_terms(terms).map_err(|detail| Alarm::new("terms", detail))?;
    let update = (prepared.header.weight, prepared.header.steps);
    let counts = Counts::of(terms, &invitation.training, update).map_err(|why| Alarm::new("examples", why))?;
    note(invitation, terms, helper, keys)?;
    match keys.contexts.begin(&ctx.0).and_then(|new| keys.contexts.settle().map(|()| new)) {
        Ok(true) => {}
        Ok(false) => return Err(Alarm::new(RESTARTED, "this node has masked an update of the round before")),
        Err(detail) => return Err(Alarm::new("contexts", detail)),
    }
    let seed = Seed::generate(&mut random);
    let mut masked = prepared.masked(&[seed.mask(ctx)], counts, width);
    if !masked.state.is_empty() {
        let put = store.put(&masked.mark(), &invitation.architecture, &masked.state);
        put.map_err(|detail| Alarm::new("masking", detail))?;
    }
    let input = seed.seal(ctx, helper, &masked.header.payload.digest, &*keys.signer, &mut random)?;
    masked.header.secure = Some(MaskedInput::Seed(Box::new(input)));
    Ok(masked)
}

/// The helper opens one sum over a model, as a cohort's nodes do. So a node puts its updates of one model into the hands of
/// one helper, or of cohorts: two keepers who do not know of each other would open two.
fn note(invitation: &Invitation, terms: &SecureTerms, helper: &HelperKey, keys: &Keys) -> Result<(), Alarm> {
    let text = [b"aivillage helper's sum v1\0".as_slice(), &helper.id.0, &work(invitation, terms).0].concat();
    match keys.contexts.open(&invitation.model.digest.0, &Digest::of(&text).0) {
        Ok(true) => Ok(()),
        Ok(false) => Err(differencing()),
        Err(detail) => Err(Alarm::new("contexts", detail)),
    }
}
