//! The node link over real sockets on loopback: every promise of the crate's front page, successes and refusals.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene must fail there")]

mod calls;
mod enrolment;
mod hostile;
mod middleman;
mod streams;
mod transfers;
mod village;
