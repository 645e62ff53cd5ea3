//! Doors to the bodies of the fuzz targets, which live among the tests of `crates/privacy`, so that every test run feeds them.

#![expect(dead_code, reason = "the tests need more of their helpers")]

#[path = "../../crates/privacy/tests/it/cohort.rs"]
mod cohort;
#[path = "../../crates/privacy/tests/it/targets/mod.rs"]
mod targets;
#[path = "../../crates/privacy/src/testing.rs"]
mod testing;

/// Decoding of every message.
pub fn messages(data: &[u8]) {
    targets::messages::run(data);
}

/// Participants against a coordinator that lies.
pub fn participant(data: &[u8]) {
    targets::participant::run(data);
}

/// The coordinator's checks against participants that lie.
pub fn coordinator(data: &[u8]) {
    targets::coordinator::run(data);
}

/// Shares, boxes, masks, packed numbers, thresholds and graphs.
pub fn sharing(data: &[u8]) {
    targets::sharing::run(data);
}
