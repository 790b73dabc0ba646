//! The methods that only our own clients have: batches, leases, and what is done with dead letters.

use std::vec::IntoIter;

use manyhands::wire::extra::{Beside, Extra, Handed, HandedItem, Manner, PutTerms};
use manyhands::wire::message::{Exception, Reader, Reply, Wait};
use manyhands::wire::pickle::Payload;

use super::{ConnectionError, Reference, Session, Socket, fail, reply_to};
use crate::engine::{Added, CallError, Called, Reading, Taking, Waiter};
use crate::queue::{Grant, Outcome, Patience, Prepared, Terms};

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
    Put { waiter: Waiter, has_key: bool },
    /// For room for the next item, or until what came of that is durable.
    PutMany { items: IntoIter<Prepared>, added: Added, patience: Patience },
    /// For the first task.
    Task { waiter: Waiter, order: Order },
    /// For the disk, where the tasks that were taken are.
    Bodies { grants: Vec<Grant>, reading: Reading, order: Order },
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
            Extra::Put { item, wait, terms } => return Ok(self.put_on_terms(at, item, wait, terms)),
            Extra::PutMany { items, wait } => return Ok(self.put_many(at, items, wait)),
            Extra::Take { manner, max, wait } => return self.take(at, manner, max, wait),
            Extra::Ack { token, result, wait } => {
                let called = engine.ack(session, at, token, result, wait);
                return Ok(self.settle(called, false));
            }
            Extra::Nack { token, delay, reason } => {
                engine.nack(session, at, token, delay, &reason).map(|()| Reply::None)
            }
            Extra::Extend { token, hold } => {
                engine.extend(session, at, token, hold).map(|()| Reply::None)
            }
            Extra::Redrive { max } => engine.redrive(session, at, max).map(Reply::Count),
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
            Waits::Put { waiter, has_key } => {
                let outcome = self.wait_parked(waiter).await?;
                Ok(outcome.map(|outcome| put_reply(outcome, has_key)))
            }
            Waits::PutMany { items, added, patience } => {
                self.put_rest(at, items, added, patience).await
            }
            Waits::Task { waiter, order } => {
                let grant = match self.wait_parked(waiter).await? {
                    None => return Ok(None),
                    Some(Outcome::Task(grant)) => grant,
                    Some(outcome) => return Ok(Some(reply_to(outcome, Exception::GetShutDown))),
                };
                let (engine, session) = (self.shared.engine.clone(), self.presence.id());
                let mut grants = vec![grant];
                engine.take_more(session, at, order.taking, &mut grants);
                match self.collect(at, grants, order)? {
                    Begun::Over(reply) => Ok(Some(reply)),
                    Begun::Waits(waits) => Box::pin(self.finish_extra(at, *waits)).await,
                }
            }
            Waits::Bodies { mut grants, reading, order } => {
                let (engine, session) = (self.shared.engine.clone(), self.presence.id());
                let to = (session, at, order.taking.explicit);
                let read = engine.arrive(to, &mut grants, reading, &mut self.room).await;
                read.map_err(|_| ConnectionError::NotKept)?;
                Ok(Some(self.hand_out_many(at, grants, order)))
            }
        }
    }

    /// What a put or an ack comes to.
    fn settle(&mut self, called: Result<Called, CallError>, has_key: bool) -> Begun {
        let outcome = match called {
            Err(error) => return Begun::Over(fail(error)),
            Ok(Called::Now(outcome)) => outcome,
            Ok(Called::Later(mut waiter)) => match self.decided(&mut waiter) {
                Some(outcome) => outcome,
                None => return Begun::Waits(Box::new(Waits::Put { waiter, has_key })),
            },
        };
        Begun::Over(put_reply(outcome, has_key))
    }

    fn put_on_terms(
        &mut self,
        at: Reference,
        item: Payload,
        wait: Wait,
        PutTerms { key, delay, priority, expires }: PutTerms,
    ) -> Begun {
        let has_key = key.is_some();
        let key = key.map(Into::into);
        let terms = Terms { key, delay, expires, priority, origin: None };
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let called = engine.put(session, at, item, Some(Box::new(terms)), wait);
        self.settle(called, has_key)
    }

    /// Adds a batch, in one step as far as there is room. It ends at the first item that a `put`
    /// would refuse.
    fn put_many(&mut self, at: Reference, items: Vec<Payload>, wait: Wait) -> Begun {
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
                None => return Ok(Some(Reply::Count(count))),
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
                        Some(Outcome::Accepted) if has_room => count += 1,
                        Some(Outcome::Accepted) => return Ok(Some(Reply::Count(count + 1))),
                        Some(outcome) => break reply_to(outcome, Exception::PutShutDown),
                    }
                }
            }
            added = engine.put_many(session, at, &mut items, patience);
        };
        drop(parked);
        Ok(Some(if count == 0 { refusal } else { Reply::Count(count) }))
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
            Ok(Called::Now(Outcome::Task(_))) => self.collect(at, grants, order),
            Ok(Called::Now(outcome)) => Ok(Begun::Over(reply_to(outcome, Exception::GetShutDown))),
            Ok(Called::Later(waiter)) => Ok(Begun::Waits(Box::new(Waits::Task { waiter, order }))),
            Err(error) => Ok(Begun::Over(fail(error))),
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
            None => Begun::Over(self.hand_out_many(at, grants, order)),
            Some(reading) => Begun::Waits(Box::new(Waits::Bodies { grants, reading, order })),
        })
    }

    fn hand_out_many(
        &mut self,
        at: Reference,
        grants: Vec<Grant>,
        Order { manner, is_list, .. }: Order,
    ) -> Reply {
        let (engine, session) = (&self.shared.engine, self.presence.id());
        let beside: Vec<Beside> = match manner {
            Manner::Plain => grants.iter().map(|_| Beside::Nothing).collect(),
            Manner::Informed => {
                engine.inform(session, at, &grants).into_iter().map(Beside::Info).collect()
            }
            Manner::Leased { .. } => {
                let mark = engine.mark(at);
                grants.iter().map(|grant| Beside::Lease(grant.token.on_the_wire(mark))).collect()
            }
        };
        self.unconfirmed.extend(grants.iter().map(|grant| (at, grant.token)));
        let handed = |(grant, with): (Grant, _)| HandedItem { payload: grant.payload, with };
        Reply::Handed(Handed {
            items: grants.into_iter().zip(beside).map(handed).collect(),
            is_list,
        })
    }
}

/// A put with a key says whether the task is new.
fn put_reply(outcome: Outcome, has_key: bool) -> Reply {
    match outcome {
        Outcome::Accepted | Outcome::Known if has_key => Reply::Bool(outcome == Outcome::Accepted),
        outcome => reply_to(outcome, Exception::PutShutDown),
    }
}
