//! The same client without `async`: each call blocks its thread.
//!
//! It starts no thread. All clones of a client share one connection, which is read by whoever waits:
//! one thread for all, and the others are woken when their answers have come. Only a [`Worker`] has
//! threads, and a connection of its own.

mod work;

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::work::{Map, Master, Worker};
use crate::connect::{Address, ConnectOptions};
use crate::stream::{Mode, now};
use crate::wire::auth::AuthKey;
use crate::wire::pickle::Payload;
use crate::wire::reply::QueueInfo;
use crate::wire::tasks::{Peek, Peeked};
use crate::{Error, PutOptions, Taken, client};

/// A server of queues. Clones are the same client.
///
/// ```no_run
/// let client = manyhands::blocking::Client::connect("10.0.0.7:5000", b"abc")?;
/// let tasks = client.queue::<u64>("get_task_queue")?;
/// tasks.put(&12)?;
/// # Ok::<(), manyhands::Error>(())
/// ```
///
/// All its clones and queues, in all threads, share one connection. A client takes leave of the server
/// when its queues are dropped: what was taken [counts as done](crate::Queue::get) then. One that just
/// vanishes (`std::process::exit`, a signal) looks like one that crashed, and what it had in hand goes
/// to somebody else. Call [`close`](Self::close) before `exit`.
#[derive(Debug, Clone)]
pub struct Client(client::Client);

impl Client {
    /// Same as [`Client::connect`](crate::Client::connect), blocking.
    pub fn connect(address: &str, authkey: impl Into<AuthKey>) -> Result<Self, Error> {
        Self::connect_with(address, authkey, ConnectOptions::default())
    }

    /// Same as [`Client::connect_with`](crate::Client::connect_with), blocking.
    pub fn connect_with(
        address: &str,
        authkey: impl Into<AuthKey>,
        options: ConnectOptions,
    ) -> Result<Self, Error> {
        now(client::Client::start(address, authkey.into(), options, Mode::Blocking)).map(Self)
    }

    /// Same as [`Client::queue`](crate::Client::queue), blocking.
    pub fn queue<T>(&self, name: &str) -> Result<Queue<T>, Error> {
        now(self.0.queue(name)).map(Queue)
    }

    /// Same as [`Client::queues`](crate::Client::queues), blocking.
    pub fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        now(self.0.queues())
    }

    /// Same as [`Client::drop_queue`](crate::Client::drop_queue), blocking.
    pub fn drop_queue(&self, name: &str, force: bool) -> Result<u64, Error> {
        now(self.0.drop_queue(name, force))
    }

    /// Same as [`Client::debug_info`](crate::Client::debug_info), blocking.
    pub fn debug_info(&self) -> Result<String, Error> {
        now(self.0.debug_info())
    }

    /// Same as [`Client::number_of_objects`](crate::Client::number_of_objects), blocking.
    pub fn number_of_objects(&self) -> Result<u64, Error> {
        now(self.0.number_of_objects())
    }

    /// Same as [`Client::address`](crate::Client::address), blocking.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    /// Same as [`Client::close`](crate::Client::close), blocking.
    pub fn close(&self) -> Result<(), Error> {
        now(self.0.close())
    }
}

/// Same as [`Queue`](crate::Queue), blocking.
pub struct Queue<T>(client::Queue<T>);

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

impl<T> Queue<T> {
    /// Same as [`Queue::name`](crate::Queue::name), blocking.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Same as [`Queue::qsize`](crate::Queue::qsize), blocking.
    pub fn qsize(&self) -> Result<u64, Error> {
        now(self.0.qsize())
    }

    /// Same as [`Queue::is_empty`](crate::Queue::is_empty), blocking.
    pub fn is_empty(&self) -> Result<bool, Error> {
        now(self.0.is_empty())
    }

    /// Same as [`Queue::is_full`](crate::Queue::is_full), blocking.
    pub fn is_full(&self) -> Result<bool, Error> {
        now(self.0.is_full())
    }

    /// Same as [`Queue::task_done`](crate::Queue::task_done), blocking.
    pub fn task_done(&self) -> Result<(), Error> {
        now(self.0.task_done())
    }

    /// Same as [`Queue::join`](crate::Queue::join), blocking.
    pub fn join(&self) -> Result<(), Error> {
        now(self.0.join())
    }

    /// Same as [`Queue::shutdown`](crate::Queue::shutdown), blocking.
    pub fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        now(self.0.shutdown(immediate))
    }

    /// Same as [`Queue::put_payload`](crate::Queue::put_payload), blocking.
    pub fn put_payload(&self, item: &Payload, timeout: Option<Duration>) -> Result<(), Error> {
        now(self.0.put_payload(item, timeout))
    }

    /// Same as [`Queue::get_payload`](crate::Queue::get_payload), blocking.
    pub fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        now(self.0.get_payload(timeout))
    }

    /// Same as [`Queue::put_many_payloads`](crate::Queue::put_many_payloads), blocking.
    pub fn put_many_payloads(
        &self,
        items: &[Payload],
        timeout: Option<Duration>,
    ) -> Result<usize, Error> {
        now(self.0.put_many_payloads(items, timeout))
    }

    /// Same as [`Queue::get_many_payloads`](crate::Queue::get_many_payloads), blocking.
    pub fn get_many_payloads(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Payload>, Error> {
        now(self.0.get_many_payloads(max, timeout))
    }

    /// Same as [`Queue::peek`](crate::Queue::peek), blocking.
    pub fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
        now(self.0.peek(peek))
    }

    /// Same as [`Queue::redrive`](crate::Queue::redrive), blocking.
    pub fn redrive(&self, max: usize) -> Result<u64, Error> {
        now(self.0.redrive(max))
    }

    /// Same as [`Queue::redrive_task`](crate::Queue::redrive_task), blocking.
    pub fn redrive_task(&self, task: u64) -> Result<bool, Error> {
        now(self.0.redrive_task(task))
    }

    /// Same as [`Queue::purge`](crate::Queue::purge), blocking.
    pub fn purge(&self) -> Result<u64, Error> {
        now(self.0.purge())
    }

    /// Same as [`Queue::ack_many`](crate::Queue::ack_many), blocking.
    pub fn ack_many(
        &self,
        leases: impl IntoIterator<Item = Lease<T>>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        now(self.0.ack_many(leases.into_iter().map(|lease| lease.0)))
    }

    /// Same as [`Queue::ack_many_with`](crate::Queue::ack_many_with), blocking.
    pub fn ack_many_with<R: Serialize>(
        &self,
        leases: impl IntoIterator<Item = (Lease<T>, R)>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        now(self.0.ack_many_with(leases.into_iter().map(|(lease, result)| (lease.0, result))))
    }

    /// Same as [`Queue::close`](crate::Queue::close), blocking.
    pub fn close(self) -> Result<(), Error> {
        now(self.0.close())
    }
}

impl<T: Serialize> Queue<T> {
    /// Same as [`Queue::put`](crate::Queue::put), blocking.
    pub fn put(&self, item: &T) -> Result<(), Error> {
        now(self.0.put(item))
    }

    /// Same as [`Queue::put_timeout`](crate::Queue::put_timeout), blocking.
    pub fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        now(self.0.put_timeout(item, timeout))
    }

    /// Same as [`Queue::try_put`](crate::Queue::try_put), blocking.
    pub fn try_put(&self, item: &T) -> Result<(), Error> {
        now(self.0.try_put(item))
    }

    /// Same as [`Queue::put_ahead`](crate::Queue::put_ahead), blocking.
    ///
    /// What is ahead goes out with the next item that is put later than a millisecond, with the next
    /// call that waits for its answer, or by [`Put::wait`]; no thread of its own sends it.
    pub fn put_ahead(&self, item: &T) -> Result<Put, Error> {
        now(self.0.put_ahead(item)).map(Put)
    }

    /// Same as [`Queue::put_with`](crate::Queue::put_with), blocking.
    pub fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
        now(self.0.put_with(item, options))
    }

    /// Same as [`Queue::put_task`](crate::Queue::put_task), blocking.
    pub fn put_task(&self, item: &T, options: &PutOptions) -> Result<Option<u64>, Error> {
        now(self.0.put_task(item, options))
    }

    /// Same as [`Queue::put_many`](crate::Queue::put_many), blocking.
    pub fn put_many<'a>(&self, items: impl IntoIterator<Item = &'a T>) -> Result<usize, Error>
    where
        T: 'a,
    {
        now(self.0.put_many(items))
    }

    /// Same as [`Queue::put_many_timeout`](crate::Queue::put_many_timeout), blocking.
    pub fn put_many_timeout<'a>(
        &self,
        items: impl IntoIterator<Item = &'a T>,
        timeout: Duration,
    ) -> Result<usize, Error>
    where
        T: 'a,
    {
        now(self.0.put_many_timeout(items, timeout))
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Same as [`Queue::get`](crate::Queue::get), blocking.
    pub fn get(&self) -> Result<T, Error> {
        now(self.0.get())
    }

    /// Same as [`Queue::get_timeout`](crate::Queue::get_timeout), blocking.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        now(self.0.get_timeout(timeout))
    }

    /// Same as [`Queue::try_get`](crate::Queue::try_get), blocking.
    pub fn try_get(&self) -> Result<T, Error> {
        now(self.0.try_get())
    }

    /// Same as [`Queue::get_many`](crate::Queue::get_many), blocking.
    pub fn get_many(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<T>, Error> {
        now(self.0.get_many(max, timeout))
    }

    /// Same as [`Queue::take_with_info`](crate::Queue::take_with_info), blocking.
    pub fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        now(self.0.take_with_info(timeout))
    }

    /// Same as [`Queue::take_payload_with_info`](crate::Queue::take_payload_with_info), blocking.
    pub fn take_payload_with_info(
        &self,
        timeout: Option<Duration>,
    ) -> Result<Taken<Payload>, Error> {
        now(self.0.take_payload_with_info(timeout))
    }

    /// Same as [`Queue::lease`](crate::Queue::lease), blocking.
    pub fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
        now(self.0.lease(timeout)).map(Lease)
    }

    /// Same as [`Queue::lease_many`](crate::Queue::lease_many), blocking.
    pub fn lease_many(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Lease<T>>, Error> {
        Ok(now(self.0.lease_many(max, timeout))?.into_iter().map(Lease).collect())
    }

    /// Same as [`Queue::leases`](crate::Queue::leases), as an iterator.
    ///
    /// ```no_run
    /// # fn example(tasks: &manyhands::blocking::Queue<u64>) -> Result<(), manyhands::Error> {
    /// for task in tasks.leases(16)? {
    ///     let task = task?;
    ///     println!("{}", *task * *task);
    ///     task.ack()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn leases(&self, ahead: u32) -> Result<Leases<T>, Error> {
        self.0.leases(ahead).map(Leases)
    }
}

/// Same as [`Put`](crate::Put), blocking.
#[derive(Debug)]
#[must_use = "nobody else learns whether the item is in the queue"]
pub struct Put(client::Put);

impl Put {
    /// Waits until the item is in the queue.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::InDoubt`].
    pub fn wait(self) -> Result<(), Error> {
        now(self.0)
    }
}

/// Same as [`Leases`](crate::Leases), blocking.
pub struct Leases<T>(client::Leases<T>);

impl<T> fmt::Debug for Leases<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: DeserializeOwned> Iterator for Leases<T> {
    type Item = Result<Lease<T>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        now(self.0.next()).map(|lease| lease.map(Lease))
    }
}

/// Same as [`Lease`](crate::Lease), blocking.
pub struct Lease<T>(client::Lease<T>);

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Lease<T> {
    /// Same as [`Lease::attempt`](crate::Lease::attempt), blocking.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.attempt()
    }

    /// Same as [`Lease::task`](crate::Lease::task), blocking.
    #[must_use]
    pub fn task(&self) -> u64 {
        self.0.task()
    }

    /// Same as [`Lease::ack`](crate::Lease::ack), blocking.
    pub fn ack(self) -> Result<(), Error> {
        now(self.0.ack())
    }

    /// Same as [`Lease::ack_with`](crate::Lease::ack_with), blocking.
    pub fn ack_with<R: Serialize>(self, result: &R) -> Result<(), Error> {
        now(self.0.ack_with(result))
    }

    /// Same as [`Lease::nack`](crate::Lease::nack), blocking.
    pub fn nack(self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
        now(self.0.nack(delay, reason))
    }

    /// Same as [`Lease::give_up`](crate::Lease::give_up), blocking.
    pub fn give_up(self, reason: &str) -> Result<(), Error> {
        now(self.0.give_up(reason))
    }

    /// Same as [`Lease::extend`](crate::Lease::extend), blocking.
    pub fn extend(&self, hold: Duration) -> Result<(), Error> {
        now(self.0.extend(hold))
    }
}
