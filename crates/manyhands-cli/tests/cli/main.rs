//! The command `manyhands` and the examples as a user runs them, each in a process of its own, with
//! Python's standard library at the other end where it matters.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod demo;
mod examples;
mod serve;
mod support;
