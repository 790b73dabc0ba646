//! How a session begins and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::hands::Hands;
use super::verbs::Classic;
use crate::engine::{Caller, Promise};
use crate::queue::Time;

/// A session that is known to the engine and to the [hands](super::hands). Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Presence {
    classic: Arc<Classic>,
    caller: Caller,
    /// Whether tasks are left to be settled that it has shown to be through.
    is_behind: Arc<AtomicBool>,
}

impl Presence {
    pub(super) fn new(classic: &Arc<Classic>, caller: Caller, is_behind: Arc<AtomicBool>) -> Self {
        Self { classic: classic.clone(), caller, is_behind }
    }

    pub(crate) fn caller(&self) -> Caller {
        self.caller
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

impl Classic {
    /// Begins a session.
    pub(crate) fn enter(
        self: &Arc<Self>,
        name: impl Into<Arc<str>>,
        address: &Arc<str>,
    ) -> Presence {
        let mut hands = self.hands();
        let name = name.into();
        let caller = self.engine.enter(name.clone(), address.clone());
        let now = self.engine.now();
        let is_behind = hands.enter(caller, name, address.clone(), now);
        drop(hands);
        Presence::new(self, caller, is_behind)
    }

    /// Settles some of the tasks that are through and were too many to be settled at once.
    pub(super) fn settle_more(&self, caller: Caller) -> Promise {
        let mut hands = self.hands();
        let through = hands.settle_more(caller);
        self.engine.ack_many(&through)
    }

    pub(super) fn depart(&self, caller: Caller, at: Time, cut: bool) {
        self.hands().depart(caller, at, cut);
    }

    /// Forgets a session if it holds nothing; whether it did.
    pub(super) fn dismiss(&self, caller: Caller) -> bool {
        let mut hands = self.hands();
        let is_dismissed = hands.dismiss(caller);
        if is_dismissed {
            self.engine.forget(caller);
        }
        is_dismissed
    }

    pub(super) fn end(&self, caller: Caller) {
        let mut hands = self.hands();
        let now = self.engine.now();
        hands.end(caller, now);
        self.judge(&mut hands, caller, now);
        self.tell_timer(&hands);
    }

    /// Looks at a session that ended, and does what its verdict says if that is found.
    pub(super) fn judge(&self, hands: &mut Hands, caller: Caller, now: Time) {
        let undecided = |queues: &mut dyn Iterator<Item = _>| self.engine.longest_lease(queues);
        let Some(parting) = hands.judge(caller, now, undecided) else { return };
        self.engine.part(caller, parting);
        let mut released = Vec::new();
        if hands.parted(caller, now, &mut released) {
            self.engine.forget(caller);
        }
        self.engine.release(&released);
        self.engine.memory().remember(hands.bytes());
    }
}
