//! A call of a session that is in line.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::verbs::Classic;
use crate::engine::{
    self, Called, Caller, Completion, Demand, Held, Promise, QueueId, Ticket, Tokens,
};
use crate::queue::Outcome;

/// A call that is in line. Dropping it takes it out; what it was given meanwhile goes back.
///
/// A task that it is given is in the session's hand once this has told of it, and not before.
#[derive(Debug)]
pub(crate) struct Waiter(Box<Call>);

/// In a box, as few calls wait and all are moved about.
#[derive(Debug)]
struct Call {
    classic: Arc<Classic>,
    caller: Caller,
    queue: QueueId,
    /// Gone once it has told.
    inner: Option<engine::Waiter>,
    asked: Asked,
}

/// What the end of the wait means for the session's hand.
#[derive(Debug)]
pub(super) enum Asked {
    Nothing,
    /// What it is given is in hand, as its queue demands.
    Task(Demand),
    /// If the item is accepted, these are settled: the task that it is the result of, and those that it
    /// shows to be through.
    Put(Box<(Option<Held>, Tokens)>),
}

impl Waiter {
    pub(super) fn new(
        classic: &Arc<Classic>,
        caller: Caller,
        queue: QueueId,
        inner: engine::Waiter,
        asked: Asked,
    ) -> Self {
        let inner = Some(inner);
        Self(Box::new(Call { classic: classic.clone(), caller, queue, inner, asked }))
    }

    /// What the call has changed so far must be durable before anybody is told what came of it.
    pub(crate) fn wait_for(&mut self, promise: Promise) {
        if let Some(inner) = &mut self.0.inner {
            inner.wait_for(promise);
        }
    }

    /// Ends the wait.
    ///
    /// # Errors
    ///
    /// What the call has changed before it had to wait. A call that another thread has served
    /// meanwhile is given back instead: it must be told what came of it.
    pub(crate) fn leave(mut self) -> Result<Self, Promise> {
        let Some(inner) = self.0.inner.take() else { return Ok(self) };
        self.0.inner = Some(inner.leave()?);
        Ok(self)
    }
}

impl Call {
    /// The call has ended: what its session has in hand now.
    fn update_hand(&self, outcome: &Outcome) {
        let Self { caller, queue, .. } = *self;
        match (outcome, &self.asked) {
            (Outcome::Task(grant), Asked::Task(demand)) => {
                let held = Held { queue, token: grant.token };
                self.classic.hands().take(caller, held, *demand);
            }
            (Outcome::Accepted(_) | Outcome::Known, Asked::Put(settles)) => {
                let (answered, through) = &**settles;
                self.classic.hands().accepted(caller, queue, *answered, through);
            }
            _ => {}
        }
    }
}

impl Ticket<Called<Waiter>> {
    /// The same for a call that has changed something before.
    pub(super) fn after(mut self, before: Promise) -> Self {
        if let Ok(Called::Later(waiter)) = &mut self.called {
            waiter.wait_for(before);
        }
        Self { promise: self.promise.and(before), ..self }
    }
}

impl Future for Waiter {
    /// `None` if the call was ended without an answer: its reference was released, or the server
    /// stops.
    type Output = Option<Completion>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(inner) = &mut self.0.inner else { return Poll::Ready(None) };
        let told = ready!(Pin::new(inner).poll(cx));
        self.0.inner = None;
        let Some(told) = told else { return Poll::Ready(None) };
        self.0.update_hand(&told.outcome);
        Poll::Ready(Some(told))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(inner) = self.0.inner.take() else { return };
        match inner.give_up() {
            Some(Outcome::Task(_)) => self.0.classic.hands().miss(self.0.caller),
            Some(outcome) => self.0.update_hand(&outcome),
            None => {}
        }
    }
}
