//! Inference through its door: real coordinator, real workers, memory stores, nodes that misbehave on demand.
#![allow(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod catalogue;
mod requests;
mod village;
