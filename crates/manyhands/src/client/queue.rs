//! A queue, and its verbs.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Lease, Reference};
use crate::Error;
use crate::reply::{Leased, Reply};
use crate::server::{References, Server, lock};
use crate::verb::{PutOptions, Taken, Verb, piece};
use crate::wire::pickle::Payload;
use crate::wire::tasks::{Peek, Peeked};

/// A queue on a server, holding items of type `T`. Clones are the same queue.
///
/// The verbs are those of Python's `queue.Queue`, and so is their meaning; those beyond need a
/// manyhands server.
pub struct Queue<T> {
    pub(super) reference: Arc<Reference>,
    item: PhantomData<fn(T) -> T>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { reference: Arc::clone(&self.reference), item: PhantomData }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.reference.client.address();
        f.debug_struct("Queue").field("name", &self.name()).field("address", address).finish()
    }
}

impl<T> Queue<T> {
    pub(super) fn new(reference: Arc<Reference>) -> Self {
        Self { reference, item: PhantomData }
    }

    /// The name under which it is registered.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.reference.name
    }

    /// About how many items there are.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn qsize(&self) -> Result<u64, Error> {
        self.ask(Verb::Size).await?.read()
    }

    /// Whether there was no item just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        self.ask(Verb::IsEmpty).await?.read()
    }

    /// Whether there was no free slot just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_full(&self) -> Result<bool, Error> {
        self.ask(Verb::IsFull).await?.read()
    }

    /// Says that an item which was taken is done; one call for each `get`, and none for a lease,
    /// which says so by its `ack`.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `ValueError` when there were more calls than items.
    pub async fn task_done(&self) -> Result<(), Error> {
        self.ask(Verb::TaskDone).await?.read()
    }

    /// Waits until every item that was put is done.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn join(&self) -> Result<(), Error> {
        self.ask(Verb::Join).await?.read()
    }

    /// Ends the queue: `put` fails from now on, and `get` as soon as the queue is empty, which
    /// `immediate` makes it at once. Python servers know this from 3.13 on.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `KeyError` or `AttributeError` from an older Python.
    pub async fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        self.ask(Verb::Shutdown { immediate }).await?.read()
    }

    /// Puts a payload as it is, waiting for a free slot for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`]; [`Error::Data`] if the server's Python is too old to
    /// read it.
    pub async fn put_payload(
        &self,
        item: &Payload,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.ask(Verb::Put { item, timeout }).await?.read()
    }

    /// Takes the next item as it is, waiting for it for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        self.ask(Verb::Get { timeout }).await?.payload()
    }

    /// Adds payloads as they are, in as few requests as their size allows, waiting for free slots for
    /// ever or for `timeout` each. Says how many were added: those from the first on.
    ///
    /// A server of CPython's gets one call for each.
    ///
    /// # Errors
    ///
    /// What the first one of all fails with, as by `put`. [`Error::InDoubt`] at any time.
    pub async fn put_many_payloads(
        &self,
        items: &[Payload],
        timeout: Option<Duration>,
    ) -> Result<usize, Error> {
        let mut added = 0;
        while let Some(rest @ [item, ..]) = items.get(added..) {
            // A server of CPython's gets one call for each.
            let (verb, asked) = match self.reference.has_extras() {
                true => (Verb::PutMany { items: piece(rest), timeout }, piece(rest).len()),
                false => (Verb::Put { item, timeout }, 1),
            };
            match self.ask(verb).await.and_then(|reply| reply.added()) {
                Ok(count) => {
                    added += count;
                    if count < asked {
                        break;
                    }
                }
                Err(Error::Full | Error::ShutDown | Error::Remote { .. }) if added > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(added)
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
    /// there, up to `max` items and some 8 MiB. They come as they are.
    ///
    /// A server of CPython's gets one call for each.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn get_many_payloads(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Payload>, Error> {
        if self.reference.has_extras() {
            return self.ask(Verb::GetMany { max, timeout }).await?.payloads();
        }
        let mut items = vec![self.get_payload(timeout).await?];
        while items.len() < max {
            match self.ask(Verb::TryGet).await.and_then(|reply| reply.payload()) {
                Ok(item) => items.push(item),
                // The next call will meet the error again.
                Err(_) => break,
            }
        }
        Ok(items)
    }

    /// Looks at tasks and takes none: what each holds, who has it, and why it failed. Ready
    /// ones come in the order in which they would be taken, others in that of their puts; a
    /// server shows at most 16,384, and 8 MiB or a 64th of its memory, at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
        self.ask(Verb::Peek(peek)).await?.peeked()
    }

    /// Moves up to `max` tasks of this dead-letter queue back to the queues that they came from,
    /// as new ones. Says how many; a server moves at most 16,384, and some 8 MiB, at a
    /// time.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn redrive(&self, max: usize) -> Result<u64, Error> {
        self.ask(Verb::Redrive { max }).await?.read()
    }

    /// Moves one task of this dead-letter queue back to the queue that it came from, as a new one.
    /// `task` is its [number](Peeked::task) here. False if there is no such dead letter, somebody
    /// has it, or its queue is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn redrive_task(&self, task: u64) -> Result<bool, Error> {
        let moved: u64 = self.ask(Verb::RedriveTask { task }).await?.read()?;
        Ok(moved > 0)
    }

    /// Drops all that is ready or delayed; says how much. What somebody has in hand stays.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn purge(&self) -> Result<u64, Error> {
        self.ask(Verb::Purge).await?.read()
    }

    /// Gives the reference to the queue back, if no clone of it is left.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn close(self) -> Result<(), Error> {
        let client = self.reference.client.clone();
        if let Some(last) = Arc::into_inner(self.reference) {
            lock(&client.shared.server.references).defer(&last.ident());
        }
        client.release(References::pop_dropped).await
    }

    async fn ask<'a>(&'a self, verb: Verb<'a>) -> Result<Reply<'a>, Error> {
        self.reference.ask(verb).await
    }

    fn server(&self) -> &Server {
        self.reference.server()
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts an item, waiting for a free slot for ever.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::Data`].
    pub async fn put(&self, item: &T) -> Result<(), Error> {
        self.put_payload(&self.server().pickled(item)?, None).await
    }

    /// Puts an item, waiting for a free slot for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        self.put_payload(&self.server().pickled(item)?, Some(timeout)).await
    }

    /// Puts an item if there is a free slot.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn try_put(&self, item: &T) -> Result<(), Error> {
        let item = &self.server().pickled(item)?;
        self.ask(Verb::TryPut { item }).await?.read()
    }

    /// Puts an item with options. False if its key was used a short while ago: it was put before.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`]; [`Error::Unsupported`] if the server
    /// is CPython's own, unless only a time-out is asked for.
    pub async fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
        let item = self.server().pickled(item)?;
        self.ask(Verb::put_with(&item, options)).await?.is_new()
    }

    /// Puts an item with options, and returns the number of its task, which
    /// [leases](Lease::task) and what is known of [results](Taken) carry too. `None` if its key
    /// was used a short while ago: it was put before, perhaps by this very call, if that
    /// had to be made twice.
    ///
    /// # Errors
    ///
    /// Those of [`put_with`](Self::put_with).
    pub async fn put_task(&self, item: &T, options: &PutOptions) -> Result<Option<u64>, Error> {
        let item = &self.server().pickled(item)?;
        self.ask(Verb::PutTask { item, options }).await?.read()
    }

    /// Puts items in one request, or a few, waiting for free slots for ever. Says how many
    /// were added: those from the first on.
    ///
    /// # Errors
    ///
    /// What the first one fails with, as by [`put`](Self::put); [`Error::Data`].
    pub async fn put_many<'a>(&self, items: impl IntoIterator<Item = &'a T>) -> Result<usize, Error>
    where
        T: 'a,
    {
        self.put_many_payloads(&self.server().pickled_all(items)?, None).await
    }

    /// The same, waiting for a free slot for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As said; [`Error::Full`] if not even the first one found a slot.
    pub async fn put_many_timeout<'a>(
        &self,
        items: impl IntoIterator<Item = &'a T>,
        timeout: Duration,
    ) -> Result<usize, Error>
    where
        T: 'a,
    {
        self.put_many_payloads(&self.server().pickled_all(items)?, Some(timeout)).await
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the next item, waiting for it for ever.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::Item`].
    pub async fn get(&self) -> Result<T, Error> {
        self.ask(Verb::Get { timeout: None }).await?.item(self.name())
    }

    /// Takes the next item, waiting for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.ask(Verb::Get { timeout: Some(timeout) }).await?.item(self.name())
    }

    /// Takes the next item if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn try_get(&self) -> Result<T, Error> {
        self.ask(Verb::TryGet).await?.item(self.name())
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
    /// there, up to `max`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`] if any of them is no `T`, and
    /// then all have been taken:
    /// [`get_many_payloads`](Self::get_many_payloads) is for queues of many types.
    pub async fn get_many(&self, max: usize, timeout: Option<Duration>) -> Result<Vec<T>, Error> {
        let payloads = self.get_many_payloads(max, timeout).await?;
        payloads.into_iter().map(|payload| self.server().item(self.name(), payload)).collect()
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, with what is known of
    /// it. From a server of CPython's nothing is known.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        let Taken { item, info } = self.take_payload_with_info(timeout).await?;
        Ok(Taken { item: self.server().item(self.name(), item)?, info })
    }

    /// The same with the item as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn take_payload_with_info(
        &self,
        timeout: Option<Duration>,
    ) -> Result<Taken<Payload>, Error> {
        self.ask(Verb::Take { timeout }).await?.taken()
    }

    /// Leases the next task, waiting for one for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`], and the task is a dead letter, so
    /// that the program can go on with the next; [`Error::Unsupported`] if the server is CPython's own.
    pub async fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
        self.lease_many(1, timeout).await?.into_iter().next().ok_or(Error::Empty)
    }

    /// Leases the next task, waiting for it for ever or for `timeout`, and with it what else is
    /// there, up to `max`. Those that are no `T` are dead letters at once, and left out.
    ///
    /// # Errors
    ///
    /// Those of [`lease`](Self::lease).
    pub async fn lease_many(
        &self,
        max: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<Lease<T>>, Error> {
        let leased = self.ask(Verb::LeaseMany { max, timeout }).await?.leases()?;
        let (mut leases, mut failure) = (Vec::new(), None);
        for Leased { token, task, attempt, payload } in leased {
            match self.server().item(self.name(), payload) {
                Ok(item) => {
                    let reference = Arc::clone(&self.reference);
                    leases.push(Lease { reference, item, token, task, attempt, is_over: false });
                }
                Err(error) => {
                    let verb = Verb::GiveUp { token: &token, reason: &error.to_string() };
                    self.ask(verb).await?.given_back()?;
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if leases.is_empty() => Err(error),
            _ => Ok(leases),
        }
    }
}
