//! The gateway through its real door: sockets on free ports, real rooms on memory stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests themselves do")]

mod audit;
mod client;
mod documents;
mod errors;
mod events;
mod idempotency;
mod inference;
mod keys;
mod server;
mod training;
mod village;
