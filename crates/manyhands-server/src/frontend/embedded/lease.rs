//! A task that was leased in the server's own process.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use manyhands::Error;
use manyhands::wire::pickle::{Dialect, to_payload};
use manyhands::wire::token::LeaseToken;
use pollster::block_on;
use serde::Serialize;

use super::core::Core;
use crate::error::CallError;
use crate::queue::Retry;

/// Why a task comes back whose lease was dropped.
const DROPPED: &str = "its worker dropped it";

/// A task that was leased in this process, and has to be settled: it derefs to the item.
///
/// It stays out until it is settled, or for as long as the queue's `max_run`. Dropped without having
/// been settled, it goes back as failed: at once, or after the queue's pause if its thread panics.
pub struct Lease<T> {
    core: Core,
    item: T,
    token: LeaseToken,
    is_over: bool,
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("item", &self.item)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> Lease<T> {
    pub(super) fn new(core: Core, item: T, token: LeaseToken) -> Self {
        Self { core, item, token, is_over: false }
    }

    /// Which attempt at the task this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.token.attempt
    }

    /// The task's position among the puts of its queue, from 0.
    #[must_use]
    pub fn task(&self) -> u64 {
        self.token.task
    }

    /// The task is done.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn ack(mut self) -> Result<(), Error> {
        self.is_over = true;
        let ticket = self.core.ack(self.token, None);
        // A call that was wrong has settled nothing: the task goes back.
        self.is_over = !matches!(ticket.called, Err(CallError::NoResult(_)));
        block_on(self.core.settle(ticket)).map(drop)
    }

    /// The task is done, and this is its result, for the queue of results that the task's queue
    /// declares; both or neither.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since; [`Error::Full`] if there is no room for
    /// the result, and the task goes back: nothing waits here. [`Error::Data`].
    pub fn ack_with<R: Serialize>(mut self, result: &R) -> Result<(), Error> {
        let result = to_payload(result, Dialect::Python3)?;
        block_on(self.core.redeem(self.core.ack(self.token, Some(result))))?;
        self.is_over = true;
        Ok(())
    }

    /// The task failed, and why. It comes back after `delay`, or after the queue's own pause.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn nack(self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
        self.fail(Retry::from(delay), reason)
    }

    /// The task failed, and no further attempt can do it: it is a dead letter at once, with this
    /// reason.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if somebody else has taken it since.
    pub fn give_up(self, reason: &str) -> Result<(), Error> {
        self.fail(Retry::Never, reason)
    }

    fn fail(mut self, retry: Retry, reason: &str) -> Result<(), Error> {
        self.is_over = true;
        block_on(self.core.settle(self.core.nack(self.token, retry, reason)))
    }

    /// The lease lasts for `hold` from now, or as long as the queue's `max_run` allows.
    ///
    /// # Errors
    ///
    /// [`Error::Stale`] if it is over.
    pub fn extend(&self, hold: Duration) -> Result<(), Error> {
        block_on(self.core.extend(self.token, hold))
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        if !self.is_over {
            // What makes one worker panic makes the next one panic too: not at once.
            let delay = (!std::thread::panicking()).then_some(Duration::ZERO);
            // What is over already needs nothing, and nobody is told.
            drop(self.core.nack(self.token, Retry::from(delay), DROPPED));
        }
    }
}
