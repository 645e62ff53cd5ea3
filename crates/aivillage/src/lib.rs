//! The binary's library: what `aivillage` is made of, so that tests can call it without a process.
//!
//! - [`config`]: `federated.yaml`, `node.yaml` and the environment, parsed once, with errors that point at the place.
//!
//! This crate may import every room and is imported by none. It owns what no room may know: the environment,
//! the command line, the wiring.

pub mod config;
pub mod crash;
pub mod exit;
pub mod folder;
pub mod node;
pub mod up;
pub mod wiring;
