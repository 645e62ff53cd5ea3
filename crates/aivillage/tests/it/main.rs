//! End to end: the real binary, real processes, real sockets, real SIGKILL.
//!
//! Every test makes its own folders and free ports and leaves nothing running: children die with their village.

mod commands;
mod crash;
mod demo;
mod house;
mod http;
mod inference;
mod nodes;
mod preview;
mod process;
mod quickstart;
mod secrets;
mod training;
mod village;
