//! What can go wrong for a client, sorted by what its caller can do about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::connect::Address;
use crate::wire::auth::AuthError;
use crate::wire::pickle::{DataError, Limits, Payload};

/// Why a call on a server or queue did not succeed.
///
/// The first three are answers rather than failures: programs wait for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Python's `queue.Empty`: no item came in time.
    #[error("the queue is empty")]
    Empty,
    /// Python's `queue.Full`: no slot came free in time.
    #[error("the queue is full")]
    Full,
    /// Python's `queue.ShutDown`: the queue takes, or has, no more items.
    #[error("the queue is shut down")]
    ShutDown,
    /// Nothing is registered under this name.
    #[error("{address}: no queue is called '{name}'{}", .declared.as_ref().map_or_else(String::new, |it| format!("; there are: {it}")))]
    UnknownQueue {
        /// The name asked for.
        name: String,
        /// The server.
        address: Arc<Address>,
        /// The names that there are, nearest first, as a manyhands server tells them.
        declared: Option<String>,
    },
    /// Only a manyhands server answers this call; this one is CPython's own.
    #[error("{address}: this is not a manyhands server, and no other can tell")]
    NotManyhands {
        /// The server.
        address: Arc<Address>,
    },
    /// Any other Python exception, raised by the server.
    #[error("{class}: {message}")]
    Remote {
        /// Name of its class, without the module.
        class: String,
        /// Its text.
        message: String,
    },
    /// An item came that is not what this queue's type says. It has left the queue: `payload` is
    /// all that is left of it, unless it came by a lease. Then it is a dead letter, and the program can
    /// go on with the next.
    #[error("queue '{queue}': an item of another type: {}: {error}", shown(.payload))]
    Item {
        /// The queue's name.
        queue: String,
        /// How it differs.
        error: DataError,
        /// The item.
        payload: Box<Payload>,
    },
    /// The value has no form that this server's Python can read.
    #[error("the item cannot be sent: {0}")]
    Data(#[from] DataError),
    /// Not an address.
    #[error("'{text}' is no address; expected host:port, [v6]:port or unix:/path")]
    Address {
        /// What was given.
        text: String,
    },
    /// Nobody listens there, or nobody can be reached.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// The server.
        address: Arc<Address>,
        /// What the system says.
        error: io::Error,
    },
    /// The two sides do not share the key.
    #[error("{address}: authentication failed: {error}")]
    Authentication {
        /// The server.
        address: Arc<Address>,
        /// Which side refused.
        error: AuthError,
    },
    /// The server did not answer in time.
    #[error("{address}: no answer within {after:?}")]
    TimedOut {
        /// The server.
        address: Arc<Address>,
        /// How long the client waited.
        after: Duration,
    },
    /// The program itself ended the call while it waited: see
    /// [`ConnectOptions::goes_on`](crate::ConnectOptions::goes_on).
    #[error("interrupted")]
    Interrupted,
    /// The server closed the connection, or the connection broke.
    #[error("{address}: the connection was lost: {error}")]
    Lost {
        /// The server.
        address: Arc<Address>,
        /// What the system says.
        error: io::Error,
    },
    /// The connection was lost before the answer to a call that must not be made twice: what was to
    /// be put, for example, may be in the queue or not. Only the program knows whether to repeat it; a
    /// put with a [key](crate::PutOptions::key) is repeated safely.
    ///
    /// So is an `ack` that was made again, if the lease is over by then: the first may have settled it.
    #[error(
        "{address}: the connection was lost before the answer, so it may be done or not: {error}"
    )]
    InDoubt {
        /// The server.
        address: Arc<Address>,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody else has taken the task since, or it was given up: nothing was done.
    #[error("the lease is over: {message}")]
    Stale {
        /// What the server says.
        message: String,
    },
    /// This lease settled its task before: nothing was done.
    #[error("the lease was settled before")]
    SettledBefore,
    /// The task of an item that was [mapped](crate::Master::map) was given up.
    #[error("item {index} was given up: {}", .reasons.last().map_or("no attempt is known", String::as_str))]
    GivenUp {
        /// Which item of the iterator, from 0.
        index: usize,
        /// Why each attempt failed.
        reasons: Vec<String>,
    },
    /// Only a manyhands server has this; the one at the other end is CPython's own, or an older one.
    #[error("{address}: this server has no '{method}'")]
    Unsupported {
        /// The server.
        address: Arc<Address>,
        /// The method.
        method: &'static str,
    },
    /// The client was closed, by this program. A `put` that was under way may have arrived.
    #[error("{address}: the client was closed")]
    Closed {
        /// The server.
        address: Arc<Address>,
    },
    /// The server said something that the protocol does not have.
    #[error("{address}: unexpected answer: {what}")]
    Protocol {
        /// The server.
        address: Arc<Address>,
        /// What is wrong with it.
        what: String,
    },
}

/// An item as text, cut short.
fn shown(item: &Payload) -> String {
    const SHOWN_CHARS_MAX: usize = 100;
    let text =
        item.value(&Limits::default()).map_or_else(|error| error.to_string(), |it| it.to_string());
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

impl Error {
    /// Whether no item came in time.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Whether no slot came free in time.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }

    /// Whether the queue was shut down.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        matches!(self, Self::ShutDown)
    }

    /// Whether the same call may succeed later: the server was not reached, or was lost.
    ///
    /// Not so what is [in doubt](Self::InDoubt), such as a `put` whose answer was lost. The item of
    /// a lost `get` may be gone with a server of CPython's.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::TimedOut { .. } | Self::Lost { .. })
    }
}
