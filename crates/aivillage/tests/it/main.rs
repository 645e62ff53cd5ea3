//! End to end: the real binary, real processes, real sockets, real SIGKILL.
//!
//! Every test makes its own folders and free ports and leaves nothing running: children die with their village.

mod crash;
mod training;
mod village;
