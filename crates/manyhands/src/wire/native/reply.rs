//! What a server answers.

use std::time::Duration;

use bytes::Bytes;

use super::header::{Header, Route};
use super::reader::Reader;
use super::task::{PeekedTasks, Tasks};
use super::writer::Writer;
use super::{Code, DecodeError};
use crate::wire::frame::Outbound;

/// What a server answers.
#[derive(Debug, Clone)]
pub enum Reply {
    /// It is done.
    Done,
    /// So many.
    Count(u64),
    /// A queue is open.
    Opened(Properties),
    /// What became of items.
    Added(Added),
    /// Tasks.
    Tasks(Tasks),
    /// What became of settlements.
    Settled(Codes),
    /// How many items there are.
    Size {
        /// Items in the queue.
        qsize: u64,
        /// Most that it holds; 0 is no bound.
        maxsize: u64,
    },
    /// A JSON text.
    Text {
        /// The text.
        json: String,
        /// Whether there is more after it.
        more: bool,
    },
    /// Tasks that were looked at.
    Peeked(PeekedTasks),
    /// The server asks for pushed tasks back.
    Recall {
        /// How many.
        count: u32,
    },
    /// The request had no effect.
    Error {
        /// Why.
        code: Code,
        /// The same in words, with what matters.
        text: String,
    },
}

/// What a client needs to know of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Which task comes next.
    pub order: QueueOrder,
    /// What survives.
    pub durability: QueueDurability,
    /// Whether an ack needs a result.
    pub needs_results: bool,
    /// Whether results come in the order of their tasks' puts.
    pub is_ordered: bool,
    /// Most items that it holds; 0 is no bound.
    pub maxsize: u64,
    /// How long a lease lasts that says no more; `None` is as long as its session.
    pub hold: Option<Duration>,
}

/// Which task comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueOrder {
    /// The first put.
    Fifo,
    /// The last put.
    Lifo,
    /// The least.
    Priority,
}

/// What survives of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueDurability {
    /// Nothing.
    Memory,
    /// What was answered survives the server.
    Os,
    /// What was answered survives a power cut.
    Disk,
}

/// What became of items.
#[derive(Debug, Clone)]
pub struct Added {
    /// How many, from the first on, are in the queue.
    pub count: u32,
    /// Why the next one is not.
    pub refusal: Option<(Code, String)>,
    /// The numbers of their tasks, if they were asked for or say something.
    pub numbers: Option<Numbers>,
}

/// The numbers of tasks that were put; `None` stands for one that was put before with the same key.
#[derive(Debug, Clone)]
pub struct Numbers(Reader);

impl Iterator for Numbers {
    type Item = Option<u64>;

    fn next(&mut self) -> Option<Option<u64>> {
        todo!("{:?}", self.0)
    }
}

/// What became of each settlement; `None` took effect.
#[derive(Debug, Clone)]
pub struct Codes {
    codes: Reader,
    left: u32,
}

impl Iterator for Codes {
    type Item = Option<Code>;

    fn next(&mut self) -> Option<Option<Code>> {
        todo!("{:?} {}", self.codes, self.left)
    }
}

impl Reply {
    /// Reads a reply. Tasks are read later, one by one.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: the server does not speak this protocol.
    pub fn decode(header: &Header, body: Bytes) -> Result<Self, DecodeError> {
        todo!("{header:?} {body:?}")
    }
}

/// Appends `done`.
pub fn push_done(route: Route, out: &mut Outbound) {
    todo!("{route:?} {}", out.len())
}

/// Appends a number.
pub fn push_count(count: u64, route: Route, out: &mut Outbound) {
    todo!("{count} {route:?} {}", out.len())
}

/// Appends the properties of a queue that was opened.
pub fn push_opened(properties: &Properties, route: Route, out: &mut Outbound) {
    todo!("{properties:?} {route:?} {}", out.len())
}

/// Appends what became of items: how many were added, why the next one was not, and their numbers if
/// they were asked for or a put with a key was known.
pub fn push_added(
    count: u32,
    refusal: Option<(Code, &str)>,
    numbers: impl IntoIterator<Item = Option<u64>>,
    route: Route,
    out: &mut Outbound,
) {
    drop(numbers.into_iter());
    todo!("{count} {refusal:?} {route:?} {}", out.len())
}

/// Begins tasks, which are added one by one.
pub fn begin_tasks(is_pushed: bool, route: Route, out: &mut Outbound) -> Writer<'_> {
    todo!("{is_pushed} {route:?} {}", out.len())
}

/// Appends what became of settlements, in their order.
pub fn push_settled(
    codes: impl IntoIterator<Item = Option<Code>>,
    route: Route,
    out: &mut Outbound,
) {
    drop(codes.into_iter());
    todo!("{route:?} {}", out.len())
}

/// Appends the size of a queue.
pub fn push_size(qsize: u64, maxsize: u64, route: Route, out: &mut Outbound) {
    todo!("{qsize} {maxsize} {route:?} {}", out.len())
}

/// Appends a JSON text.
pub fn push_text(json: &str, more: bool, route: Route, out: &mut Outbound) {
    todo!("{json} {more} {route:?} {}", out.len())
}

/// Begins tasks that were looked at, which are added one by one.
pub fn begin_peeked(route: Route, out: &mut Outbound) -> Writer<'_> {
    todo!("{route:?} {}", out.len())
}

/// Appends a recall.
pub fn push_recall(count: u32, route: Route, out: &mut Outbound) {
    todo!("{count} {route:?} {}", out.len())
}

/// Appends an error.
pub fn push_error(code: Code, text: &str, route: Route, out: &mut Outbound) {
    todo!("{code} {text} {route:?} {}", out.len())
}
