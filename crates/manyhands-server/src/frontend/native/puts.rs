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

use super::pending::{Cancel, Left, PENDING_BYTES, Rest, Turn, Waits, Whose};
use super::replies::{Refusal, cancelled, failure, full, no_memory, refusal};
use super::session::Session;
use crate::engine::{BATCH_AT_ONCE, Called, Calls, Completion, Promise, Put, Reference, Waiter};
use crate::error::{CallError, ConnectionError};
use crate::memory::Parked;
use crate::queue::{Order, Outcome, Patience, TaskId, Terms};
use crate::socket::Socket;

/// Bodies above this many bytes are read on a thread of their own, so that nobody waits.
pub(super) const READ_AT_ONCE_MAX: usize = 256 << 10;

/// Items that are to be read.
#[derive(Debug)]
pub(super) struct PutBatch {
    head: Head,
    items: Items,
}

/// What a put says of its items, and what is known of them.
#[derive(Debug, Clone, Copy)]
struct Head {
    wait: Wait,
    is_numbered: bool,
    /// Bytes of all.
    len: usize,
    /// Of their queue.
    order: Order,
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
    head: Head,
    patience: Patience,
    /// How many are in the queue.
    count: u32,
    /// The numbers of these, if they are asked for or may say something.
    numbers: Option<Vec<Option<TaskId>>>,
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
        let mut read = Self { items: Vec::with_capacity(items.capacity()), has_key: false };
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

impl PutRest {
    /// Without items.
    fn new(route: Route, at: Reference, head: Head, patience: Patience) -> Self {
        Self {
            route,
            at,
            items: IntoIter::default(),
            head,
            patience,
            count: 0,
            numbers: None,
            promise: Promise::NOTHING,
            parked: None,
            is_cut: false,
            is_first: false,
        }
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
        calls: &mut Calls<'_>,
        route: Route,
        put: native::Put,
        (count, len): (u32, usize),
    ) -> Rest {
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let native::Put { wait, numbered: is_numbered, items } = put;
        let order = open.order;
        let head = Head { wait, is_numbered, len, order };
        if count == 1 && len <= READ_AT_ONCE_MAX && open.behind.is_none() {
            let at = open.reference;
            return self.put_one(calls, (route, at), head, items);
        }
        calls.end();
        if len > READ_AT_ONCE_MAX || count as usize > BATCH_AT_ONCE {
            return Some(Box::new(Left::Put(route, PutBatch { head, items })));
        }
        self.put_read(route, head, Read::all(items, order))
    }

    /// Adds one item, as most puts do.
    fn put_one(
        &mut self,
        calls: &mut Calls<'_>,
        (route, at): (Route, Reference),
        head: Head,
        mut items: Items,
    ) -> Rest {
        // The body must end behind it.
        let (item, end) = (items.next(), items.next());
        let item = match (item, end) {
            (Some(Ok(item)), None) => item,
            (Some(Err(error)), _) | (_, Some(Err(error))) => {
                return self.refuse_malformed(route, &error);
            }
            _ => {
                calls.end();
                return self.put_read(route, head, Ok(Read::default()));
            }
        };
        let terms = item.terms.map(|terms| terms_of(*terms));
        let has_key = terms.as_ref().is_some_and(|terms| terms.key.is_some());
        let mut put = std::iter::once(Put::new(item.payload, terms, head.order));
        let (caller, patience) = (self.caller(), self.shared.engine.patience(head.wait));
        let mut numbers = (head.is_numbered || has_key).then(Vec::new);
        let added = calls.put_many(caller, at, &mut put, patience, numbers.as_mut());
        self.add_work(added.count);
        if numbers.is_none() && matches!(added.end.called, Ok(None)) {
            let promise = added.end.promise;
            reply::push_added(1, None, std::iter::empty(), route, self.behind(promise));
            return None;
        }
        calls.end();
        let rest = PutRest {
            count: u32::from(added.count > 0),
            numbers,
            promise: added.end.promise,
            ..PutRest::new(route, at, head, patience)
        };
        self.put_added(rest, added.end.called)
    }

    /// Adds many items, or large ones.
    pub(super) async fn put_large(
        &mut self,
        route: Route,
        PutBatch { head, items }: PutBatch,
    ) -> Result<Rest, ConnectionError> {
        let order = head.order;
        let read = if head.len > READ_AT_ONCE_MAX {
            let read = move || Read::all(items, order).map(Read::detached);
            spawn_blocking(read).await.map_err(|_| ConnectionError::NotDurable)?
        } else {
            Read::gradually(items, order).await
        };
        Ok(self.put_read(route, head, read))
    }

    fn put_read(&mut self, route: Route, head: Head, read: Result<Read, DecodeError>) -> Rest {
        let Read { items, has_key } = match read {
            Ok(read) => read,
            Err(error) => return self.refuse_malformed(route, &error),
        };
        let Some(mut rest) = self.begin_put(route, head, has_key) else {
            return self.no_handle(route);
        };
        rest.items = items.into_iter();
        let is_behind = self.handles.get(route.queue).is_some_and(|open| open.behind.is_some());
        if is_behind && !planted!(PutOvertakes) { self.put_behind(rest) } else { self.put_on(rest) }
    }

    fn begin_put(&self, route: Route, head: Head, has_key: bool) -> Option<PutRest> {
        let at = self.handles.get(route.queue)?.reference;
        let patience = self.shared.engine.patience(head.wait);
        let numbers = (head.is_numbered || has_key).then(Vec::new);
        Some(PutRest { numbers, ..PutRest::new(route, at, head, patience) })
    }

    /// Adds the items that are left, up to the first that is not accepted at once, or some of them.
    pub(super) fn put_on(&mut self, mut rest: PutRest) -> Rest {
        let mut items = std::mem::take(&mut rest.items);
        let mut calls = Calls::new(&self.shared.engine);
        let called = self.add(&mut calls, &mut rest, &mut items);
        calls.end();
        rest.items = items;
        self.put_added(rest, called)
    }

    fn add(
        &mut self,
        calls: &mut Calls<'_>,
        rest: &mut PutRest,
        items: &mut impl Iterator<Item = Put>,
    ) -> Result<Option<Called>, CallError> {
        let (at, patience, caller) = (rest.at, rest.patience, self.caller());
        let added = calls.put_many(caller, at, items, patience, rest.numbers.as_mut());
        rest.count += u32::try_from(added.count).unwrap_or(u32::MAX);
        rest.promise = rest.promise.and(added.end.promise);
        self.add_work(added.count);
        added.end.called
    }

    /// Some items were added, and this came of the next one.
    fn put_added(&mut self, rest: PutRest, called: Result<Option<Called>, CallError>) -> Rest {
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
            && let Some(open) = self.handles.get_open(route.queue, rest.at)
        {
            rest.is_first = true;
            open.behind.get_or_insert_default();
        }
        let cancel = Cancel::Call(waiter.place());
        self.wait(route, Waits::Put(waiter, Box::new(rest)), None, cancel)
    }

    /// A put waits for the end of an earlier one.
    fn put_behind(&mut self, mut rest: PutRest) -> Rest {
        let timer: Option<Pin<Box<Sleep>>> = match rest.head.wait {
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
        let (turn, cancel) = Turn::new(turn, timer, Box::new(rest));
        self.wait(route, Waits::Turn(Box::new(turn)), None, cancel)
    }

    /// Items that wait have memory of their own, and must not keep the message that brought them.
    fn keep(&mut self, rest: &mut PutRest) -> bool {
        if rest.parked.is_none() {
            let items: Vec<_> = rest.items.by_ref().map(Put::detached).collect();
            rest.items = items.into_iter();
            rest.parked = self.shared.engine.memory().park(PENDING_BYTES + rest.head.len as u64);
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
        let PutRest { route, at, head, count, numbers, promise, is_first, .. } = rest;
        if is_first {
            self.pass_turn_on(route.queue, at);
        }
        let says = |numbers: &Vec<_>| head.is_numbered || numbers.contains(&None);
        let numbers = numbers.filter(says).unwrap_or_default();
        let numbers = numbers.into_iter().map(|number| Some(number?.0));
        let refused = refused.as_ref().map(|(code, text)| (*code, &**text));
        let route = self.route_of_another(route);
        reply::push_added(count, refused, numbers, route, self.behind(promise));
        None
    }

    /// With a planted bug, the reply goes to another request that waits.
    fn route_of_another(&self, route: Route) -> Route {
        let others = self.ids.keys().filter(|_| planted!(AnswerOfAnother));
        others.min().map_or(route, |id| Route { id: *id, ..route })
    }

    /// The next put to a queue has its turn.
    fn pass_turn_on(&mut self, handle: u16, at: Reference) {
        let Some(open) = self.handles.get_open(handle, at) else { return };
        while let Some(next) = open.behind.as_mut().and_then(|behind| behind.pop_front()) {
            if next.send(()).is_ok() {
                return;
            }
        }
        open.behind = None;
    }
}
