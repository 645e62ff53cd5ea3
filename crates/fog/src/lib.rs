//! Fog: the machines that can compute for the village. So far its inventory: who they are and what they can do.
//!
//! ```text
//!  declare ──> Declared ──online──> Connected <──online── Offline
//!                                       └──────offline──────┘        forget: back to Declared, or gone
//! ```
//!
//! Promises: a name is one entry and is counted once, whether it was declared, connected, or both; what a node reported
//! and what was declared survive a restart; who is connected is memory only, because a restart closes every stream.
//! Must not know: links, HTTP, training, inference.
#![warn(missing_docs)]

pub mod error;
pub mod inventory;

pub use error::FogError;
pub use inventory::{Declaration, Inventory, NodeRecord, NodeState, Summary};
