//! Client and wire protocol of manyhands, a work queue that speaks Python's
//! `multiprocessing.managers`.
//!
//! The client talks to a manyhands server and to the manager of any CPython from 2.7 on, and what
//! it puts into a queue, Python programs read; see [`wire::pickle::to_payload`] for which Rust type
//! is which Python type.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! let client = manyhands::blocking::Client::connect("10.0.0.7:5000", b"abc")?;
//! let tasks = client.queue::<u64>("get_task_queue")?;
//! match tasks.get_timeout(Duration::from_secs(1)) {
//!     Ok(n) => println!("{n}² = {}", n * n),
//!     Err(error) if error.is_empty() => println!("nothing to do"),
//!     Err(error) => return Err(error),
//! }
//! # Ok::<(), manyhands::Error>(())
//! ```
//!
//! In reading order: [`wire`] is the protocol without I/O, [`connect`] says where a server is,
//! [`Client`] and [`blocking::Client`] talk to it, and [`Error`] says what a caller can do. A
//! [`Worker`] calls a function with each task of a queue; a [`Master`] puts tasks and has their results.

#[macro_use]
mod planted;

mod answer;
pub mod blocking;
mod classic;
pub mod client;
pub mod connect;
mod conversation;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzed;
#[doc(hidden)]
pub mod internal;
mod key;
mod line;
mod native;
mod retry;
mod server;
mod stream;
pub mod text;
mod verb;
pub mod wire;

pub use client::{
    Client, Failed, Items, Lease, Leases, Map, Master, Put, Queue, Stopper, Tally, Task, Worker,
};
pub use connect::{Address, ConnectOptions};
pub use error::Error;
pub use verb::{PutOptions, Taken};
pub use wire::auth::AuthKey;
pub use wire::pickle::Value;
pub use wire::reply::QueueInfo;
pub use wire::tasks::{Failure, Info, Peek, Peeked, TaskState};
