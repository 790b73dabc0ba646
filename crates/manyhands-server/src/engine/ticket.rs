//! What a verb returns: an outcome or a place in line, and what must be durable before anybody is
//! told.
//!
//! A verb takes the lock once, and its step ends with one commit. [`Ticket::promise`] is the only
//! way in which what a reply has to wait for leaves the engine: whoever replies waits for it outside
//! of the lock, by [`Engine::until_durable`]. A call that waits for its turn holds a [`Waiter`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::persist::{JournalError, OnTheWay};
pub(crate) use super::persist::{Promise, Reading, UntilDurable};
use super::{CallError, Caller, Engine, QueueId, Reference, State, Tokens};
use crate::memory::Room;
use crate::queue::{Grant, Outcome, Queue, Token, TokenRun, WaiterId};

/// What a verb returns.
#[derive(Debug)]
#[must_use = "a place in line is lost when it is dropped, and nobody may be told before what it promises is durable"]
pub(crate) struct Ticket<T = Called> {
    pub(crate) called: Result<T, CallError>,
    /// What must be durable before anybody is told, also of a failure: the call may have changed
    /// something before it failed.
    pub(crate) promise: Promise,
}

/// Where a call stands once its step is over.
#[derive(Debug)]
pub(crate) enum Called<W = Waiter> {
    Now(Outcome),
    /// It is in line.
    Later(W),
}

/// What came of a call that waited.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) outcome: Outcome,
    pub(crate) promise: Promise,
    /// The task counts as received by this.
    is_received: bool,
}

impl Completion {
    pub(super) fn new(outcome: Outcome, promise: Promise, is_received: bool) -> Self {
        Self { outcome, promise, is_received }
    }

    /// The call has left its line because nobody can keep its item until it is its turn.
    pub(crate) fn full(promise: Promise) -> Self {
        Self { outcome: Outcome::Full, promise, is_received: false }
    }
}

impl<T> Ticket<T> {
    /// Nothing was changed.
    pub(super) fn unchanged(called: Result<T, CallError>) -> Self {
        Self { called, promise: Promise::NOTHING }
    }

    #[inline]
    pub(crate) fn map<U>(self, map: impl FnOnce(T) -> U) -> Ticket<U> {
        Ticket { called: self.called.map(map), promise: self.promise }
    }
}

/// Tasks that one call has taken.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) grants: Vec<Grant>,
    /// What must be durable before anybody is told of them.
    pub(crate) promise: Promise,
    /// Those that were taken from the batch, because they were gone before they were read.
    pub(crate) gone: Vec<Token>,
    /// Whether they count as received once they are in memory, if their caller takes them for good.
    pub(super) receives: bool,
    /// What the reply takes, in bytes; 0 if nobody has counted yet.
    pub(super) bytes: usize,
}

impl Batch {
    /// The task that was waited for.
    pub(crate) fn of(grant: Grant, promise: Promise) -> Self {
        Self { grants: vec![grant], promise, receives: true, ..Self::default() }
    }

    /// Tasks that were pushed: they are leased by token.
    pub(crate) fn pushed(grants: Vec<Grant>, promise: Promise) -> Self {
        Self { grants, promise, ..Self::default() }
    }
}

/// A call that is in line. Dropping it takes it out; what it was given meanwhile goes back.
#[derive(Debug)]
pub(crate) struct Waiter {
    engine: Arc<Engine>,
    caller: Caller,
    reference: Reference,
    id: WaiterId,
    /// What the call itself has changed before it had to wait.
    own: Promise,
    /// Tasks in other shards that the call shows to be through, if it is a put that is accepted.
    through: Option<Box<Tokens>>,
    /// Gone once it has told.
    told: Option<oneshot::Receiver<Completion>>,
}

impl Waiter {
    pub(super) fn new(
        engine: &Arc<Engine>,
        caller: Caller,
        reference: Reference,
        id: WaiterId,
        told: oneshot::Receiver<Completion>,
    ) -> Self {
        let (engine, own) = (engine.clone(), Promise::NOTHING);
        Self { engine, caller, reference, id, own, through: None, told: Some(told) }
    }

    /// What the call has changed so far must be durable before anybody is told what came of it.
    pub(crate) fn wait_for(&mut self, promise: Promise) {
        self.own = self.own.and(promise);
    }

    /// If this is a put that is accepted, these tasks are through.
    pub(super) fn shows(&mut self, through: Box<Tokens>) {
        self.through = Some(through);
    }

    /// Ends the wait.
    ///
    /// # Errors
    ///
    /// What the call has changed before it had to wait. A call that another thread has served
    /// meanwhile is given back instead: it must be told what came of it.
    pub(crate) fn leave(mut self) -> Result<Self, Promise> {
        let engine = self.engine.clone();
        let mut state = engine.lock(self.reference.queue);
        let Some(waiting) = state.waiting.remove(self.id) else {
            drop(state);
            return Ok(self);
        };
        self.told = None;
        state.cancel(self.id, waiting);
        engine.commit(&mut state);
        Err(self.own)
    }

    /// What [ends](Engine::cancel) the wait from elsewhere.
    pub(crate) fn place(&self) -> Place {
        Place { queue: self.reference.queue, id: self.id }
    }

    /// Ends the wait, however far it is. Says what had come of the call meanwhile; if that is a task,
    /// it goes back.
    pub(crate) fn give_up(mut self) -> Option<Outcome> {
        self.end()
    }

    fn end(&mut self) -> Option<Outcome> {
        let mut told = self.told.take()?;
        if planted!(GhostGet) {
            return None;
        }
        let mut state = self.engine.lock(self.reference.queue);
        let mut outcome = None;
        match state.waiting.remove(self.id) {
            Some(waiting) => state.cancel(self.id, waiting),
            None => outcome = told.try_recv().ok().map(|told| told.outcome),
        }
        if let Some(Outcome::Task(grant)) = &outcome {
            state.return_unread(self.caller, self.reference.queue, grant.token);
        }
        self.engine.commit(&mut state);
        drop(state);
        self.ack_through(outcome.as_ref());
        outcome
    }

    /// Settles what a put has shown to be through in other shards, if it was accepted.
    fn ack_through(&mut self, outcome: Option<&Outcome>) {
        if let Some(through) = self.through.take()
            && matches!(outcome, Some(Outcome::Accepted(_) | Outcome::Known))
        {
            self.engine.ack_many(&through);
        }
    }
}

/// Where a call is in line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    queue: QueueId,
    id: WaiterId,
}

impl Engine {
    /// Ends the wait of a call. Its [`Waiter`] tells `None` then, or what had come of the call meanwhile.
    pub(crate) fn cancel(&self, Place { queue, id }: Place) {
        let mut state = self.lock(queue);
        if let Some(waiting) = state.waiting.remove(id) {
            state.cancel(id, waiting);
            self.commit(&mut state);
        }
    }
}

impl Future for Waiter {
    /// `None` if the call was ended without an answer: its reference was released, or the server
    /// stops.
    type Output = Option<Completion>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(told) = &mut self.told else { return Poll::Ready(None) };
        let told = ready!(Pin::new(told).poll(cx));
        self.told = None;
        let Ok(mut told) = told else { return Poll::Ready(None) };
        told.promise = told.promise.and(self.own);
        if let Outcome::Task(grant) = &told.outcome
            && told.is_received
        {
            let mut state = self.engine.lock(self.reference.queue);
            state.receive(self.caller, self.reference.queue, grant.token);
            self.engine.commit(&mut state);
        }
        self.ack_through(Some(&told.outcome));
        Poll::Ready(Some(told))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.end();
    }
}

impl Engine {
    /// Ends the step of a call.
    pub(super) fn finish<T>(&self, state: &mut State, called: Result<T, CallError>) -> Ticket<T> {
        let promise = self.commit(state);
        Ticket { called, promise }
    }

    /// The same for a call of a queue that may be in line.
    pub(super) fn finish_call(
        &self,
        state: &mut State,
        queue: QueueId,
        called: Result<Called, CallError>,
    ) -> Ticket {
        let Ticket { mut called, mut promise } = self.finish(state, called);
        match &mut called {
            Ok(Called::Now(outcome)) => promise = promise.and(state.promise(queue, outcome)),
            Ok(Called::Later(waiter)) => waiter.wait_for(promise),
            Err(_) => {}
        }
        if planted!(ReplyBeforeDurable) {
            promise = Promise::NOTHING;
        }
        Ticket { called, promise }
    }

    // ---- tasks that were taken

    /// Reads the bodies of tasks that were handed out, where they are on disk. What has to wait for
    /// the disk is [on its way](Self::arrive). Tasks that are gone meanwhile are left out, perhaps
    /// all of them.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub(crate) fn collect(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        batch: &mut Batch,
        room: &mut Room,
    ) -> Result<Option<Reading>, JournalError> {
        if !batch.grants.iter().any(|grant| Queue::is_evicted(&grant.payload)) {
            return Ok(None);
        }
        let reading = self.fetch(caller, at, &mut batch.grants, room)?;
        if reading.is_none() {
            self.take_in(caller, at, batch);
        }
        Ok(reading)
    }

    /// Waits for tasks that are read. Dropped before they are there, even if it was never polled, or
    /// if one cannot be read, they go back.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        mut batch: Batch,
        reading: Reading,
    ) -> impl Future<Output = Result<(Batch, Room), JournalError>> {
        let on_the_way = OnTheWay::new(self, caller, at, std::mem::take(&mut batch.grants));
        async move {
            let (read, room) = reading.await?;
            batch.grants = on_the_way.arrive(read);
            self.take_in(caller, at, &mut batch);
            Ok((batch, room))
        }
    }

    /// Tasks that were on disk are in memory, but for those that are gone.
    fn take_in(&self, caller: Caller, at: Reference, batch: &mut Batch) {
        let mut state = self.lock(at.queue);
        let queue = at.queue;
        let Batch { grants, gone, receives, .. } = batch;
        grants.retain(|grant| {
            let is_gone = Queue::is_evicted(&grant.payload);
            if is_gone {
                state.return_unread(caller, queue, grant.token);
                gone.push(grant.token);
            }
            !is_gone
        });
        if *receives && !caller.is_in_process() {
            state.receive_all(caller, queue, grants);
        }
        batch.promise = batch.promise.and(self.commit(&mut state));
    }

    /// Waits for all that a ticket is about: for its turn, until what it promises is durable,
    /// and for the body of its task. A call that is dropped meanwhile has taken nothing. `None` is
    /// a call that was ended without an answer; one whose task was gone before it was read is
    /// [`Outcome::Empty`].
    ///
    /// # Errors
    ///
    /// What the call failed with.
    pub(crate) async fn redeem<W: Future<Output = Option<Completion>>>(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        ticket: Ticket<Called<W>>,
    ) -> Result<Option<Outcome>, CallError> {
        let (outcome, promise) = match ticket.called {
            Ok(Called::Now(outcome)) => (Ok(outcome), ticket.promise),
            Ok(Called::Later(waiter)) => match waiter.await {
                Some(Completion { outcome, promise, .. }) => (Ok(outcome), promise),
                None => return Ok(None),
            },
            Err(error) => (Err(error), ticket.promise),
        };
        if let Ok(Outcome::Task(grant)) = outcome {
            let mut batch = Batch::of(grant, promise);
            let brought = self.bring(caller, at, &mut batch).await;
            let task = batch.grants.pop().map_or(Outcome::Empty, Outcome::Task);
            return Ok(brought.is_ok().then_some(task));
        }
        let is_durable = self.until_durable(promise).await.is_ok();
        Ok(Some(outcome?).filter(|_| is_durable))
    }

    /// Waits until nothing is to be done any more for tasks that were taken.
    ///
    /// # Errors
    ///
    /// If nothing becomes durable any more, or a body cannot be read.
    pub(crate) async fn bring(
        self: &Arc<Self>,
        caller: Caller,
        at: Reference,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        if self.journal.is_none() {
            return Ok(());
        }
        let on_the_way = OnTheWay::new(self, caller, at, std::mem::take(&mut batch.grants));
        self.until_durable(batch.promise).await?;
        batch.grants = on_the_way.over();
        let room = &mut self.memory.room();
        if let Some(reading) = self.collect(caller, at, batch, room)? {
            (*batch, *room) = self.arrive(caller, at, std::mem::take(batch), reading).await?;
        }
        if batch.receives && caller.is_in_process() {
            let mut state = self.lock(at.queue);
            state.receive_all(caller, at.queue, &batch.grants);
            self.commit(&mut state);
        }
        Ok(())
    }
}

impl State {
    /// Whether a task that this caller is given counts as received by that. If its body is on
    /// disk it does not before it was read; if the queue is, the program that the server runs in
    /// may still give it back.
    pub(super) fn is_received(&self, caller: Caller, queue: QueueId, grant: &Grant) -> bool {
        self.takes_for_good(caller, queue)
            && !Queue::is_evicted(&grant.payload)
            && !(caller.is_in_process() && self.is_on_disk(queue))
    }

    /// Tasks have reached whom they were for. That settles them where nobody answers for them.
    pub(super) fn receive_all(&mut self, caller: Caller, queue: QueueId, grants: &[Grant]) {
        if self.takes_for_good(caller, queue) {
            self.settle_received(queue, TokenRun::of(grants.iter().map(|grant| grant.token)));
        }
    }

    /// What an answer has to wait for, beside what its own step has changed.
    pub(super) fn promise(&mut self, queue: QueueId, outcome: &Outcome) -> Promise {
        match outcome {
            // A task is told only once its put is durable.
            Outcome::Task(grant) => self.promise_of(queue, grant.token.task),
            // What another call did, which may not be durable yet.
            Outcome::Known | Outcome::Joined => self.promise_of_all(queue),
            _ => Promise::NOTHING,
        }
    }
}
