//! The methods that only our own clients have: batches, leases, and what is done with dead letters.

use manyhands::wire::extra::{Beside, Extra, Handed, HandedItem, Manner, PutTerms};
use manyhands::wire::message::{Exception, Reader, Reply, Wait};
use manyhands::wire::pickle::Payload;

use super::{ConnectionError, Reference, Session, Socket, fail, reply_to};
use crate::engine::{CallError, Called, Taking};
use crate::queue::{Grant, Outcome, Terms};

/// Most items of one reply that hands out one.
const ONE: usize = 1;

impl<S: Socket> Session<'_, S> {
    /// Answers a call of ours; `None` if nobody wants the reply any more.
    pub(super) async fn serve_extra(
        &mut self,
        at: Reference,
        extra: Extra,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let answer = match extra {
            Extra::Put { item, wait, terms } => {
                return self.put_on_terms(at, item, wait, terms).await;
            }
            Extra::PutMany { items, wait } => return self.put_many(at, items, wait).await,
            Extra::Take { manner, max, wait } => return self.take(at, manner, max, wait).await,
            Extra::Ack { token, result, wait } => {
                let called = engine.ack(session, at, token, result, wait);
                return self.settle_call(called).await;
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
        Ok(Some(answer.unwrap_or_else(fail)))
    }

    /// How a call ends, after it has waited if it must.
    async fn outcome(&mut self, called: Called) -> Result<Option<Outcome>, ConnectionError> {
        match called {
            Called::Now(outcome) => Ok(Some(outcome)),
            Called::Later(waiter) => self.wait_parked(waiter).await,
        }
    }

    async fn settle_call(
        &mut self,
        called: Result<Called, CallError>,
    ) -> Result<Option<Reply>, ConnectionError> {
        let called = match called {
            Ok(called) => called,
            Err(error) => return Ok(Some(fail(error))),
        };
        let outcome = self.outcome(called).await?;
        Ok(outcome.map(|outcome| reply_to(outcome, Exception::PutShutDown)))
    }

    async fn put_on_terms(
        &mut self,
        at: Reference,
        item: Payload,
        wait: Wait,
        PutTerms { key, delay, priority, expires }: PutTerms,
    ) -> Result<Option<Reply>, ConnectionError> {
        let has_key = key.is_some();
        let key = key.map(Into::into);
        let terms = Terms { key, delay, expires, priority, origin: None };
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let called = match engine.put(session, at, item, Some(Box::new(terms)), wait) {
            Ok(called) => called,
            Err(error) => return Ok(Some(fail(error))),
        };
        let outcome = self.outcome(called).await?;
        Ok(outcome.map(|outcome| match outcome {
            Outcome::Accepted | Outcome::Known if has_key => {
                Reply::Bool(outcome == Outcome::Accepted)
            }
            outcome => reply_to(outcome, Exception::PutShutDown),
        }))
    }

    /// Adds a batch, in one step as far as there is room. It ends at the first item that a `put`
    /// would refuse.
    async fn put_many(
        &mut self,
        at: Reference,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let mut items = match engine.prepare(session, at, items, wait) {
            Ok(items) => items.into_iter(),
            Err(error) => return Ok(Some(fail(error))),
        };
        let patience = engine.patience(wait);
        let (mut count, mut parked) = (0, None);
        let refusal = loop {
            let added = engine.put_many(session, at, &mut items, patience);
            count += added.count as u64;
            match added.end {
                None => return Ok(Some(Reply::Count(count))),
                Some(Err(error)) => break fail(error),
                Some(Ok(Called::Now(outcome))) => break reply_to(outcome, Exception::PutShutDown),
                Some(Ok(Called::Later(mut waiter))) => {
                    // The batch is in memory until its last item is in the queue.
                    let memory = self.park_memory();
                    let has_room = memory.is_ok();
                    match memory {
                        Ok(memory) => parked = parked.or(memory),
                        // Another thread may have let this one in by now; it is the last one then.
                        Err(_) => match waiter.leave() {
                            Some(decided) => waiter = decided,
                            None => break Reply::Error(Exception::Full),
                        },
                    }
                    match self.wait(waiter).await? {
                        None => return Ok(None),
                        Some(Outcome::Accepted) if has_room => count += 1,
                        Some(Outcome::Accepted) => return Ok(Some(Reply::Count(count + 1))),
                        Some(outcome) => break reply_to(outcome, Exception::PutShutDown),
                    }
                }
            }
        };
        drop(parked);
        Ok(Some(if count == 0 { refusal } else { Reply::Count(count) }))
    }

    /// Hands out what is there once the first item is.
    async fn take(
        &mut self,
        at: Reference,
        manner: Manner,
        max: Option<usize>,
        wait: Wait,
    ) -> Result<Option<Reply>, ConnectionError> {
        let (engine, session) = (self.shared.engine.clone(), self.presence.id());
        let hold = if let Manner::Leased { hold } = manner { hold } else { None };
        let taking = Taking {
            protocol_max: Reader::Manyhands.protocol_max(),
            // What is to be informed about must not be settled before.
            explicit: manner != Manner::Plain,
            settles: !matches!(manner, Manner::Leased { .. }),
            hold,
            max: max.unwrap_or(ONE),
        };
        let mut grants = Vec::new();
        let called = match engine.take_many(session, at, taking, wait, &mut grants) {
            Ok(called) => called,
            Err(error) => return Ok(Some(fail(error))),
        };
        match called {
            Called::Now(Outcome::Task(_)) => {}
            called => match self.outcome(called).await? {
                None => return Ok(None),
                Some(Outcome::Task(grant)) => {
                    grants.push(grant);
                    engine.take_more(session, at, taking, &mut grants);
                }
                Some(outcome) => return Ok(Some(reply_to(outcome, Exception::GetShutDown))),
            },
        }
        let explicit = taking.explicit;
        let collected = engine.collect(session, at, explicit, &mut grants).await;
        collected.map_err(|_| ConnectionError::NotKept)?;
        Ok(Some(self.hand_out_many(at, manner, grants, max.is_some())))
    }

    fn hand_out_many(
        &mut self,
        at: Reference,
        manner: Manner,
        grants: Vec<Grant>,
        is_list: bool,
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
