//! The queues of a server in its own process, without a connection: what a Rust master uses.
//!
//! The verbs are those of the client's queues, [`manyhands::blocking::Queue`] and
//! [`manyhands::Queue`], so that a program can move from one to the other. `core` has them once, in
//! payloads; [`AsyncQueue`] says them of a `T`, [`Queue`] is the same for threads, and [`PinnedQueue`]
//! is a queue without a name.

mod blocking;
mod core;
mod lease;
mod pinned;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::{Dialect, Limits, Payload, from_payload, to_payload};
use manyhands::wire::tasks::{Peek, Peeked};
use manyhands::{Error, PutOptions, Taken};
use pollster::block_on;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::blocking::Queue;
use self::core::Core;
pub use self::lease::Lease;
pub use self::pinned::PinnedQueue;
use crate::engine::{Engine, Redriving, Reference};
use crate::queue::{self, Grant, Retry, SettledBy, Terms};

/// A queue of the server in this process, for tasks. From
/// [`Server::async_queue`](crate::Server::async_queue).
///
/// Items are `T` as plain data, which Python workers read and write too. A call that is dropped
/// while it waits has taken nothing and leaves nothing.
pub struct AsyncQueue<T> {
    core: Core,
    item: PhantomData<fn(T) -> T>,
}

impl<T> Clone for AsyncQueue<T> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), item: PhantomData }
    }
}

impl<T> fmt::Debug for AsyncQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.core.engine.describe(self.core.reference))
    }
}

impl<T: Serialize + DeserializeOwned> AsyncQueue<T> {
    pub(crate) fn new(engine: Arc<Engine>, reference: Reference) -> Self {
        Self { core: Core { engine, reference }, item: PhantomData }
    }

    /// The same queue for threads.
    pub(crate) fn blocking(self) -> Queue<T> {
        Queue(self)
    }

    // ---- puts

    /// Adds an item; waits for a free slot.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`]; [`Error::Data`] for what is no plain data; a `TypeError` for an item
    /// that has no place in the order of a priority queue.
    pub async fn put(&self, item: &T) -> Result<(), Error> {
        self.put_by(item, None, Wait::Forever).await.map(drop)
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot comes free in time.
    ///
    /// # Errors
    ///
    /// Same as [`put`](Self::put), or [`Error::Full`].
    pub async fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        self.put_by(item, None, Wait::For(timeout)).await.map(drop)
    }

    /// Like [`put`](Self::put), but [`Error::Full`] if no slot is free.
    ///
    /// # Errors
    ///
    /// Same as [`put`](Self::put), or [`Error::Full`].
    pub fn try_put(&self, item: &T) -> Result<(), Error> {
        block_on(self.put_by(item, None, Wait::No)).map(drop)
    }

    /// Adds an item with options. False if its key was used a short while ago: it was put before.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
        self.put_task(item, options).await.map(|task| task.is_some())
    }

    /// Adds an item with options, and returns the number of its task. `None` if its key was used a
    /// short while ago: it was put before.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn put_task(&self, item: &T, options: &PutOptions) -> Result<Option<u64>, Error> {
        let PutOptions { key, delay, priority, expires, timeout } = options;
        let terms = Terms {
            key: key.as_deref().map(Into::into),
            delay: *delay,
            priority: *priority,
            expires: *expires,
            ..Terms::default()
        };
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        self.put_by(item, terms, wait(*timeout)).await
    }

    /// Adds items in order, some of them at a time, waiting for room for ever or for `timeout`. Says
    /// how many were added: those from the first on.
    ///
    /// # Errors
    ///
    /// What the first one fails with, as by [`put`](Self::put); [`Error::Data`].
    pub async fn put_many(&self, items: &[T], timeout: Option<Duration>) -> Result<usize, Error> {
        let payloads = items.iter().map(|item| to_payload(item, Dialect::Python3));
        self.core.put_many(payloads.collect::<Result<_, _>>()?, wait(timeout)).await
    }

    /// Adds an item that is a payload already, such as a [JSON text](Payload::json) or
    /// [bytes](Payload::bytes), waiting for room for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// Same as [`put`](Self::put), or [`Error::Full`].
    pub async fn put_payload(
        &self,
        item: &Payload,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.core.put(item.clone(), None, wait(timeout)).await.map(drop)
    }

    async fn put_by(
        &self,
        item: &T,
        terms: Option<Box<Terms>>,
        wait: Wait,
    ) -> Result<Option<u64>, Error> {
        self.core.put(to_payload(item, Dialect::Python3)?, terms, wait).await
    }

    // ---- gets

    /// Takes the next item; waits for one.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`]; [`Error::Item`] for an item that is no `T`.
    pub async fn get(&self) -> Result<T, Error> {
        self.get_by(Wait::Forever).await
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item comes in time.
    ///
    /// # Errors
    ///
    /// Same as [`get`](Self::get), or [`Error::Empty`].
    pub async fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.get_by(Wait::For(timeout)).await
    }

    /// Like [`get`](Self::get), but [`Error::Empty`] if no item is there.
    ///
    /// # Errors
    ///
    /// Same as [`get`](Self::get), or [`Error::Empty`].
    pub fn try_get(&self) -> Result<T, Error> {
        block_on(self.get_by(Wait::No))
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
    /// there, up to `max` items and some 8 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`] if any of them is no `T`, and then
    /// all have been taken.
    pub async fn get_many(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<T>, Error> {
        let grants = self.core.take(SettledBy::Session, false, max, wait(timeout)).await?;
        grants.into_iter().map(|grant| self.item(grant.payload)).collect()
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, with what is known of it.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        let (payload, info) = self.core.take_with_info(wait(timeout)).await?;
        Ok(Taken { item: self.item(payload)?, info })
    }

    /// Takes the next item as the payload that was put, waiting for it for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        self.core.get(wait(timeout)).await
    }

    async fn get_by(&self, wait: Wait) -> Result<T, Error> {
        self.item(self.core.get(wait).await?)
    }

    fn item(&self, payload: Payload) -> Result<T, Error> {
        from_payload(&payload, &Limits::default()).map_err(|error| {
            let queue = self.core.engine.name(self.core.reference);
            Error::Item { queue, error, payload: Box::new(payload) }
        })
    }

    // ---- leases

    /// Leases the next task, waiting for one for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`], and the task goes back as failed.
    pub async fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
        let leases = self.lease_many(1, timeout).await?;
        leases.into_iter().next().ok_or(Error::Empty)
    }

    /// Leases the next task, waiting for it for ever or for `timeout`, and with it what else is
    /// there, up to `max`.
    ///
    /// # Errors
    ///
    /// Those of [`lease`](Self::lease).
    pub async fn lease_many(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Lease<T>>, Error> {
        let grants = self.core.take(SettledBy::Token, false, max, wait(timeout)).await?;
        let signer = self.core.signer()?;
        let (mut leases, mut unread) = (Vec::new(), Vec::new());
        for Grant { token, payload } in grants {
            let token = signer.sign(token);
            match self.item(payload) {
                Ok(item) => leases.push(Lease::new(self.core.clone(), item, token)),
                Err(error) => {
                    let given_up = self.core.nack(token, Retry::Never, &error.to_string());
                    unread.push((error, given_up));
                }
            }
        }
        let mut failure = None;
        for (error, given_up) in unread {
            let error = self.core.settle(given_up).await.err().unwrap_or(error);
            failure.get_or_insert(error);
        }
        failure.filter(|_| leases.is_empty()).map_or(Ok(leases), Err)
    }

    // ---- the queue

    /// Looks at tasks and takes none: what each holds, who has it, and why it failed.
    ///
    /// # Errors
    ///
    /// That an item cannot be read from the disk.
    pub async fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
        self.core.peek(peek).await
    }

    /// Items that are ready.
    #[must_use]
    pub fn qsize(&self) -> usize {
        self.core.look(queue::Queue::len)
    }

    /// Whether no item is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.qsize() == 0
    }

    /// Whether `maxsize` items are ready.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.core.look(queue::Queue::is_full)
    }

    /// Counts one item as done.
    ///
    /// # Errors
    ///
    /// A `ValueError` if that was called for every item that was put.
    pub fn task_done(&self) -> Result<(), Error> {
        block_on(self.core.task_done())
    }

    /// Waits until [`task_done`](Self::task_done) was called for every item that was put.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`] if the server stops first.
    pub async fn join(&self) -> Result<(), Error> {
        self.core.join().await
    }

    /// Ends the queue: no more puts, and gets until it is empty; none if `immediate`.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        block_on(self.core.shut_down(immediate))
    }

    /// Moves up to `max` tasks of this dead-letter queue back to the queues that they came from, as
    /// new ones. Says how many.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn redrive(&self, max: usize) -> Result<u64, Error> {
        block_on(self.core.redrive(Redriving::of(max)))
    }

    /// Moves one task of this dead-letter queue back to the queue that it came from, as a new one.
    /// `task` is its number here. False if there is no such dead letter, somebody has it, or its
    /// queue is gone.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn redrive_task(&self, task: u64) -> Result<bool, Error> {
        block_on(self.core.redrive_task(queue::TaskId(task)))
    }

    /// Drops all that is ready or delayed; says how much. What somebody has in hand stays.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn purge(&self) -> Result<u64, Error> {
        block_on(self.core.purge())
    }
}

fn wait(timeout: Option<Duration>) -> Wait {
    timeout.map_or(Wait::Forever, Wait::For)
}
