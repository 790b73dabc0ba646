//! Calls that are about many tasks: batches, leases, looks, and what is done with dead letters. They go
//! on part by part, so that others come in between.

use std::vec::IntoIter;

use manyhands::wire::arguments::Wait;
use manyhands::wire::method::Manner;
use manyhands::wire::pickle::Payload;
use manyhands::wire::reply::{Exception, Reader, Reply};
use manyhands::wire::tasks::{Beside, Handed, HandedItem, Peek};
use tokio::task::{spawn_blocking, yield_now};

use super::pending::{BatchPending, Order, Pending, Rest};
use super::replies::{fail, reply_to};
use super::requests::SCANNED_AT_ONCE_MAX;
use super::session::Session;
use super::waiter::Waiter;
use crate::config::SMALL_BYTES;
use crate::engine::{
    Added, BATCH_AT_ONCE, Batch, Called, Looked, Promise, Redriving, Reference, Signer, Taking,
    Ticket,
};
use crate::error::{CallError, ConnectionError};
use crate::queue::{Outcome, Patience, Prepared, SettledBy, TaskId};
use crate::socket::Socket;

/// Most items of one reply that hands out one.
const ONE: usize = 1;
/// Only our own clients make these calls.
const READER: Reader = Reader::Manyhands;

impl<S: Socket> Session<'_, S> {
    /// Waits for what a call waits for, and goes on with it.
    pub(super) async fn finish_batch(
        &mut self,
        at: Reference,
        pending: BatchPending,
    ) -> Result<Rest, ConnectionError> {
        match pending {
            BatchPending::Items { items, wait } => self.put_batch(at, items, wait).await,
            BatchPending::PutMany { items, added, patience } => {
                self.put_rest(at, items, added, patience).await
            }
            BatchPending::Task { waiter, order } => {
                let Some(ended) = self.wait_parked(waiter).await? else { return Ok(None) };
                match ended.outcome {
                    Outcome::Task(grant) => {
                        self.take_rest(at, Batch::of(grant, ended.promise), order).await
                    }
                    outcome => {
                        let reply = reply_to(outcome, Exception::GetShutDown);
                        Ok(self.tell(READER, &reply, ended.promise))
                    }
                }
            }
            BatchPending::More { batch, order } => {
                yield_now().await;
                self.take_rest(at, batch, order).await
            }
            BatchPending::Infos { batch, order } => self.inform(at, batch, order).await,
            BatchPending::Redrive(redriving) => self.redrive_rest(at, redriving).await,
            BatchPending::Bodies { batch, reading, order } => {
                let (classic, caller) = (&self.shared.classic, self.presence.caller());
                let (batch, room) = classic.arrive(caller, at, batch, reading).await?;
                self.room = room;
                Ok(self.hand_out_many(at, batch, order))
            }
            BatchPending::Look(peek) => self.peek(at, peek).await,
        }
    }

    /// Moves dead letters back; the rest, if there are many or some have to be read, apart.
    pub(super) fn redrive(&mut self, at: Reference, max: usize, task: Option<u64>) -> Rest {
        let one = task.map(|task| Redriving::one(TaskId(task)));
        let mut redriving = one.unwrap_or_else(|| Redriving::of(max));
        let engine = self.shared.classic.engine_for(self.presence.caller(), at);
        let reply = match engine.redrive_some(at, &mut redriving) {
            Err(error) => fail(error),
            Ok(false) => Reply::Count(redriving.moved),
            Ok(true) => return waits(at, BatchPending::Redrive(redriving)),
        };
        self.tell(READER, &reply, redriving.promise)
    }

    async fn redrive_rest(
        &mut self,
        at: Reference,
        redriving: Redriving,
    ) -> Result<Rest, ConnectionError> {
        let engine = self.shared.engine.clone();
        let moved = spawn_blocking(move || engine.redrive(at, redriving));
        let Ticket { called, promise } = moved.await.map_err(|_| ConnectionError::NotDurable)?;
        Ok(self.tell(READER, &called.map_or_else(fail, Reply::Count), promise))
    }

    /// Adds a batch, in one step as far as there is room. It ends at the first item that a `put`
    /// would refuse.
    pub(super) fn put_many(&mut self, at: Reference, items: Vec<Payload>, wait: Wait) -> Rest {
        if items.len() > BATCH_AT_ONCE || bytes(&items) > SCANNED_AT_ONCE_MAX {
            return waits(at, BatchPending::Items { items, wait });
        }
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        let mut items = match classic.engine.prepare(at, items, wait) {
            Ok(items) => items.into_iter(),
            Err(error) => return self.tell(READER, &fail(error), Promise::NOTHING),
        };
        let patience = classic.engine.patience(wait);
        let added = classic.put_many(caller, at, &mut items, patience);
        if matches!(added.end.called, Ok(None)) {
            return self.tell(READER, &Reply::Count(added.count as u64), added.end.promise);
        }
        // They may wait for long, and must not keep the message that brought them.
        let items: Vec<_> = items.map(Prepared::detached).collect();
        waits(at, BatchPending::PutMany { items: items.into_iter(), added, patience })
    }

    /// Adds a large batch, some of it at a time.
    async fn put_batch(
        &mut self,
        at: Reference,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Rest, ConnectionError> {
        let engine = self.shared.engine.clone();
        let patience = engine.patience(wait);
        let mut prepared = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        while items.len() > 0 {
            let some: Vec<_> = items.by_ref().take(BATCH_AT_ONCE).collect();
            let is_large = bytes(&some) > SCANNED_AT_ONCE_MAX;
            let engine = engine.clone();
            let prepare = move || {
                let some = engine.prepare(at, some, wait)?;
                Ok(some.into_iter().map(Prepared::detached).collect::<Vec<_>>())
            };
            let some = match is_large {
                true => spawn_blocking(prepare).await.map_err(|_| ConnectionError::NotDurable)?,
                false => prepare(),
            };
            match some {
                Ok(some) => prepared.extend(some),
                Err(error) => return Ok(self.tell(READER, &fail(error), Promise::NOTHING)),
            }
            yield_now().await;
        }
        self.put_rest(at, prepared.into_iter(), Added::nothing(), patience).await
    }

    /// Adds the rest of a batch of which one item was not accepted at once.
    async fn put_rest(
        &mut self,
        at: Reference,
        mut items: IntoIter<Prepared>,
        mut added: Added<Waiter>,
        patience: Patience,
    ) -> Result<Rest, ConnectionError> {
        let (classic, caller) = (self.shared.classic.clone(), self.presence.caller());
        let (mut count, mut parked) = (0, None);
        let mut promise = Promise::NOTHING;
        let refusal = loop {
            count += added.count as u64;
            promise = promise.and(added.end.promise);
            match added.end.called {
                Ok(None) if items.len() == 0 => {
                    return Ok(self.tell(READER, &Reply::Count(count), promise));
                }
                Ok(None) => yield_now().await,
                Err(error) => break fail(error),
                Ok(Some(Called::Now(outcome))) => break reply_to(outcome, Exception::PutShutDown),
                Ok(Some(Called::Later(mut waiter))) => {
                    // The batch is in memory until its last item is in the queue.
                    parked = parked.or_else(|| self.park());
                    let has_room = parked.is_some();
                    if !has_room {
                        // Another thread may have let this one in by now; it is the last one then.
                        match waiter.leave() {
                            Ok(decided) => waiter = decided,
                            Err(before) => {
                                promise = promise.and(before);
                                break Reply::Error(Exception::Full);
                            }
                        }
                    }
                    let Some(ended) = self.wait(waiter).await? else { return Ok(None) };
                    promise = promise.and(ended.promise);
                    match ended.outcome {
                        Outcome::Accepted(_) if has_room => count += 1,
                        Outcome::Accepted(_) => {
                            return Ok(self.tell(READER, &Reply::Count(count + 1), promise));
                        }
                        outcome => break reply_to(outcome, Exception::PutShutDown),
                    }
                }
            }
            added = classic.put_many(caller, at, &mut items, patience);
        };
        drop(parked);
        Ok(self.tell(READER, &if count == 0 { refusal } else { Reply::Count(count) }, promise))
    }

    /// Looks at tasks, at some of them at a time, and reads their items where those are on disk.
    async fn peek(&mut self, at: Reference, peek: Peek) -> Result<Rest, ConnectionError> {
        let caller = self.presence.caller();
        let engine = self.shared.classic.engine_for(caller, at).clone();
        // What is told of tasks is copied, and belongs to nobody else.
        self.make_room(self.outbox.bytes() + engine.look_bytes_max()).await?;
        let mut looked = Looked::of(peek);
        loop {
            match engine.look_on(at, &mut looked) {
                Ok(true) => yield_now().await,
                Ok(false) => break,
                Err(error) => return Ok(self.tell(READER, &fail(error), Promise::NOTHING)),
            }
        }
        let reading = engine.read_looked(caller, at, &mut looked, &mut self.room);
        if let Some(reading) = reading.map_err(|_| ConnectionError::NotDurable)? {
            let (read, room) = reading.await.map_err(|_| ConnectionError::NotDurable)?;
            self.room = room;
            looked.arrive(read);
        }
        let reply = Reply::Peeked(looked.finish());
        Ok(self.tell_items(READER, reply, Promise::NOTHING))
    }

    /// Hands out what is there once the first item is.
    pub(super) fn take(
        &mut self,
        at: Reference,
        manner: Manner,
        max: Option<usize>,
        wait: Wait,
    ) -> Rest {
        let settled_by = match manner {
            Manner::Leased { hold } => hold.map_or(SettledBy::Token, SettledBy::TokenWithin),
            Manner::Plain | Manner::Informed => SettledBy::Session,
        };
        let taking = Taking {
            protocol_max: READER.protocol_max(),
            settled_by,
            is_informed: manner == Manner::Informed,
            max: max.unwrap_or(ONE),
            bytes_max: usize::MAX,
        };
        let order = Order { manner, taking, wait, is_list: max.is_some() };
        self.take_for(at, order, Promise::NOTHING)
    }

    /// Takes tasks for a call that has changed something `before`.
    fn take_for(&mut self, at: Reference, order: Order, before: Promise) -> Rest {
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        let mut batch = Batch::default();
        batch.promise = before;
        let ticket = classic.get_many(caller, at, order.taking, order.wait, &mut batch);
        let reply = match ticket.called {
            Ok(None) if batch.grants.len() >= BATCH_AT_ONCE => {
                return waits(at, BatchPending::More { batch, order });
            }
            Ok(None) => return self.collect_many(at, batch, order),
            Ok(Some(Called::Later(mut waiter))) => {
                waiter.wait_for(before);
                return waits(at, BatchPending::Task { waiter, order });
            }
            Ok(Some(Called::Now(outcome))) => reply_to(outcome, Exception::GetShutDown),
            Err(error) => fail(error),
        };
        self.tell(READER, &reply, ticket.promise.and(before))
    }

    /// Takes what else is there, some of it at a time.
    async fn take_rest(
        &mut self,
        at: Reference,
        mut batch: Batch,
        order: Order,
    ) -> Result<Rest, ConnectionError> {
        let (classic, caller) = (self.shared.classic.clone(), self.presence.caller());
        while classic.take_more(caller, at, order.taking, &mut batch) {
            yield_now().await;
        }
        Ok(self.collect_many(at, batch, order))
    }

    /// Hands out tasks once they are in memory.
    fn collect_many(&mut self, at: Reference, mut batch: Batch, order: Order) -> Rest {
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        match classic.collect(caller, at, &mut batch, &mut self.room) {
            Ok(None) => self.hand_out_many(at, batch, order),
            Ok(Some(reading)) => waits(at, BatchPending::Bodies { batch, reading, order }),
            Err(_) => Some(Box::new(Pending::NotDurable)),
        }
    }

    fn hand_out_many(&mut self, at: Reference, mut batch: Batch, order: Order) -> Rest {
        let (engine, caller) = (&self.shared.engine, self.presence.caller());
        if batch.grants.is_empty() {
            // All were gone before they were read: on to the next ones.
            let wait = if order.wait == Wait::Forever { Wait::Forever } else { Wait::No };
            return self.take_for(at, Order { wait, ..order }, batch.promise);
        }
        let grants = &batch.grants;
        let beside: Vec<Beside> = match order.manner {
            Manner::Plain => grants.iter().map(|_| Beside::Nothing).collect(),
            Manner::Informed => {
                if grants.len() > BATCH_AT_ONCE || engine.info_bytes(at, grants) > SMALL_BYTES {
                    return waits(at, BatchPending::Infos { batch, order });
                }
                let (infos, promise) = engine.inform(caller, at, grants);
                batch.promise = batch.promise.and(promise);
                infos.into_iter().map(Beside::Info).collect()
            }
            Manner::Leased { .. } => {
                let signer = match self.signer_of(at) {
                    Ok(signer) => signer,
                    Err(error) => return self.tell(READER, &fail(error), batch.promise),
                };
                let grants = &batch.grants;
                grants.iter().map(|grant| Beside::Lease(signer.sign(grant.token))).collect()
            }
        };
        self.hand_out_beside(at, batch, beside, order)
    }

    /// What signs the tokens of a queue: asked of the engine once, not for each batch.
    fn signer_of(&mut self, at: Reference) -> Result<Signer, CallError> {
        if let Some((_, signer)) = self.signer.filter(|(of, _)| *of == at) {
            return Ok(signer);
        }
        let signer = self.shared.engine.signer(at)?;
        self.signer = Some((at, signer));
        Ok(signer)
    }

    /// Says of many tasks where they come from, of some of them at a time.
    async fn inform(
        &mut self,
        at: Reference,
        mut batch: Batch,
        order: Order,
    ) -> Result<Rest, ConnectionError> {
        let (engine, caller) = (self.shared.engine.clone(), self.presence.caller());
        let mut beside = Vec::with_capacity(batch.grants.len());
        let mut bytes = self.outbox.bytes();
        for some in batch.grants.chunks(BATCH_AT_ONCE) {
            bytes += engine.info_bytes(at, some);
            self.make_room(bytes).await?;
            let (infos, promise) = engine.inform(caller, at, some);
            beside.extend(infos.into_iter().map(Beside::Info));
            batch.promise = batch.promise.and(promise);
            yield_now().await;
        }
        Ok(self.hand_out_beside(at, batch, beside, order))
    }

    fn hand_out_beside(
        &mut self,
        at: Reference,
        Batch { grants, promise, .. }: Batch,
        beside: Vec<Beside>,
        order: Order,
    ) -> Rest {
        self.unconfirmed.extend(grants.iter().map(|grant| (at, grant.token)));
        let items = grants.into_iter().zip(beside);
        let items = items.map(|(grant, with)| HandedItem { payload: grant.payload, with });
        let reply = Reply::Handed(Handed { items: items.collect(), is_list: order.is_list });
        self.tell_items(READER, reply, promise)
    }
}

/// What items take, in bytes.
fn bytes(items: &[Payload]) -> usize {
    items.iter().map(|item| item.bytes.len()).sum()
}

fn waits(at: Reference, pending: BatchPending) -> Rest {
    Some(Box::new(Pending::Batch(at, pending)))
}
