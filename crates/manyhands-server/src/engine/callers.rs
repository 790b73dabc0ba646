//! Who calls: which callers there are, and what they are called where it is told who has a task.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
pub(super) struct Callers {
    names: Mutex<HashMap<Caller, Arc<Names>>>,
    len: AtomicUsize,
    last: AtomicU64,
}

impl Callers {
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, caller: Caller) -> Option<Arc<Names>> {
        self.lock().get(&caller).cloned()
    }

    /// Nothing here leaves the table half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<Caller, Arc<Names>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, names: Names) -> Caller {
        let caller = Caller(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let mut all = self.lock();
        all.insert(caller, names.into());
        self.len.store(all.len(), Ordering::Relaxed);
        caller
    }

    fn remove(&self, caller: Caller) {
        let mut all = self.lock();
        all.remove(&caller);
        self.len.store(all.len(), Ordering::Relaxed);
    }

    /// The name and address of a caller, for those who are told who had a task.
    pub(super) fn worker(&self, caller: Caller) -> Option<Arc<str>> {
        let names = self.get(caller)?;
        let Names { name, address } = &*names;
        let end = name.char_indices().nth(WORKER_CHARS_MAX).map(|(at, _)| at);
        let name = end.and_then(|end| name.get(..end)).unwrap_or(name);
        Some(format!("{name} at {address}").into())
    }
}

impl Engine {
    /// Takes a caller in, until it is [forgotten](Self::forget).
    pub(crate) fn enter(&self, name: Arc<str>, address: Arc<str>) -> Caller {
        self.shards.common().callers.add(Names { name, address })
    }

    /// A caller calls no more, and has nothing.
    pub(crate) fn forget(&self, caller: Caller) {
        self.shards.common().callers.remove(caller);
    }

    /// Whether a caller has leases that only their tokens settle.
    pub(crate) fn has_leases(&self, caller: Caller) -> bool {
        self.lock_each().any(|state| state.leases.has_any(caller))
    }
}
