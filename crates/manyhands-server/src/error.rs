//! Why a server does not start, why there is no such queue, why a call of one fails at once, and why a
//! connection ends.

use std::io;
use std::time::Duration;

use manyhands::Address;
use manyhands::wire::auth::AuthError;
use manyhands::wire::frame::FrameError;
use manyhands::wire::text::repr;

use crate::journal::JournalError;
use crate::memory::CutOff;
use crate::queue::{Durability, Order, OrderError, TooManyTaskDone};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Nobody set a key. Without one, anybody on the machine could connect.
    #[error("a server needs an authkey")]
    NoKey,
    /// The address is open to other machines and the key is too easy to guess.
    #[error(
        "other machines can reach {address}, and the authkey has {len} bytes where 16 are needed; \
         use a longer key, or allow a weak one"
    )]
    WeakKey {
        /// The address.
        address: Address,
        /// Length of the key, in bytes; 0 for one that is all NUL bytes.
        len: usize,
    },
    /// An address that is no address, or cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As it was given.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A queue that cannot be declared.
    #[error(transparent)]
    Queue(#[from] NoQueue),
    /// The data directory cannot be used: in use, read-only, of a newer version, or damaged.
    #[error(transparent)]
    Journal(JournalError),
    /// A queue is to be kept, but there is nowhere to keep it.
    #[error(
        "the queue {} is declared with durability={durability}, but the server has no data directory",
        repr(.queue)
    )]
    NoData {
        /// Its name.
        queue: String,
        /// What was asked for.
        durability: Durability,
    },
    /// The largest request must fit into a file of the journal, which is smaller than 1 GiB.
    #[error(
        "a file of the journal would need {0} bytes for the largest request; the limit is 1 GiB"
    )]
    SegmentBytes(u64),
    /// No thread, event loop or random numbers to be had.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<JournalError> for StartError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// Why there is no such queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoQueue {
    /// Only declared names exist, and this is none.
    #[error("there is no queue named {}; declared are: {declared}", repr(.name))]
    Undeclared {
        /// The name asked for.
        name: String,
        /// The names there are.
        declared: String,
    },
    /// The name is empty, too long or holds control characters.
    #[error("{} cannot name a queue: a name has 1 to 255 bytes and no control characters", repr(.0))]
    BadName(String),
    /// There are as many queues as the limit allows.
    #[error(
        "no further queue: there are {0} already, which is the limit; empty ones that nobody uses go \
         after a while, or by `manyhands drop QUEUE`"
    )]
    TooMany(usize),
    /// Declared twice.
    #[error("the queue {} is declared twice", repr(.0))]
    Declared(String),
    /// It says `failures=results`, and has no queue of results.
    #[error("the queue {} says failures=results, but names no queue of results (results=NAME)", repr(.0))]
    NoResults(String),
    /// Its own results, or its own dead letters, would come back to it.
    #[error("the queue {} cannot be its own {}", repr(.0), .1)]
    Loop(String, &'static str),
}

/// Why a client gets no reference to a queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoReference {
    #[error(transparent)]
    NoQueue(#[from] NoQueue),
    #[error("{0} references are held, which is the limit")]
    TooMany(usize),
}

/// Why a call of a queue fails at once.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the queue is gone")]
    NoQueue,
    #[error("'timeout' must be a non-negative number")]
    NegativeTimeout,
    #[error(
        "this result comes too late: its task was given to another worker, or given up, after this \
         one had not answered in time"
    )]
    Stale,
    #[error(
        "stale: the task was taken by somebody else since, or given up, or the token is not of \
         this queue"
    )]
    StaleToken,
    #[error(
        "stale: a result that came with this token waits for room; if it gets some, the task is \
         settled by that"
    )]
    Answering,
    #[error("duplicate: this token settled its task before")]
    SettledBefore,
    #[error("started: work on the task has begun; only one that was not started can be returned")]
    Started,
    #[error("no results: the queue declares no queue of results (results=NAME)")]
    NoResults,
    #[error(
        "no result: results of this queue go to {}; write ack(result), or ack(None) for none \
         (in Rust ack_with(&result), or ack_with(&()))", repr(.0)
    )]
    NoResult(String),
    #[error("'priority' needs a queue that has an order (order=priority); this one is {0}")]
    NoOrder(Order),
    #[error(
        "unasked: this queue takes nothing but the results of tasks that whoever puts them has in \
         hand (unasked=refuse)"
    )]
    Unasked,
    #[error(transparent)]
    Order(OrderError),
    #[error(transparent)]
    TooManyTaskDone(TooManyTaskDone),
}

/// Why a connection ended before its client closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("handshake failed: {0}")]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no complete first request within {0:?}")]
    HandshakeTimeout(Duration),
    #[error(transparent)]
    CutOff(#[from] CutOff),
    #[error("a request or reply stood still for {0:?}")]
    Stalled(Duration),
    #[error("the client closed in the middle of {0}")]
    Cut(&'static str),
    #[error("made way for a newer connection, as it had not authenticated itself")]
    Evicted,
    #[error("held nothing and was silent for {0:?}")]
    Idle(Duration),
    #[error("the server stops")]
    Stopping,
    #[error("the journal stopped before the reply was durable")]
    NotDurable,
}
