//! A round recomputed from files, on the very code that a coordinator closes its rounds with.
//!
//! ```text
//! model, updates, weights or plan ── tensors, plan, updates ──> rows of integers ── training::aggregate ──> model, state
//! ```
//! Promise: the same files give the same bytes on every machine, and with the plan of a recorded round they are the
//! coordinator's. Files are streamed: no model is in memory as a whole. Must not know: HTTP, stores, what is printed.

pub mod plan;
pub mod tensors;
pub mod updates;

use aivillage_training::strategy::StrategyFault;

use crate::exit::{CliError, ExitCode};

/// A strategy that cannot be, as an error of the command line.
#[must_use]
pub fn strategy_fault(fault: &StrategyFault) -> CliError {
    match fault {
        StrategyFault::Name(text) => CliError::new(ExitCode::Usage, text.clone()),
        StrategyFault::Settings(faults) => {
            let lines: Vec<String> = faults.iter().map(|f| format!("`{}` {}", f.key, f.detail)).collect();
            CliError::new(ExitCode::Usage, lines.join("\n"))
        }
    }
}
