//! The messages of a round with two aggregators of different owners: the coordinator sums masked updates, the helper sums
//! their masks. What each message must hold, and what its receiver checks, is said in the crate `privacy`.

use serde::{Deserialize, Serialize};

use super::secure::Hex;
use super::{Invitation, Peer};
use crate::ids::NodeId;

/// The key that seeds are sealed to, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperKey {
    /// The helper's enrolled key.
    pub id: NodeId,
    /// Its X25519 key.
    pub seal_key: Hex<32>,
    /// By `id`, over the X25519 key and what it is for.
    pub signature: Hex<64>,
}

/// The seed of one update's mask, sealed to the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSeed {
    /// X25519 key that was made for this box.
    pub key: Hex<32>,
    /// Nonce, seed, tag (ChaCha20-Poly1305).
    pub sealed: Hex<60>,
    /// By the sender's enrolled key, over the round's context, the helper, the commitment to the update and the box.
    pub signature: Hex<64>,
}

/// What a node sends beside an update whose mask the helper takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedInput {
    /// For the helper.
    pub seed: SealedSeed,
    /// For the coordinator only: opens the commitment to the update's digest. With the digest and the mask, the helper could
    /// try whether a guessed update is the right one.
    pub blind: Hex<32>,
}

/// One update of the sum, as the helper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelpedInput {
    /// Whose it is.
    pub peer: Peer,
    /// Commitment to the digest of the masked update.
    pub payload: Hex<32>,
    /// What its mask is made of.
    pub seed: SealedSeed,
}

/// Coordinator to helper: sum the masks of these updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelpRequest {
    /// What the nodes were invited to: it fixes the context that all boxes are bound to.
    pub invitation: Invitation,
    /// The updates, in name order.
    pub inputs: Vec<HelpedInput>,
}

/// The helper's word for its answer, whose bytes are what is to be added to the masked updates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelpedSum {
    /// Hash of the inputs it answers for.
    pub inputs: Hex<32>,
    /// By the helper's enrolled key, over the context, the inputs and the digest of its answer.
    pub signature: Hex<64>,
}
