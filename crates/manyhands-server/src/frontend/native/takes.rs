//! Tasks that are taken: leased, or for good.
//!
//! Those that are taken for good are leased to the session until their reply is sent: what does not
//! reach the socket goes back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::frame::SHARED_LEN_MIN;
use manyhands::wire::native::{Code, Get, Route, TooLong, reply};
use manyhands::wire::tasks::Info;
use tokio::task::yield_now;

use super::connection::BATCH_MAX;
use super::handles::Open;
use super::pending::{Cancel, Coming, Left, PENDING_BYTES, Rest, Waits};
use super::replies::{cancelled, failure, no_memory, refusal};
use super::session::Session;
use crate::config::SMALL_BYTES;
use crate::engine::{
    BATCH_AT_ONCE, Batch, Called, Caller, Calls, Completion, Engine, PLACED_AT_ONCE_MAX, Promise,
    Reading, Reference, Shown, Signer, Taking, Ticket,
};
use crate::error::ConnectionError;
use crate::queue::{Grant, Outcome, Patience, Queue, SettledBy};
use crate::socket::Socket;

/// What a task takes in a reply beside its payload, in bytes: its header and token.
const TASK_BYTES: u64 = 48;

/// What is to be handed out, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) route: Route,
    pub(super) at: Reference,
    /// Signs the tokens of leases; nothing if the tasks are taken for good.
    signer: Option<Signer>,
    taking: Taking,
    wait: Wait,
    /// Until when it may wait for a first one.
    patience: Patience,
    /// Whether the tasks are pushed.
    pub(super) is_pushed: bool,
}

/// Tasks that a session has and that its client was not told of. Dropped, they go back.
#[derive(Debug)]
pub(super) struct Hand {
    engine: Arc<Engine>,
    caller: Caller,
    at: Reference,
    batch: Batch,
}

impl Order {
    fn new(open: &Open, route: Route, get: &Get, (reader, patience): (u8, Patience)) -> Self {
        let settled_by = match (get.leased, get.hold) {
            (false, _) => SettledBy::Session,
            (true, None) => SettledBy::Token,
            (true, Some(Duration::ZERO)) => SettledBy::TokenOfSession,
            (true, Some(hold)) => SettledBy::TokenWithin(hold),
        };
        let max = if get.max == 0 { BATCH_MAX } else { get.max };
        let bytes_max = get.bytes_max.map_or(usize::MAX, |max| max as usize);
        let taking = Taking {
            protocol_max: reader,
            settled_by,
            is_informed: get.informed,
            max: max as usize,
            bytes_max,
        };
        let signer = get.leased.then_some(open.signer);
        let (at, wait) = (open.reference, get.wait);
        Self { route, at, signer, taking, wait, patience, is_pushed: false }
    }

    /// Of tasks that are pushed.
    pub(super) fn of_push(route: Route, at: Reference, signer: Signer, reader: u8) -> Self {
        let (signer, taking) = (Some(signer), Taking::one(reader));
        let (wait, patience) = (Wait::No, Patience::Now);
        Self { route, at, signer, taking, wait, patience, is_pushed: true }
    }
}

impl Hand {
    pub(super) fn new(engine: &Arc<Engine>, caller: Caller, at: Reference, batch: Batch) -> Self {
        Self { engine: engine.clone(), caller, at, batch }
    }

    pub(super) fn len(&self) -> usize {
        self.batch.grants.len()
    }

    /// The same with the tasks that are read from the disk.
    async fn arrive(mut self, reading: Reading) -> Coming {
        let batch = std::mem::take(&mut self.batch);
        let arriving = self.engine.arrive(self.caller, self.at, batch, reading);
        let (batch, room) = arriving.await.map_err(|_| ConnectionError::NotDurable)?;
        self.batch = batch;
        Ok((self, room))
    }

    /// The same once there is memory to tell of it.
    async fn wait_for_room(self, bytes: u64) -> Coming {
        let mut room = self.engine.memory().room();
        room.grow_to(bytes).await;
        Ok((self, room))
    }

    /// What telling of it takes, in bytes, roughly.
    fn told_bytes(&self, order: &Order) -> u64 {
        let grants = &self.batch.grants;
        let payloads: usize = grants.iter().map(|grant| grant.payload.bytes.len()).sum();
        let infos = match order.taking.is_informed {
            true => self.engine.info_bytes(self.at, grants),
            false => 0,
        };
        payloads as u64 + infos + grants.len() as u64 * TASK_BYTES
    }

    /// Says what is known of the tasks from `first` on, of some of them.
    fn inform(&mut self, first: usize, infos: &mut Vec<Option<Info>>) {
        let some = self.batch.grants.iter().skip(first).take(BATCH_AT_ONCE).cloned();
        let some: Vec<_> = some.collect();
        let (told, promise) = self.engine.inform(self.caller, self.at, &some);
        infos.extend(told);
        self.batch.promise = self.batch.promise.and(promise);
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        if !self.batch.grants.is_empty() {
            let tokens: Vec<_> = self.batch.grants.iter().map(|grant| grant.token).collect();
            self.engine.return_all_unread(self.caller, self.at, &tokens);
        }
    }
}

impl<S: Socket> Session<'_, S> {
    pub(super) fn get(&mut self, calls: &mut Calls<'_>, route: Route, get: &Get) -> Rest {
        if get.max > BATCH_MAX {
            let text = format!("{} tasks are more than {BATCH_MAX}, the most of a batch", get.max);
            return self.refuse(route, Code::TooLong, &text);
        }
        let Some(open) = self.handles.get(route.queue) else { return self.no_handle(route) };
        let patience = self.shared.engine.patience(get.wait);
        let order = Order::new(open, route, get, (self.reader, patience));
        if get.max == 1 {
            return self.take_one(calls, order);
        }
        calls.end();
        self.take(order, Promise::NOTHING)
    }

    /// Takes one task, as most requests do.
    fn take_one(&mut self, calls: &mut Calls<'_>, order: Order) -> Rest {
        let Order { at, taking, wait, .. } = order;
        let mut batch = Batch::default();
        let ticket = calls.get_many(self.caller(), at, taking, wait, &mut batch);
        let is_plain = |grant: &Grant| {
            grant.payload.bytes.len() <= PLACED_AT_ONCE_MAX && !Queue::is_evicted(&grant.payload)
        };
        if matches!(ticket.called, Ok(None))
            && !taking.is_informed
            && batch.grants.iter().all(is_plain)
            && self.tell(&order, &batch, Vec::new()).is_ok()
        {
            self.add_work(batch.grants.len());
            return None;
        }
        calls.end();
        self.took(order, batch, ticket)
    }

    /// Takes tasks for a request that has changed something `before`.
    fn take(&mut self, order: Order, before: Promise) -> Rest {
        let Order { at, taking, wait, .. } = order;
        let (engine, caller) = (&self.shared.engine, self.caller());
        let mut batch = Batch::default();
        batch.promise = before;
        let ticket = engine.get_many(caller, at, taking, wait, &Shown::default(), &mut batch);
        self.took(order, batch, ticket)
    }

    /// This came of a request for tasks.
    fn took(&mut self, order: Order, batch: Batch, ticket: Ticket<Option<Called>>) -> Rest {
        let Order { route, at, .. } = order;
        let (engine, caller) = (&self.shared.engine, self.caller());
        let before = batch.promise;
        let Ticket { called, promise } = ticket;
        let refused = match called {
            Ok(None) => {
                let hand = Hand::new(engine, caller, at, batch);
                return self.take_on(order, hand);
            }
            Ok(Some(Called::Later(mut waiter))) => {
                waiter.wait_for(before);
                let parked = engine.memory().park(PENDING_BYTES);
                if parked.is_none() {
                    return self.refuse_with(before, route, &no_memory());
                }
                let cancel = Cancel::Call(waiter.place());
                return self.wait(route, Waits::Task(waiter, Box::new(order)), parked, cancel);
            }
            Ok(Some(Called::Now(outcome))) => refusal(&outcome),
            Err(error) => Some(failure(&error)),
        };
        let refused = refused.unwrap_or_else(cancelled);
        let promise = self.after_settled(&order, promise.and(before));
        self.refuse_with(promise, route, &refused)
    }

    /// A request has waited for its first task.
    pub(super) fn resume_take(&mut self, told: Option<Completion>, order: Order) -> Rest {
        let Some(Completion { outcome, promise, .. }) = told else {
            return self.refuse_with(Promise::NOTHING, order.route, &cancelled());
        };
        match outcome {
            Outcome::Task(grant) => {
                let batch = Batch::of(grant, promise);
                let hand = Hand::new(&self.shared.engine, self.caller(), order.at, batch);
                self.take_more(order, hand)
            }
            outcome => {
                let refused = refusal(&outcome).unwrap_or_else(cancelled);
                let promise = self.after_settled(&order, promise);
                self.refuse_with(promise, order.route, &refused)
            }
        }
    }

    /// Takes what else is there, or some of it.
    pub(super) fn take_more(&mut self, order: Order, mut hand: Hand) -> Rest {
        let (engine, caller) = (&self.shared.engine, self.caller());
        if order.taking.max > hand.batch.grants.len() {
            let before = hand.batch.grants.len();
            let is_more = engine.take_more(caller, order.at, order.taking, &mut hand.batch);
            self.add_work(hand.batch.grants.len() - before);
            if is_more {
                return Some(Box::new(Left::Take(order, hand)));
            }
        }
        self.collect(order, hand)
    }

    /// Goes on with the first tasks of a batch.
    fn take_on(&mut self, order: Order, hand: Hand) -> Rest {
        self.add_work(hand.batch.grants.len());
        if hand.batch.grants.len() >= BATCH_AT_ONCE {
            return Some(Box::new(Left::Take(order, hand)));
        }
        self.collect(order, hand)
    }

    /// Tells of tasks that are in memory, and waits for those that are on disk.
    pub(super) fn collect(&mut self, order: Order, mut hand: Hand) -> Rest {
        let engine = &self.shared.engine;
        let mut room = engine.memory().room();
        match engine.collect(hand.caller, hand.at, &mut hand.batch, &mut room) {
            Ok(None) => {
                self.room.absorb(room);
                self.tell_tasks(order, hand)
            }
            Ok(Some(reading)) => self.wait_for_hand(order, Box::pin(hand.arrive(reading))),
            Err(_) => Some(Box::new(Left::NotDurable)),
        }
    }

    fn wait_for_hand(
        &mut self,
        order: Order,
        coming: Pin<Box<dyn Future<Output = Coming> + Send>>,
    ) -> Rest {
        if order.is_pushed {
            self.note_on_the_way(&order, true);
        }
        // It has taken them: there is no way back if there is no memory for the wait.
        let parked = self.shared.engine.memory().park(PENDING_BYTES);
        self.wait(order.route, Waits::Hand(coming, Box::new(order)), parked, Cancel::Not)
    }

    /// Tasks were read, or there is memory to tell of them.
    pub(super) fn resume_hand(
        &mut self,
        coming: Coming,
        order: Order,
    ) -> Result<Rest, ConnectionError> {
        let (hand, room) = coming?;
        self.room.absorb(room);
        if order.is_pushed && !self.note_on_the_way(&order, false) {
            return Ok(None);
        }
        if hand.batch.grants.is_empty() {
            return Ok(self.tell_tasks(order, hand));
        }
        Ok(Some(Box::new(Left::Tell(order, hand))))
    }

    fn tell_tasks(&mut self, order: Order, mut hand: Hand) -> Rest {
        if order.is_pushed && !hand.batch.gone.is_empty() {
            let gone = std::mem::take(&mut hand.batch.gone);
            self.return_credit(order.route.queue, gone.len());
        }
        if hand.batch.grants.is_empty() && order.is_pushed {
            return None;
        }
        if hand.batch.grants.is_empty() {
            // All were gone before they were read: on to the next ones.
            let wait = match order.patience {
                Patience::Now => Wait::No,
                Patience::Until(time) => Wait::For(time.since(self.shared.engine.now())),
                Patience::Forever => Wait::Forever,
            };
            return self.take(Order { wait, ..order }, hand.batch.promise);
        }
        let bytes = hand.told_bytes(&order);
        if bytes > SMALL_BYTES && !self.has_room_for(bytes) {
            return self.wait_for_hand(order, Box::pin(hand.wait_for_room(bytes)));
        }
        let mut infos = Vec::new();
        if order.taking.is_informed {
            if hand.batch.grants.len() > BATCH_AT_ONCE {
                return Some(Box::new(Left::Tell(order, hand)));
            }
            hand.inform(0, &mut infos);
        }
        self.hand_out(order, hand, infos)
    }

    /// Tells of tasks for which there is memory.
    pub(super) async fn tell_large(&mut self, order: Order, mut hand: Hand) -> Rest {
        let mut infos = Vec::new();
        while order.taking.is_informed && infos.len() < hand.batch.grants.len() {
            hand.inform(infos.len(), &mut infos);
            yield_now().await;
        }
        self.hand_out(order, hand, infos)
    }

    /// What the reply to a `get` waits for. A task in the hand of a program is settled without waiting
    /// by its next `get`: once that is answered, no restart may bring the task back.
    fn after_settled(&self, order: &Order, promise: Promise) -> Promise {
        let is_in_hand = order.taking.settled_by == SettledBy::TokenOfSession;
        let waits = is_in_hand && !planted!(TakenOvertakesSettled);
        if waits { self.after_held(promise) } else { promise }
    }

    fn hand_out(&mut self, order: Order, mut hand: Hand, infos: Vec<Option<Info>>) -> Rest {
        match self.tell(&order, &hand.batch, infos) {
            Ok(()) => {
                hand.batch.grants.clear();
                None
            }
            Err(error) => self.refuse(order.route, Code::TooLong, &error.to_string()),
        }
    }

    /// Writes the reply that hands tasks out.
    fn tell(
        &mut self,
        order: &Order,
        batch: &Batch,
        infos: Vec<Option<Info>>,
    ) -> Result<(), TooLong> {
        let Order { route, at, signer, is_pushed, .. } = *order;
        let (grants, promise) = (&batch.grants, self.after_settled(order, batch.promise));
        let out = self.behind(promise);
        out.reserve(grants.iter().map(copied_bytes).sum());
        let mut writer = reply::begin_tasks(is_pushed, route, out);
        for (place, Grant { token, payload }) in grants.iter().enumerate() {
            let token = signer.map(|signer| signer.sign(*token));
            let info = infos.get(place).and_then(Option::as_ref);
            writer.task(payload, token.as_ref(), info);
        }
        writer.finish()?;
        let tokens = grants.iter().map(|grant| grant.token);
        self.note_unsent(at, tokens, promise, signer.is_some());
        Ok(())
    }
}

/// How much of a task is copied into a reply, in bytes.
fn copied_bytes(grant: &Grant) -> usize {
    let len = grant.payload.bytes.len();
    usize::try_from(TASK_BYTES).unwrap_or(0) + if len <= SHARED_LEN_MIN { len } else { 0 }
}
