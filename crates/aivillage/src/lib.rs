//! The binary's library: what `aivillage` is made of, so that tests can call it without a process.
//!
//! - [`config`]: `federated.yaml`, `node.yaml` and the environment, parsed once, with errors that point at the place.
//!
//! - [`cli`]: the commands, what they print; [`client`]: the HTTP client by which they reach a gateway; [`exit`]: how they end.
//!
//! This crate may import every room and is imported by none. It owns what no room may know: the environment,
//! the command line, the wiring.

pub mod cli;
pub mod client;
pub mod config;
pub mod crash;
pub mod demo;
pub mod exit;
pub mod figures;
pub mod folder;
pub mod node;
pub mod processes;
pub mod up;
pub mod wiring;
