//! The verbs: all that a client, by whatever protocol, can ask of a queue.
//!
//! A front end translates a request into one of these calls and what it returns into a reply:
//!
//! - tasks: [`put`](Engine::put), [`get`](Engine::get), [`join`](Engine::join),
//!   [`task_done`](Engine::task_done);
//! - batches: [`put_many`](Engine::put_many), [`get_many`](Engine::get_many), which also leases;
//! - leases, by their tokens: [`settle_many`](Engine::settle_many), and for one alone
//!   [`ack`](Engine::ack), [`nack`](Engine::nack), [`extend`](Engine::extend);
//! - queues: [`look`](Engine::look) (the size, for one), [`shut_down`](Engine::shut_down),
//!   [`purge`](Engine::purge), [`redrive`](Engine::redrive).
//!
//! Each takes the lock once, is one step with one commit, and returns a [`Ticket`]: the outcome or a
//! place in line, and what must be durable before anybody is told. Those that move many tasks
//! go on in further steps.

mod puts;
mod settles;
mod takes;

use std::sync::Arc;

use manyhands::wire::arguments::Wait;
use manyhands::wire::tasks::Info;
use tokio::sync::oneshot;

pub(crate) use self::puts::Added;
pub(crate) use self::puts::{PLACED_AT_ONCE_MAX, Put};
pub(crate) use self::settles::{Settled, Settlement};
use self::takes::info;
use crate::engine::{
    Batch, Called, Caller, Demand, Engine, Held, Promise, QueueId, Redriving, Reference, Signer,
    State, Ticket, Tokens, Waiter, Waiting,
};
use crate::error::CallError;
use crate::queue::{
    Grant, Outcome, Patience, Prepared, Queue, SettledBy, Taker, TaskId, Terms, Time, Token,
    WaiterId,
};

/// How items are to be handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// Pickle protocols up to this one are understood.
    pub(crate) protocol_max: u8,
    /// What settles the tasks.
    pub(crate) settled_by: SettledBy,
    /// What is taken comes with [what is known of it](Engine::inform), and is not received before.
    pub(crate) is_informed: bool,
    /// How many at most.
    pub(crate) max: usize,
    /// It takes no further ones once these take so many bytes.
    pub(crate) bytes_max: usize,
}

impl Taking {
    /// One item, as `get` takes it.
    pub(crate) fn one(protocol_max: u8) -> Self {
        let (settled_by, bytes_max) = (SettledBy::Session, usize::MAX);
        Self { protocol_max, settled_by, is_informed: false, max: 1, bytes_max }
    }

    /// Whether an item counts as received when it is in memory, if its caller takes it for good.
    fn receives(self) -> bool {
        !self.settled_by.is_by_token() && !self.is_informed
    }

    fn taker(self, caller: Caller) -> Taker {
        let (reader, settled_by) = (self.protocol_max, self.settled_by);
        Taker { reader, settled_by, holder: caller.holder(), is_pushed: false }
    }
}

/// What a call that takes tasks shows of those that its caller has taken before.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// They are through: settled in the same step, before others are taken.
    pub(crate) through: Tokens,
    /// Whether there are others, which it has to settle before it gets more while memory is short.
    pub(crate) has_tasks: bool,
}

/// Tasks that a put settles in its own step if it is accepted, also if it has to wait until then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settles {
    /// The task that the item is the result of. It is kept for that while the put waits.
    pub(crate) answered: Option<Held>,
    /// Whether the answer came with the token of a lease.
    pub(crate) is_by_token: bool,
    /// Whether it counts its task as done, because its holder says no more of it.
    pub(crate) counts: bool,
    /// Tasks that the put shows to be through.
    pub(crate) through: Tokens,
}

impl Settles {
    pub(crate) fn is_nothing(&self) -> bool {
        self.answered.is_none() && self.through.is_empty()
    }
}

impl Engine {
    /// The patience that `wait` comes to from now on.
    pub(crate) fn patience(&self, wait: Wait) -> Patience {
        match wait {
            Wait::For(_) => patience(wait, self.clock.now()),
            // The clock needs not be read.
            _ => patience(wait, Time::default()),
        }
    }

    /// Adds an item; waits for a free slot, or for memory, as long as `wait` says.
    ///
    /// Returns [`Outcome::Accepted`], [`Outcome::Known`] for a key that is there already,
    /// [`Outcome::Full`] or [`Outcome::NoRoom`] when its time is up, [`Outcome::ShutDown`], or a
    /// place in line.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`], [`CallError::NegativeTimeout`] for a bounded queue,
    /// [`CallError::NoOrder`] and [`CallError::Order`] for a priority that the queue cannot sort by,
    /// [`CallError::Unasked`] for an item that is no result where only results are taken, and
    /// [`CallError::Stale`] for a result that comes too late.
    pub(crate) fn put(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        item: impl Into<Prepared>,
        terms: Option<Box<Terms>>,
        wait: Wait,
    ) -> Ticket {
        self.put_settling(caller, reference, item.into(), terms, wait, &Settles::default())
    }

    /// The same for a put that settles tasks. Each is settled in this step where it is in the same shard
    /// as this queue; what `through` says may be done in steps of others.
    pub(crate) fn put_settling(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        mut item: Prepared,
        terms: Option<Box<Terms>>,
        wait: Wait,
        settles: &Settles,
    ) -> Ticket {
        let to = |_: &State| Some(reference.queue);
        let mut state = self.enter_put(reference, to, &mut item, terms.as_deref());
        if let Err(error) = state.check_put(reference.queue, terms.as_deref(), wait) {
            return Ticket::unchanged(Err(error));
        }
        let patience = patience(wait, state.step.now);
        let elsewhere = self.through_elsewhere(&state, &settles.through);
        let called = self.put_one(&mut state, caller, reference, settles, (item, terms), patience);
        let mut ticket = self.finish_call(&mut state, reference.queue, called);
        drop(state);
        if let Some(elsewhere) = elsewhere {
            self.ack_elsewhere(elsewhere, ticket.called.as_mut().ok());
        }
        ticket
    }

    /// Takes an item that a reader of pickle protocols up to `protocol_max` understands; waits for
    /// one as long as `wait` says. Who called has the task then, until it is settled or given back.
    ///
    /// Returns [`Outcome::Task`], [`Outcome::Unreadable`] for an item that is newer than the reader,
    /// [`Outcome::Empty`] when its time is up, [`Outcome::ShutDown`], or a place in line.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`], [`CallError::NegativeTimeout`].
    pub(crate) fn get(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        protocol_max: u8,
        wait: Wait,
    ) -> Ticket {
        self.get_showing(caller, reference, protocol_max, wait, &Shown::default()).0
    }

    /// The same for a call that shows something, with what the queue demands for the task.
    pub(crate) fn get_showing(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        protocol_max: u8,
        wait: Wait,
        shown: &Shown,
    ) -> (Ticket, Demand) {
        let mut state = self.lock(reference.queue);
        if wait == Wait::Negative {
            return (Ticket::unchanged(Err(CallError::NegativeTimeout)), Demand::default());
        }
        let queue = reference.queue;
        let demand = state.demand(caller, queue);
        state.ack_many(&shown.through);
        let taking = Taking::one(protocol_max);
        let called = self.take(&mut state, caller, reference, taking, wait, shown.has_tasks);
        let ticket = self.finish_call(&mut state, queue, called);
        if let Ok(Called::Now(Outcome::Task(grant))) = &ticket.called
            && self.journal.is_some()
            && state.is_received(caller, queue, grant)
            && state.is_on_disk(queue)
        {
            // In a step of its own, which the reply does not wait for.
            state.receive(caller, queue, grant.token);
            self.commit(&mut state);
        }
        (ticket, demand)
    }

    /// Waits until every item that was put is done.
    ///
    /// Returns [`Outcome::Joined`] or a place in line.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn join(self: &Arc<Self>, caller: Caller, reference: Reference) -> Ticket {
        let mut state = self.lock(reference.queue);
        let id = WaiterId(state.next());
        let called = match state.on(reference.queue, |queue, _| queue.join(id)) {
            None => Err(CallError::NoQueue),
            Some(Some(outcome)) => Ok(Called::Now(outcome)),
            Some(None) => {
                let waiting = Waiting::new(reference, caller);
                Ok(Called::Later(self.park(&mut state, id, waiting)))
            }
        };
        self.finish_call(&mut state, reference.queue, called)
    }

    /// Counts one item as done.
    ///
    /// Returns [`Outcome::Done`].
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`], [`CallError::TooManyTaskDone`].
    pub(crate) fn task_done(self: &Arc<Self>, reference: Reference) -> Ticket {
        self.task_done_settling(reference, None)
    }

    /// The same, which settles a task of the queue.
    pub(crate) fn task_done_settling(
        self: &Arc<Self>,
        reference: Reference,
        settles: Option<Held>,
    ) -> Ticket {
        let mut state = self.lock(reference.queue);
        if let Some(held) = settles {
            state.settle(held);
        }
        self.count_done(&mut state, reference, 1)
    }

    /// Counts several items as done, or none if fewer are unfinished.
    ///
    /// Returns [`Outcome::Done`].
    ///
    /// # Errors
    ///
    /// Those of [`task_done`](Self::task_done).
    pub(crate) fn tasks_done(self: &Arc<Self>, reference: Reference, tasks: u32) -> Ticket {
        self.count_done(&mut self.lock(reference.queue), reference, tasks.into())
    }

    fn count_done(self: &Arc<Self>, state: &mut State, reference: Reference, tasks: u64) -> Ticket {
        let done = state.on(reference.queue, |queue, step| queue.tasks_done(tasks, step));
        let called = match done {
            Some(Ok(())) => Ok(Called::Now(Outcome::Done)),
            Some(Err(error)) => Err(CallError::TooManyTaskDone(error)),
            None => Err(CallError::NoQueue),
        };
        self.finish_call(state, reference.queue, called)
    }

    /// Closes the queue for puts and, once it is empty or if `immediate`, for gets.
    ///
    /// Returns [`Outcome::Done`].
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn shut_down(self: &Arc<Self>, reference: Reference, immediate: bool) -> Ticket {
        let mut state = self.lock(reference.queue);
        let shut = state.on(reference.queue, |queue, step| queue.shutdown(immediate, step));
        let called = shut.map(|()| Called::Now(Outcome::Done)).ok_or(CallError::NoQueue);
        self.finish_call(&mut state, reference.queue, called)
    }

    // ---- batches

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

    /// Takes a first item, waiting for it as long as `wait` says, and then, if it came at once,
    /// what else is there, or the first [`BATCH_AT_ONCE`] of that. A lease is the same with a
    /// [`SettledBy`] by token. `shown` is what the call shows of tasks that were taken before.
    ///
    /// Returns `None` if all that was taken is in `batch`; otherwise nothing was, and it returns
    /// what [`get`](Self::get) does.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    pub(crate) fn get_many(
        self: &Arc<Self>,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        wait: Wait,
        shown: &Shown,
        batch: &mut Batch,
    ) -> Ticket<Option<Called>> {
        let state = &mut self.lock(reference.queue);
        self.get_many_in(state, caller, reference, taking, wait, shown, batch)
    }

    /// The same in a step that has begun.
    #[expect(clippy::too_many_arguments, reason = "a verb, and the step it is part of")]
    pub(super) fn get_many_in(
        self: &Arc<Self>,
        state: &mut State,
        caller: Caller,
        reference: Reference,
        taking: Taking,
        wait: Wait,
        shown: &Shown,
        batch: &mut Batch,
    ) -> Ticket<Option<Called>> {
        if wait == Wait::Negative {
            return Ticket::unchanged(Err(CallError::NegativeTimeout));
        }
        state.ack_many(&shown.through);
        batch.receives = taking.receives();
        let first = self.take(state, caller, reference, taking, wait, shown.has_tasks);
        let called = match first {
            Ok(Called::Now(Outcome::Task(grant))) => {
                let put = state.promise_of(reference.queue, grant.token.task);
                batch.promise = batch.promise.and(put);
                batch.grants.push(grant);
                state.take_more(caller, reference.queue, taking, batch);
                Ok(None)
            }
            other => other.map(Some),
        };
        let ticket = self.finish_some(state, called);
        batch.promise = batch.promise.and(ticket.promise);
        self.receive_kept(state, caller, reference.queue, batch);
        ticket
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
        let queue = reference.queue;
        let mut state = self.lock(reference.queue);
        let goes_on = state.take_more(caller, queue, taking, batch);
        batch.promise = batch.promise.and(self.commit(&mut state));
        self.receive_kept(&mut state, caller, queue, batch);
        goes_on
    }

    /// What [`inform`](Self::inform) says of these tasks, in bytes, roughly.
    pub(crate) fn info_bytes(&self, reference: Reference, grants: &[Grant]) -> u64 {
        let state = self.lock(reference.queue);
        grants.iter().map(|grant| state.info_bytes(reference.queue, grant)).sum()
    }

    /// Says what is known of tasks that were taken to be [informed](Taking::is_informed) about, and that
    /// are received by that.
    pub(crate) fn inform(
        &self,
        caller: Caller,
        reference: Reference,
        grants: &[Grant],
    ) -> (Vec<Option<Info>>, Promise) {
        let mut state = self.lock(reference.queue);
        let queue = reference.queue;
        let mut infos = Vec::with_capacity(grants.len());
        for &Grant { token, .. } in grants {
            let hosted = state.queues.get(&queue);
            infos.push(hosted.and_then(|hosted| hosted.queue.origin(token.task)).map(info));
            state.receive(caller, queue, token);
        }
        (infos, self.commit(&mut state))
    }

    // ---- leases

    /// What signs the tokens of this queue.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn signer(&self, reference: Reference) -> Result<Signer, CallError> {
        let state = self.lock(reference.queue);
        let hosted = state.queues.get(&reference.queue).ok_or(CallError::NoQueue)?;
        Ok(hosted.signer)
    }

    // ---- dead letters

    /// Moves up to `max` dead letters, and some 8 MiB, back to the queues that they came from, as new
    /// tasks. What is no dead letter, or whose queue is gone, stays; so does all once the disk is
    /// as full as puts may make it. A body on disk stays where it lies, if its new queue can do
    /// without it; others are read between two steps, on this thread, which must not serve anybody.
    ///
    /// Returns how many were moved.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn redrive(&self, reference: Reference, mut redriving: Redriving) -> Ticket<u64> {
        let called = loop {
            match self.redrive_some(reference, &mut redriving) {
                Ok(true) => {}
                Ok(false) => break Ok(redriving.moved),
                Err(error) => break Err(error),
            }
        };
        Ticket { called, promise: redriving.promise }
    }

    /// Drops all that is ready or delayed.
    ///
    /// Returns how many tasks those were.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn purge(&self, reference: Reference) -> Ticket<u64> {
        let mut state = self.lock(reference.queue);
        let results = state.results_of(reference.queue);
        let awaited = results.and_then(|it| state.options(it)).is_some_and(|it| it.ordered);
        let dropped = state.on(reference.queue, |queue, step| queue.purge(awaited, step));
        // A change of its own: what was counted before must not hold what comes in.
        state.on(reference.queue, Queue::admit);
        self.finish(&mut state, dropped.ok_or(CallError::NoQueue))
    }

    /// Ends a task, which counts as done: one that is ready or delayed is gone, and the token of one
    /// that is in hand is stale. False as [`Queue::revoke`] says.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn revoke(&self, reference: Reference, task: TaskId) -> Ticket<bool> {
        let mut state = self.lock(reference.queue);
        let queue = reference.queue;
        let token = state.queues.get(&queue).and_then(|hosted| hosted.queue.token(task));
        let holder = token.and_then(|token| state.queues.get(&queue)?.queue.holder(token));
        let was_there = state.on(queue, |queue, step| queue.revoke(task, step));
        if let (Some(true), Some(holder)) = (was_there, holder) {
            state.leases.remove(holder.into(), queue, task);
        }
        self.finish(&mut state, was_there.ok_or(CallError::NoQueue))
    }

    // ---- what the verbs share

    /// What `look` sees of the queue, such as its size. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`CallError::NoQueue`].
    pub(crate) fn look<R>(
        &self,
        reference: Reference,
        look: impl FnOnce(&Queue) -> R,
    ) -> Result<R, CallError> {
        let state = self.lock(reference.queue);
        state
            .queues
            .get(&reference.queue)
            .map(|hosted| look(&hosted.queue))
            .ok_or(CallError::NoQueue)
    }

    /// Takes back an item that did not reach its client, to its original place, unless somebody
    /// else has taken it over.
    pub(crate) fn return_unread(&self, caller: Caller, reference: Reference, token: Token) {
        let mut state = self.lock(reference.queue);
        state.return_unread(caller, reference.queue, token);
        self.commit(&mut state);
    }

    /// Puts a call in line, unless the engine has stopped.
    pub(super) fn park(
        self: &Arc<Self>,
        state: &mut State,
        id: WaiterId,
        mut waiting: Waiting,
    ) -> Waiter {
        let (sender, receiver) = oneshot::channel();
        let Waiting { reference, caller, .. } = waiting;
        waiting.outcome = Some(sender);
        // Without its sender the receiver tells at once that nobody will answer.
        if state.is_stopped {
            state.cancel(id, waiting);
        } else {
            state.waiting.insert(id, waiting);
        }
        Waiter::new(self, caller, reference, id, receiver)
    }
}

impl State {
    /// The queue that the results of this one go to.
    fn results_of(&self, queue: QueueId) -> Option<QueueId> {
        let results = self.queues.get(&queue)?.queue.options().results.as_deref()?;
        self.directory.names.get(results).copied()
    }
}

/// Until when `wait` lets a call that begins `now` wait.
pub(super) fn patience(wait: Wait, now: Time) -> Patience {
    match wait {
        Wait::No | Wait::Negative => Patience::Now,
        Wait::For(timeout) => Patience::Until(now + timeout),
        Wait::Forever => Patience::Forever,
    }
}
