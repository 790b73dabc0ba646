//! The manyhands server, to run or to embed.
//!
//! It speaks CPython's `multiprocessing.managers` protocol, so unmodified Python workers connect to
//! it. The modules in the order of a request: `server` accepts, `socket` moves bytes,
//! `connection` serves one client, `engine` owns the queues, [`queue`] has their rules.

#[macro_use]
mod planted;

mod clock;
mod config;
mod connection;
mod data;
mod engine;
mod guests;
mod held;
#[doc(hidden)]
pub mod journal;
#[cfg(unix)]
mod loan;
mod lobby;
mod local;
mod memory;
pub mod queue;
mod refusals;
mod server;
#[cfg(test)]
mod sim;
mod socket;

pub use config::Limits;
pub use engine::{NoQueue, Restored, Salvaged, salvage};
pub use guests::{Conversation, Guests, Request};
pub use held::HeldQueue;
pub use local::{AsyncQueue, Lease, Queue};
pub use manyhands::Address;
pub use queue::{Delivery, Durability, Order, QueueOptions, Unasked};
pub use server::{Builder, Server, StartError, Stopper};
