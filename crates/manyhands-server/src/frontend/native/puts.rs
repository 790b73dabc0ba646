//! Items that are put.
//!
//! The items of a put are added in order. If one has to wait, those behind it do, and so do further puts
//! of the session to the same queue: their items come after them.

use std::pin::Pin;
use std::vec::IntoIter;

use manyhands::wire::arguments::Wait;
use manyhands::wire::native::{self, DecodeError, Item, Items, PutTerms, Route, reply};
use tokio::sync::oneshot;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Sleep, sleep};

use super::pending::{Left, PENDING_BYTES, Rest, Turn, Waits, Whose};
use super::replies::{Refusal, cancelled, failure, full, no_memory, refusal};
use super::session::Session;
use crate::engine::{BATCH_AT_ONCE, Called, Completion, Promise, Put, Reference, Ticket, Waiter};
use crate::error::ConnectionError;
use crate::memory::Parked;
use crate::queue::{Order, Outcome, Patience, TaskId, Terms};
use crate::socket::Socket;

/// Bodies above this many bytes are read on a thread of their own, so that nobody waits.
pub(super) const READ_AT_ONCE_MAX: usize = 256 << 10;

/// Items that are to be read.
#[derive(Debug)]
pub(super) struct PutBatch {
    pub(super) put: native::Put,
    pub(super) len: usize,
    pub(super) order: Order,
}

/// Items that were read.
#[derive(Debug, Default)]
struct Read {
    items: Vec<Put>,
    has_key: bool,
}

/// A put, as far as it is not over.
#[derive(Debug)]
pub(super) struct PutRest {
    route: Route,
    at: Reference,
    /// Those that are not in the queue.
    items: IntoIter<Put>,
    /// Bytes of all.
    len: usize,
    patience: Patience,
    wait: Wait,
    /// How many are in the queue.
    count: u32,
    /// The numbers of these, if they are asked for or may say something.
    numbers: Option<Vec<Option<TaskId>>>,
    is_numbered: bool,
    /// What these wait for.
    promise: Promise,
    /// Memory of a put that waits.
    parked: Option<Parked>,
    /// Whether some items were left out, because there is no memory to keep them until their turn.
    is_cut: bool,
    /// Whether further puts wait for the end of this one.
    is_first: bool,
}

impl Read {
    fn push(&mut self, Item { payload, terms }: Item, order: Order) {
        let terms = terms.map(|terms| terms_of(*terms));
        self.has_key |= terms.as_ref().is_some_and(|terms| terms.key.is_some());
        self.items.push(Put::new(payload, terms, order));
    }

    fn all(items: Items, order: Order) -> Result<Self, DecodeError> {
        let mut read = Self::default();
        for item in items {
            read.push(item?, order);
        }
        Ok(read)
    }

    /// The same, letting others have their turn.
    async fn gradually(mut items: Items, order: Order) -> Result<Self, DecodeError> {
        let mut read = Self::default();
        loop {
            for _ in 0..BATCH_AT_ONCE {
                let Some(item) = items.next() else { return Ok(read) };
                read.push(item?, order);
            }
            yield_now().await;
        }
    }

    fn detached(self) -> Self {
        Self { items: self.items.into_iter().map(Put::detached).collect(), ..self }
    }
}

fn terms_of(terms: PutTerms) -> Box<Terms> {
    let PutTerms { key, delay, priority, expires } = terms;
    let key = key.map(Into::into);
    Box::new(Terms { key, delay, expires, priority, ..Terms::default() })
}

impl<S: Socket> Session<'_, S> {
    /// Adds items, in one step as far as there is room.
    pub(super) fn put(
        &mut self,
        route: Route,
        put: native::Put,
        (count, len): (u32, usize),
    ) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let order = open.order;
        let batch = PutBatch { put, len, order };
        if len > READ_AT_ONCE_MAX || count as usize > BATCH_AT_ONCE {
            return Some(Box::new(Left::Put(route, batch)));
        }
        let read = Read::all(batch.put.items.clone(), order);
        self.put_read(route, &batch, read)
    }

    /// The same for many items, or large ones.
    pub(super) async fn put_large(
        &mut self,
        route: Route,
        batch: PutBatch,
    ) -> Result<Rest, ConnectionError> {
        let PutBatch { ref put, len, order } = batch;
        let items = put.items.clone();
        let read = if len > READ_AT_ONCE_MAX {
            let read = move || Read::all(items, order).map(Read::detached);
            spawn_blocking(read).await.map_err(|_| ConnectionError::NotDurable)?
        } else {
            Read::gradually(items, order).await
        };
        Ok(self.put_read(route, &batch, read))
    }

    fn put_read(
        &mut self,
        route: Route,
        batch: &PutBatch,
        read: Result<Read, DecodeError>,
    ) -> Rest {
        let Read { items, has_key } = match read {
            Ok(read) => read,
            Err(error) => return self.refuse_malformed(route, &error),
        };
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let wait = batch.put.wait;
        let rest = PutRest {
            route,
            at: open.reference,
            items: items.into_iter(),
            len: batch.len,
            patience: self.shared.engine.patience(wait),
            wait,
            count: 0,
            numbers: (batch.put.numbered || has_key).then(Vec::new),
            is_numbered: batch.put.numbered,
            promise: Promise::NOTHING,
            parked: None,
            is_cut: false,
            is_first: false,
        };
        if open.behind.is_some() { self.put_behind(rest) } else { self.put_on(rest) }
    }

    /// Adds items, up to the first that is not accepted at once, or some of them.
    pub(super) fn put_on(&mut self, mut rest: PutRest) -> Rest {
        let (at, patience, caller) = (rest.at, rest.patience, self.caller());
        let engine = &self.shared.engine;
        let added = engine.put_many(caller, at, &mut rest.items, patience, rest.numbers.as_mut());
        let Ticket { called, promise } = added.end;
        rest.count += u32::try_from(added.count).unwrap_or(u32::MAX);
        rest.promise = rest.promise.and(promise);
        self.add_work(added.count);
        match called {
            Ok(None) if rest.items.len() == 0 => self.tell_added(rest, None),
            Ok(None) => Some(Box::new(Left::PutOn(Box::new(rest)))),
            Ok(Some(Called::Now(outcome))) => self.tell_added(rest, refusal(&outcome)),
            Ok(Some(Called::Later(waiter))) => self.put_in_line(waiter, rest),
            Err(error) => self.tell_added(rest, Some(failure(&error))),
        }
    }

    /// An item waits for a free slot, and those behind it.
    fn put_in_line(&mut self, mut waiter: Waiter, mut rest: PutRest) -> Rest {
        if !self.keep(&mut rest) {
            // Another thread may have let this one in by now; it is the last one then.
            waiter = match waiter.leave() {
                Ok(decided) => decided,
                Err(before) => {
                    rest.promise = rest.promise.and(before);
                    return self.tell_added(rest, Some(no_memory()));
                }
            };
            rest.is_cut = rest.items.len() > 0;
            rest.items = Vec::new().into_iter();
        }
        let route = rest.route;
        if rest.items.len() > 0
            && let Some(open) = self.handles.get_mut(route.queue)
        {
            rest.is_first = true;
            open.behind.get_or_insert_default();
        }
        self.wait(route, Waits::Put(waiter, Box::new(rest)))
    }

    /// A put waits for the end of an earlier one.
    fn put_behind(&mut self, mut rest: PutRest) -> Rest {
        let timer: Option<Pin<Box<Sleep>>> = match rest.wait {
            Wait::No | Wait::Negative => return self.tell_added(rest, Some(full())),
            Wait::For(time) => Some(Box::pin(sleep(time))),
            Wait::Forever => None,
        };
        if !self.keep(&mut rest) {
            return self.tell_added(rest, Some(no_memory()));
        }
        let (tell, turn) = oneshot::channel();
        let route = rest.route;
        if let Some(behind) = self.handles.get_mut(route.queue).and_then(|it| it.behind.as_mut()) {
            behind.push_back(tell);
        }
        self.wait(route, Waits::Turn(Box::new(Turn::new(turn, timer, Box::new(rest)))))
    }

    /// Items that wait have memory of their own, and must not keep the message that brought them.
    fn keep(&mut self, rest: &mut PutRest) -> bool {
        if rest.parked.is_none() {
            let items: Vec<_> = rest.items.by_ref().map(Put::detached).collect();
            rest.items = items.into_iter();
            rest.parked = self.shared.engine.memory().park(PENDING_BYTES + rest.len as u64);
        }
        rest.parked.is_some()
    }

    /// The item that waited has ended its wait.
    pub(super) fn resume_put(&mut self, told: Option<Completion>, mut rest: PutRest) -> Rest {
        let Some(Completion { outcome, promise, .. }) = told else {
            return self.tell_added(rest, Some(cancelled()));
        };
        rest.promise = rest.promise.and(promise);
        if let Some(refused) = refusal(&outcome) {
            return self.tell_added(rest, Some(refused));
        }
        rest.count += 1;
        if let Some(numbers) = &mut rest.numbers {
            numbers.push(if let Outcome::Accepted(task) = outcome { Some(task) } else { None });
        }
        if rest.is_cut {
            return self.tell_added(rest, Some(no_memory()));
        }
        if rest.items.len() == 0 { self.tell_added(rest, None) } else { self.put_on(rest) }
    }

    /// A put has waited for its turn.
    pub(super) fn resume_turn(&mut self, whose: Whose, mut rest: PutRest) -> Rest {
        match whose {
            Whose::Own => {
                rest.is_first = true;
                self.put_on(rest)
            }
            Whose::Others => self.tell_added(rest, Some(full())),
            Whose::Nobodys => self.tell_added(rest, Some(cancelled())),
        }
    }

    fn tell_added(&mut self, rest: PutRest, refused: Option<Refusal>) -> Rest {
        let PutRest { route, count, numbers, is_numbered, promise, is_first, .. } = rest;
        if is_first {
            self.pass_turn_on(route.queue);
        }
        let says = |numbers: &Vec<Option<TaskId>>| is_numbered || numbers.contains(&None);
        let numbers = numbers.filter(says).unwrap_or_default();
        let numbers = numbers.into_iter().map(|number| Some(number?.0));
        let refused = refused.as_ref().map(|(code, text)| (*code, &**text));
        reply::push_added(count, refused, numbers, route, self.behind(promise));
        None
    }

    /// The next put to a queue has its turn.
    fn pass_turn_on(&mut self, handle: u16) {
        let Some(open) = self.handles.get_mut(handle) else { return };
        while let Some(next) = open.behind.as_mut().and_then(|behind| behind.pop_front()) {
            if next.send(()).is_ok() {
                return;
            }
        }
        open.behind = None;
    }
}
