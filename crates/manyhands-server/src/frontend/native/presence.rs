//! How a session begins and ends for the engine.

use std::sync::Arc;

use tokio::task::yield_now;

use crate::engine::{BATCH_AT_ONCE, Caller};
use crate::frontend::shared::Shared;
use crate::queue::Cause;

/// A session that is known to the engine. When it ends, its leases go back; unless the server ends,
/// as whoever has the token of a lease keeps that over a restart.
#[derive(Debug)]
pub(super) struct Presence {
    shared: Arc<Shared>,
    caller: Caller,
    /// Whether nothing is left to be done for it.
    is_over: bool,
}

impl Presence {
    pub(super) fn new(shared: &Arc<Shared>, name: &str, address: &Arc<str>) -> Self {
        let caller = shared.engine.enter(name.into(), address.clone());
        Self { shared: shared.clone(), caller, is_over: false }
    }

    pub(super) fn caller(&self) -> Caller {
        self.caller
    }

    /// Ends the session: its leases go back, some of them at a time.
    pub(super) async fn leave(mut self, cause: Cause) {
        while self.part(&cause) {
            yield_now().await;
        }
    }

    /// Gives some leases back; true if there are more.
    fn part(&mut self, cause: &Cause) -> bool {
        if self.shared.stop.is_cancelled() {
            self.is_over = true;
            return false;
        }
        let is_more = self.shared.engine.end_leases(self.caller, cause, BATCH_AT_ONCE);
        if !is_more {
            self.shared.engine.forget(self.caller);
            self.is_over = true;
        }
        is_more
    }
}

impl Drop for Presence {
    /// Of a session that came to no end of its own: it panicked, or the server has stopped serving.
    fn drop(&mut self) {
        while !self.is_over && self.part(&Cause::Crashed) {}
    }
}
