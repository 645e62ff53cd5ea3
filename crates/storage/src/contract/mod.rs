//! One contract suite per port, for every implementation and every wrapper around one.
//!
//! Each function takes a factory, opens a fresh store with it and panics on the first broken promise.
//! [`records_contract!`](crate::records_contract) and [`blobs_contract!`](crate::blobs_contract) turn the whole suite
//! into tests of the calling module (they need `tokio` with `macros` and `rt` among its dev-dependencies):
//!
//! ```text
//! mod memory_records {
//!     aivillage_storage::records_contract!(|clock| Arc::new(MemoryRecords::new(clock)));
//! }
//! ```

pub mod blobs;
mod clock;
pub mod records;

pub use clock::ManualClock;
