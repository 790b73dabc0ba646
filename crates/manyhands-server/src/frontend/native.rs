//! The native protocol, as programs written for manyhands speak it. `docs/native-protocol.md` has
//! every byte.
//!
//! - [`connection`]: hello, its answer, and the session that follows;
//! - [`session`]: the loop: reads what has come, applies it, sends what may leave;
//! - [`requests`]: from a request to a verb of the engine, the one table of them;
//! - [`puts`], [`takes`], [`settlements`], [`credit`], [`looks`], [`queues`]: what a request comes to;
//! - [`pending`]: requests that wait for others;
//! - [`replies`]: from an outcome to a reply, the one table of them.

pub(super) mod connection;
mod credit;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod handles;
mod looks;
mod pending;
mod presence;
mod puts;
mod queues;
mod replies;
mod requests;
mod session;
mod settlements;
mod spare;
mod takes;
#[cfg(test)]
mod tests;
mod unsent;
