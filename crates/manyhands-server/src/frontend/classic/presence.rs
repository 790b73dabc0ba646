//! That a session is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use manyhands::wire::announcement::announced;

use super::verbs::Classic;
use crate::engine::{Caller, Promise};
use crate::queue::Time;

/// A session that is known to the engine and to the [hands](super::hands). Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Presence {
    classic: Arc<Classic>,
    caller: Caller,
    is_own: bool,
    /// Whether tasks are left to be settled that it has shown to be through.
    is_behind: Arc<AtomicBool>,
}

impl Presence {
    pub(super) fn new(
        classic: &Arc<Classic>,
        caller: Caller,
        name: &str,
        is_behind: Arc<AtomicBool>,
    ) -> Self {
        Self { classic: classic.clone(), caller, is_own: announced(name) > 0, is_behind }
    }

    pub(crate) fn caller(&self) -> Caller {
        self.caller
    }

    /// Whether the client is one of ours.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Whether tasks are left that what the session did has shown to be through: they were too many
    /// to be settled at once.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// Settles some of these.
    pub(crate) fn settle_more(&self) -> Promise {
        self.classic.settle_more(self.caller)
    }

    /// The connection ended `at` a moment ago; `cut` if in the middle of something. The verdict waits
    /// until it is known whether the last reply was read, which [`Drop`] tells.
    pub(crate) fn depart(&self, at: Time, cut: bool) {
        self.classic.depart(self.caller, at, cut);
    }

    /// Forgets the session if it holds nothing: then there is nothing to give a verdict on. Whether it
    /// did.
    pub(crate) fn dismiss(&self) -> bool {
        self.classic.dismiss(self.caller)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.classic.end(self.caller);
    }
}
