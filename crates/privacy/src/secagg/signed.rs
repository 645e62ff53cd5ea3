//! What a secure round is about, and the signatures that bind every message to it (Ed25519, RFC 8032).
//!
//! Promises: a signature made for one context, step or roster verifies for no other; verification is strict (no small-order
//! keys, no malleable signatures). Must not know which keys are enrolled: who calls brings them.

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use aivillage_base::NodeId;
use aivillage_base::wire::Invitation;
use aivillage_base::wire::secure::Hex;

/// Label of everything that is hashed here.
const LABEL: &[u8] = b"aivillage secure aggregation v1\0";

/// Signs as one enrolled participant.
pub trait Signer: Send + Sync + std::fmt::Debug {
    /// The enrolled key.
    fn id(&self) -> NodeId;
    /// An Ed25519 signature over `text`.
    fn sign(&self, text: &[u8]) -> [u8; 64];
}

/// A round that participants agree on before they take part in it: SHA-256 of the invitation without what differs from one
/// addressee to the next (receipt, time left). It binds job, round, attempt, model, grids, training and all terms, so two
/// participants that were told different things never share a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context(pub [u8; 32]);

impl Context {
    /// The context of this invitation.
    #[must_use]
    pub fn of(invitation: &Invitation) -> Self {
        let common = Invitation { receipt: None, deadline_ms: 0, ..invitation.clone() };
        let text = serde_json::to_vec(&common).expect("invariant: wire messages serialise");
        Self(Sha256::new().chain_update(LABEL).chain_update(b"context\0").chain_update(text).finalize().into())
    }
}

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Step 0: keys and nonce.
    Advert,
    /// Step 0 where the graph is drawn: keys and the commitment to a nonce.
    Commitment,
    /// Between steps 0 and 1, where the graph is drawn: roster, nonce.
    Reveal,
    /// Step 1: roster, boxes, commitment.
    Shares,
    /// Step 2: roster, digest of the masked values.
    Input,
    /// Step 3: roster, survivors.
    Agreement,
    /// Step 4: survivors, shares.
    Opening,
}

impl Step {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Advert => b"advert",
            Self::Commitment => b"advert with a commitment",
            Self::Reveal => b"reveal",
            Self::Shares => b"shares",
            Self::Input => b"input",
            Self::Agreement => b"agreement",
            Self::Opening => b"opening",
        }
    }
}

/// A hash of parts that no other list of parts has: each is preceded by its length.
pub(super) fn hash(ctx: Context, label: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new().chain_update(LABEL).chain_update(ctx.0);
    for part in std::iter::once(&label).chain(parts) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The signature of `signer` over these parts of a step.
pub(super) fn sign(signer: &dyn Signer, ctx: Context, step: Step, parts: &[&[u8]]) -> Hex<64> {
    Hex(signer.sign(&hash(ctx, step.label(), parts)))
}

/// Is this the signature of `id` over these parts of a step?
pub(super) fn is_signed(id: &NodeId, ctx: Context, step: Step, parts: &[&[u8]], signature: &Hex<64>) -> bool {
    text_is_signed(id, &hash(ctx, step.label(), parts), signature)
}

/// Is this the signature of `id` over this very text? The text says what it is for, so that it fits nothing else.
#[must_use]
pub fn text_is_signed(id: &NodeId, text: &[u8], signature: &Hex<64>) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&id.0) else { return false };
    key.verify_strict(text, &Signature::from_bytes(&signature.0)).is_ok()
}

/// Did `id` vouch for the masked input with this digest?
#[must_use]
pub fn input_is_signed(id: &NodeId, ctx: Context, roster: &Hex<32>, payload: &[u8; 32], signature: &Hex<64>) -> bool {
    is_signed(id, ctx, Step::Input, &[&roster.0, payload], signature)
}

/// A key pair in memory, made of 32 bytes: for whoever simulates or measures many participants. A node's own key stays with
/// its link.
pub struct KeyInMemory(SigningKey);

impl KeyInMemory {
    /// The pair of this secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }
}

impl std::fmt::Debug for KeyInMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyInMemory({})", self.id())
    }
}

impl Signer for KeyInMemory {
    fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, text: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(&self.0, text).to_bytes()
    }
}
