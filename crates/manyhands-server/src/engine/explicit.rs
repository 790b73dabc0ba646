//! What our own clients ask for by name: batches, leases that only their token settles, and what is
//! done with dead letters.
//!
//! Each call is one step, one lock and one commit, but for those that move many tasks: batches and
//! [`Engine::redrive`] go on in further steps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use manyhands::wire::arguments::Wait;
use manyhands::wire::pickle::Payload;
use manyhands::wire::tasks::Info;
use manyhands::wire::text::repr;
use manyhands::wire::token::LeaseToken;

use super::hand::InHand;
use super::sessions::{Session, SessionId, Verdict};
use super::{
    Batch, CallError, Called, Caller, Engine, Promise, QueueId, Reference, Signer, State, Ticket,
    Waiting, patience,
};
use crate::journal::{JournalError, Location};
use crate::queue::{
    Ack, Cause, Grant, Hold, LEASE_BYTES, Order, Origin, Outcome, Patience, Prepared, Queue, Retry,
    Step, Taker, TaskId, Token, WaiterId,
};

/// Tasks of a batch that are put, handed out or moved in one step. In between others have their turn.
pub(crate) const BATCH_AT_ONCE: usize = 256;

/// Dead letters that are moved under one lock.
pub(crate) const REDRIVEN_AT_ONCE_MAX: usize = if cfg!(test) { 4 } else { BATCH_AT_ONCE };

/// Tasks that were taken by token, and the session that each lives as long as. Nothing is known of a
/// lease that is over, however it ended.
#[derive(Debug, Default)]
pub(super) struct Leases {
    holders: HashMap<(QueueId, TaskId), (SessionId, Token)>,
    held: BTreeSet<(SessionId, QueueId, TaskId)>,
}

impl Leases {
    /// Puts a lease into the hand of a session, whoever had it.
    pub(super) fn hold(&mut self, session: SessionId, queue: QueueId, token: Token) {
        self.drop(queue, token.task);
        self.holders.insert((queue, token.task), (session, token));
        self.held.insert((session, queue, token.task));
    }

    /// Who has leased this task, and by which token.
    pub(super) fn holder(&self, queue: QueueId, task: TaskId) -> Option<(SessionId, Token)> {
        self.holders.get(&(queue, task)).copied()
    }

    /// Forgets the lease of this token, if that still has its task; false if not.
    pub(super) fn end(&mut self, queue: QueueId, token: Token) -> bool {
        let is_holder = self.holder(queue, token.task).is_some_and(|(_, held)| held == token);
        is_holder && self.drop(queue, token.task)
    }

    /// Forgets whoever has leased this task; false if nobody has.
    pub(super) fn drop(&mut self, queue: QueueId, task: TaskId) -> bool {
        let Some((session, _)) = self.holders.remove(&(queue, task)) else { return false };
        self.held.remove(&(session, queue, task))
    }

    /// Whether a session has any.
    pub(super) fn has_any(&self, session: SessionId) -> bool {
        let from = (session, QueueId::MIN, TaskId(0));
        self.held.range(from..).next().is_some_and(|(holder, ..)| *holder == session)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.holders.len(), self.held.len());
        self.holders.len()
    }

    /// What a session has.
    pub(super) fn of(&self, session: SessionId) -> impl Iterator<Item = InHand> {
        let all = (session, QueueId::MIN, TaskId(0))..=(session, QueueId::MAX, TaskId(u64::MAX));
        let token = |&(_, queue, task): &(SessionId, QueueId, TaskId)| {
            let (_, token) = self.holders.get(&(queue, task))?;
            Some(InHand { queue, token: *token })
        };
        self.held.range(all).filter_map(token)
    }
}

/// How items are to be handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// Pickle protocols up to this one are understood.
    pub(crate) protocol_max: u8,
    /// They are settled by their tokens only, not by what the session does next.
    pub(crate) explicit: bool,
    /// As `get` does, it shows that what the session took before is through.
    pub(crate) settles: bool,
    /// For no longer than this.
    pub(crate) hold: Option<Duration>,
    /// How many at most.
    pub(crate) max: usize,
}

impl Taking {
    /// Whether what is taken comes with [what is known of it](Engine::inform).
    fn is_informed(self) -> bool {
        self.explicit && self.settles
    }

    fn taker(self) -> Taker {
        let hold = match self.hold {
            Some(hold) => Hold::For(hold),
            None if self.explicit && !self.settles => Hold::Token,
            None => Hold::Session,
        };
        Taker { reader: self.protocol_max, hold }
    }
}

/// Dead letters on their way back to where they came from.
#[derive(Debug)]
pub(crate) struct Redriving {
    /// How many are to be moved at most.
    pub(crate) max: usize,
    /// How many were.
    pub(crate) moved: u64,
    /// What must be durable before anybody is told.
    pub(crate) promise: Promise,
    /// What was copied of them, in bytes.
    copied_bytes: usize,
    /// The next ones, whose bodies have to be read.
    unread: Vec<(TaskId, Location)>,
}

impl Redriving {
    pub(crate) fn of(max: usize) -> Self {
        let promise = Promise::NOTHING;
        Self { max, moved: 0, promise, copied_bytes: 0, unread: Vec::new() }
    }
}

/// What one step has moved.
#[derive(Debug, Default)]
struct Redriven {
    moved: u64,
    /// What was copied, also by the steps before it, in bytes.
    bytes: usize,
    unread: Vec<(TaskId, Location)>,
    /// Whether there may be more, for another step.
    is_cut: bool,
}

/// What came of a batch of puts.
#[derive(Debug)]
pub(crate) struct Added {
    /// How many were added.
    pub(crate) count: usize,
    /// What became of the next one; `None` if there was none. Its promise is that of all.
    pub(crate) end: Ticket<Option<Called>>,
}

impl Added {
    /// Nothing so far.
    pub(crate) fn nothing() -> Self {
        Self { count: 0, end: Ticket::unchanged(Ok(None)) }
    }
}

impl Engine {
    /// The patience that `wait` comes to from now on.
    pub(crate) fn patience(&self, wait: Wait) -> Patience {
        patience(wait, self.clock.now())
    }

    // ---- batches

    /// Copies items out of the message that brought them, each to its place in the order of the
    /// queue.
    pub(crate) fn prepare(
        &self,
        caller: Caller,
        reference: Reference,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Vec<Prepared>, CallError> {
        let (order, maxsize) = self.look(caller, reference, |queue| {
            let options = queue.options();
            (options.order, options.maxsize)
        })?;
        if wait == Wait::Negative && maxsize > 0 {
            return Err(CallError::NegativeTimeout);
        }
        Ok(items.into_iter().map(|item| Prepared::new(item, None, order)).collect())
    }

    /// Adds items in one step, up to the first that is not accepted at once, or to as many as one
    /// step may add.
    pub(crate) fn put_many(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        items: &mut impl Iterator<Item = Prepared>,
        patience: Patience,
    ) -> Added {
        let session = caller.session;
        let mut state = self.enter_call(caller, reference);
        let items = &mut items.take(BATCH_AT_ONCE);
        let (count, end) = if state.has_in_hand(session) {
            self.put_answers(&mut state, session, reference, items, patience)
        } else {
            self.put_run(&mut state, session, reference, items, patience)
        };
        Added { count, end: self.finish_some(&mut state, end) }
    }

    /// Ends the step of a call of which some part may be in line.
    fn finish_some(
        &self,
        state: &mut State,
        called: Result<Option<Called>, CallError>,
    ) -> Ticket<Option<Called>> {
        let mut ticket = self.finish(state, called);
        if let Ok(Some(Called::Later(waiter))) = &mut ticket.called {
            waiter.wait_for(ticket.promise);
        }
        ticket
    }

    /// Adds items each of which may be the result of a task that the session has in hand.
    fn put_answers(
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
    fn put_run(
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

    /// Takes a first item, waiting for it as long as `wait` says, and then, if it came at once,
    /// what else is there, or the first [`BATCH_AT_ONCE`] of that. All that was taken is in `batch`;
    /// if nothing was, it is said why.
    pub(crate) fn take_many(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        wait: Wait,
        batch: &mut Batch,
    ) -> Ticket<Option<Called>> {
        let mut state = self.enter_call(caller, reference);
        if wait == Wait::Negative {
            return Ticket::unchanged(Err(CallError::NegativeTimeout));
        }
        let session = caller.session;
        if taking.settles {
            state.settle_by_get(session, reference.queue);
        }
        let first =
            self.take(&mut state, session, reference, taking.taker(), wait, taking.explicit);
        let called = match first {
            Ok(Called::Now(Outcome::Task(grant))) => {
                let put = state.promise_of(reference.queue, grant.token.task);
                batch.promise = batch.promise.and(put);
                batch.grants.push(grant);
                state.take_more(session, reference.queue, taking, batch);
                Ok(None)
            }
            other => other.map(Some),
        };
        let ticket = self.finish_some(&mut state, called);
        batch.promise = batch.promise.and(ticket.promise);
        self.receive_kept(&mut state, session, reference.queue, taking, batch);
        ticket
    }

    /// Tasks of a queue on disk whose bodies are in memory have been received, if the session takes
    /// them for good.
    fn receive_kept(
        &self,
        state: &mut State,
        session: SessionId,
        queue: QueueId,
        taking: Taking,
        batch: &mut Batch,
    ) {
        if self.journal.is_none() || taking.explicit || !state.takes_for_good(session, queue) {
            return;
        }
        for grant in &batch.grants {
            if state.is_received(session, queue, grant) {
                state.receive(session, queue, grant.token);
            }
        }
        batch.promise = batch.promise.and(self.commit(state));
    }

    /// Takes some of what else is there, after the first one had to be waited for, or after others.
    /// True if there may be more.
    pub(crate) fn take_more(
        &self,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        batch: &mut Batch,
    ) -> bool {
        let (session, queue) = (caller.session, reference.queue);
        let mut state = self.lock();
        let goes_on = state.take_more(session, queue, taking, batch);
        batch.promise = batch.promise.and(self.commit(&mut state));
        self.receive_kept(&mut state, session, queue, taking, batch);
        goes_on
    }

    /// What [`inform`](Self::inform) says of these tasks, in bytes, roughly.
    pub(crate) fn info_bytes(&self, reference: Reference, grants: &[Grant]) -> u64 {
        let state = self.lock();
        grants.iter().map(|grant| state.info_bytes(reference.queue, grant)).sum()
    }

    /// Makes what was leased to have a look at it the session's own, as if it had come by `get`,
    /// and says what is known of it.
    pub(crate) fn inform(
        &self,
        caller: Caller,
        reference: Reference,
        grants: &[Grant],
    ) -> (Vec<Option<Info>>, Promise) {
        let mut state = self.lock();
        let (session, queue) = (caller.session, reference.queue);
        let mut infos = Vec::with_capacity(grants.len());
        for &Grant { token, .. } in grants {
            let hosted = state.queues.get(&queue);
            infos.push(hosted.and_then(|hosted| hosted.queue.origin(token)).map(info));
            // Its time may be up by now.
            if state.queues.get(&queue).is_some_and(|hosted| hosted.queue.holds(token)) {
                state.hold(session, queue, token, false);
                state.receive(session, queue, token);
            }
        }
        (infos, self.commit(&mut state))
    }

    // ---- leases

    /// What signs the tokens of this queue.
    pub(crate) fn signer(&self, reference: Reference) -> Result<Signer, CallError> {
        let state = self.lock();
        let hosted = state.queues.get(&reference.queue).ok_or(CallError::NoQueue)?;
        Ok(hosted.signer)
    }

    /// Settles a task, and puts its result to the queue's queue of results in the same step.
    pub(crate) fn ack(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        result: Option<Payload>,
        wait: Wait,
    ) -> Ticket {
        let Some(result) = result else {
            return self.settle_lease(caller, reference, token, |state, lease| {
                state.ack_alone(lease).map(|()| Called::Now(Outcome::Done))
            });
        };
        let mut result = Prepared::new(result, None, Order::Fifo);
        let to = |state: &State| state.results_of(reference.queue);
        let mut state = self.enter_put(caller, reference, to, &mut result, None);
        let Some(to) = state.results_of(reference.queue) else {
            return Ticket::unchanged(Err(CallError::NoResults));
        };
        if let Err(error) = state.check_put(to, None, wait) {
            return Ticket::unchanged(Err(error));
        }
        let held = match state.lease(caller, reference.queue, token) {
            Ok(held) => held,
            Err(error) => return state.refuse_token(reference.queue, error),
        };
        let called = self.ack_with(&mut state, caller.session, held, to, result, wait);
        self.finish_call(&mut state, to, called)
    }

    fn ack_with(
        self: &Arc<Self>,
        state: &mut State,
        session: SessionId,
        held: InHand,
        to: QueueId,
        result: Prepared,
        wait: Wait,
    ) -> Result<Called, CallError> {
        let patience = patience(wait, state.step.now);
        let to = Reference { queue: to, serial: 0 };
        // Whoever answers has it from now on, also if the answer has to wait or is refused.
        let before = state.leases.holder(held.queue, held.token.task);
        state.leases.hold(session, held.queue, held.token);
        let called = self.put_answer(state, session, to, Some(held), (result, None), patience);
        if let Err(CallError::Stale) = called {
            state.leases.drop(held.queue, held.token.task);
            // Whoever has taken it since has it as before.
            if let Some((holder, token)) = before.filter(|(_, token)| *token != held.token) {
                state.leases.hold(holder, held.queue, token);
            }
        }
        called.map_err(|error| match error {
            CallError::Stale => CallError::StaleToken,
            error => error,
        })
    }

    /// Does something to the task of a lease, in one step.
    fn settle_lease<T>(
        &self,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        settle: impl FnOnce(&mut State, InHand) -> Result<T, CallError>,
    ) -> Ticket<T> {
        let mut state = self.enter_call(caller, reference);
        match state.lease(caller, reference.queue, token) {
            Ok(lease) => {
                let called = settle(&mut state, lease);
                self.finish(&mut state, called)
            }
            Err(error) => state.refuse_token(reference.queue, error),
        }
    }

    /// The worker of a lease gives its task back as failed.
    pub(crate) fn nack(
        &self,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        retry: Retry,
        reason: &str,
    ) -> Ticket<()> {
        self.settle_lease(caller, reference, token, |state, InHand { queue, token }| {
            let is_free = planted!(NackIsFree);
            let cause = if is_free { Cause::Unread } else { Cause::Refused(reason.into()) };
            let back = state.on(queue, |queue, step| queue.give_back(token, cause, retry, step));
            if !back.ok_or(CallError::NoQueue)? {
                return Err(CallError::StaleToken);
            }
            state.leases.end(queue, token);
            Ok(())
        })
    }

    /// Lets a lease run for `hold` from now on, or as long as the queue allows.
    pub(crate) fn extend(
        &self,
        caller: Caller,
        reference: Reference,
        token: LeaseToken,
        hold: Duration,
    ) -> Ticket<()> {
        self.settle_lease(caller, reference, token, |state, InHand { queue, token }| {
            let extended = state.on(queue, |queue, step| {
                if planted!(ExtendIgnored) {
                    return queue.holds(token);
                }
                queue.extend(token, hold, step)
            });
            if extended.ok_or(CallError::NoQueue)? { Ok(()) } else { Err(CallError::StaleToken) }
        })
    }

    // ---- dead letters

    /// Moves up to `max` dead letters, and some 8 MiB, back to the queues that they came from, as new
    /// tasks. What is no dead letter, or whose queue is gone, stays; so does all once the disk is
    /// as full as puts may make it. A body on disk stays where it lies, if its new queue can do
    /// without it; others are read between two steps, on this thread, which must not serve anybody.
    pub(crate) fn redrive(
        &self,
        caller: Caller,
        reference: Reference,
        mut redriving: Redriving,
    ) -> Ticket<u64> {
        let called = loop {
            match self.redrive_some(caller, reference, &mut redriving) {
                Ok(true) => {}
                Ok(false) => break Ok(redriving.moved),
                Err(error) => break Err(error),
            }
        };
        Ticket { called, promise: redriving.promise }
    }

    /// A step of the same; false if it was the last. The next one may read from the disk.
    pub(crate) fn redrive_some(
        &self,
        caller: Caller,
        reference: Reference,
        redriving: &mut Redriving,
    ) -> Result<bool, CallError> {
        let bodies = self.read_letters(std::mem::take(&mut redriving.unread));
        let mut state = self.enter_call(caller, reference);
        if !state.queues.contains_key(&reference.queue) {
            return Err(CallError::NoQueue);
        }
        let max = redriving.max.saturating_sub(usize::try_from(redriving.moved).unwrap_or(0));
        let mut step = Redriven { bytes: redriving.copied_bytes, ..Redriven::default() };
        state.redrive(reference.queue, max, bodies, &mut step, |state| {
            if planted!(RedriveApart) {
                self.commit(state);
                // A frame of its own.
                state.log.as_ref().map(|log| log.journal.mark());
            }
        });
        redriving.promise = redriving.promise.and(self.commit(&mut state));
        redriving.moved += step.moved;
        (redriving.copied_bytes, redriving.unread) = (step.bytes, step.unread);
        Ok(step.is_cut || !redriving.unread.is_empty())
    }

    /// Reads bodies without the lock. One that is gone meanwhile is not missed.
    fn read_letters(&self, unread: Vec<(TaskId, Location)>) -> HashMap<TaskId, Bytes> {
        let Some(journal) = self.journal().filter(|_| !unread.is_empty()) else {
            return HashMap::new();
        };
        let reader = journal.bodies();
        let read = unread.into_iter().map_while(|(task, at)| match reader.read(at) {
            Ok(bytes) => Some(Some((task, bytes))),
            Err(JournalError::Gone) => Some(None),
            Err(error) => {
                self.lock().fail_body(at, &error);
                None
            }
        });
        read.flatten().collect()
    }

    /// Drops all that is ready or delayed.
    pub(crate) fn purge(&self, caller: Caller, reference: Reference) -> Ticket<u64> {
        let mut state = self.enter_call(caller, reference);
        let results = state.results_of(reference.queue);
        let awaited = results.and_then(|it| state.options(it)).is_some_and(|it| it.ordered);
        let dropped = state.on(reference.queue, |queue, step| queue.purge(awaited, step));
        // A change of its own: what was counted before must not hold what comes in.
        state.on(reference.queue, Queue::admit);
        self.finish(&mut state, dropped.ok_or(CallError::NoQueue))
    }
}

impl State {
    fn take_more(
        &mut self,
        session: SessionId,
        queue: QueueId,
        taking: Taking,
        batch: &mut Batch,
    ) -> bool {
        let Batch { grants, promise, bytes } = batch;
        if grants.len() >= taking.max {
            return false;
        }
        if *bytes == 0 {
            *bytes = grants.iter().map(|grant| self.told_bytes(queue, grant, taking)).sum();
        }
        for _ in 0..BATCH_AT_ONCE {
            if grants.len() >= taking.max || *bytes >= self.batch_bytes_max {
                return false;
            }
            if !self.step.budget.lends(LEASE_BYTES) {
                return false;
            }
            let Some(grant) = self.take_now(queue, taking.taker()) else { return false };
            if !planted!(BatchNotHeld) {
                self.hold(session, queue, grant.token, taking.explicit);
            }
            *promise = promise.and(self.promise_of(queue, grant.token.task));
            if !taking.explicit && !self.is_kept(queue) {
                self.receive(session, queue, grant.token);
            }
            *bytes += self.told_bytes(queue, &grant, taking);
            grants.push(grant);
        }
        true
    }

    /// What a reply takes that hands a task out, in bytes, roughly.
    fn told_bytes(&self, queue: QueueId, grant: &Grant, taking: Taking) -> usize {
        let info = if taking.is_informed() { self.info_bytes(queue, grant) } else { 0 };
        self.length(queue, grant) + usize::try_from(info).unwrap_or(usize::MAX)
    }

    /// What is known of a task beside its payload, in bytes, roughly.
    fn info_bytes(&self, queue: QueueId, grant: &Grant) -> u64 {
        let hosted = self.queues.get(&queue);
        hosted.and_then(|hosted| hosted.queue.origin(grant.token)).map_or(0, Origin::bytes)
    }

    /// Length of a payload, wherever it is, in bytes.
    fn length(&self, queue: QueueId, grant: &Grant) -> usize {
        match grant.payload.bytes.len() {
            0 => self.stored(queue, grant.token.task).map_or(0, |it| it.location.len as usize),
            len => len,
        }
    }

    fn take_now(&mut self, queue: QueueId, taker: Taker) -> Option<Grant> {
        // It does not wait, so it needs no number.
        let nobody = WaiterId(0);
        match self.on(queue, |queue, step| queue.get(taker, Patience::Now, nobody, step))?? {
            Outcome::Task(grant) => Some(grant),
            _ => None,
        }
    }

    /// Settles a task that needs no result.
    fn ack_alone(&mut self, InHand { queue, token }: InHand) -> Result<(), CallError> {
        if let Some(results) = self.options(queue).and_then(|it| it.results.clone()) {
            return Err(CallError::NoResult(results));
        }
        let ack = self.on(queue, |queue, step| {
            let ack = queue.ack_without_result(token, step);
            if ack == Ack::Kept {
                queue.conclude(token, step);
            }
            ack
        });
        match ack.ok_or(CallError::NoQueue)? {
            Ack::Kept => {
                self.leases.end(queue, token);
                Ok(())
            }
            Ack::KeptBefore => Err(CallError::SettledBefore),
            Ack::Stale => Err(CallError::StaleToken),
        }
    }

    /// Refuses a token. Who is told that it settled its task waits until that is durable.
    fn refuse_token<T>(&self, queue: QueueId, error: CallError) -> Ticket<T> {
        let promise = match error {
            CallError::SettledBefore => self.promise_of_all(queue),
            _ => Promise::NOTHING,
        };
        Ticket { called: Err(error), promise }
    }

    /// The lease that a token names, unless it was settled or may be about to be.
    fn lease(
        &mut self,
        caller: Caller,
        queue: QueueId,
        token: LeaseToken,
    ) -> Result<InHand, CallError> {
        let hosted = self.queues.get(&queue).ok_or(CallError::NoQueue)?;
        let Some(token) = hosted.signer.verify(token) else {
            self.refuse_forged(caller.session, queue);
            return Err(CallError::StaleToken);
        };
        if hosted.queue.is_claimed(token) {
            // It may still be refused: nobody must be told that it was kept.
            let is_told_so = planted!(AnsweringIsSettled);
            return Err(if is_told_so { CallError::SettledBefore } else { CallError::Answering });
        }
        let is_over = !hosted.queue.holds(token) || planted!(RefusedCountsAsSettled);
        if is_over && hosted.queue.has_settled(token) {
            return Err(CallError::SettledBefore);
        }
        Ok(InHand { queue, token })
    }

    /// Counts a token that we did not give out, or not for this queue.
    fn refuse_forged(&mut self, session: SessionId, queue: QueueId) {
        let peer = self.sessions.all.get(&session).map(Session::worker);
        let Some(hosted) = self.queues.get_mut(&queue) else { return };
        if let Some(tokens) = hosted.notices.forged.add(1, self.step.now) {
            let name = hosted.name.as_deref().map(repr);
            tracing::warn!(
                queue = name,
                last = peer.as_deref(),
                tokens,
                "refused lease tokens that this queue did not give out"
            );
        }
    }

    fn results_of(&self, queue: QueueId) -> Option<QueueId> {
        let results = self.queues.get(&queue)?.queue.options().results.as_deref()?;
        self.names.get(results).copied()
    }

    fn redrive(
        &mut self,
        from: QueueId,
        max: usize,
        mut bodies: HashMap<TaskId, Bytes>,
        done: &mut Redriven,
        between: impl Fn(&mut Self),
    ) {
        let taker = Taker::leasing(u8::MAX);
        let (mut kept, mut unread_bytes) = (Vec::new(), 0);
        let most = max.min(REDRIVEN_AT_ONCE_MAX) as u64;
        while done.moved < most
            && kept.len() < max
            && done.bytes + unread_bytes < self.batch_bytes_max
        {
            let Some(grant) = self.take_now(from, taker) else { break };
            let length = self.length(from, &grant);
            let Grant { token, mut payload } = grant;
            let Some(home) = self.home(from, token) else {
                kept.push(token);
                continue;
            };
            if Queue::is_away(&payload) && !self.holds_bodies(home) {
                match (bodies.remove(&token.task), self.stored(from, token.task)) {
                    (Some(read), _) => payload.bytes = read,
                    // Letters keep their order, so those behind it wait, too.
                    (None, Some(stored)) if done.unread.len() as u64 + done.moved < most => {
                        done.unread.push((token.task, stored.location));
                        kept.push(token);
                        unread_bytes += length;
                        continue;
                    }
                    (None, _) => {}
                }
            }
            if !done.unread.is_empty() {
                kept.push(token);
                break;
            }
            let stays = self.is_kept(from) && self.is_kept(home);
            if let Some(log) = self.log.as_mut().filter(|_| stays) {
                log.redrive(Some((from, token.task)));
            }
            let enters =
                |queue: &mut Queue, step: &mut Step| queue.force_within_room(payload, step);
            let has_entered = self.on(home, enters) == Some(true);
            if let Some(log) = &mut self.log {
                log.redrive(None);
            }
            if !has_entered {
                // The reserve of a full disk is there for what is settled.
                if planted!(RedriveDropsLetter) {
                    self.on(from, |queue, step| queue.ack_without_result(token, step));
                }
                kept.push(token);
                break;
            }
            between(self);
            self.on(from, |queue, step| {
                queue.ack_without_result(token, step);
                // Whoever counts dead letters need not count it any more.
                queue.task_done(step).ok();
            });
            done.moved += 1;
            done.bytes += if stays { 0 } else { length };
        }
        done.is_cut = done.moved == most && most < max as u64;
        for token in kept {
            self.give_back(InHand { queue: from, token }, Cause::Unread);
        }
    }

    /// The queue that a dead letter came from, if it is one and its queue takes tasks.
    fn home(&self, at: QueueId, token: Token) -> Option<QueueId> {
        let origin = self.queues.get(&at)?.queue.origin(token)?;
        let home = *self.names.get(&origin.queue).filter(|_| !origin.history.is_empty())?;
        let is_open = !self.queues.get(&home)?.queue.is_shut_down();
        (home != at && is_open).then_some(home)
    }

    /// A session ended: what it had leased, up to `left` tasks, goes to another of the same client,
    /// or back.
    pub(super) fn pass_leases_on(&mut self, id: SessionId, verdict: Verdict, left: &mut usize) {
        let leases: Vec<_> = self.leases.of(id).take(*left).collect();
        if leases.is_empty() || planted!(LeasesNotGivenBack) {
            return;
        }
        *left -= leases.len();
        let heir = match verdict {
            Verdict::Moved(heir) => Some(heir),
            _ => self.sessions.all.get(&id).and_then(|session| self.sessions.heir(session)),
        };
        for held in leases {
            match heir {
                Some(heir) => self.leases.hold(heir, held.queue, held.token),
                None => {
                    self.leases.drop(held.queue, held.token.task);
                    let is_clean = verdict == Verdict::Clean;
                    self.give_back(held, if is_clean { Cause::Unanswered } else { Cause::Crashed });
                }
            }
        }
    }
}

fn info(origin: &Origin) -> Info {
    Info {
        queue: origin.queue.to_string(),
        task: origin.task.0,
        attempt: origin.attempt,
        worker: origin.worker.to_string(),
        waited: origin.waited,
        ran: origin.ran,
        history: origin.history.iter().map(ToString::to_string).collect(),
    }
}
