//! How puts are applied: alone or in a batch, and as the result of a task.

use std::sync::{Arc, MutexGuard};

use manyhands::wire::arguments::Wait;

use crate::engine::hands::Session;
use crate::engine::{
    Called, Caller, Engine, InHand, QueueId, Reference, SessionId, State, Waiting,
};
use crate::error::CallError;
use crate::queue::{Order, Origin, Outcome, Patience, Prepared, Terms, Token, Unasked, WaiterId};

/// Items up to this many bytes hold nobody up while their place in a priority queue is found.
const PLACED_AT_ONCE_MAX: usize = 4 << 10;

impl Engine {
    /// Takes the lock for a put to the queue that `to` finds. What a large item is compared by
    /// there is found without the lock, so that nobody waits for that.
    pub(super) fn enter_put(
        &self,
        caller: Caller,
        reference: Reference,
        to: impl FnOnce(&State) -> Option<QueueId>,
        item: &mut Prepared,
        terms: Option<&Terms>,
    ) -> MutexGuard<'_, State> {
        let state = self.enter_call(caller, reference);
        if item.payload_len() <= PLACED_AT_ONCE_MAX {
            return state;
        }
        let options = to(&state).and_then(|to| state.options(to));
        if options.is_none_or(|options| options.order != Order::Priority) {
            return state;
        }
        drop(state);
        item.find_place(terms);
        self.enter_call(caller, reference)
    }

    /// Adds an item, as the result of `answered` if that is there. The step goes on.
    pub(super) fn put_answer(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        reference: Reference,
        answered: Option<InHand>,
        (item, mut terms): (Prepared, Option<Box<Terms>>),
        patience: Patience,
    ) -> Result<Called, CallError> {
        let id = WaiterId(state.next());
        if answered.is_none() && state.refuses_unasked(reference.queue) {
            return Err(CallError::Unasked);
        }
        if let Some(held) = answered {
            let claimed = state.claim(session, held);
            if planted!(LateResultDropped) && claimed.is_none() {
                return Ok(Called::Now(Outcome::Done));
            }
            let origin = claimed.ok_or(CallError::Stale)?;
            let terms = terms.get_or_insert_default();
            terms.frees = state.freed_by(held);
            terms.origin = Some(Box::new(origin));
        }
        let answers = answered.map(|held| (held.queue, held.token));
        let put = state.on(reference.queue, |queue, step| {
            queue.put(item, terms, patience, id, step).map_err(CallError::Order)
        });
        match put.unwrap_or(Err(CallError::NoQueue)) {
            Ok(Some(outcome)) => {
                if planted!(ResultAndAckApart) {
                    self.commit(state);
                }
                state.after_put(session, reference.queue, answers, &outcome);
                Ok(Called::Now(outcome))
            }
            Ok(None) => {
                let waiting = Waiting { answers, ..Waiting::new(reference, session) };
                Ok(Called::Later(self.park(state, id, waiting)))
            }
            Err(error) => {
                state.after_put(session, reference.queue, answers, &Outcome::Full);
                Err(error)
            }
        }
    }

    /// Adds items each of which may be the result of a task that the session has in hand.
    pub(super) fn put_answers(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        reference: Reference,
        items: &mut impl Iterator<Item = Prepared>,
        patience: Patience,
    ) -> (usize, Result<Option<Called>, CallError>) {
        let mut count = 0;
        for item in items {
            let answered = state.task_answered_by(session, reference.queue);
            let item = (item, None);
            let put = self.put_answer(state, session, reference, answered, item, patience);
            if !matches!(put, Ok(Called::Now(Outcome::Accepted(_)))) {
                return (count, put.map(Some));
            }
            count += 1;
        }
        (count, Ok(None))
    }

    /// Adds items that are no results, in one change.
    pub(super) fn put_run(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        reference: Reference,
        items: &mut impl Iterator<Item = Prepared>,
        patience: Patience,
    ) -> (usize, Result<Option<Called>, CallError>) {
        if state.refuses_unasked(reference.queue) {
            return (0, items.next().map_or(Ok(None), |_| Err(CallError::Unasked)));
        }
        let id = WaiterId(state.next());
        let mut count = 0;
        let end = state.on(reference.queue, |queue, step| {
            for item in items {
                match queue.put(item, None, patience, id, step) {
                    Ok(Some(Outcome::Accepted(_))) => count += 1,
                    end => return Some(end),
                }
            }
            None
        });
        let end = match end {
            Some(None) => Ok(None),
            None => Err(CallError::NoQueue),
            Some(Some(Err(error))) => Err(CallError::Order(error)),
            Some(Some(Ok(Some(outcome)))) => Ok(Some(Called::Now(outcome))),
            Some(Some(Ok(None))) => {
                let waiter = self.park(state, id, Waiting::new(reference, session));
                Ok(Some(Called::Later(waiter)))
            }
        };
        (count, end)
    }
}

impl State {
    /// Whether a queue takes such a put at all.
    pub(super) fn check_put(
        &self,
        queue: QueueId,
        terms: Option<&Terms>,
        wait: Wait,
    ) -> Result<(), CallError> {
        let options = self.options(queue).ok_or(CallError::NoQueue)?;
        if wait == Wait::Negative && options.maxsize > 0 {
            return Err(CallError::NegativeTimeout);
        }
        if terms.is_some_and(|terms| terms.priority.is_some()) && options.order != Order::Priority {
            return Err(CallError::NoOrder(options.order));
        }
        Ok(())
    }

    /// Whether a queue is there for results alone.
    pub(super) fn refuses_unasked(&self, queue: QueueId) -> bool {
        self.options(queue).is_some_and(|options| options.unasked == Unasked::Refuse)
    }

    /// Keeps a task for the result that is about to be put; `None` if it comes too late.
    pub(super) fn claim(&mut self, session: SessionId, held: InHand) -> Option<Origin> {
        let run = self.on(held.queue, |queue, step| queue.claim(held.token, step))?;
        let worker = self.sessions.all.get(&session).map(Session::worker);
        let Some(run) = run else {
            self.drop_from_hand(session, held);
            tracing::warn!(worker = worker.as_deref(), "a result came too late and was refused");
            return None;
        };
        Some(Origin {
            queue: self.queues.get(&held.queue)?.name.clone().unwrap_or_default(),
            task: held.token.task,
            attempt: held.token.attempt,
            worker: worker.unwrap_or_default(),
            waited: run.waited,
            ran: run.ran,
            history: Vec::new(),
        })
    }

    /// The put that was to answer a task did not happen.
    pub(in crate::engine) fn unclaim(&mut self, answers: Option<(QueueId, Token)>) {
        if let Some((queue, token)) = answers.filter(|_| !planted!(RefusedResultKeepsTask)) {
            self.on(queue, |queue, step| queue.unclaim(token, step));
        }
    }

    /// A put ended: if it was accepted, what it answers is settled in the same step.
    pub(in crate::engine) fn after_put(
        &mut self,
        session: SessionId,
        to: QueueId,
        answers: Option<(QueueId, Token)>,
        outcome: &Outcome,
    ) {
        if !matches!(outcome, Outcome::Accepted(_) | Outcome::Known) {
            if let Some((queue, token)) = answers.filter(|_| planted!(RefusedCountsAsSettled)) {
                self.on(queue, |queue, _| queue.restore_settled([token].into_iter()));
            }
            return self.unclaim(answers);
        }
        if let Some((queue, token)) = answers {
            if !planted!(ResultWithoutAck) {
                self.on(queue, |queue, step| queue.ack(token, step));
            }
            if self.leases.end(queue, token) {
                // Our own client has said all that it means.
                self.on(queue, |queue, step| queue.conclude(token, step));
                return;
            }
            self.drop_from_hand(session, InHand { queue, token });
        }
        self.settle_by_put(session, to);
    }
}
