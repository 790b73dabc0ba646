//! Who calls: which callers there are, and what they are called where it is told who has a task.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::engine::{Engine, QueueId};
use crate::queue::{Holder, Token};

/// How much of a caller's name stands where somebody is told who had a task.
const WORKER_CHARS_MAX: usize = 200;

/// Who calls a verb, and has what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Caller(pub(crate) u64);

impl Caller {
    /// The program that the server runs in: it takes tasks for good.
    pub(crate) const IN_PROCESS: Self = Self(0);

    pub(super) fn is_in_process(self) -> bool {
        self == Self::IN_PROCESS
    }

    pub(super) fn holder(self) -> Holder {
        Holder(self.0)
    }
}

impl From<Holder> for Caller {
    fn from(Holder(number): Holder) -> Self {
        Self(number)
    }
}

/// A task that is out, as whoever answers for it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) queue: QueueId,
    pub(crate) token: Token,
}

/// What a caller is called.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) name: Arc<str>,
    pub(super) address: Arc<str>,
}

/// All callers but the program that the server runs in.
#[derive(Debug, Default)]
pub(super) struct Callers(HashMap<Caller, Names>);

impl Callers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, caller: Caller) -> Option<&Names> {
        self.0.get(&caller)
    }

    /// The name and address of a caller, for those who are told who had a task.
    pub(super) fn worker(&self, caller: Caller) -> Option<Arc<str>> {
        let Names { name, address } = self.get(caller)?;
        let end = name.char_indices().nth(WORKER_CHARS_MAX).map(|(at, _)| at);
        let name = end.and_then(|end| name.get(..end)).unwrap_or(name);
        Some(format!("{name} at {address}").into())
    }
}

impl Engine {
    /// Takes a caller in, until it is [forgotten](Self::forget).
    pub(crate) fn enter(&self, name: Arc<str>, address: Arc<str>) -> Caller {
        let mut state = self.lock();
        let caller = Caller(state.next());
        state.callers.0.insert(caller, Names { name, address });
        caller
    }

    /// A caller calls no more, and has nothing.
    pub(crate) fn forget(&self, caller: Caller) {
        self.lock().callers.0.remove(&caller);
    }

    /// Whether a caller has leases that only their tokens settle.
    pub(crate) fn has_leases(&self, caller: Caller) -> bool {
        self.lock().leases.has_any(caller)
    }
}
