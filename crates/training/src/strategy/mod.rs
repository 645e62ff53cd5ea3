//! Aggregation strategies, found by name: one file each.
//!
//! A strategy turns the accepted updates of a round into the next model, block by block; it never sees who sent what
//! unless its rule needs that, and never holds more than a block of each update.

pub mod fedavg;

use aivillage_base::suggest;

/// Strategies of this version.
pub const BUILT: [&str; 1] = ["fedavg"];

/// Strategies of the vocabulary that this version does not build.
pub const NOT_BUILT: [&str; 18] = [
    "fedavgm",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "qfedavg",
    "scaffold",
    "fednova",
    "fedbuff",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "norm_clipping",
    "centered_clipping",
    "ditto",
];

/// The canonical name of a strategy (`federated_averaging`, the guide's word, is `fedavg`).
///
/// # Errors
/// A sentence: known but not built, or unknown with the nearest name.
pub fn named(name: &str) -> Result<&'static str, String> {
    match name {
        "fedavg" | "federated_averaging" => Ok("fedavg"),
        known if NOT_BUILT.contains(&known) => {
            Err(format!("strategy `{known}` is known, but this version does not build it yet: use `fedavg`"))
        }
        other => {
            let all: Vec<&str> = BUILT.iter().chain(&NOT_BUILT).copied().collect();
            Err(suggest::unknown("strategy", other, &all))
        }
    }
}
