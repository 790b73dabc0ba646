//! The manyhands server, to run or to embed.
//!
//! It speaks CPython's `multiprocessing.managers` protocol, so unmodified Python workers connect to
//! it. The modules in the order of a request: `listener` accepts, `socket` moves bytes,
//! `connection` serves one client, `engine` owns the queues, [`queue`] has their rules.

#[macro_use]
mod planted;

mod builder;
mod clock;
mod config;
mod data_dir;
mod engine;
mod error;
mod frontend;
#[doc(hidden)]
pub mod journal;
#[cfg(test)]
mod labour;
mod listener;
mod memory;
pub mod queue;
mod refusals;
mod server;
#[cfg(test)]
mod sim;
mod slots;
mod socket;

/// Sends any bytes to a native session, for the fuzzer.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_native_session(bytes: &[u8]) {
    frontend::native::fuzzed::session(bytes);
}

pub use builder::Builder;
pub use config::Limits;
pub use engine::{Restored, Salvaged, salvage};
pub use error::{NoQueue, StartError};
pub use frontend::classic::foreign::{Conversation, Guests, Request};
pub use frontend::embedded::{AsyncQueue, Lease, PinnedQueue, Queue};
pub use manyhands::Address;
pub use queue::{Delivery, Durability, Order, QueueOptions, Unasked};
pub use server::{Server, Stopper};
