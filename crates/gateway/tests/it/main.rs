//! The gateway through its real door: sockets on free ports, real rooms on memory stores.

mod client;
mod documents;
mod errors;
mod idempotency;
mod inference;
mod keys;
mod server;
mod training;
mod village;
