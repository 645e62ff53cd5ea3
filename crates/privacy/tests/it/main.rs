//! The protocol as its users see it: whole rounds, with dropouts in every step, and attacks that must fail.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests themselves do")]

mod attacks;
mod cohort;
mod helped;
mod page;
mod rounds;
mod seeds;
mod targets;
#[expect(dead_code, reason = "the unit tests need more of it")]
#[path = "../../src/testing.rs"]
mod testing;
