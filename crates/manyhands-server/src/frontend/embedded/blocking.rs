//! The same queue for threads: each call blocks the one that makes it.

use std::fmt;
use std::time::Duration;

use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::{Peek, Peeked};
use manyhands::{Error, PutOptions, Taken};
use pollster::block_on;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncQueue, Lease};

/// A queue of the server in this process, for threads. From [`Server::queue`](crate::Server::queue).
///
/// Items are `T` as plain data, which Python workers read and write too.
pub struct Queue<T>(pub(super) AsyncQueue<T>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize + DeserializeOwned> Queue<T> {
    /// Same as [`AsyncQueue::put`], blocking.
    pub fn put(&self, item: &T) -> Result<(), Error> {
        block_on(self.0.put(item))
    }

    /// Same as [`AsyncQueue::put_timeout`], blocking.
    pub fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        block_on(self.0.put_timeout(item, timeout))
    }

    /// Same as [`AsyncQueue::try_put`].
    pub fn try_put(&self, item: &T) -> Result<(), Error> {
        self.0.try_put(item)
    }

    /// Same as [`AsyncQueue::put_with`], blocking.
    pub fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
        block_on(self.0.put_with(item, options))
    }

    /// Same as [`AsyncQueue::put_task`], blocking.
    pub fn put_task(&self, item: &T, options: &PutOptions) -> Result<Option<u64>, Error> {
        block_on(self.0.put_task(item, options))
    }

    /// Same as [`AsyncQueue::put_many`], blocking.
    pub fn put_many(&self, items: &[T], timeout: Option<Duration>) -> Result<usize, Error> {
        block_on(self.0.put_many(items, timeout))
    }

    /// Same as [`AsyncQueue::put_payload`], blocking.
    pub fn put_payload(&self, item: &Payload, timeout: Option<Duration>) -> Result<(), Error> {
        block_on(self.0.put_payload(item, timeout))
    }

    /// Same as [`AsyncQueue::get`], blocking.
    pub fn get(&self) -> Result<T, Error> {
        block_on(self.0.get())
    }

    /// Same as [`AsyncQueue::get_timeout`], blocking.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        block_on(self.0.get_timeout(timeout))
    }

    /// Same as [`AsyncQueue::try_get`].
    pub fn try_get(&self) -> Result<T, Error> {
        self.0.try_get()
    }

    /// Same as [`AsyncQueue::get_payload`], blocking.
    pub fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        block_on(self.0.get_payload(timeout))
    }

    /// Same as [`AsyncQueue::get_many`], blocking.
    pub fn get_many(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<T>, Error> {
        block_on(self.0.get_many(max, timeout))
    }

    /// Same as [`AsyncQueue::take_with_info`], blocking.
    pub fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        block_on(self.0.take_with_info(timeout))
    }

    /// Same as [`AsyncQueue::lease`], blocking.
    pub fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
        block_on(self.0.lease(timeout))
    }

    /// Same as [`AsyncQueue::lease_many`], blocking.
    pub fn lease_many(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Lease<T>>, Error> {
        block_on(self.0.lease_many(max, timeout))
    }

    /// Same as [`AsyncQueue::peek`], blocking.
    pub fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
        block_on(self.0.peek(peek))
    }

    /// Same as [`AsyncQueue::qsize`].
    #[must_use]
    pub fn qsize(&self) -> usize {
        self.0.qsize()
    }

    /// Same as [`AsyncQueue::is_empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Same as [`AsyncQueue::is_full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Same as [`AsyncQueue::task_done`].
    pub fn task_done(&self) -> Result<(), Error> {
        self.0.task_done()
    }

    /// Same as [`AsyncQueue::join`], blocking.
    pub fn join(&self) -> Result<(), Error> {
        block_on(self.0.join())
    }

    /// Same as [`AsyncQueue::shutdown`].
    pub fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        self.0.shutdown(immediate)
    }

    /// Same as [`AsyncQueue::redrive`].
    pub fn redrive(&self, max: usize) -> Result<u64, Error> {
        self.0.redrive(max)
    }

    /// Same as [`AsyncQueue::redrive_task`].
    pub fn redrive_task(&self, task: u64) -> Result<bool, Error> {
        self.0.redrive_task(task)
    }

    /// Same as [`AsyncQueue::purge`].
    pub fn purge(&self) -> Result<u64, Error> {
        self.0.purge()
    }
}
