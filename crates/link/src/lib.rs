//! The node link: how nodes and their gateway know and reach each other, over one port (8001) and TLS 1.3 only.
//!
//! ```text
//!  token create ──> avt1.<secret>.<hash of the CA's key>            (shown once, stored hashed, works once)
//!  node join    ──> POST /link/v1/join   token + CSR  ──> certificate   (the token pins the CA)
//!  node         ──> GET  /link/v1/events               <── Down, Down, heartbeat, …   (one stream a node)
//!               ──> POST /link/v1/messages   one Up
//!               ──> GET  /link/v1/updates    header of a large one ──> {"offset": n}: so many bytes of it are here
//!               ──> PUT  /link/v1/updates    header, then integers (large: those from upload-offset on), hashed on the way
//!               ──> GET  /link/v1/blobs/…    only what the inbox allows
//!               ──> GET  /link/v1/registry?after=N   enrolments and revocations, each hashed onto the one before
//!               ──> POST /link/v1/renew      CSR ──> fresh certificate; works after the old one ran out
//! ```
//!
//! Promises:
//! - a node is its Ed25519 key; certificates are short-lived, revocation is asked at every request and ends open streams;
//! - a connection without a certificate reaches `join` and `renew` and nothing else, and is read only up to fixed caps;
//! - messages are hints: they may be lost or repeated, each queue is bounded, nothing blocks the coordinator;
//! - the bytes of an update are hashed while they arrive and handed over only if they are what the header says;
//! - a transfer that breaks goes on where it was: no byte of a large update or of a model travels twice (but for what was
//!   in the broken connection), and neither side holds more than one block of it beside the node's own copy.
//!
//! It must not know: jobs, rounds, models, or which database keeps its records ([`aivillage_base::ports::Records`]).

mod address;
mod ca;
pub mod client;
mod files;
mod identity;
pub mod lines;
mod protocol;
mod registry;
mod seal;
pub mod server;
mod tls;
mod token;

pub use ca::{Authority, CaError, SERVER_NAME};
pub use client::{Enrolment, LinkClient, LinkError, join, join_within, renew};
pub use identity::{Identity, IdentityError};
pub use protocol::{MESSAGE_MAX, Reason};
pub use registry::{
    Broken, Chain, EnrolledNode, Entry, Event, Issued, NewToken, Registry, RegistryError, TokenRecord, TokenState,
};
pub use seal::Seal;
pub use server::{LinkConfig, LinkDeps, LinkServer, Streams};
pub use token::{Pin, Token, TokenError};
