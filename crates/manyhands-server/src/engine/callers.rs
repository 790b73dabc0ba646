//! Who calls: what kind of client a caller is, and the session that it calls on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use manyhands::wire::announcement::announced;

use crate::engine::hands::sessions::End;
use crate::engine::{Engine, Promise, SessionId};
use crate::queue::Time;

/// Who calls a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(super) session: SessionId,
    pub(super) kind: CallerKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallerKind {
    /// An unmodified Python client.
    Stock,
    /// One of our own clients.
    Own,
    /// The program that the server runs in.
    InProcess,
}

impl Caller {
    /// The program that the server runs in: it takes tasks for good.
    pub(crate) const IN_PROCESS: Self =
        Self { session: SessionId::NOBODY, kind: CallerKind::InProcess };

    /// Whether it is one of our own clients.
    pub(crate) fn is_own(self) -> bool {
        self.kind == CallerKind::Own
    }

    pub(super) fn is_in_process(self) -> bool {
        self.kind == CallerKind::InProcess
    }
}

/// A session that is registered with the engine. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Presence {
    engine: Arc<Engine>,
    caller: Caller,
    /// Whether tasks are left to be settled that it has shown to be through.
    is_behind: Arc<AtomicBool>,
}

impl Presence {
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
        let mut state = self.engine.lock();
        state.settle_through(self.caller.session);
        self.engine.commit(&mut state)
    }

    /// The connection ended `at` a moment ago; `cut` if in the middle of something. The verdict waits
    /// until it is known whether the last reply was read, which [`Drop`] tells.
    pub(crate) fn depart(&self, at: Time, cut: bool) {
        let mut state = self.engine.lock();
        state.sessions.end(self.caller.session, End { at, cut, checking: true });
        self.engine.commit(&mut state);
    }
}

impl Presence {
    /// Forgets the session if it holds nothing: then there is nothing to give a verdict on. Whether it
    /// did.
    pub(crate) fn dismiss(&self) -> bool {
        let mut state = self.engine.lock();
        let id = self.caller.session;
        state.is_empty_handed(id) && state.sessions.remove(id).is_some()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        let now = state.step.now;
        let end = End { at: now, cut: true, checking: false };
        if let Some(end) = state.sessions.end(self.caller.session, end) {
            end.checking = false;
        }
        state.judge(self.caller.session);
        self.engine.commit(&mut state);
    }
}

impl Engine {
    /// Registers a session.
    pub(crate) fn enter(self: &Arc<Self>, name: &str, peer: &Arc<str>) -> Presence {
        let mut state = self.lock();
        let id = SessionId(state.next());
        let now = state.step.now;
        let is_behind = state.sessions.enter(id, name, peer.clone(), now);
        let kind = match announced(name) {
            0 => CallerKind::Stock,
            _ => CallerKind::Own,
        };
        Presence { engine: self.clone(), caller: Caller { session: id, kind }, is_behind }
    }
}
