//! Privacy: the mathematics that keep one participant's update from everybody else.
//!
//! ```text
//! secagg   a sum without its summands: keys, shares, masks, the graph of who masks with whom, its safe sizes
//! refusal  a node's signed no
//! bench    how fast this machine masks
//! ```
//!
//! Promises: pure functions of their arguments, randomness included ([`rand_core::CryptoRng`], never a seeded generator of
//! `base::rng`, which is for training); no secret in `Debug`; secrets are erased when they are dropped.
//! Must not know: rounds, messages, stores, sockets, runtimes, or any other room. Who says what to whom, and when to stay
//! silent, is the business of the protocol above.
#![warn(missing_docs)]

pub mod bench;
pub mod refusal;
pub mod secagg;

pub use rand_core;
pub use zeroize::Zeroizing;

#[cfg(test)]
mod testing;
