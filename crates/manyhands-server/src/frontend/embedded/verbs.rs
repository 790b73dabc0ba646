//! What the queues of this process can do beyond Python's methods, written once for threads and for
//! tasks: batches, leases, and what is done with dead letters.

use std::convert::identity;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::{Dialect, to_payload};
use manyhands::wire::tasks::{Peek, Peeked};
use manyhands::wire::token::LeaseToken;
use manyhands::{Error, PutOptions, Taken};
use pollster::block_on;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncQueue, Local, Queue, failed, finished};
use crate::engine::{
    Batch, Called, Caller, Engine, Looked, Promise, Redriving, Reference, Shown, Taking, Ticket,
};
use crate::error::CallError;
use crate::queue::{Grant, Hold, Outcome, Retry, TaskId, Terms};

const CALLER: Caller = Caller::IN_PROCESS;
/// Why a task comes back whose lease was dropped.
const DROPPED: &str = "its worker dropped it";

/// A task that was leased in this process, and has to be settled: it derefs to the item.
///
/// It stays out until it is settled, or for as long as the queue's `max_run`. Dropped without having
/// been settled, it goes back as failed: at once, or after the queue's pause if its thread panics.
pub struct Lease<T> {
    engine: Arc<Engine>,
    reference: Reference,
    item: T,
    token: LeaseToken,
    is_over: bool,
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("item", &self.item)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> Lease<T> {
    /// Which attempt at the task this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.token.attempt
    }

    /// The task's position among the puts of its queue, from 0.
    #[must_use]
    pub fn task(&self) -> u64 {
        self.token.task
    }

    /// The task is done.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn ack(mut self) -> Result<(), Error> {
        self.is_over = true;
        let ticket = self.engine.ack(CALLER, self.reference, self.token, None, Wait::No);
        // A call that was wrong has settled nothing: the task goes back.
        self.is_over = !matches!(ticket.called, Err(CallError::NoResult(_)));
        block_on(kept(&self.engine, ticket)).map(drop)
    }

    /// The task is done, and this is its result, for the queue of results that the task's queue
    /// declares; both or neither.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since; [`Error::Full`] if there is no room for
    /// the result, and the task goes back: nothing waits here. [`Error::Data`].
    pub fn ack_with<R: Serialize>(mut self, result: &R) -> Result<(), Error> {
        let result = Some(to_payload(result, Dialect::Python3)?);
        let ticket = self.engine.ack(CALLER, self.reference, self.token, result, Wait::No);
        let acked = block_on(self.engine.redeem(CALLER, self.reference, ticket));
        finished(acked.map_err(failed)?)?;
        self.is_over = true;
        Ok(())
    }

    /// The task failed, and why. It comes back after `delay`, or after the queue's own pause.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn nack(self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
        self.fail(Retry::from(delay), reason)
    }

    /// The task failed, and no further attempt can do it: it is a dead letter at once, with this
    /// reason.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn give_up(self, reason: &str) -> Result<(), Error> {
        self.fail(Retry::Never, reason)
    }

    fn fail(mut self, retry: Retry, reason: &str) -> Result<(), Error> {
        self.is_over = true;
        let ticket = self.engine.nack(CALLER, self.reference, self.token, retry, reason);
        block_on(kept(&self.engine, ticket))
    }

    /// The lease lasts for `hold` from now, or as long as the queue's `max_run` allows.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if it is over.
    pub fn extend(&self, hold: Duration) -> Result<(), Error> {
        let ticket = self.engine.extend(CALLER, self.reference, self.token, hold);
        block_on(kept(&self.engine, ticket))
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        if !self.is_over {
            // What makes one worker panic makes the next one panic too: not at once.
            let delay = (!std::thread::panicking()).then_some(Duration::ZERO);
            let back = Retry::from(delay);
            // What is over already needs nothing, and nobody is told.
            drop(self.engine.nack(CALLER, self.reference, self.token, back, DROPPED));
        }
    }
}

impl<T: Serialize + DeserializeOwned> Local<T> {
    async fn put_with(&self, item: &T, options: &PutOptions) -> Result<Option<Outcome>, Error> {
        let PutOptions { key, delay, priority, expires, timeout } = options;
        let terms = Terms {
            key: key.as_deref().map(Into::into),
            delay: *delay,
            priority: *priority,
            expires: *expires,
            ..Terms::default()
        };
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        let item = to_payload(item, Dialect::Python3)?;
        self.redeem(self.engine.put(CALLER, self.reference, item, terms, wait(*timeout))).await
    }

    async fn put_many(&self, items: &[T], timeout: Option<Duration>) -> Result<usize, Error> {
        let engine = &self.engine;
        let payloads = items.iter().map(|item| to_payload(item, Dialect::Python3));
        let payloads = payloads.collect::<Result<_, _>>()?;
        let wait = wait(timeout);
        let prepared = engine.prepare(self.reference, payloads, wait);
        let mut prepared = prepared.map_err(failed)?.into_iter();
        let patience = engine.patience(wait);
        let (mut count, mut promise) = (0, Promise::NOTHING);
        let refusal = loop {
            let added = engine.put_many(CALLER, self.reference, &mut prepared, patience);
            count += added.count;
            promise = promise.and(added.end.promise);
            let outcome = match added.end.called {
                Ok(None) if prepared.len() > 0 => continue,
                Ok(None) => break None,
                Err(error) => break Some(failed(error)),
                Ok(Some(Called::Now(outcome))) => Some(outcome),
                Ok(Some(Called::Later(waiter))) => waiter.await.map(|told| {
                    promise = promise.and(told.promise);
                    told.outcome
                }),
            };
            match finished(outcome) {
                Ok(_) => count += 1,
                Err(error) => break Some(error),
            }
        };
        engine.kept(promise).await.map_err(|_| Error::ShutDown)?;
        refusal.filter(|_| count == 0).map_or(Ok(count), Err)
    }

    /// Takes tasks, and waits until they are in memory and may be told of.
    async fn grants(&self, taking: Taking, timeout: Option<Duration>) -> Result<Vec<Grant>, Error> {
        let (engine, at) = (&self.engine, self.reference);
        let wait = wait(timeout);
        loop {
            let mut batch = Batch::default();
            let ticket = engine.get_many(CALLER, at, taking, wait, &Shown::default(), &mut batch);
            match ticket.called.map_err(failed)? {
                None => {}
                Some(Called::Now(outcome)) => {
                    finished(Some(outcome))?;
                }
                Some(Called::Later(waiter)) => {
                    match waiter.await.map(|told| (told.outcome, told.promise)) {
                        Some((Outcome::Task(grant), promise)) => batch = Batch::of(grant, promise),
                        other => {
                            finished(other.map(|(outcome, _)| outcome))?;
                        }
                    }
                }
            }
            while engine.take_more(CALLER, at, taking, &mut batch) {}
            let brought = engine.bring(CALLER, at, &mut batch).await;
            brought.map_err(|_| Error::ShutDown)?;
            // All may have been gone before they were read.
            match batch.grants.is_empty() {
                true if wait == Wait::Forever => {}
                true => return Err(Error::Empty),
                false => return Ok(batch.grants),
            }
        }
    }

    async fn take_with_info(&self, timeout: Option<Duration>) -> Result<Taken<T>, Error> {
        let grants = self.grants(taking(Hold::Session, true, 1), timeout).await?;
        let (mut infos, promise) = self.engine.inform(CALLER, self.reference, &grants);
        self.engine.kept(promise).await.map_err(|_| Error::ShutDown)?;
        let payload = grants.into_iter().next().map(|grant| grant.payload);
        Ok(Taken { item: self.item(payload)?, info: infos.pop().flatten() })
    }

    /// Looks at tasks, and waits for the items that are on disk.
    async fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
        let gone = |_| Error::ShutDown;
        let (engine, at) = (&self.engine, self.reference);
        let mut looked = Looked::of(peek);
        while engine.look_on(at, &mut looked).map_err(failed)? {}
        let room = &mut engine.memory().room();
        if let Some(reading) = engine.read_looked(CALLER, at, &mut looked, room).map_err(gone)? {
            let (read, _) = reading.await.map_err(gone)?;
            looked.arrive(read);
        }
        Ok(looked.finish())
    }

    fn leases(&self, grants: Vec<Grant>) -> Result<Vec<Lease<T>>, Error> {
        let signer = self.engine.signer(self.reference).map_err(failed)?;
        let lease = |grant: Grant| {
            let lease = Lease {
                engine: self.engine.clone(),
                reference: self.reference,
                item: (),
                token: signer.sign(grant.token),
                is_over: false,
            };
            match self.item(Some(grant.payload)) {
                Ok(item) => Ok(lease.with(item)),
                Err(error) => {
                    lease.give_up(&error.to_string())?;
                    Err(error)
                }
            }
        };
        let (leases, failures): (Vec<_>, Vec<_>) =
            grants.into_iter().map(lease).partition(Result::is_ok);
        if leases.is_empty() { failures } else { leases }.into_iter().collect()
    }
}

impl Lease<()> {
    fn with<T>(mut self, item: T) -> Lease<T> {
        self.is_over = true;
        let (engine, reference, token) = (self.engine.clone(), self.reference, self.token);
        Lease { engine, reference, item, token, is_over: false }
    }
}

/// What came of a call that does not wait in line, once anybody may be told.
async fn kept<R>(engine: &Engine, ticket: Ticket<R>) -> Result<R, Error> {
    engine.kept(ticket.promise).await.map_err(|_| Error::ShutDown)?;
    ticket.called.map_err(failed)
}

fn wait(timeout: Option<Duration>) -> Wait {
    timeout.map_or(Wait::Forever, Wait::For)
}

fn taking(hold: Hold, is_informed: bool, max: usize) -> Taking {
    Taking { protocol_max: u8::MAX, hold, is_informed, max: max.max(1) }
}

/// Calls that may wait, by `$wait`.
macro_rules! verbs {
    ($queue:ident, $wait:path, async: [$($async:tt)*], await: [$($await:tt)*]) => {
        impl<T: Serialize + DeserializeOwned> $queue<T> {
            /// Adds an item with options. False if its key was used a short while ago: it was put
            /// before.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
            pub $($async)* fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
                let outcome = $wait(self.0.put_with(item, options)) $($await)* ?;
                let is_known = outcome == Some(Outcome::Known);
                finished(outcome).map(|_| !is_known)
            }

            /// Adds an item with options, and returns the number of its task. `None` if its key was
            /// used a short while ago: it was put before.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
            pub $($async)* fn put_task(
                &self,
                item: &T,
                options: &PutOptions,
            ) -> Result<Option<u64>, Error> {
                match $wait(self.0.put_with(item, options)) $($await)* ? {
                    Some(Outcome::Accepted(TaskId(task))) => Ok(Some(task)),
                    outcome => finished(outcome).map(|_| None),
                }
            }

            /// Looks at tasks and takes none: what each holds, who has it, and why it failed.
            ///
            /// # Errors
            ///
            /// That an item cannot be read from the disk.
            pub $($async)* fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
                $wait(self.0.peek(peek)) $($await)*
            }

            /// Adds items in order, some of them at a time, waiting for room for ever or for
            /// `timeout`. Says how many were added: those from the first on.
            ///
            /// # Errors
            ///
            /// What the first one fails with, as by [`put`](Self::put); [`Error::Data`].
            pub $($async)* fn put_many(
                &self,
                items: &[T],
                timeout: Option<Duration>,
            ) -> Result<usize, Error> {
                $wait(self.0.put_many(items, timeout)) $($await)*
            }

            /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
            /// there, up to `max` items and some 8 MiB.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`] if any of them is no `T`, and then
            /// all have been taken.
            pub $($async)* fn get_many(
                &self,
                max: usize,
                timeout: Option<Duration>,
            ) -> Result<Vec<T>, Error> {
                let grants = $wait(self.0.grants(taking(Hold::Session, false, max), timeout)) $($await)* ?;
                grants.into_iter().map(|grant| self.0.item(Some(grant.payload))).collect()
            }

            /// Takes the next item, waiting for it for ever or for `timeout`, with what is known of it.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
            pub $($async)* fn take_with_info(
                &self,
                timeout: Option<Duration>,
            ) -> Result<Taken<T>, Error> {
                $wait(self.0.take_with_info(timeout)) $($await)*
            }

            /// Leases the next task, waiting for one for ever or for `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`], and the task goes back as failed.
            pub $($async)* fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
                let leases = self.lease_many(1, timeout) $($await)* ?;
                leases.into_iter().next().ok_or(Error::Empty)
            }

            /// Leases the next task, waiting for it for ever or for `timeout`, and with it what else is
            /// there, up to `max`.
            ///
            /// # Errors
            ///
            /// Those of [`lease`](Self::lease).
            pub $($async)* fn lease_many(
                &self,
                max: usize,
                timeout: Option<Duration>,
            ) -> Result<Vec<Lease<T>>, Error> {
                let grants = $wait(self.0.grants(taking(Hold::Token, false, max), timeout)) $($await)* ?;
                self.0.leases(grants)
            }

            /// Moves up to `max` tasks of this dead-letter queue back to the queues that they came
            /// from, as new ones. Says how many.
            ///
            /// # Errors
            ///
            /// None at present.
            pub fn redrive(&self, max: usize) -> Result<u64, Error> {
                let (engine, at) = (&self.0.engine, self.0.reference);
                block_on(kept(engine, engine.redrive(at, Redriving::of(max))))
            }

            /// Drops all that is ready or delayed; says how much. What somebody has in hand stays.
            ///
            /// # Errors
            ///
            /// None at present.
            pub fn purge(&self) -> Result<u64, Error> {
                let (engine, at) = (&self.0.engine, self.0.reference);
                block_on(kept(engine, engine.purge(at)))
            }
        }
    };
}

verbs!(Queue, block_on, async: [], await: []);
verbs!(AsyncQueue, identity, async: [async], await: [.await]);
