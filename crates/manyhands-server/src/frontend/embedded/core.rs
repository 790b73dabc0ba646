//! One queue of this process, in payloads: the verbs that every face of it says in its own way.

use std::sync::Arc;
use std::time::Duration;

use manyhands::Error;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::{Info, Peek, Peeked};
use manyhands::wire::token::LeaseToken;

use crate::engine::{
    Batch, Called, Caller, Engine, Looked, Promise, Redriving, Reference, Shown, Signer, Taking,
    Ticket,
};
use crate::error::CallError;
use crate::queue::{Grant, Outcome, Queue, Retry, SettledBy, TaskId, Terms};

const CALLER: Caller = Caller::IN_PROCESS;

/// A queue and the engine that has it.
#[derive(Debug, Clone)]
pub(super) struct Core {
    pub(super) engine: Arc<Engine>,
    pub(super) reference: Reference,
}

impl Core {
    /// Adds an item, and returns the number of its task; `None` if its key is known.
    pub(super) async fn put(
        &self,
        item: Payload,
        terms: Option<Box<Terms>>,
        wait: Wait,
    ) -> Result<Option<u64>, Error> {
        let ticket = self.engine.put(CALLER, self.reference, item, terms, wait);
        Ok(match self.redeem(ticket).await? {
            Outcome::Accepted(TaskId(task)) => Some(task),
            _ => None,
        })
    }

    /// Adds items in order, some of them at a time; says how many were added.
    pub(super) async fn put_many(&self, items: Vec<Payload>, wait: Wait) -> Result<usize, Error> {
        let engine = &self.engine;
        let prepared = engine.prepare(self.reference, items, wait);
        let mut prepared = prepared.map_err(failed)?.into_iter();
        let patience = engine.patience(wait);
        let (mut count, mut promise) = (0, Promise::NOTHING);
        let refusal = loop {
            let added = engine.put_many(CALLER, self.reference, &mut prepared, patience, None);
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
        self.keep(promise).await?;
        refusal.filter(|_| count == 0).map_or(Ok(count), Err)
    }

    /// Takes the next item, of any pickle protocol.
    pub(super) async fn get(&self, wait: Wait) -> Result<Payload, Error> {
        loop {
            let ticket = self.engine.get(CALLER, self.reference, u8::MAX, wait);
            match self.redeem(ticket).await {
                Ok(Outcome::Task(grant)) => return Ok(grant.payload),
                // The task was gone before it was read.
                Err(Error::Empty) if wait == Wait::Forever => {}
                Ok(_) => return Err(Error::Empty),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes up to `max` tasks, and waits until they are in memory and may be told of.
    pub(super) async fn take(
        &self,
        settled_by: SettledBy,
        is_informed: bool,
        max: usize,
        wait: Wait,
    ) -> Result<Vec<Grant>, Error> {
        let taking = Taking {
            protocol_max: u8::MAX,
            settled_by,
            is_informed,
            max: max.max(1),
            bytes_max: usize::MAX,
        };
        let (engine, at) = (&self.engine, self.reference);
        loop {
            let mut batch = Batch::default();
            let ticket = engine.get_many(CALLER, at, taking, wait, &Shown::default(), &mut batch);
            match ticket.called.map_err(failed)? {
                None => {}
                Some(Called::Now(outcome)) => drop(finished(Some(outcome))?),
                Some(Called::Later(waiter)) => {
                    match waiter.await.map(|told| (told.outcome, told.promise)) {
                        Some((Outcome::Task(grant), promise)) => batch = Batch::of(grant, promise),
                        other => drop(finished(other.map(|(outcome, _)| outcome))?),
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

    /// Takes the next task with what is known of it.
    pub(super) async fn take_with_info(
        &self,
        wait: Wait,
    ) -> Result<(Payload, Option<Info>), Error> {
        let grants = self.take(SettledBy::Session, true, 1, wait).await?;
        let (mut infos, promise) = self.engine.inform(CALLER, self.reference, &grants);
        self.keep(promise).await?;
        let grant = grants.into_iter().next().ok_or(Error::Empty)?;
        Ok((grant.payload, infos.pop().flatten()))
    }

    /// What signs the tokens of this queue.
    pub(super) fn signer(&self) -> Result<Signer, Error> {
        self.engine.signer(self.reference).map_err(failed)
    }

    /// The task of a lease is done, and this is its result, if it has one.
    pub(super) fn ack(&self, token: LeaseToken, result: Option<Payload>) -> Ticket {
        self.engine.ack(CALLER, self.reference, token, result, Wait::No)
    }

    /// The task of a lease failed.
    pub(super) fn nack(&self, token: LeaseToken, retry: Retry, reason: &str) -> Ticket<()> {
        self.engine.nack(CALLER, self.reference, token, retry, reason)
    }

    /// A lease lasts for `hold` from now.
    pub(super) async fn extend(&self, token: LeaseToken, hold: Duration) -> Result<(), Error> {
        self.settle(self.engine.extend(CALLER, self.reference, token, hold)).await
    }

    /// Waits until every task is done.
    pub(super) async fn join(&self) -> Result<(), Error> {
        self.redeem(self.engine.join(CALLER, self.reference)).await.map(drop)
    }

    /// Counts one task as done.
    pub(super) async fn task_done(&self) -> Result<(), Error> {
        self.redeem(self.engine.task_done(self.reference)).await.map(drop)
    }

    /// Ends the queue.
    pub(super) async fn shut_down(&self, immediate: bool) -> Result<(), Error> {
        self.redeem(self.engine.shut_down(self.reference, immediate)).await.map(drop)
    }

    /// Moves dead letters back to their queues; says how many.
    pub(super) async fn redrive(&self, redriving: Redriving) -> Result<u64, Error> {
        self.settle(self.engine.redrive(self.reference, redriving)).await
    }

    /// Moves one dead letter back to its queue; false if it is not there.
    pub(super) async fn redrive_task(&self, task: TaskId) -> Result<bool, Error> {
        let redriving = Redriving::one(task);
        let moved = self.settle(self.engine.redrive(self.reference, redriving)).await?;
        Ok(moved > 0)
    }

    /// Drops all that is ready or delayed; says how much.
    pub(super) async fn purge(&self) -> Result<u64, Error> {
        self.settle(self.engine.purge(self.reference)).await
    }

    /// Looks at tasks, and waits for the items that are on disk.
    pub(super) async fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
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

    /// What `look` sees of the queue; nothing if that is gone.
    pub(super) fn look<R: Default>(&self, look: impl FnOnce(&Queue) -> R) -> R {
        self.engine.look(self.reference, look).unwrap_or_default()
    }

    /// Waits for what a call comes to, once anybody may be told.
    pub(super) async fn redeem(&self, ticket: Ticket) -> Result<Outcome, Error> {
        let redeemed = self.engine.redeem(CALLER, self.reference, ticket).await;
        finished(redeemed.map_err(failed)?)
    }

    /// The same of a call that does not wait in line.
    pub(super) async fn settle<R>(&self, ticket: Ticket<R>) -> Result<R, Error> {
        self.keep(ticket.promise).await?;
        ticket.called.map_err(failed)
    }

    async fn keep(&self, promise: Promise) -> Result<(), Error> {
        self.engine.until_durable(promise).await.map_err(|_| Error::ShutDown)
    }
}

fn failed(error: CallError) -> Error {
    let class = match error {
        CallError::StaleToken | CallError::Answering => {
            return Error::Stale { message: error.to_string() };
        }
        CallError::SettledBefore => return Error::SettledBefore,
        CallError::NoQueue => "KeyError",
        CallError::Order(_) => "TypeError",
        _ => "ValueError",
    };
    Error::Remote { class: class.into(), message: error.to_string() }
}

/// What a call came to, unless that is an error. `None` is a call that the server's end cut off.
fn finished(outcome: Option<Outcome>) -> Result<Outcome, Error> {
    match outcome {
        Some(Outcome::Empty | Outcome::Unreadable { .. }) => Err(Error::Empty),
        Some(Outcome::Full | Outcome::NoRoom) => Err(Error::Full),
        Some(Outcome::Unorderable(error)) => Err(failed(CallError::Order(error))),
        Some(Outcome::ShutDown) | None => Err(Error::ShutDown),
        Some(outcome) => Ok(outcome),
    }
}
