//! A task that was leased, and what becomes of it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Reference;
use crate::Error;
use crate::answer::Task;
use crate::verb::Verb;
use crate::wire::native::{Fate, Settlement};
use crate::wire::pickle::Payload;
use crate::wire::token::LeaseToken;

/// Why a task comes back whose lease was dropped.
const DROPPED: &str = "its worker dropped it";

/// A task that this program has taken, and has to settle: it derefs to the item.
///
/// It stays out until it is settled, until this client's connection has ended, or for as long as the
/// queue's `max_run`. Dropped without having been settled, it goes back as failed: at once, or after
/// the queue's pause if its thread panics.
pub struct Lease<T> {
    pub(super) item: T,
    pub(super) claim: Claim,
}

/// A lease without its item.
pub(super) struct Claim {
    reference: Arc<Reference>,
    pub(super) token: LeaseToken,
    /// Whether it needs no more: it was settled, or is being settled.
    is_over: bool,
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("item", &self.item)
            .field("task", &self.claim.token.task)
            .field("attempt", &self.claim.token.attempt)
            .finish_non_exhaustive()
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: DeserializeOwned> Lease<T> {
    /// Reads the item of a task that was leased. If it is no `T`, the task is a dead letter.
    pub(super) fn of(reference: &Arc<Reference>, task: Task) -> Result<Self, Error> {
        let reference = Arc::clone(reference);
        let Some(token) = task.token else {
            return Err(reference.server().unexpected(&"a task without its token"));
        };
        match reference.server().item(&reference.name, task.payload) {
            Ok(item) => Ok(Self { item, claim: Claim { reference, token, is_over: false } }),
            Err(error) => {
                let fate = Fate::GiveUp { reason: error.to_string() };
                reference.tell(Verb::settle(vec![Settlement { token, fate }]));
                Err(error)
            }
        }
    }
}

impl<T> Lease<T> {
    /// Which attempt at the task this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.claim.token.attempt
    }

    /// The task's position among the puts of its queue, from 0.
    #[must_use]
    pub fn task(&self) -> u64 {
        self.claim.token.task
    }

    /// The task is done, and has no result.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] if the queue declares a queue of results: that is a call of
    /// [`ack_with`](Self::ack_with). [`Error::Stale`] if somebody else has taken it since; [`Error::InDoubt`] if that is so when
    /// the call is made again after a lost connection; that the server was lost.
    pub async fn ack(self) -> Result<(), Error> {
        self.claim.ack().await
    }

    /// The task is done, and this is its result, for the queue of results that the task's queue
    /// declares; both or neither. Waits for a free slot there.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since: nothing was put then. [`Error::Data`].
    /// [`Error::InDoubt`] if it is over when the call is made again after a lost connection: the
    /// result was put by the first, or never will be.
    pub async fn ack_with<R: Serialize>(self, result: &R) -> Result<(), Error> {
        let result = self.claim.pickled(result)?;
        self.claim.ack_with(result).await
    }

    /// The task failed, and why. It comes back after `delay`, or after the queue's own pause.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since; that the server was lost.
    pub async fn nack(self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
        self.claim.nack(delay, reason).await
    }

    /// The task failed, and no further attempt can do it: it is a dead letter at once, with
    /// this reason.
    ///
    /// # Errors
    ///
    /// Those of [`nack`](Self::nack).
    pub async fn give_up(self, reason: &str) -> Result<(), Error> {
        self.claim.give_up(reason).await
    }

    /// The lease lasts for `hold` from now, or as long as the queue's `max_run` allows.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if it is over; that the server was lost.
    pub async fn extend(&self, hold: Duration) -> Result<(), Error> {
        self.claim.extend(hold).await
    }

    /// The settlement of a lease that is over with it.
    pub(super) fn ends_as(mut self, fate: Fate) -> Settlement {
        self.claim.is_over = true;
        self.claim.settlement(fate)
    }
}

impl Claim {
    pub(super) fn pickled<R: Serialize>(&self, result: &R) -> Result<Payload, Error> {
        self.reference.pickled(result)
    }

    pub(super) async fn ack(mut self) -> Result<(), Error> {
        self.is_over = true;
        let acked = self.settle(Fate::Ack { result: None }).await;
        // A call that was wrong has settled nothing: the task goes back.
        self.is_over = !matches!(acked, Err(Error::Remote { .. }));
        acked
    }

    pub(super) async fn ack_with(self, result: Payload) -> Result<(), Error> {
        self.end(Fate::Ack { result: Some(result) }).await
    }

    pub(super) async fn nack(self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
        self.end(Fate::Nack { delay, reason: reason.to_owned() }).await
    }

    pub(super) async fn give_up(self, reason: &str) -> Result<(), Error> {
        self.end(Fate::GiveUp { reason: reason.to_owned() }).await
    }

    pub(super) async fn extend(&self, hold: Duration) -> Result<(), Error> {
        self.settle(Fate::Extend { hold }).await
    }

    /// The lease was lost: there is nothing to settle.
    pub(super) fn forget(mut self) {
        self.is_over = true;
    }

    async fn end(mut self, fate: Fate) -> Result<(), Error> {
        self.is_over = true;
        self.settle(fate).await
    }

    async fn settle(&self, fate: Fate) -> Result<(), Error> {
        let settlements = vec![self.settlement(fate)];
        let settled = self.reference.ask(Verb::settle(settlements)).await?.settled()?;
        settled.into_iter().collect()
    }

    fn settlement(&self, fate: Fate) -> Settlement {
        Settlement { token: self.token, fate }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_over {
            // What makes one worker panic makes the next one panic too: not at once.
            let delay = (!std::thread::panicking()).then_some(Duration::ZERO);
            let nack = Fate::Nack { delay, reason: DROPPED.to_owned() };
            self.reference.tell(Verb::settle(vec![self.settlement(nack)]));
        }
    }
}
