//! The methods that only our own clients have: batches, leases, and what is done with dead letters.

use std::vec::IntoIter;

use manyhands::wire::extra::{Beside, Extra, Handed, HandedItem, Manner, Peek, PutTerms};
use manyhands::wire::message::{Exception, Reader, Reply, Wait};
use manyhands::wire::pickle::Payload;
use tokio::task::yield_now;

use super::{ConnectionError, Reference, Session, Socket, fail, reply_to};
use crate::config::SMALL_BYTES;
use crate::engine::{
    Added, BATCH_AT_ONCE, CallError, Called, Looked, Reading, Redriving, Signer, Taking, Waiter,
};
use crate::queue::{Grant, Outcome, Patience, Prepared, Retry, TaskId, Terms};

/// Most items of one reply that hands out one.
const ONE: usize = 1;

/// What a call of ours comes to at once. Most are over: they need no future of their own.
pub(super) enum Begun {
    Over(Reply),
    Waits(Box<Waits>),
}

/// A call of ours that waits.
pub(super) enum Waits {
    /// For room, or for what a task's result has to wait for.
    Put { waiter: Waiter, told: Told },
    /// For its turn, because others come in between the parts of a batch.
    Items { items: Vec<Payload>, wait: Wait },
    /// For room for the next item, or until what came of that is durable.
    PutMany { items: IntoIter<Prepared>, added: Added, patience: Patience },
    /// For the first task.
    Task { waiter: Waiter, order: Order },
    /// For its turn to take more.
    More { grants: Vec<Grant>, order: Order },
    /// For the rest of many dead letters.
    Redrive(Redriving),
    /// For the disk, where the tasks that were taken are.
    Bodies { grants: Vec<Grant>, reading: Reading, order: Order },
    /// For memory for what is told of each task, and for its turn to be told more.
    Infos { grants: Vec<Grant>, order: Order },
    /// For memory for what is told of tasks, and for its turn to look at more of them.
    Look(Peek),
}

/// What the reply to a put that was accepted says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// Whether the task is new.
    IsNew,
    /// The task's number, if it is new.
    Number,
}

/// What is to be handed out, and how.
#[derive(Clone, Copy)]
pub(super) struct Order {
    manner: Manner,
    taking: Taking,
    is_list: bool,
}

impl<S: Socket> Session<'_, S> {
    /// Answers a call of ours, as far as that can be done at once.
    pub(super) fn begin_extra(
        &mut self,
        at: Reference,
        extra: Extra,
    ) -> Result<Begun, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let answer = match extra {
            Extra::Put { item, wait, terms, id } => {
                return Ok(self.put_on_terms(at, item, wait, terms, id));
            }
            Extra::PutMany { items, wait } => return Ok(self.put_many(at, items, wait)),
            Extra::Take { manner, max, wait } => return self.take(at, manner, max, wait),
            Extra::Peek(peek) => return Ok(Begun::Waits(Box::new(Waits::Look(peek)))),
            Extra::Ack { token, result, wait } => {
                let called = engine.ack(session, at, token, result, wait);
                return Ok(self.settle(called, Told::Nothing));
            }
            Extra::Nack { token, delay, reason, give_up } => {
                let retry = if give_up { Retry::Never } else { Retry::from(delay) };
                engine.nack(session, at, token, retry, &reason).map(|()| Reply::None)
            }
            Extra::Extend { token, hold } => {
                engine.extend(session, at, token, hold).map(|()| Reply::None)
            }
            Extra::Redrive { max } => return Ok(self.redrive(at, max)),
            Extra::Purge => engine.purge(session, at).map(Reply::Count),
            _ => Ok(Reply::None),
        };
        Ok(Begun::Over(answer.unwrap_or_else(fail)))
    }

    /// Waits where the call has to; `None` if nobody wants the reply any more.
    pub(super) async fn finish_extra(
        &mut self,
        at: Reference,
        waits: Waits,
    ) -> Result<Option<Reply>, ConnectionError> {
        match waits {
            Waits::Put { waiter, told } => {
                let outcome = self.wait_parked(waiter).await?;
                Ok(outcome.map(|outcome| put_reply(outcome, told)))
            }
            Waits::Items { items, wait } => self.put_batch(at, items, wait).await,
            Waits::PutMany { items, added, patience } => {
                self.put_rest(at, items, added, patience).await
            }
            Waits::Task { waiter, order } => {
                let grant = match self.wait_parked(waiter).await? {
                    None => return Ok(None),
                    Some(Outcome::Task(grant)) => grant,
                    Some(outcome) => return Ok(Some(reply_to(outcome, Exception::GetShutDown))),
                };
                self.take_rest(at, vec![grant], order).await
            }
            Waits::More { grants, order } => {
                yield_now().await;
                self.take_rest(at, grants, order).await
            }
            Waits::Infos { grants, order } => self.inform(at, grants, order).await.map(Some),
            Waits::Redrive(redriving) => self.redrive_rest(at, redriving).await,
            Waits::Bodies { mut grants, reading, order } => {
                let (engine, session) = (self.shared.engine.clone(), self.presence.id());
                let to = (session, at, order.taking.explicit);
                let read = engine.arrive(to, &mut grants, reading, &mut self.room).await;
                read.map_err(|_| ConnectionError::NotKept)?;
                match self.hand_out_many(at, grants, order) {
                    Begun::Over(reply) => Ok(Some(reply)),
                    Begun::Waits(waits) => Box::pin(self.finish_extra(at, *waits)).await,
                }
            }
            Waits::Look(peek) => self.look(at, peek).await,
        }
    }

    /// Moves dead letters back; the rest, if there are many or some have to be read, apart.
    fn redrive(&self, at: Reference, max: usize) -> Begun {
        let mut redriving = Redriving::of(max);
        let session = self.presence.id();
        match self.shared.engine.redrive_some(session, at, &mut redriving) {
            Err(error) => Begun::Over(fail(error)),
            Ok(false) => Begun::Over(Reply::Count(redriving.moved)),
            Ok(true) => Begun::Waits(Box::new(Waits::Redrive(redriving))),
        }
    }

    async fn redrive_rest(
        &self,
        at: Reference,
        mut redriving: Redriving,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let moved = tokio::task::spawn_blocking(move || {
            while engine.redrive_some(session, at, &mut redriving)? {}
            Ok(redriving.moved)
        });
        let moved = moved.await.map_err(|_| ConnectionError::NotKept)?;
        Ok(Some(moved.map_or_else(fail, Reply::Count)))
    }

    /// What a put or an ack comes to.
    fn settle(&mut self, called: Result<Called, CallError>, told: Told) -> Begun {
        let outcome = match called {
            Err(error) => return Begun::Over(fail(error)),
            Ok(Called::Now(outcome)) => outcome,
            Ok(Called::Later(mut waiter)) => match self.decided(&mut waiter) {
                Some(outcome) => outcome,
                None => return Begun::Waits(Box::new(Waits::Put { waiter, told })),
            },
        };
        Begun::Over(put_reply(outcome, told))
    }

    fn put_on_terms(
        &mut self,
        at: Reference,
        item: Payload,
        wait: Wait,
        PutTerms { key, delay, priority, expires }: PutTerms,
        id: bool,
    ) -> Begun {
        let told = match key {
            _ if id => Told::Number,
            Some(_) => Told::IsNew,
            None => Told::Nothing,
        };
        let key = key.map(Into::into);
        let terms = Terms { key, delay, expires, priority, ..Terms::default() };
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let called = engine.put(session, at, item, terms, wait);
        self.settle(called, told)
    }

    /// Adds a batch, in one step as far as there is room. It ends at the first item that a `put`
    /// would refuse.
    fn put_many(&mut self, at: Reference, items: Vec<Payload>, wait: Wait) -> Begun {
        if items.len() > BATCH_AT_ONCE {
            return Begun::Waits(Box::new(Waits::Items { items, wait }));
        }
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let mut items = match engine.prepare(session, at, items, wait) {
            Ok(items) => items.into_iter(),
            Err(error) => return Begun::Over(fail(error)),
        };
        let patience = engine.patience(wait);
        let added = engine.put_many(session, at, &mut items, patience);
        match added.end {
            None => Begun::Over(Reply::Count(added.count as u64)),
            Some(_) => {
                // They may wait for long, and must not keep the message that brought them.
                let items: Vec<_> = items.map(Prepared::kept).collect();
                let items = items.into_iter();
                Begun::Waits(Box::new(Waits::PutMany { items, added, patience }))
            }
        }
    }

    /// Adds a large batch, some of it at a time.
    async fn put_batch(
        &mut self,
        at: Reference,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let patience = engine.patience(wait);
        let mut prepared = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        while items.len() > 0 {
            let some = items.by_ref().take(BATCH_AT_ONCE).collect();
            match engine.prepare(session, at, some, wait) {
                Ok(some) => prepared.extend(some.into_iter().map(Prepared::kept)),
                Err(error) => return Ok(Some(fail(error))),
            }
            yield_now().await;
        }
        self.put_rest(at, prepared.into_iter(), Added { count: 0, end: None }, patience).await
    }

    /// Adds the rest of a batch of which one item was not accepted at once.
    async fn put_rest(
        &mut self,
        at: Reference,
        mut items: IntoIter<Prepared>,
        mut added: Added,
        patience: Patience,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let (mut count, mut parked) = (0, None);
        let refusal = loop {
            count += added.count as u64;
            match added.end {
                None if items.len() == 0 => return Ok(Some(Reply::Count(count))),
                None => yield_now().await,
                Some(Err(error)) => break fail(error),
                Some(Ok(Called::Now(outcome))) => break reply_to(outcome, Exception::PutShutDown),
                Some(Ok(Called::Later(mut waiter))) => {
                    // The batch is in memory until its last item is in the queue.
                    parked = parked.or_else(|| self.park());
                    let has_room = parked.is_some();
                    if !has_room {
                        // Another thread may have let this one in by now; it is the last one then.
                        match waiter.leave() {
                            Some(decided) => waiter = decided,
                            None => break Reply::Error(Exception::Full),
                        }
                    }
                    match self.wait(waiter).await? {
                        None => return Ok(None),
                        Some(Outcome::Accepted(_)) if has_room => count += 1,
                        Some(Outcome::Accepted(_)) => return Ok(Some(Reply::Count(count + 1))),
                        Some(outcome) => break reply_to(outcome, Exception::PutShutDown),
                    }
                }
            }
            added = engine.put_many(session, at, &mut items, patience);
        };
        drop(parked);
        Ok(Some(if count == 0 { refusal } else { Reply::Count(count) }))
    }

    /// Looks at tasks, at some of them at a time, and reads their items where those are on disk.
    async fn look(&mut self, at: Reference, peek: Peek) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        // What is told of tasks is copied, and belongs to nobody else.
        self.make_room(self.outbound.len() as u64 + engine.look_bytes_max()).await?;
        let mut looked = Looked::of(peek);
        loop {
            match engine.look_on(session, at, &mut looked) {
                Ok(true) => yield_now().await,
                Ok(false) => break,
                Err(error) => return Ok(Some(fail(error))),
            }
        }
        let reading = engine.read_looked(session, at, &mut looked, &mut self.room);
        if let Some(reading) = reading.map_err(|_| ConnectionError::NotKept)? {
            let (read, room) = reading.await.map_err(|_| ConnectionError::NotKept)?;
            self.room = room;
            looked.arrive(read);
        }
        Ok(Some(Reply::Peeked(looked.finish())))
    }

    /// Hands out what is there once the first item is.
    fn take(
        &mut self,
        at: Reference,
        manner: Manner,
        max: Option<usize>,
        wait: Wait,
    ) -> Result<Begun, ConnectionError> {
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let hold = if let Manner::Leased { hold } = manner { hold } else { None };
        let taking = Taking {
            protocol_max: Reader::Manyhands.protocol_max(),
            // What is to be informed about must not be settled before.
            explicit: manner != Manner::Plain,
            settles: !matches!(manner, Manner::Leased { .. }),
            hold,
            max: max.unwrap_or(ONE),
        };
        let order = Order { manner, taking, is_list: max.is_some() };
        let mut grants = Vec::new();
        match engine.take_many(session, at, taking, wait, &mut grants) {
            Ok(Called::Now(Outcome::Task(_))) if grants.len() >= BATCH_AT_ONCE => {
                Ok(Begun::Waits(Box::new(Waits::More { grants, order })))
            }
            Ok(Called::Now(Outcome::Task(_))) => self.collect(at, grants, order),
            Ok(Called::Now(outcome)) => Ok(Begun::Over(reply_to(outcome, Exception::GetShutDown))),
            Ok(Called::Later(waiter)) => Ok(Begun::Waits(Box::new(Waits::Task { waiter, order }))),
            Err(error) => Ok(Begun::Over(fail(error))),
        }
    }

    /// Takes what else is there, some of it at a time.
    async fn take_rest(
        &mut self,
        at: Reference,
        mut grants: Vec<Grant>,
        order: Order,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let mut bytes = 0;
        while engine.take_more(session, at, order.taking, &mut bytes, &mut grants) {
            yield_now().await;
        }
        match self.collect(at, grants, order)? {
            Begun::Over(reply) => Ok(Some(reply)),
            Begun::Waits(waits) => Box::pin(self.finish_extra(at, *waits)).await,
        }
    }

    /// Hands out tasks once they are in memory.
    fn collect(
        &mut self,
        at: Reference,
        mut grants: Vec<Grant>,
        order: Order,
    ) -> Result<Begun, ConnectionError> {
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let explicit = order.taking.explicit;
        let reading = engine.collect(session, at, explicit, &mut grants, &mut self.room);
        Ok(match reading.map_err(|_| ConnectionError::NotKept)? {
            None => self.hand_out_many(at, grants, order),
            Some(reading) => Begun::Waits(Box::new(Waits::Bodies { grants, reading, order })),
        })
    }

    fn hand_out_many(&mut self, at: Reference, grants: Vec<Grant>, order: Order) -> Begun {
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let beside: Vec<Beside> = match order.manner {
            Manner::Plain => grants.iter().map(|_| Beside::Nothing).collect(),
            Manner::Informed => {
                if grants.len() > BATCH_AT_ONCE || engine.info_bytes(at, &grants) > SMALL_BYTES {
                    return Begun::Waits(Box::new(Waits::Infos { grants, order }));
                }
                engine.inform(session, at, &grants).into_iter().map(Beside::Info).collect()
            }
            Manner::Leased { .. } => {
                let signer = match self.signer_of(at) {
                    Ok(signer) => signer,
                    Err(error) => return Begun::Over(fail(error)),
                };
                grants.iter().map(|grant| Beside::Lease(signer.sign(grant.token))).collect()
            }
        };
        Begun::Over(self.handed(at, grants, beside, order))
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
        grants: Vec<Grant>,
        order: Order,
    ) -> Result<Reply, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let mut beside = Vec::with_capacity(grants.len());
        let mut bytes = self.outbound.len() as u64;
        for some in grants.chunks(BATCH_AT_ONCE) {
            bytes += engine.info_bytes(at, some);
            self.make_room(bytes).await?;
            beside.extend(engine.inform(session, at, some).into_iter().map(Beside::Info));
            yield_now().await;
        }
        Ok(self.handed(at, grants, beside, order))
    }

    fn handed(
        &mut self,
        at: Reference,
        grants: Vec<Grant>,
        beside: Vec<Beside>,
        order: Order,
    ) -> Reply {
        self.unconfirmed.extend(grants.iter().map(|grant| (at, grant.token)));
        let handed = |(grant, with): (Grant, _)| HandedItem { payload: grant.payload, with };
        Reply::Handed(Handed {
            items: grants.into_iter().zip(beside).map(handed).collect(),
            is_list: order.is_list,
        })
    }
}

/// A put that was accepted, or whose key was known, says what was asked for.
fn put_reply(outcome: Outcome, told: Told) -> Reply {
    match (told, outcome) {
        (Told::IsNew, Outcome::Accepted(_)) => Reply::Bool(true),
        (Told::IsNew, Outcome::Known) => Reply::Bool(false),
        (Told::Number, Outcome::Accepted(TaskId(task))) => Reply::Count(task),
        (_, outcome) => reply_to(outcome, Exception::PutShutDown),
    }
}
