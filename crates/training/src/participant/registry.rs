//! The registry of enrolments as a node has seen it: what it signs into its keys of a round, and holds others' against.

use std::fmt::Debug;

use aivillage_base::wire::secure::{Advert, RegistryHead};
use aivillage_privacy::secagg::roster::Alarm;
use async_trait::async_trait;

/// Enrolments and revocations, hashed onto each other.
///
/// # Behavior
/// - The head only moves on, and durably: a registry that does not go on from it is an [`Alarm`], also after a restart.
#[async_trait]
pub trait Registry: Send + Sync + Debug {
    /// Reads what has happened since.
    ///
    /// # Errors
    /// [`Alarm`]: it does not go on from the head, or cannot be read.
    async fn refresh(&self) -> Result<(), Alarm>;

    /// Reads what has happened since, unless it was read a moment ago: whoever knows more shows it in its keys.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    async fn freshen(&self) -> Result<(), Alarm> {
        self.refresh().await
    }

    /// What was read is not fresh any more: the gateway may be another one than before.
    fn expire(&self) {}

    /// How far this node has read.
    fn head(&self) -> RegistryHead;

    /// Is the head that this participant was shown one of ours, and is it enrolled?
    ///
    /// # Errors
    /// [`Alarm`]: there are two registries, or the participant is not on this one.
    fn check(&self, advert: &Advert) -> Result<(), Alarm>;
}

/// Of a gateway that shows no registry: nobody may have seen one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRegistry;

#[async_trait]
impl Registry for NoRegistry {
    async fn refresh(&self) -> Result<(), Alarm> {
        Ok(())
    }

    fn head(&self) -> RegistryHead {
        RegistryHead::default()
    }

    fn check(&self, advert: &Advert) -> Result<(), Alarm> {
        if advert.registry == self.head() {
            return Ok(());
        }
        Err(Alarm::new("fork", format!("{} was shown a registry of enrolments, this node none", advert.peer.name)))
    }
}
