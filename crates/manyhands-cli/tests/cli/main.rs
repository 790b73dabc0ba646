//! The command `manyhands` and the examples as a user runs them, each in a process of its own, with
//! Python's standard library at the other end where it matters.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod demo;
#[path = "../shared/example_programs.rs"]
mod example_programs;
mod examples;
#[cfg(unix)]
mod jobs;
#[cfg(unix)]
mod jobs_end;
#[cfg(unix)]
mod jobs_queue;
mod serve;
mod support;
