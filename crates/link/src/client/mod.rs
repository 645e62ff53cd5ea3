//! A node's side of the link: joining, the calls, and the event stream that is always open.
//!
//! [`join`] (or [`join_within`], which waits for the gateway) trades a token for an [`Enrolment`], which the node keeps; [`LinkClient`] is made from it, serves the rooms as
//! their [`Uplink`](aivillage_base::ports::Uplink), and [`LinkClient::run`] brings the messages in. Promises: nothing is
//! sent to a gateway whose certificate is not from the CA that the token named; certificates renew themselves, also after
//! they ran out; every wait is bounded; being refused for good is an error and not a loop. Must not know what the
//! messages mean.

mod backoff;
mod calls;
mod dial;
mod enrol;
mod error;
mod events;
mod link;
mod transfers;

pub use enrol::{Enrolment, join, join_within, renew};
pub use error::LinkError;
pub use link::{ClientConfig, LinkClient, OnRenewed};
