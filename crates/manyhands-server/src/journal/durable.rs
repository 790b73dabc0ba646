//! The wait for a frame to be durable: a number, and whom to wake.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::state::{Shared, State};
use super::{Durability, Journal, JournalError, Lsn};

/// Resolves when a frame is durable; see [`Journal::durable`].
#[derive(Debug)]
#[must_use = "nothing is durable before it resolves"]
pub struct Durable {
    shared: Arc<Shared>,
    lsn: Lsn,
    durability: Durability,
    /// Who is woken, once somebody waits.
    waker: Option<Waker>,
}

impl Journal {
    /// Resolves when the frame is durable, or never will be.
    ///
    /// A frame that no record of [`Durability::Disk`] is in is synced by the clock.
    pub fn durable(&self, lsn: Lsn, durability: Durability) -> Durable {
        Durable { shared: self.shared.clone(), lsn, durability, waker: None }
    }
}

impl Durable {
    /// Whether it need not be waited for.
    pub fn is_over(&self) -> bool {
        self.outcome(&mut self.shared.lock()).is_some()
    }

    /// Blocks until it resolves; not for async tasks.
    ///
    /// # Errors
    ///
    /// [`JournalError::Stopped`] if the frame never will be durable.
    pub fn wait(self) -> Result<(), JournalError> {
        #[cfg(test)]
        let this = match super::tests::beside::wait(self) {
            Ok(outcome) => return outcome,
            Err(alone) => alone,
        };
        #[cfg(not(test))]
        let this = self;
        pollster::block_on(this)
    }

    /// What was durable before a failure stays so.
    fn outcome(&self, state: &mut State) -> Option<Result<(), JournalError>> {
        let reached = state.reached(self.durability);
        let last = if planted!(AllToldOfOne) { reached.next() } else { reached };
        if self.lsn <= last {
            return Some(Ok(()));
        }
        state.failed.clone().map(Err)
    }
}

impl Future for Durable {
    type Output = Result<(), JournalError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut state = this.shared.lock();
        if let Some(outcome) = this.outcome(&mut state) {
            return Poll::Ready(outcome);
        }
        let waker = context.waker();
        if !this.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.enlist(this.lsn, this.durability, waker.clone());
            drop(state);
            this.waker = Some(waker.clone());
        }
        Poll::Pending
    }
}
