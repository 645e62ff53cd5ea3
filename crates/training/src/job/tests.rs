//! Tests of the job.
