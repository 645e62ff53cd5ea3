//! The protocol as its users see it: whole rounds, with dropouts in every step, and attacks that must fail.

mod attacks;
mod cohort;
mod rounds;
