//! The shapes outsiders see: what bodies may hold and what answers look like. One module a resource.
//!
//! `Serialize` and `ToSchema` live here; rooms' views are turned into these and know nothing of JSON.

pub(crate) mod inference;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod status;
pub(crate) mod tokens;
pub(crate) mod training;

#[cfg(test)]
mod tests;

use aivillage_base::time::rfc3339;

/// RFC 3339 text of an optional wall clock reading.
pub(crate) fn when(wall_ms: Option<u64>) -> Option<String> {
    wall_ms.map(rfc3339)
}
