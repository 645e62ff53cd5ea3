//! Secure aggregation: the coordinator learns the sum of the updates and nothing else about any of them.
//!
//! Signed Bonawitz et al. 2017 (malicious variant) on the full graph or, above 128 participants, on the k-regular graph of
//! Bell et al. 2020; k = n - 1 is the full graph, so there is one path.
//!
//! ```text
//! draw ----- everybody's nonces, committed   roster -- who takes part, by whose keys
//!            to before any is known
//! graph ---- who are my neighbours          keys ---- a secret with each of them, boxes to them, commitments
//! threshold  how many, and how many of      shamir -- shares of my two seeds, one for each neighbour
//!            them rebuild a seed            field --- GF(2^16) below the shares
//! ring ----- the integers mod 2^b and       mask ---- AES-128-CTR streams, added and subtracted
//!            their bytes
//! helper --- the variant with a second aggregator in place of shares
//! ```
//!
//! y = x + mask(own seed) + sum over neighbours of ±mask(shared secret), in Z_2^b. Pairwise masks cancel in the sum of all
//! y; of who dropped out the masking key is rebuilt from shares, of who stayed the own seed, never both of one participant.

pub mod coordinator;
pub mod draw;
pub mod field;
pub mod graph;
pub mod helper;
pub mod keys;
pub mod mask;
pub mod participant;
pub mod ring;
pub mod roster;
pub mod shamir;
pub mod signed;
mod texts;
pub mod threshold;
