//! The stores through their public doors: the contract suites on every implementation, what only files can do wrong,
//! the twins side by side, and kill -9.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests themselves do")]

mod contracts;
mod files;
mod kill;
mod twins;
