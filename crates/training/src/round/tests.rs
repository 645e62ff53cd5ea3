//! Tests of the round.
