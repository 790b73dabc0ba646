//! How tasks are settled by the tokens of their leases: one, or many of a queue in one step.

use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::token::LeaseToken;

use super::patience;
use crate::engine::{
    BATCH_AT_ONCE, Called, Caller, Engine, Fate, Held, Promise, QueueId, Reference, Settles, State,
    Ticket, Waiter,
};
use crate::error::CallError;
use crate::queue::{Cause, Failed, Outcome, Patience, Prepared, Retry};

/// What is to become of the task of a lease.
#[derive(Debug)]
pub(crate) enum Settlement {
    /// It is done.
    Ack,
    /// It is done, and this is its result, for the queue of results. Both are accepted or neither is.
    Answer(Prepared),
    /// The same for a task whose holder calls `task_done` itself: it is not counted as done by this,
    /// and needs no result.
    Done(Option<Prepared>),
    /// The attempt failed, for this reason.
    Nack(Retry, Arc<str>),
    /// The lease runs for so long from now on, or as long as the queue allows. It is the caller's.
    Extend(Duration),
    /// Work on a task begins that was pushed.
    Start,
    /// Work on a task that was pushed has not begun: it goes back, and no attempt is used up.
    Return,
}

/// What came of a batch of settlements: all took effect but those that are named.
#[derive(Debug)]
pub(crate) struct Settled<W = Waiter> {
    /// How many there were.
    pub(crate) count: usize,
    /// What became of those that did not take effect at once, by their places in the batch: they
    /// were refused, or wait for room for a result.
    pub(crate) others: Vec<(usize, Result<Called<W>, CallError>)>,
    /// What must be durable before anybody is told.
    pub(crate) promise: Promise,
}

impl<W> Default for Settled<W> {
    fn default() -> Self {
        Self { count: 0, others: Vec::new(), promise: Promise::NOTHING }
    }
}

impl Engine {
    /// Settles tasks of a queue in one step, in order and each for itself, or the first
    /// [`BATCH_AT_ONCE`]. True if there may be more. Results are prepared for the
    /// [order](Self::order_of) of their queue; those that find no room wait as `patience` says.
    ///
    /// Each that did not take effect is among [`Settled::others`] with what [`ack`](Self::ack) says.
    #[cfg(test)]
    pub(crate) fn settle_many(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        settlements: &mut impl Iterator<Item = (LeaseToken, Settlement)>,
        patience: Patience,
        settled: &mut Settled,
    ) -> bool {
        let state = &mut self.lock(reference.queue);
        self.settle_many_in(state, caller, reference, settlements, patience, settled)
    }

    /// The same in a step that has begun.
    pub(in crate::engine) fn settle_many_in(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        settlements: &mut impl Iterator<Item = (LeaseToken, Settlement)>,
        patience: Patience,
        settled: &mut Settled,
    ) -> bool {
        let (mut count, before) = (0, settled.others.len());
        for (token, settlement) in settlements.take(BATCH_AT_ONCE) {
            let called = self.settle_lease(state, caller, reference, token, settlement, patience);
            let is_refused =
                !matches!(called, Ok(Called::Now(Outcome::Done | Outcome::Accepted(_))));
            if is_refused {
                settled.promise = settled.promise.and(state.promise_of_refusal(reference, &called));
                settled.others.push((settled.count + count, called));
            }
            count += 1;
            if is_refused && planted!(SettleManyStopsAtError) {
                break;
            }
        }
        let promise = self.commit(state);
        for (_, called) in settled.others.iter_mut().skip(before) {
            if let Ok(Called::Later(waiter)) = called {
                waiter.wait_for(promise);
            }
        }
        settled.count += count;
        settled.promise = settled.promise.and(promise);
        count == BATCH_AT_ONCE
    }

    /// Settles a task, and puts its result to the queue's queue of results in the same step.
    ///
    /// Returns [`Outcome::Done`], or with a result what [`put`](Self::put) does; the task is settled
    /// only once its result was accepted.
    ///
    /// # Errors
    ///
    /// Those of a token: [`CallError::StaleToken`] if somebody else may have the task by now,
    /// [`CallError::SettledBefore`], [`CallError::Answering`] while an earlier result waits for room,
    /// [`CallError::NoQueue`]. Further [`CallError::NoResult`] if the queue demands one and
    /// [`CallError::NoResults`] if it has nowhere to put one, and what the put fails with.
    pub(crate) fn ack(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        result: Option<Payload>,
        wait: Wait,
    ) -> Ticket {
        match result {
            Some(result) => self.ack_with(caller, reference, token, result.into(), wait),
            None => self.settle_alone(caller, reference, token, Settlement::Ack),
        }
    }

    /// Same as [`ack`](Self::ack), with a result that is prepared.
    pub(crate) fn ack_with(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        mut result: Prepared,
        wait: Wait,
    ) -> Ticket {
        let to = |state: &State| state.results_of(reference.queue);
        let mut state = self.enter_put(reference, to, &mut result, None);
        if let Some(to) = state.results_of(reference.queue)
            && let Err(error) = state.check_put(to, None, wait)
        {
            return Ticket::unchanged(Err(error));
        }
        let patience = patience(wait, state.step.now);
        self.settle_in(&mut state, caller, reference, token, Settlement::Answer(result), patience)
    }

    /// The worker of a lease gives its task back as failed, for another attempt as `retry` says.
    ///
    /// # Errors
    ///
    /// Those of a token, as of [`ack`](Self::ack).
    pub(crate) fn nack(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        retry: Retry,
        reason: &str,
    ) -> Ticket<()> {
        let settlement = Settlement::Nack(retry, reason.into());
        self.settle_alone(caller, reference, token, settlement).map(drop)
    }

    /// Lets a lease run for `hold` from now on, or as long as the queue allows. It is the caller's
    /// from now on.
    ///
    /// # Errors
    ///
    /// Those of a token, as of [`ack`](Self::ack).
    pub(crate) fn extend(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        hold: Duration,
    ) -> Ticket<()> {
        self.settle_alone(caller, reference, token, Settlement::Extend(hold)).map(drop)
    }

    /// One settlement that puts nothing.
    fn settle_alone(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        settlement: Settlement,
    ) -> Ticket {
        let mut state = self.lock(reference.queue);
        self.settle_in(&mut state, caller, reference, token, settlement, Patience::Now)
    }

    /// One settlement, in a step of its own.
    fn settle_in(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        settlement: Settlement,
        patience: Patience,
    ) -> Ticket {
        let called = self.settle_lease(state, caller, reference, token, settlement, patience);
        let refusal = state.promise_of_refusal(reference, &called);
        let ticket = self.finish_call(state, reference.queue, called);
        Ticket { promise: ticket.promise.and(refusal), ..ticket }
    }

    /// Settles the task of a lease. The step goes on.
    fn settle_lease(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        settlement: Settlement,
        patience: Patience,
    ) -> Result<Called, CallError> {
        let queue = reference.queue;
        let counts = !matches!(settlement, Settlement::Done(_));
        let settlement = match settlement {
            Settlement::Answer(result) | Settlement::Done(Some(result)) => {
                let to = state.results_of(queue).ok_or(CallError::NoResults)?;
                let held = state.lease(caller, queue, token)?;
                return self.answer(state, caller, (held, counts), (to, result), patience);
            }
            other => other,
        };
        let held = state.lease(caller, queue, token)?;
        match settlement {
            Settlement::Ack => state.ack_alone(held)?,
            Settlement::Done(_) => state.settle_counted(held, false)?,
            Settlement::Nack(retry, reason) => state.refuse(caller, held, retry, reason)?,
            Settlement::Extend(hold) => state.extend(caller, held, hold)?,
            Settlement::Start => state.start(held)?,
            Settlement::Return => state.return_unstarted(held)?,
            Settlement::Answer(_) => {}
        }
        Ok(Called::Now(Outcome::Done))
    }

    /// Puts the result of a task, which settles it once it is accepted.
    fn answer(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        (held, counts): (Held, bool),
        (to, result): (QueueId, Prepared),
        patience: Patience,
    ) -> Result<Called, CallError> {
        let results = Reference { queue: to, serial: 0 };
        let answered = Some(held);
        let settles = Settles { answered, is_by_token: true, counts, ..Settles::default() };
        let put = self.put_one(state, caller, results, &settles, (result, None), patience);
        put.map_err(|error| match error {
            CallError::Stale => CallError::StaleToken,
            error => error,
        })
    }
}

impl State {
    /// The attempt of a lease failed.
    fn refuse(
        &mut self,
        caller: Caller,
        held: Held,
        retry: Retry,
        reason: Arc<str>,
    ) -> Result<(), CallError> {
        let Held { queue, token } = held;
        self.forget_lease(held);
        let is_free = planted!(NackIsFree);
        let cause = if is_free { Cause::Unread } else { Cause::Refused(reason) };
        let attempt = Failed { cause, worker: self.common.callers.worker(caller) };
        let back = self.on(queue, |queue, step| queue.give_back(token, attempt, retry, step));
        if back.ok_or(CallError::NoQueue)? { Ok(()) } else { Err(CallError::StaleToken) }
    }

    fn extend(&mut self, caller: Caller, held: Held, hold: Duration) -> Result<(), CallError> {
        let Held { queue, token } = held;
        let extended = self.on(queue, |queue, step| {
            if planted!(ExtendIgnored) {
                return queue.is_leased_to(token);
            }
            queue.extend(token, hold, step)
        });
        if !extended.ok_or(CallError::NoQueue)? {
            return Err(CallError::StaleToken);
        }
        self.end(held, Fate::With(caller), None);
        Ok(())
    }

    fn start(&mut self, Held { queue, token }: Held) -> Result<(), CallError> {
        let is_held = self.on(queue, |queue, _| queue.start(token)).ok_or(CallError::NoQueue)?;
        if is_held { Ok(()) } else { Err(CallError::StaleToken) }
    }

    /// A task with which nobody has begun goes back to its place.
    fn return_unstarted(&mut self, held: Held) -> Result<(), CallError> {
        let Some(hosted) = self.queues.get(&held.queue) else { return Err(CallError::NoQueue) };
        if !hosted.queue.is_leased_to(held.token) {
            return Err(CallError::StaleToken);
        }
        if !hosted.queue.is_returnable(held.token) {
            return Err(CallError::Started);
        }
        self.end(held, Fate::Back(Cause::Unread), None);
        Ok(())
    }

    /// What must be durable before a token is refused: who is told that it settled its task waits
    /// until that is.
    fn promise_of_refusal(
        &self,
        reference: Reference,
        called: &Result<Called, CallError>,
    ) -> Promise {
        match called {
            Err(CallError::SettledBefore) => self.promise_of_all(reference.queue),
            _ => Promise::NOTHING,
        }
    }
}
