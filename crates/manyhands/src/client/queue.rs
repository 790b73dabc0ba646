//! A queue, and its verbs.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Lease, Leases, Put, Reference};
use crate::Error;
use crate::answer::Answer;
use crate::server::Server;
use crate::verb::{PutOptions, Taken, Verb};
use crate::wire::native::Fate;
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

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
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
        self.ask(Verb::Size).await?.count()
    }

    /// Whether there was no item just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        self.ask(Verb::IsEmpty).await?.flag()
    }

    /// Whether there was no free slot just now.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn is_full(&self) -> Result<bool, Error> {
        self.ask(Verb::IsFull).await?.flag()
    }

    /// Says that an item which was taken is done; one call for each `get`, and none for a lease,
    /// which says so by its `ack`.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `ValueError` when there were more calls than items.
    pub async fn task_done(&self) -> Result<(), Error> {
        self.ask(Verb::TaskDone).await?.done()
    }

    /// Waits until every item that was put is done.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn join(&self) -> Result<(), Error> {
        self.ask(Verb::Join).await?.done()
    }

    /// Ends the queue: `put` fails from now on, and `get` as soon as the queue is empty, which
    /// `immediate` makes it at once. Python servers know this from 3.13 on.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] of class `KeyError` or `AttributeError` from an older Python.
    pub async fn shutdown(&self, immediate: bool) -> Result<(), Error> {
        self.ask(Verb::Shutdown { immediate }).await?.done()
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
        self.ask(Verb::put(item.clone(), timeout)).await?.added().map(drop)
    }

    /// Takes the next item as it is, waiting for it for ever or for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`].
    pub async fn get_payload(&self, timeout: Option<Duration>) -> Result<Payload, Error> {
        self.ask(Verb::get(1, timeout)).await?.payload()
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
        if items.is_empty() {
            return Ok(0);
        }
        Ok(self.ask(Verb::put_many(items.to_vec(), timeout)).await?.added()?.count)
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
        let tasks = self.ask(Verb::get(max, timeout)).await?.tasks()?;
        Ok(tasks.into_iter().map(|task| task.payload).collect())
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
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        self.ask(Verb::Redrive { max, task: None }).await?.count()
    }

    /// Moves one task of this dead-letter queue back to the queue that it came from, as a new one.
    /// `task` is its [number](Peeked::task) here. False if there is no such dead letter, somebody
    /// has it, or its queue is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn redrive_task(&self, task: u64) -> Result<bool, Error> {
        let redrive = Verb::Redrive { max: 1, task: Some(task) };
        Ok(self.ask(redrive).await?.count()? > 0)
    }

    /// Drops all that is ready or delayed; says how much. What somebody has in hand stays.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], or that the server was lost.
    pub async fn purge(&self) -> Result<u64, Error> {
        self.ask(Verb::Purge).await?.count()
    }

    /// Gives the reference to the queue back, if no clone of it is left.
    ///
    /// # Errors
    ///
    /// That the server was lost.
    pub async fn close(self) -> Result<(), Error> {
        match Arc::into_inner(self.reference) {
            Some(last) => last.close().await,
            None => Ok(()),
        }
    }

    async fn ask(&self, verb: Verb) -> Result<Answer, Error> {
        self.reference.ask(verb).await
    }

    /// Acks leases of this queue in one request, or a few. Says what became of each, as
    /// [`Lease::ack`] does.
    ///
    /// # Errors
    ///
    /// That the server was lost, or [`Error::InDoubt`].
    pub async fn ack_many(
        &self,
        leases: impl IntoIterator<Item = Lease<T>>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let acked = leases.into_iter().map(|lease| (lease, None));
        self.settle_many(acked.collect()).await
    }

    /// Acks leases of this queue, each with its result, in one request, or a few. Says what became of
    /// each, as [`Lease::ack_with`] does.
    ///
    /// # Errors
    ///
    /// [`Error::Data`], that the server was lost, or [`Error::InDoubt`].
    pub async fn ack_many_with<R: Serialize>(
        &self,
        leases: impl IntoIterator<Item = (Lease<T>, R)>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let with_result =
            |(lease, result)| Ok((lease, Some(self.reference.pickled::<R>(&result)?)));
        let acked: Result<Vec<_>, Error> = leases.into_iter().map(with_result).collect();
        self.settle_many(acked?).await
    }

    async fn settle_many(
        &self,
        acked: Vec<(Lease<T>, Option<Payload>)>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let mut settled = Vec::with_capacity(acked.len());
        let end = |(lease, result): (Lease<T>, _)| lease.ends_as(Fate::Ack { result });
        let settlements: Vec<_> = acked.into_iter().map(end).collect();
        for batch in settlements.chunks(self.reference.batch_max()) {
            let verb = Verb::settle(batch.to_vec());
            settled.extend(self.ask(verb).await?.settled()?);
        }
        Ok(settled)
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
        self.put_within(item, None).await
    }

    /// Puts an item, waiting for a free slot for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
        self.put_within(item, Some(timeout)).await
    }

    /// Puts an item if there is a free slot.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
    pub async fn try_put(&self, item: &T) -> Result<(), Error> {
        self.put_within(item, Some(Duration::ZERO)).await
    }

    async fn put_within(&self, item: &T, timeout: Option<Duration>) -> Result<(), Error> {
        let verb = Verb::put(self.reference.pickled(item)?, timeout);
        self.ask(verb).await?.added().map(drop)
    }

    fn pickled_all<'a>(&self, items: impl IntoIterator<Item = &'a T>) -> Result<Vec<Payload>, Error>
    where
        T: 'a,
    {
        items.into_iter().map(|item| self.reference.pickled(item)).collect()
    }

    /// Sends an item ahead of its answer, which may be awaited later. Waits only while too many are
    /// under way. Items arrive in the order in which they were sent, waiting for free slots for ever.
    ///
    /// ```no_run
    /// # async fn example(tasks: manyhands::Queue<u64>) -> Result<(), manyhands::Error> {
    /// let mut puts = Vec::new();
    /// for n in 0..1000 {
    ///     puts.push(tasks.put_ahead(&n).await?);
    /// }
    /// for put in puts {
    ///     put.await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Data`]; what becomes of the item, the [`Put`] says.
    pub async fn put_ahead(&self, item: &T) -> Result<Put, Error> {
        let verb = Verb::put(self.reference.pickled(item)?, None);
        Ok(Put(self.reference.ask_ahead(verb).await?))
    }

    /// Puts an item with options. False if its key was used a short while ago: it was put before.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`]; [`Error::Unsupported`] if the server
    /// is CPython's own, unless only a time-out is asked for.
    pub async fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
        let item = self.reference.pickled(item)?;
        self.ask(Verb::put_with(item, options, false)).await?.newly()
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
        let item = self.reference.pickled(item)?;
        self.ask(Verb::put_with(item, options, true)).await?.number()
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
        self.put_many_payloads(&self.pickled_all(items)?, None).await
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
        self.put_many_payloads(&self.pickled_all(items)?, Some(timeout)).await
    }
}

impl<T: DeserializeOwned> Queue<T> {
    fn item(&self, payload: Payload) -> Result<T, Error> {
        self.server().item(self.name(), payload)
    }

    /// Takes the next item, waiting for it for ever.
    ///
    /// The task counts as done with what this thread (or task of tokio's) does next: a `get` from the
    /// same queue, a put to another one, `task_done`, or [`close`](crate::Client::close). If the queue
    /// names a queue of results, only a put to that one counts, which is its result, or `task_done`.
    /// If the program dies before, the task goes to somebody else.
    ///
    /// # Errors
    ///
    /// [`Error::ShutDown`], [`Error::Item`].
    pub async fn get(&self) -> Result<T, Error> {
        self.item(self.get_payload(None).await?)
    }

    /// Takes the next item, waiting for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.item(self.get_payload(Some(timeout)).await?)
    }

    /// Takes the next item if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn try_get(&self) -> Result<T, Error> {
        self.item(self.get_payload(Some(Duration::ZERO)).await?)
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
        payloads.into_iter().map(|payload| self.item(payload)).collect()
    }

    /// Takes the next item, waiting for it for ever or for `timeout`, with what is known of
    /// it. From a server of CPython's nothing is known.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
    pub async fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        let Taken { item, info } = self.take_payload_with_info(timeout).await?;
        Ok(Taken { item: self.item(item)?, info })
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
        self.ask(Verb::take(timeout)).await?.taken()
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
        let tasks = self.ask(Verb::lease(max, timeout)).await?.tasks()?;
        let (mut leases, mut failure) = (Vec::new(), None);
        for task in tasks {
            match Lease::of(&self.reference, task) {
                Ok(lease) => leases.push(lease),
                Err(error @ Error::Item { .. }) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if leases.is_empty() => Err(error),
            _ => Ok(leases),
        }
    }

    /// Leases of tasks as they come: the server sends up to `ahead` of them before the program asks
    /// for them, so that a worker does not wait for a round trip between two tasks.
    ///
    /// ```no_run
    /// # async fn example(tasks: manyhands::Queue<u64>) -> Result<(), manyhands::Error> {
    /// let mut leases = tasks.leases(16)?;
    /// while let Some(task) = leases.next().await {
    ///     let task = task?;
    ///     println!("{}", *task * *task);
    ///     task.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the server is CPython's own.
    pub fn leases(&self, ahead: u32) -> Result<Leases<T>, Error> {
        let subscription = self.reference.subscribe(ahead)?;
        Ok(Leases::new(Arc::clone(&self.reference), subscription))
    }
}
