//! Observers: whoever looks at every change of every queue as it happens, in memory or on disk.
//!
//! [`State::on`](super::State::on) tells them, under the engine's lock and in its order. Each has a
//! buffer of its own, which it empties whenever it likes. What finds no room there is counted and
//! dropped, so one that falls behind costs the engine neither memory nor time. A change is seen
//! before it is durable.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::{Engine, QueueId, persist};
use crate::queue::{Change, Time};

/// A change of a queue, as observers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) at: Time,
    pub(crate) queue: QueueId,
    /// What clients call the queue, if they have a name for it.
    pub(crate) name: Option<Arc<str>>,
    /// A put comes without the bytes of its item: they would keep the whole message in memory that
    /// the item arrived in.
    pub(crate) change: Change,
    /// Length of the item that was put, in bytes.
    pub(crate) item_len: usize,
}

/// What has happened since an observer looked last.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) changes: Vec<Observed>,
    /// Changes after these that found no room.
    pub(crate) missed: u64,
}

/// Sees all changes until it is dropped.
#[derive(Debug)]
pub(crate) struct Observer(Arc<Mutex<Buffer>>);

/// All that look now.
#[derive(Debug, Default)]
pub(super) struct Observers(Vec<Weak<Mutex<Buffer>>>);

#[derive(Debug)]
struct Buffer {
    news: News,
    bytes: usize,
    len_max: usize,
    bytes_max: usize,
}

impl Engine {
    /// Begins to collect changes, at most `len_max` of them and some `bytes_max` bytes at a time.
    pub(crate) fn observe(&self, len_max: usize, bytes_max: usize) -> Observer {
        let buffer = Buffer { news: News::default(), bytes: 0, len_max, bytes_max };
        let buffer = Arc::new(Mutex::new(buffer));
        self.lock_each().for_each(|mut state| state.observers.0.push(Arc::downgrade(&buffer)));
        Observer(buffer)
    }
}

impl Observer {
    /// Takes what was collected since the last time.
    pub(crate) fn take(&self) -> News {
        let mut buffer = lock(&self.0);
        buffer.bytes = 0;
        mem::take(&mut buffer.news)
    }
}

impl Observers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells all observers what has changed, and forgets those that were dropped.
    pub(super) fn tell(
        &mut self,
        at: Time,
        queue: QueueId,
        name: Option<&Arc<str>>,
        changes: &[Change],
    ) {
        self.0.retain(|observer| {
            let Some(buffer) = observer.upgrade() else { return false };
            let mut buffer = lock(&buffer);
            for change in changes {
                buffer.push(at, queue, name, change);
            }
            true
        });
    }
}

impl Buffer {
    fn push(&mut self, at: Time, queue: QueueId, name: Option<&Arc<str>>, change: &Change) {
        let item_len = match change {
            Change::Put { payload, .. } => payload.bytes.len(),
            _ => 0,
        };
        // What it takes on disk is about what it takes in memory.
        let bytes = size_of::<Observed>() + persist::bytes_max(change) - item_len;
        let has_room = self.news.changes.len() < self.len_max
            && bytes <= self.bytes_max.saturating_sub(self.bytes);
        // After a gap nothing more is kept: `missed` says where it is.
        if !has_room || self.news.missed > 0 {
            self.news.missed += 1;
            return;
        }
        self.bytes += bytes;
        let (name, mut change) = (name.cloned(), change.clone());
        if let Change::Put { payload, .. } = &mut change {
            payload.bytes = Bytes::new();
        }
        self.news.changes.push(Observed { at, queue, name, change, item_len });
    }
}

/// Nothing here leaves a buffer half changed.
fn lock(buffer: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}
