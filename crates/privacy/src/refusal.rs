//! A node's refusal of an attempt, signed by its enrolled key (Ed25519, RFC 8032): nobody can refuse in its name.
//!
//! Promise: a signature binds one attempt, rule and reason, and is never one of secure aggregation: its text has another
//! label. Must not know which keys are enrolled: who calls brings them.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use aivillage_base::NodeId;
use aivillage_base::wire::secure::Hex;
use aivillage_base::wire::{Declined, RoundKey};

use crate::secagg::signed::Signer;

/// Label of everything that is hashed here.
const LABEL: &[u8] = b"aivillage refusal v1\0";

/// A refusal of this attempt, signed.
#[must_use]
pub fn sign(signer: &dyn Signer, key: &RoundKey, rule: String, reason: String) -> Declined {
    let signature = Hex(signer.sign(&text(key, &rule, &reason)));
    Declined { rule, reason, signature }
}

/// Is this refusal of the attempt one by `id`?
#[must_use]
pub fn is_signed(id: &NodeId, key: &RoundKey, declined: &Declined) -> bool {
    let Ok(verifying) = VerifyingKey::from_bytes(&id.0) else { return false };
    let text = text(key, &declined.rule, &declined.reason);
    verifying.verify_strict(&text, &Signature::from_bytes(&declined.signature.0)).is_ok()
}

/// What is signed: a hash of parts that no other attempt, rule and reason has; each is preceded by its length.
fn text(key: &RoundKey, rule: &str, reason: &str) -> [u8; 32] {
    let mut hasher = Sha256::new().chain_update(LABEL);
    let (round, attempt) = (key.round.to_le_bytes(), key.attempt.to_le_bytes());
    for part in [key.job.as_str().as_bytes(), &round, &attempt, rule.as_bytes(), reason.as_bytes()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use aivillage_base::JobId;

    use super::*;
    use crate::secagg::signed::KeyInMemory;

    #[test]
    fn a_refusal_is_its_nodes_for_this_attempt_rule_and_reason_only() {
        let (node, other) = (KeyInMemory::new(&[1; 32]), KeyInMemory::new(&[2; 32]));
        let key = RoundKey { job: JobId::new("job").unwrap(), round: 1, attempt: 1 };
        let declined = sign(&node, &key, "max_rounds".into(), "too many".into());
        assert!(is_signed(&node.id(), &key, &declined));
        assert!(!is_signed(&other.id(), &key, &declined));
        for changed in [RoundKey { round: 2, ..key.clone() }, RoundKey { attempt: 2, ..key.clone() }] {
            assert!(!is_signed(&node.id(), &changed, &declined));
        }
        let moved = Declined { rule: "max_round".into(), reason: "stoo many".into(), ..declined.clone() };
        assert!(!is_signed(&node.id(), &key, &moved));
        let unsigned = Declined { signature: Hex([0; 64]), ..declined };
        assert!(!is_signed(&node.id(), &key, &unsigned));
    }
}
