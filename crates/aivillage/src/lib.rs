//! The binary's library: what `aivillage` is made of, so that tests can call it without a process.
//!
//! - [`cli`]: the commands and what they print; [`client`]: the HTTP client by which they reach a gateway;
//! - [`demo`]: the whole idea on this machine; [`processes`]: the village of real processes that it and `bench` run on;
//! - [`up`], [`node`], [`wiring`]: a gateway, a node, and where the rooms meet;
//! - [`offline`]: a round recomputed from files; [`roster`]: who may be in a secure round, signed outside of the gateway;
//! - [`config`]: `federated.yaml`, `node.yaml` and the environment, parsed once, with errors that point at the place;
//! - [`folder`], [`exit`], [`figures`], [`crash`]: a gateway's folder, how commands end, figures of the stores, planned deaths.
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
pub mod offline;
pub mod processes;
pub mod roster;
pub mod up;
pub mod wiring;
