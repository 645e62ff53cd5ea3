//! The whole village in one process, on simulated time and a simulated network, disturbed by seed.
//!
//! ```text
//!  faults ──> net ──> nodes: real `participant` decisions, a trainer that is passed in
//!    │         ^
//!    │         v
//!    └────> processes: real `training::Job`, `training::store`, `training::aggregate`, `inference::core`
//!              │
//!              v
//!           one store: storage's memory twins ──> witness: I1 to I8 after every persisted step
//! ```
//!
//! What is real: everything that decides, everything that is persisted, every sum. What is simulated: time, the network,
//! threads of execution and their death. A coordinator dies before or after a persisted step and comes back with nothing
//! but the store; two coordinators fight for leases; one sleeps past its lease and wakes up with an old state; messages
//! are lost, doubled, late and out of order; nodes die and are cut off.
//!
//! Promise: the same seed and plan give the same run, event for event. Every fault is counted where it strikes, so a test
//! can show that it did. Must not know: sockets, threads, tokio, the operating system's clock.

pub mod conduct;
mod events;
pub mod faults;
pub mod lies;
mod net;
mod node;
pub mod plan;
mod process;
mod secrets;
mod serving;
mod time;
pub mod trainer;
pub mod village;
mod witness;
mod world;

pub use conduct::{Conduct, Order};
pub use faults::{FaultKind, Faults, Tally};
pub use plan::Plan;
pub use time::ready;
pub use village::{Report, Village};
pub use witness::Violation;

/// Runs the village of `plan`, disturbed by the faults that `seed` draws, until all its work is done.
///
/// # Errors
/// The first invariant that did not hold, with the line that shows it again.
pub fn run(seed: u64, plan: Plan) -> Result<Report, Violation> {
    Village::new(seed, plan).run()
}
