//! Decoding of everything that secure aggregation says: no bytes panic, and what was decoded is encoded and decoded the same.
//!
//! Memory is bounded by the bytes that came: what was decoded never encodes to much more than they were.

use std::fmt::Debug;

use aivillage_base::wire::secure::{SecureDown, SecureUp};
use aivillage_base::wire::{Down, Invitation, Up, UpdateHeader, UpdateReply};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Reached;

pub(crate) fn run(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    if let Some(message) = decoded::<SecureUp>(data, &mut reached) {
        shows_no_share(&message);
    }
    let _ = decoded::<SecureDown>(data, &mut reached);
    let _ = decoded::<Invitation>(data, &mut reached);
    let _ = decoded::<UpdateHeader>(data, &mut reached);
    let _ = decoded::<UpdateReply>(data, &mut reached);
    let _ = decoded::<Down>(data, &mut reached);
    if let Some(Up::Secure { message, .. }) = decoded::<Up>(data, &mut reached) {
        shows_no_share(&message);
    }
    reached
}

fn decoded<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8], reached: &mut Reached) -> Option<T> {
    let Ok(message) = serde_json::from_slice::<T>(data) else {
        reached.refusals += 1;
        return None;
    };
    reached.answers += 1;
    let text = serde_json::to_vec(&message).expect("what was decoded is encoded");
    assert!(text.len() <= 64 * data.len() + 4096, "{} bytes became {}", data.len(), text.len());
    let again: T = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
    assert_eq!(again, message, "decoded, encoded and decoded");
    Some(message)
}

/// No share is in what a log would print.
fn shows_no_share(message: &SecureUp) {
    let SecureUp::Opening(opening) = message else { return };
    let printed = format!("{message:?}");
    for share in &opening.shares {
        let text = share.share.0.to_string();
        // Somebody may send as a share what is public beside it.
        let public = [opening.survivors.to_string(), opening.signature.to_string()];
        let public = public.iter().any(|field| field.contains(&text));
        assert!(public || !printed.contains(&text), "a share is printed");
    }
}
