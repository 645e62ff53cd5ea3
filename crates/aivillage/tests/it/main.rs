//! End to end: the real binary, real processes, real sockets, real SIGKILL.
//!
//! Every test makes its own folders and free ports and leaves nothing running: children die with their village.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests themselves do")]
#![expect(
    clippy::disallowed_methods,
    reason = "real processes run in real time, in an environment that is cleaned here"
)]

mod bench;
mod commands;
mod crash;
mod demo;
mod export;
mod helper;
mod house;
mod http;
mod inference;
mod nodes;
mod norm;
mod preview;
mod process;
mod quickstart;
mod rules;
mod secrets;
mod training;
mod trust;
mod village;
