//! What a client asks.

use std::time::Duration;

use bytes::Bytes;

use super::header::{Header, Route};
use super::item::Items;
use super::settlement::Settlements;
use super::writer::Writer;
use super::{Bounds, DecodeError, Wait};
use crate::wire::frame::Outbound;
use crate::wire::tasks::Peek;

/// What a client asks of the queue that its frame's [`Route`] names, or of the server.
#[derive(Debug, Clone)]
pub enum Request {
    /// Open the queue of this name under the handle of the frame.
    Open {
        /// The name.
        name: String,
    },
    /// Forget the handle.
    Close,
    /// Add items.
    Put(Put),
    /// Take or lease tasks.
    Get(Get),
    /// Settle leases.
    Settle {
        /// For room for results.
        wait: Wait,
        /// What becomes of which lease.
        settlements: Settlements,
    },
    /// Push tasks.
    Credit {
        /// How long each is leased; `None` is as long as the queue says.
        hold: Option<Duration>,
        /// How many more.
        credit: u32,
        /// Push no more, instead.
        ends: bool,
    },
    /// End the request with the id of the frame.
    Cancel,
    /// Count tasks as done for `join`.
    TaskDone {
        /// How many.
        count: u32,
    },
    /// Wait until all tasks are done.
    Join,
    /// Say how many items there are.
    Size,
    /// Say what is known of queues.
    List {
        /// Only of those whose names come after it.
        after: String,
    },
    /// Look at tasks.
    Peek(Peek),
    /// Move dead letters back.
    Redrive {
        /// How many at most.
        max: u64,
        /// Only this one.
        task: Option<u64>,
    },
    /// Drop what is ready or delayed.
    Purge,
    /// Take no more items.
    Shutdown {
        /// Also drop what is in the queue.
        immediate: bool,
    },
    /// Forget a queue with its tasks.
    Drop {
        /// Its name.
        name: String,
        /// Also if it is in use.
        forced: bool,
    },
    /// Declare a queue.
    Configure {
        /// Its name.
        name: String,
        /// Its options, as on the command line.
        options: String,
    },
    /// Say that the server is there.
    Ping,
}

/// Items to add.
#[derive(Debug, Clone)]
pub struct Put {
    /// For free slots.
    pub wait: Wait,
    /// Whether to answer with the numbers of the tasks.
    pub numbered: bool,
    /// The items.
    pub items: Items,
}

/// How tasks are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Get {
    /// For the first.
    pub wait: Wait,
    /// Whether they are leased, instead of taken for good.
    pub leased: bool,
    /// How long each is leased; `None` is as long as the queue says.
    pub hold: Option<Duration>,
    /// Whether what is known of each is asked for.
    pub informed: bool,
    /// How many at most.
    pub max: u32,
    /// Bytes of payload at most; `None` is as many as the server has in a batch.
    pub bytes_max: Option<u32>,
}

impl Request {
    /// Reads a request. Items and settlements are read later, one by one.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], which says how to answer; the session goes on.
    pub fn decode(header: &Header, body: Bytes, bounds: &Bounds) -> Result<Self, DecodeError> {
        todo!("{header:?} {body:?} {bounds:?}")
    }

    /// Appends a request. What [`begin_put`](Self::begin_put) and [`begin_settle`](Self::begin_settle)
    /// begin is written item by item.
    pub fn push(&self, route: Route, out: &mut Outbound) {
        todo!("{self:?} {route:?} {}", out.len())
    }

    /// Begins a put, to which items are added.
    pub fn begin_put(wait: Wait, numbered: bool, route: Route, out: &mut Outbound) -> Writer<'_> {
        todo!("{wait:?} {numbered:?} {route:?} {}", out.len())
    }

    /// Begins settlements, which are added one by one.
    pub fn begin_settle(wait: Wait, route: Route, out: &mut Outbound) -> Writer<'_> {
        todo!("{wait:?} {route:?} {}", out.len())
    }
}
