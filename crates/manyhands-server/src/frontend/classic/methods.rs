//! The methods of a queue: from what a call asks to a verb of the engine, and from its outcome to a
//! reply.

use manyhands::wire::arguments::Wait;
use manyhands::wire::method::Method;
use manyhands::wire::pickle::Payload;
use manyhands::wire::reply::{Exception, Reader, Reply};

use tokio::task::spawn_blocking;

use super::foreign::Request;
use super::pending::{Pending, Rest, Verb};
use super::replies::{fail, reply_to};
use super::requests::{SCANNED_AT_ONCE_MAX, scan_apart};
use super::session::Session;
use super::waiter::Waiter;
use crate::engine::{Batch, Called, Completion, Promise, Reference, Ticket};
use crate::error::ConnectionError;
use crate::queue::{Grant, Order, Outcome, Prepared, Queue};
use crate::socket::Socket;

impl<S: Socket> Session<'_, S> {
    /// Applies a call of a queue, and answers it as far as that can be done at once.
    ///
    /// Every call that a session makes of a queue passes here, whatever its client is. Were callers
    /// permitted different things, it would be asked here, of the caller and the method, before the
    /// match; and of control requests in [`control`](super::control).
    pub(super) fn apply(&mut self, at: Reference, method: Method, reader: Reader) -> Rest {
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        let (ticket, of) = match method {
            Method::Put { item, wait } if is_large(&item) => {
                return Some(Box::new(Pending::Large(at, (item, wait), reader)));
            }
            Method::Put { item, wait } => (classic.put(caller, at, item, wait), Verb::Put),
            Method::Get { wait } => {
                (classic.get(caller, at, reader.protocol_max(), wait), Verb::Get(wait))
            }
            Method::Join => (classic.join(caller, at), Verb::Other),
            Method::TaskDone => (classic.task_done(caller, at), Verb::Other),
            Method::Shutdown { immediate } => {
                (classic.shut_down(caller, at, immediate), Verb::Other)
            }
            Method::Qsize => {
                return self.look(at, reader, |queue| Reply::Count(queue.len() as u64));
            }
            Method::Empty => return self.look(at, reader, |queue| Reply::Bool(queue.is_empty())),
            Method::Full => return self.look(at, reader, |queue| Reply::Bool(queue.is_full())),
            Method::Repr => {
                let reply = Reply::Text(classic.engine.describe(at));
                return self.tell(reader, &reply, Promise::NOTHING);
            }
            Method::GetValue => return self.tell(reader, &no_copy(), Promise::NOTHING),
            Method::Noop => return self.tell(reader, &Reply::None, Promise::NOTHING),
        };
        self.tell_ticket(at, ticket, of, reader)
    }

    /// Applies a put with a large item.
    async fn put_large(
        &mut self,
        at: Reference,
        (item, wait): (Payload, Wait),
        reader: Reader,
    ) -> Result<Rest, ConnectionError> {
        let (classic, caller) = (self.shared.classic.clone(), self.presence.caller());
        let item = prepare_apart(item, classic.engine.order_of(at, false)).await?;
        let ticket = classic.put(caller, at, item, wait);
        Ok(self.tell_ticket(at, ticket, Verb::Put, reader))
    }

    /// Answers a call that changes nothing.
    fn look(&mut self, at: Reference, reader: Reader, look: impl FnOnce(&Queue) -> Reply) -> Rest {
        let looked = self.shared.classic.look(self.presence.caller(), at, look);
        self.tell(reader, &looked.unwrap_or_else(fail), Promise::NOTHING)
    }

    /// Tells what came of a call, unless it has to wait.
    fn tell_ticket(
        &mut self,
        at: Reference,
        ticket: Ticket<Called<Waiter>>,
        of: Verb,
        reader: Reader,
    ) -> Rest {
        let Ticket { called, promise } = ticket;
        match called {
            Ok(Called::Now(outcome)) => self.tell_outcome(at, outcome, promise, of, reader),
            Ok(Called::Later(waiter)) => Some(Box::new(Pending::Line { at, waiter, of, reader })),
            Err(error) => self.tell(reader, &fail(error), promise),
        }
    }

    fn tell_outcome(
        &mut self,
        at: Reference,
        outcome: Outcome,
        promise: Promise,
        of: Verb,
        reader: Reader,
    ) -> Rest {
        match outcome {
            Outcome::Task(grant) if !Queue::is_evicted(&grant.payload) => {
                self.hand_out(at, grant, promise, reader)
            }
            Outcome::Task(grant) => self.collect(at, Batch::of(grant, promise), of, reader),
            outcome => self.tell(reader, &reply_of(of, outcome), promise),
        }
    }

    /// Reads the body of a task, or begins to.
    fn collect(&mut self, at: Reference, mut batch: Batch, of: Verb, reader: Reader) -> Rest {
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        match classic.collect(caller, at, &mut batch, &mut self.room) {
            Ok(None) => self.tell_batch(at, batch, of, reader),
            Ok(Some(reading)) => Some(Box::new(Pending::Body { at, batch, reading, of, reader })),
            Err(_) => Some(Box::new(Pending::NotDurable)),
        }
    }

    /// Hands out a task that is in memory; if it is gone, the next one.
    fn tell_batch(&mut self, at: Reference, mut batch: Batch, of: Verb, reader: Reader) -> Rest {
        if let Some(grant) = batch.grants.pop() {
            return self.hand_out(at, grant, batch.promise, reader);
        }
        let wait = if of == Verb::Get(Wait::Forever) { Wait::Forever } else { Wait::No };
        let (classic, caller) = (&self.shared.classic, self.presence.caller());
        let ticket = classic.get(caller, at, reader.protocol_max(), wait);
        self.tell_ticket(at, ticket.after(batch.promise), of, reader)
    }

    fn hand_out(&mut self, at: Reference, grant: Grant, promise: Promise, reader: Reader) -> Rest {
        self.unconfirmed = Some((at, grant.token));
        self.tell_item(reader, Reply::Item(grant.payload), promise)
    }

    /// Waits for what a request waits for, and goes on with it.
    pub(super) async fn finish(&mut self, pending: Pending) -> Result<Rest, ConnectionError> {
        match pending {
            Pending::Scan(body) => {
                let scanned = scan_apart(body.clone(), self.shared.clone()).await;
                Ok(self.answer(body, scanned))
            }
            Pending::Line { at, waiter, of, reader } => {
                let Some(told) = self.wait_parked(waiter).await? else { return Ok(None) };
                let Completion { outcome, promise, .. } = told;
                Ok(self.tell_outcome(at, outcome, promise, of, reader))
            }
            Pending::Body { at, batch, reading, of, reader } => {
                let (classic, caller) = (&self.shared.classic, self.presence.caller());
                let arriving = classic.arrive(caller, at, batch, reading);
                let Some(told) = self.unless_given_up(arriving).await? else { return Ok(None) };
                let (batch, room) = told?;
                self.room = room;
                Ok(self.tell_batch(at, batch, of, reader))
            }
            Pending::Guest(request) => self.pass_on(request).await.map(|()| None),
            Pending::Carries(carried, at, asked, reader) => {
                self.tell_guest(Request::Carried(carried)).await?;
                Ok(self.apply(at, asked, reader))
            }
            Pending::Large(at, put, reader) => self.put_large(at, put, reader).await,
            Pending::Reply(reader, reply, promise) => {
                self.make_room(reply.item_len() as u64).await?;
                Ok(self.tell(reader, &reply, promise))
            }
            Pending::NotDurable => Err(ConnectionError::NotDurable),
        }
    }
}

/// Whether to copy an item takes so long that nobody shall wait for it.
fn is_large(item: &Payload) -> bool {
    item.bytes.len() > SCANNED_AT_ONCE_MAX
}

/// Copies a large item out of the message that brought it, and finds its place in this order, on a
/// thread of its own. There the message goes, too.
async fn prepare_apart(item: Payload, order: Order) -> Result<Prepared, ConnectionError> {
    let preparing = spawn_blocking(move || Prepared::new(item, None, order));
    preparing.await.map_err(|_| ConnectionError::NotDurable)
}

fn reply_of(of: Verb, outcome: Outcome) -> Reply {
    match of {
        Verb::Put => reply_to(outcome, Exception::PutShutDown),
        Verb::Get(_) | Verb::Other => reply_to(outcome, Exception::GetShutDown),
    }
}

fn no_copy() -> Reply {
    Reply::Unserializable("TypeError: a queue cannot be copied; use get() and put()\n".into())
}
