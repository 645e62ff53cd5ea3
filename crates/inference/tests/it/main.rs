//! Inference through its door: real coordinator, real workers, memory stores, nodes that misbehave on demand.

mod catalogue;
mod requests;
mod village;
