//! The queues of a server in its own process, without a connection: what a Rust master uses.
//!
//! The verbs are those of the client's queues, [`manyhands::blocking::Queue`] and
//! [`manyhands::Queue`], so that a program can move from one to the other.

pub(crate) mod held;
mod verbs;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use manyhands::Error;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::{Dialect, Limits, Payload, from_payload, to_payload};
use pollster::block_on;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::verbs::Lease;
use crate::engine::{Caller, Engine, Reference, Ticket};
use crate::error::CallError;
use crate::queue::Outcome;

/// What both kinds of queue share.
struct Local<T> {
    engine: Arc<Engine>,
    reference: Reference,
    item: PhantomData<fn(T) -> T>,
}

impl<T> Clone for Local<T> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), reference: self.reference, item: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Local<T> {
    fn new(engine: Arc<Engine>, reference: Reference) -> Self {
        Self { engine, reference, item: PhantomData }
    }

    async fn put(&self, item: &T, wait: Wait) -> Result<(), Error> {
        let payload = to_payload(item, Dialect::Python3)?;
        let ticket = self.engine.put(Caller::IN_PROCESS, self.reference, payload, None, wait);
        finished(self.redeem(ticket).await?).map(drop)
    }

    async fn get(&self, wait: Wait) -> Result<T, Error> {
        loop {
            let ticket = self.engine.get(Caller::IN_PROCESS, self.reference, u8::MAX, wait);
            match self.redeem(ticket).await? {
                // The task was gone before it was read.
                Some(Outcome::Empty) if wait == Wait::Forever => {}
                outcome => return self.item(finished(outcome)?),
            }
        }
    }

    async fn join(&self) -> Result<(), Error> {
        let ticket = self.engine.join(Caller::IN_PROCESS, self.reference);
        finished(self.redeem(ticket).await?).map(drop)
    }

    /// Waits for what came of a call. `None` is one that the server's end cut off.
    async fn redeem(&self, ticket: Ticket) -> Result<Option<Outcome>, Error> {
        let redeemed = self.engine.redeem(Caller::IN_PROCESS, self.reference, ticket);
        redeemed.await.map_err(failed)
    }

    fn qsize(&self) -> usize {
        self.engine.look(self.reference, crate::queue::Queue::len).unwrap_or_default()
    }

    fn is_full(&self) -> bool {
        self.engine.look(self.reference, crate::queue::Queue::is_full).unwrap_or_default()
    }
}

pub(crate) fn failed(error: CallError) -> Error {
    match error {
        CallError::StaleToken | CallError::Answering => {
            return Error::Stale { message: error.to_string() };
        }
        CallError::SettledBefore => return Error::SettledBefore,
        _ => {}
    }
    let class = match error {
        CallError::NoQueue => "KeyError",
        CallError::Order(_) => "TypeError",
        _ => "ValueError",
    };
    Error::Remote { class: class.into(), message: error.to_string() }
}

/// The item of a finished call, if it is a `get`. `None` is a call that the server's end cut off.
pub(crate) fn finished(outcome: Option<Outcome>) -> Result<Option<Payload>, Error> {
    match outcome {
        Some(Outcome::Task(grant)) => Ok(Some(grant.payload)),
        Some(Outcome::Accepted(_) | Outcome::Known | Outcome::Joined | Outcome::Done) => Ok(None),
        Some(Outcome::Empty | Outcome::Unreadable { .. }) => Err(Error::Empty),
        Some(Outcome::Full | Outcome::NoRoom) => Err(Error::Full),
        Some(Outcome::Unorderable(error)) => Err(failed(CallError::Order(error))),
        Some(Outcome::ShutDown) | None => Err(Error::ShutDown),
    }
}

impl<T: DeserializeOwned> Local<T> {
    fn item(&self, payload: Option<Payload>) -> Result<T, Error> {
        let payload = payload.ok_or(Error::Empty)?;
        from_payload(&payload, &Limits::default()).map_err(|error| {
            let queue = self.engine.name(self.reference);
            Error::Item { queue, error, payload: Box::new(payload) }
        })
    }
}

/// A queue of the server in this process, for threads. From [`Server::queue`](crate::Server::queue).
///
/// Items are `T` as plain data, which Python workers read and write too.
pub struct Queue<T>(Local<T>);

/// A queue of the server in this process, for tasks. From
/// [`Server::async_queue`](crate::Server::async_queue).
///
/// A call that is dropped while it waits has taken nothing and leaves nothing.
pub struct AsyncQueue<T>(Local<T>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Clone for AsyncQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.engine.describe(self.0.reference))
    }
}

impl<T> fmt::Debug for AsyncQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.engine.describe(self.0.reference))
    }
}

impl<T: Serialize + DeserializeOwned> Queue<T> {
    pub(crate) fn new(engine: Arc<Engine>, reference: Reference) -> Self {
        Self(Local::new(engine, reference))
    }

    /// Adds an item; waits for a free slot.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`]; [`Error::Data`] for what is no plain data; a `TypeError` for an item
    /// that has no place in the order of a priority queue.
    pub fn put(&self, item: &T) -> Result<(), Error> {
        block_on(self.0.put(item, Wait::Forever))
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot comes free in time.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        block_on(self.0.put(item, Wait::For(timeout)))
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot is free.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn try_put(&self, item: &T) -> Result<(), Error> {
        block_on(self.0.put(item, Wait::No))
    }

    /// Takes the next item; waits for one.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`]; [`Error::Item`] for an item that is no `T`.
    pub fn get(&self) -> Result<T, Error> {
        block_on(self.0.get(Wait::Forever))
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item comes in time.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        block_on(self.0.get(Wait::For(timeout)))
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item is there.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn try_get(&self) -> Result<T, Error> {
        block_on(self.0.get(Wait::No))
    }

    /// Waits until [`task_done`](Self::task_done) was called for every item that was put.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the server stops first.
    pub fn join(&self) -> Result<(), Error> {
        block_on(self.0.join())
    }
}

impl<T: Serialize + DeserializeOwned> AsyncQueue<T> {
    pub(crate) fn new(engine: Arc<Engine>, reference: Reference) -> Self {
        Self(Local::new(engine, reference))
    }

    /// Adds an item; waits for a free slot.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::put`].
    pub async fn put(&self, item: &T) -> Result<(), Error> {
        self.0.put(item, Wait::Forever).await
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot comes free in time.
    ///
    /// # Errors
    ///
    /// As said.
    pub async fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        self.0.put(item, Wait::For(timeout)).await
    }

    /// Takes the next item; waits for one.
    ///
    /// # Errors
    ///
    /// Those of [`Queue::get`].
    pub async fn get(&self) -> Result<T, Error> {
        self.0.get(Wait::Forever).await
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item comes in time.
    ///
    /// # Errors
    ///
    /// As said.
    pub async fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.0.get(Wait::For(timeout)).await
    }

    /// Waits until `task_done` was called for every item that was put.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the server stops first.
    pub async fn join(&self) -> Result<(), Error> {
        self.0.join().await
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot is free.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn try_put(&self, item: &T) -> Result<(), Error> {
        block_on(self.0.put(item, Wait::No))
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item is there.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn try_get(&self) -> Result<T, Error> {
        block_on(self.0.get(Wait::No))
    }
}

/// Calls that never wait are the same for both.
macro_rules! prompt_calls {
    ($queue:ident) => {
        impl<T: Serialize + DeserializeOwned> $queue<T> {
            /// Items that are ready.
            #[must_use]
            pub fn qsize(&self) -> usize {
                self.0.qsize()
            }

            /// Whether no item is ready.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.qsize() == 0
            }

            /// Whether `maxsize` items are ready.
            #[must_use]
            pub fn is_full(&self) -> bool {
                self.0.is_full()
            }

            /// Counts one item as done.
            ///
            /// # Errors
            ///
            /// A `ValueError` if that was called for every item that was put.
            pub fn task_done(&self) -> Result<(), Error> {
                let ticket = self.0.engine.task_done(self.0.reference);
                finished(block_on(self.0.redeem(ticket))?).map(drop)
            }

            /// Ends the queue: no more puts, and gets until it is empty; none if `immediate`.
            ///
            /// # Errors
            ///
            /// None at present.
            pub fn shutdown(&self, immediate: bool) -> Result<(), Error> {
                let at = self.0.reference;
                let ticket = self.0.engine.shut_down(at, immediate);
                finished(block_on(self.0.redeem(ticket))?).map(drop)
            }
        }
    };
}

prompt_calls!(Queue);
prompt_calls!(AsyncQueue);
