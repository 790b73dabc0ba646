//! The native protocol: what programs written for manyhands speak. `docs/native-protocol.md` draws
//! every frame.
//!
//! [`Hello`] and [`Answer`] open a session. All that follows is a [`Header`] of 16 bytes and a body:
//! [`Request`] one way, [`Reply`] the other. Batches are read as iterators over the body, whose
//! payloads share its memory, and written by the [`Writer`] of one frame.

mod batch;
mod code;
mod error;
mod header;
mod hello;
mod item;
mod payload;
mod reader;
pub mod reply;
mod request;
mod settlement;
mod task;
mod writer;

pub use batch::Batch;
pub use code::Code;
pub use error::{DecodeError, What};
pub use header::{HEADER_LEN, Header, Op, Route, flag};
pub use hello::{Answer, Hello, HelloError, MAGIC, SessionLimits, VERSION, Welcome};
pub use item::{Item, Items, PutTerms};
pub use reply::{Added, Codes, Numbers, Properties, QueueDurability, QueueOrder, Reply};
pub use request::{Get, Put, Request};
pub use settlement::{Fate, Settlement, Settlements};
pub use task::{PeekedTasks, Task, Tasks};
pub use writer::{TooLong, Writer};

use super::arguments::Wait;
use super::pickle::Limits;

/// The time that means *for ever*, or *not said*.
const NO_TIME: u64 = u64::MAX;
/// The number of a task that means that there is none.
const NO_NUMBER: u64 = u64::MAX;

/// Bounds on what one frame may ask of its reader.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most items in a batch.
    pub batch_max: u32,
    /// Of each pickle.
    pub pickle: Limits,
}

#[cfg(test)]
mod tests;
