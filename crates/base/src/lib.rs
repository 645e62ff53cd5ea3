//! The words that every room of the house speaks: ids, tensors, fixed point, wire messages, ports.
//!
//! What lives here is shared by at least two rooms and has no opinion about any of them:
//!
//! - [`ids`], [`digest`]: every id and hash has its own type, so the compiler reviews each call;
//! - [`time`], [`rng`]: clocks and randomness are arguments ([`time::Clock`], [`rng::SeededRng`]);
//! - [`arch`], [`bundle`]: what a model is (architecture + tensors) and its bytes on disk;
//! - [`fixed`]: updates as integers on a grid;
//! - [`wire`]: the messages between a coordinator and its nodes;
//! - [`ports`]: what rooms need from the outside world: records, blobs, transport;
//! - [`error`], [`suggest`]: kinds of failure, and the nearest valid name.
//!
//! It must not know: async runtimes, sockets, databases, tensor libraries, or any room.
//! Cap: 2,000 lines. A type used by one room only belongs to that room.
#![warn(missing_docs)]

pub mod arch;
pub mod bundle;
pub mod digest;
pub mod error;
pub mod fixed;
pub mod ids;
pub mod ports;
pub mod rng;
pub mod suggest;
pub mod time;
pub mod wire;

pub use arch::{Architecture, LayerSpec, Recipe, Task};
pub use digest::Digest;
pub use error::ErrorKind;
pub use ids::{JobId, ModelId, NodeId, NodeName, RequestId};
