//! How puts are applied: alone or in a batch, and as the result of a task.

use std::sync::{Arc, MutexGuard};

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;

use crate::engine::{
    BATCH_AT_ONCE, Called, Caller, Engine, Held, QueueId, Reference, Settles, State, Ticket,
    Waiting,
};
use crate::error::CallError;
use crate::queue::{
    Ack, Order, Origin, Outcome, Patience, Prepared, Queue, TaskId, Terms, Unasked, WaiterId,
};

/// Items up to this many bytes hold nobody up while their place in a priority queue is found.
pub(crate) const PLACED_AT_ONCE_MAX: usize = 4 << 10;

/// An item of a batch, with what its put says beside it.
#[derive(Debug)]
pub(crate) struct Put {
    item: Prepared,
    terms: Option<Box<Terms>>,
}

impl Put {
    /// Copies an item out of the message that brought it, to its place in a queue of this order.
    pub(crate) fn new(item: Payload, terms: Option<Box<Terms>>, order: Order) -> Self {
        Self { item: Prepared::new(item, terms.as_deref(), order), terms }
    }

    /// The same in memory of its own: for whoever does not put it at once.
    pub(crate) fn detached(self) -> Self {
        Self { item: self.item.detached(), terms: self.terms }
    }
}

impl From<Prepared> for Put {
    fn from(item: Prepared) -> Self {
        Self { item, terms: None }
    }
}

/// What came of a batch of puts.
#[derive(Debug)]
pub(crate) struct Added {
    /// How many were added.
    pub(crate) count: usize,
    /// What became of the next one; `None` if there was none. Its promise is that of all.
    pub(crate) end: Ticket<Option<Called>>,
}

impl Engine {
    /// The order of this queue, or of the one that its results go to; [`Order::Fifo`] if there is none.
    pub(crate) fn order_of(&self, reference: Reference, of_results: bool) -> Order {
        self.lock(reference.queue).order_of(reference, of_results)
    }

    /// Takes the lock for a put to the queue that `to` finds. What a large item is compared by
    /// there is found without the lock, so that nobody waits for that.
    pub(super) fn enter_put(
        &self,
        reference: Reference,
        to: impl FnOnce(&State) -> Option<QueueId>,
        item: &mut Prepared,
        terms: Option<&Terms>,
    ) -> MutexGuard<'_, State> {
        let state = self.lock(reference.queue);
        if item.payload_len() <= PLACED_AT_ONCE_MAX {
            return state;
        }
        let options = to(&state).and_then(|to| state.options(to));
        if options.is_none_or(|options| options.order != Order::Priority) {
            return state;
        }
        drop(state);
        item.find_place(terms);
        self.lock(reference.queue)
    }

    /// Finds what an item is compared by in this queue, if it is large, for a caller that must not do so
    /// while it puts the item.
    pub(crate) fn find_place(&self, reference: Reference, item: &mut Prepared) {
        drop(self.enter_put(reference, |_| Some(reference.queue), item, None));
    }

    /// Copies items out of the message that brought them, each to its place in the order of the
    /// queue, for [`put_many`](Self::put_many).
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`], [`CallError::NegativeTimeout`] for a bounded queue.
    pub(crate) fn prepare(
        &self,
        reference: Reference,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Vec<Prepared>, CallError> {
        let (order, maxsize) = self.look(reference, |queue| {
            let options = queue.options();
            (options.order, options.maxsize)
        })?;
        if wait == Wait::Negative && maxsize > 0 {
            return Err(CallError::NegativeTimeout);
        }
        Ok(items.into_iter().map(|item| Prepared::new(item, None, order)).collect())
    }

    /// Adds items in one step, up to the first that is not accepted at once, or to the first
    /// [`BATCH_AT_ONCE`].
    ///
    /// Returns how many were added, and for the next one, if there was one, what [`put`](Self::put)
    /// returns, or its error. One whose key is known counts as added. `numbers` gets the number of
    /// the task of each that was, or `None` for a key that was known.
    pub(crate) fn put_many<P: Into<Put>>(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        items: &mut impl Iterator<Item = P>,
        patience: Patience,
        numbers: Option<&mut Vec<Option<TaskId>>>,
    ) -> Added {
        let state = &mut self.lock(reference.queue);
        self.put_many_in(state, caller, reference, items, patience, numbers)
    }

    /// The same in a step that has begun.
    pub(in crate::engine) fn put_many_in<P: Into<Put>>(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        items: &mut impl Iterator<Item = P>,
        patience: Patience,
        numbers: Option<&mut Vec<Option<TaskId>>>,
    ) -> Added {
        let items = &mut items.take(BATCH_AT_ONCE);
        let (count, end, has_known) =
            self.put_run(state, caller, reference, items, patience, numbers);
        let mut end = self.finish_some(state, end);
        if has_known {
            // The put that had the key may not be durable yet.
            end.promise = end.promise.and(state.promise_of_all(reference.queue));
        }
        Added { count, end }
    }

    /// Adds an item, and settles with it what `settles` says. The step goes on.
    pub(super) fn put_one(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        settles: &Settles,
        (item, mut terms): (Prepared, Option<Box<Terms>>),
        patience: Patience,
    ) -> Result<Called, CallError> {
        let id = WaiterId(state.next());
        match settles.answered {
            None if state.refuses_unasked(reference.queue) => return Err(CallError::Unasked),
            None => {}
            Some(held) => {
                let Some(origin) = state.claim(caller, held, settles.is_by_token) else {
                    if planted!(LateResultDropped) {
                        return Ok(Called::Now(Outcome::Done));
                    }
                    return Err(CallError::Stale);
                };
                let terms = terms.get_or_insert_default();
                terms.frees = state.freed_by(held);
                terms.origin = Some(Box::new(origin));
            }
        }
        let put = state.on(reference.queue, |queue, step| {
            queue.put(item, terms, patience, id, step).map_err(CallError::Order)
        });
        match put.unwrap_or(Err(CallError::NoQueue)) {
            Ok(Some(outcome)) => {
                if planted!(ResultAndAckApart) {
                    self.commit(state);
                }
                state.after_put(Some(settles), &outcome);
                Ok(Called::Now(outcome))
            }
            Ok(None) => {
                let settles = (!settles.is_nothing()).then(|| Box::new(settles.clone()));
                let waiting = Waiting { settles, ..Waiting::new(reference, caller) };
                Ok(Called::Later(self.park(state, id, waiting)))
            }
            Err(error) => {
                state.unclaim(Some(settles));
                Err(error)
            }
        }
    }

    /// Adds items that are no results, in one change. Says how many, what became of the next one, and
    /// whether the key of any was known.
    fn put_run<P: Into<Put>>(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        items: &mut impl Iterator<Item = P>,
        patience: Patience,
        mut numbers: Option<&mut Vec<Option<TaskId>>>,
    ) -> (usize, Result<Option<Called>, CallError>, bool) {
        let id = WaiterId(state.next());
        let (mut count, mut has_known) = (0, false);
        let end = state.on(reference.queue, |queue, step| {
            if queue.options().unasked == Unasked::Refuse {
                return items.next().map(|_| Err(CallError::Unasked));
            }
            for put in items {
                let Put { item, terms } = put.into();
                if let Err(error) = check_order(queue, terms.as_deref()) {
                    return Some(Err(error));
                }
                let number = match queue.put(item, terms, patience, id, step) {
                    Ok(Some(Outcome::Accepted(task))) => Some(task),
                    Ok(Some(Outcome::Known)) => {
                        has_known = true;
                        None
                    }
                    end => return Some(end.map_err(CallError::Order)),
                };
                count += 1;
                if let Some(numbers) = &mut numbers {
                    numbers.push(number);
                }
            }
            None
        });
        let end = match end {
            Some(None) => Ok(None),
            None => Err(CallError::NoQueue),
            Some(Some(Err(error))) => Err(error),
            Some(Some(Ok(Some(outcome)))) => Ok(Some(Called::Now(outcome))),
            Some(Some(Ok(None))) => {
                let waiter = self.park(state, id, Waiting::new(reference, caller));
                Ok(Some(Called::Later(waiter)))
            }
        };
        (count, end, has_known)
    }
}

impl State {
    /// Same as [`Engine::order_of`].
    pub(in crate::engine) fn order_of(&self, reference: Reference, of_results: bool) -> Order {
        let queue = Some(reference.queue);
        let queue = if of_results { self.results_of(reference.queue) } else { queue };
        queue.and_then(|queue| self.options(queue)).map_or(Order::Fifo, |options| options.order)
    }

    /// Whether a queue takes such a put at all.
    pub(super) fn check_put(
        &self,
        queue: QueueId,
        terms: Option<&Terms>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let hosted = self.queues.get(&queue).ok_or(CallError::NoQueue)?;
        if wait == Wait::Negative && hosted.queue.options().maxsize > 0 {
            return Err(CallError::NegativeTimeout);
        }
        check_order(&hosted.queue, terms)
    }

    /// Whether a queue is there for results alone.
    pub(super) fn refuses_unasked(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.unasked == Unasked::Refuse)
    }

    /// Keeps a task for the result that `caller` is about to put; `None` if it comes too late. Who
    /// answers has the task from now on, also if the result has to wait or is refused.
    fn claim(&mut self, caller: Caller, held: Held, is_by_token: bool) -> Option<Origin> {
        let Held { queue, token } = held;
        let holder = self.queues.get(&queue).and_then(|hosted| hosted.queue.holder(token));
        let run = self.on(queue, |queue, step| queue.claim(token, caller.holder(), step))?;
        let worker = self.common.callers.worker(caller);
        let Some(run) = run else {
            tracing::warn!(worker = worker.as_deref(), "a result came too late and was refused");
            return None;
        };
        if is_by_token {
            if let Some(holder) = holder {
                self.leases.remove(holder.into(), queue, token.task);
            }
            self.leases.add(caller, queue, token.task);
        }
        Some(Origin {
            queue: self.queues.get(&queue)?.name.clone().unwrap_or_default(),
            task: token.task,
            attempt: token.attempt,
            worker: worker.unwrap_or_default(),
            waited: run.waited,
            ran: run.ran,
            history: Vec::new(),
        })
    }

    /// The put that was to answer a task did not happen.
    pub(in crate::engine) fn unclaim(&mut self, settles: Option<&Settles>) {
        if planted!(RefusedResultKeepsTask) {
            return;
        }
        if let Some(Held { queue, token }) = settles.and_then(|settles| settles.answered) {
            self.on(queue, |queue, step| queue.unclaim(token, step));
        }
    }

    /// A put ended: if it was accepted, what it settles is settled in the same step.
    pub(in crate::engine) fn after_put(&mut self, settles: Option<&Settles>, outcome: &Outcome) {
        let Some(settles) = settles else { return };
        if !matches!(outcome, Outcome::Accepted(_) | Outcome::Known) {
            if planted!(RefusedCountsAsSettled)
                && let Some(Held { queue, token }) = settles.answered
            {
                self.on(queue, |queue, _| queue.restore_settled([token].into_iter()));
            }
            return self.unclaim(Some(settles));
        }
        if let Some(held) = settles.answered {
            self.settle_answered(held, settles);
        }
        self.ack_many(&settles.through);
    }

    /// The result of a task was accepted.
    fn settle_answered(&mut self, held: Held, settles: &Settles) {
        let Held { queue, token } = held;
        if settles.is_by_token {
            self.forget_lease(held);
        }
        self.on(queue, |queue, step| {
            let acked =
                if planted!(ResultWithoutAck) { Ack::Accepted } else { queue.ack(token, step) };
            if acked == Ack::Accepted && settles.counts {
                queue.conclude(token, step);
            }
        });
    }
}

/// Whether a queue has an order, if a put asks for a place in it.
fn check_order(queue: &Queue, terms: Option<&Terms>) -> Result<(), CallError> {
    let order = queue.options().order;
    match terms.is_some_and(|terms| terms.priority.is_some()) && order != Order::Priority {
        true => Err(CallError::NoOrder(order)),
        false => Ok(()),
    }
}
