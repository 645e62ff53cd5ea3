//! What the signatures under the protocol's words cover: everything of a word but the signature itself.

use aivillage_base::wire::secure::{Opening, Shares};
use zeroize::Zeroizing;

/// What the signature under shares covers.
pub(super) fn shares_digest(shares: &Shares) -> Vec<u8> {
    let mut text = [shares.roster.0, shares.commitment.0].concat();
    for sealed in &shares.boxes {
        text.extend_from_slice(&(sealed.with.as_str().len() as u64).to_le_bytes());
        text.extend_from_slice(sealed.with.as_str().as_bytes());
        text.extend_from_slice(&sealed.sealed.0);
    }
    text
}

/// What the signature under an opening covers.
pub(super) fn opening_digest(opening: &Opening) -> Zeroizing<Vec<u8>> {
    let mut text = opening.survivors.0.to_vec();
    for opened in &opening.shares {
        text.extend_from_slice(&(opened.of.as_str().len() as u64).to_le_bytes());
        text.extend_from_slice(opened.of.as_str().as_bytes());
        text.extend_from_slice(&opened.share.0.0);
    }
    Zeroizing::new(text)
}
