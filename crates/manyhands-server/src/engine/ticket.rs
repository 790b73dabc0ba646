//! A call that is not answered at once: it waits for its turn, then until what it is told is durable,
//! then for the body of its task, if that is on disk.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::durable::{Promise, both};
use super::fetch::OnTheWay;
pub(crate) use super::fetch::Reading;
use super::{Answer, CallError, Called, Engine, QueueId, Reference, SessionId, State};
use crate::journal::{Durable, JournalError};
use crate::memory::Room;
use crate::queue::{Grant, Outcome, Queue, TaskId, WaiterId};

/// A call that waits. Dropping it ends the wait: what it was given meanwhile goes back.
#[derive(Debug)]
pub(crate) struct Waiter {
    engine: Arc<Engine>,
    reference: Reference,
    session: SessionId,
    id: WaiterId,
    stage: Stage,
    /// What the call itself has changed.
    own: Option<Promise>,
    /// What it brings is settled by its token only.
    explicit: bool,
    /// Memory of the task that it brings, if that was read from the disk.
    room: Room,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// In its queue.
    Parked(oneshot::Receiver<Answer>),
    /// Decided; nobody must know before that is durable.
    Decided(Outcome, Option<Promise>),
    /// Decided, and becoming durable.
    Kept(Outcome, Durable),
    /// Durable, and read from the disk.
    Reading(Grant, Reading),
    Over,
}

impl Waiter {
    pub(super) fn new(
        engine: &Arc<Engine>,
        (session, reference, explicit): (SessionId, Reference, bool),
        id: WaiterId,
        stage: Stage,
    ) -> Self {
        let room = engine.memory.room();
        Self { engine: engine.clone(), reference, session, id, stage, own: None, explicit, room }
    }

    /// The memory that its task takes, once that is there.
    pub(crate) fn take_room(&mut self) -> Room {
        std::mem::replace(&mut self.room, self.engine.memory.room())
    }

    /// Whether the outcome is known, and only becomes durable: nobody can change it any more.
    pub(crate) fn is_decided(&self) -> bool {
        matches!(self.stage, Stage::Decided(..) | Stage::Kept(..) | Stage::Reading(..))
    }

    /// The outcome of a call that is decided and brings no task, which must not be told before the
    /// second of the pair is durable.
    pub(crate) fn split(&mut self) -> Option<(Outcome, Option<Promise>)> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Decided(outcome, promise) if !matches!(outcome, Outcome::Task(_)) => {
                Some((outcome, promise))
            }
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    /// Ends the wait of a call that is not decided. One that is by now is given back: it must be told
    /// what came of it.
    pub(crate) fn leave(mut self) -> Option<Self> {
        if !matches!(self.stage, Stage::Parked(_)) {
            return Some(self);
        }
        let engine = self.engine.clone();
        let mut state = engine.lock();
        let Some(waiting) = state.waiting.remove(self.id) else {
            drop(state);
            return Some(self);
        };
        self.stage = Stage::Over;
        state.cancel(self.id, self.reference.queue, waiting.answers);
        engine.commit(&mut state);
        None
    }

    /// What is decided becomes durable from now on.
    fn keep(&mut self, durable: Durable) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Decided(outcome, _) => Stage::Kept(outcome, durable),
            stage => stage,
        };
    }

    /// Reads the payload of a task that is on disk, or begins to.
    fn fetch(&mut self) {
        let grant = match &mut self.stage {
            Stage::Decided(Outcome::Task(grant), _) | Stage::Kept(Outcome::Task(grant), _) => grant,
            _ => return,
        };
        if !Queue::is_away(&grant.payload) {
            return;
        }
        let (grants, room) = (std::slice::from_mut(grant), &mut self.room);
        match self.engine.fetch(self.session, self.reference, grants, room) {
            Ok(None) if Queue::is_away(&grant.payload) => self.fail(&JournalError::Gone),
            Ok(None) => {}
            Ok(Some(reading)) => self.stage = Stage::Reading(grant.clone(), reading),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &JournalError) {
        tracing::error!("a task cannot be read: {error}");
        self.stage = Stage::Over;
    }

    /// What is left to do once the outcome is durable and a task in memory.
    fn finish(&self, outcome: Outcome) -> Option<Outcome> {
        let Outcome::Task(grant) = outcome else { return Some(outcome) };
        if self.explicit {
            return Some(Outcome::Task(grant));
        }
        let mut state = self.engine.lock();
        state.receive(self.session, self.reference.queue, grant.token);
        self.engine.commit(&mut state);
        Some(Outcome::Task(grant))
    }
}

impl Future for Waiter {
    /// `None` if the call was ended without an answer: its reference was released, the server
    /// stops, or nothing becomes durable any more.
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Stage::Parked(answer) = &mut self.stage {
            let answer = ready!(Pin::new(answer).poll(cx));
            let Ok(Answer { outcome, promise }) = answer else {
                self.stage = Stage::Over;
                return Poll::Ready(None);
            };
            self.stage = Stage::Decided(outcome, both(promise, self.own));
        }
        if let Stage::Decided(_, promise) = &mut self.stage
            && let Some(durable) = promise.take().and_then(|promise| self.engine.durable(promise))
        {
            self.keep(durable);
        }
        if let Stage::Kept(_, durable) = &mut self.stage {
            // A reply that is not durable must not leave.
            if ready!(Pin::new(durable).poll(cx)).is_err() {
                self.stage = Stage::Over;
                return Poll::Ready(None);
            }
        }
        self.fetch();
        if let Stage::Reading(grant, reading) = &mut self.stage {
            match ready!(Pin::new(reading).poll(cx)) {
                Ok((read, _)) if read.iter().any(|it| Queue::is_away(&it.payload)) => {
                    self.fail(&JournalError::Gone);
                }
                Ok((read, room)) => {
                    read.into_iter().for_each(|read| *grant = read);
                    self.room = room;
                }
                Err(error) => self.fail(&error),
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Decided(outcome, _) | Stage::Kept(outcome, _) => self.finish(outcome),
            Stage::Reading(grant, _) => self.finish(Outcome::Task(grant)),
            Stage::Parked(_) | Stage::Over => None,
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if matches!(stage, Stage::Over) {
            return;
        }
        if planted!(GhostGet) {
            return;
        }
        let mut state = self.engine.lock();
        let outcome = match stage {
            Stage::Decided(outcome, _) | Stage::Kept(outcome, _) => Some(outcome),
            Stage::Reading(grant, _) => Some(Outcome::Task(grant)),
            Stage::Parked(mut answer) => match state.waiting.remove(self.id) {
                Some(waiting) => {
                    state.cancel(self.id, self.reference.queue, waiting.answers);
                    None
                }
                None => answer.try_recv().ok().map(|answer| answer.outcome),
            },
            Stage::Over => None,
        };
        if let Some(Outcome::Task(grant)) = outcome {
            state.return_unread(self.session, self.reference.queue, grant.token);
        }
        self.engine.commit(&mut state);
    }
}

impl Engine {
    /// Ends the step of a call, whose answer waits for what the step has changed. So does a failure:
    /// what the call did before it failed is [owed](Self::owed) to the session.
    pub(super) fn tell(
        self: &Arc<Self>,
        state: &mut State,
        at: (SessionId, Reference, bool),
        called: Result<Called, CallError>,
    ) -> Result<Called, CallError> {
        let promise = self.commit(state);
        match called {
            Ok(called) => Ok(self.keep(state, at, called, promise)),
            Err(error) => {
                state.owe(at.0, promise);
                Err(error)
            }
        }
    }

    /// Lets a call that ended at once wait until what it is told is durable and its task is in
    /// memory. In a queue in memory nothing of that is needed.
    fn keep(
        self: &Arc<Self>,
        state: &mut State,
        (session, reference, explicit): (SessionId, Reference, bool),
        called: Called,
        promise: Option<Promise>,
    ) -> Called {
        let outcome = match called {
            Called::Later(mut waiter) => {
                waiter.own = promise;
                return Called::Later(waiter);
            }
            Called::Now(outcome) => outcome,
        };
        let promise = both(promise, state.promise(reference.queue, &outcome));
        let promise = promise.filter(|_| !planted!(ReplyBeforeDurable));
        let grant = match &outcome {
            Outcome::Task(grant) => Some(grant),
            _ => None,
        };
        if promise.is_none() && grant.is_none_or(|grant| !Queue::is_away(&grant.payload)) {
            if let Some(grant) = grant.filter(|_| !explicit && state.is_kept(reference.queue)) {
                state.receive(session, reference.queue, grant.token);
                self.commit(state);
            }
            return Called::Now(outcome);
        }
        let id = WaiterId(state.next());
        let stage = Stage::Decided(outcome, promise);
        Called::Later(Waiter::new(self, (session, reference, explicit), id, stage))
    }

    /// Resolves when a promise is kept, or never will be.
    pub(crate) fn durable(&self, promise: Promise) -> Option<Durable> {
        self.lock().durable(promise)
    }
}

impl Engine {
    /// As [`commit`](Self::commit); what the session is told of it waits for that.
    pub(super) fn commit_for(&self, state: &mut State, session: SessionId) {
        let promise = self.commit(state);
        state.owe(session, promise);
    }

    /// What the calls of a session have promised beside their outcomes since this was asked last.
    pub(crate) fn owed(&self, session: SessionId) -> Option<Promise> {
        if !self.keeps {
            return None;
        }
        let mut state = self.lock();
        match session {
            SessionId::NOBODY => state.sessions.nobody,
            session => state.sessions.all.get_mut(&session)?.promise.take(),
        }
    }

    /// Reads the payloads of tasks that were handed out, where they are on disk; then they count as
    /// received, unless their tokens settle them. What has to wait for the disk is
    /// [on its way](Self::arrive). Tasks that are gone meanwhile are left out.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or all are gone.
    pub(crate) fn collect(
        self: &Arc<Self>,
        session: SessionId,
        reference: Reference,
        explicit: bool,
        grants: &mut Vec<Grant>,
        room: &mut Room,
    ) -> Result<Option<Reading>, JournalError> {
        if !self.keeps {
            return Ok(None);
        }
        let reading = self.fetch(session, reference, grants, room)?;
        if reading.is_none() {
            self.take_in((session, reference, explicit), grants)?;
        }
        Ok(reading)
    }

    /// Waits for tasks that are read. Those that do not arrive go back.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub(crate) async fn arrive(
        self: &Arc<Self>,
        to: (SessionId, Reference, bool),
        grants: &mut Vec<Grant>,
        reading: Reading,
        room: &mut Room,
    ) -> Result<(), JournalError> {
        let (session, reference, _) = to;
        let on_the_way = OnTheWay { engine: self, session, reference, grants: &mut *grants };
        let (read, taken) = reading.await?;
        *room = taken;
        on_the_way.arrive(read);
        self.take_in(to, grants)
    }

    /// Tasks are in memory.
    fn take_in(
        &self,
        (session, reference, explicit): (SessionId, Reference, bool),
        grants: &mut Vec<Grant>,
    ) -> Result<(), JournalError> {
        grants.retain(|grant| !Queue::is_away(&grant.payload));
        if grants.is_empty() {
            return Err(JournalError::Gone);
        }
        if explicit {
            return Ok(());
        }
        let mut state = self.lock();
        if !state.takes_for_good(session, reference.queue) {
            return Ok(());
        }
        for grant in grants.iter() {
            state.receive(session, reference.queue, grant.token);
        }
        self.commit_for(&mut state, session);
        Ok(())
    }
}

impl State {
    pub(super) fn owe(&mut self, session: SessionId, promise: Option<Promise>) {
        let owed = match session {
            SessionId::NOBODY => Some(&mut self.sessions.nobody),
            session => self.sessions.all.get_mut(&session).map(|session| &mut session.promise),
        };
        if let Some(owed) = owed {
            *owed = both(*owed, promise);
        }
    }

    /// A task that was handed out is told only once its put is durable.
    pub(super) fn owe_put(&mut self, session: SessionId, queue: QueueId, task: TaskId) {
        let promise = self.promise_of(queue, task);
        self.owe(session, promise);
    }

    pub(super) fn durable(&self, promise: Promise) -> Option<Durable> {
        self.log.as_ref().map(|log| log.durable(promise))
    }
}
