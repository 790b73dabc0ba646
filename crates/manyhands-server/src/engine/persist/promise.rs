//! What a reply has to wait for, and the wait.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::engine::Engine;
use crate::journal::{Durability, Durable, JournalError, Lsn};

/// How far the journal must be durable before a reply may leave: the last frame that must be
/// written, and the last one that must be synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Promise {
    /// Never below `synced`.
    written: Lsn,
    synced: Lsn,
}

impl Promise {
    /// The reply may leave at once.
    pub(crate) const NOTHING: Self = Self { written: Lsn(0), synced: Lsn(0) };

    /// One frame, at the level of its records.
    pub(in crate::engine) fn of(lsn: Lsn, durability: Durability) -> Self {
        let synced = if durability == Durability::Disk { lsn } else { Lsn(0) };
        Self { written: lsn, synced }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// As soon as it would survive the end of the process.
    pub(in crate::engine) fn once_written(self) -> Self {
        Self { synced: Lsn(0), ..self }
    }

    /// What a reply waits for that says both.
    pub(crate) fn and(self, other: Self) -> Self {
        let (written, synced) = (self.written.max(other.written), self.synced.max(other.synced));
        Self { written, synced }
    }

    /// Whether whoever has waited for this need not wait for `other`.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.and(other) == self
    }

    pub(in crate::engine) fn written(self) -> Lsn {
        self.written
    }
}

/// Resolves when what a promise names is durable; an error says that it never will be.
#[derive(Debug)]
#[must_use = "nothing may be told before it resolves"]
pub(crate) struct UntilDurable {
    synced: Option<Durable>,
    written: Option<Durable>,
}

impl Future for UntilDurable {
    type Output = Result<(), JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { synced, written } = &mut *self;
        for part in [synced, written] {
            if let Some(durable) = part {
                ready!(Pin::new(durable).poll(context))?;
                *part = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Engine {
    /// Waits until what a promise names is durable.
    pub(crate) fn until_durable(&self, promise: Promise) -> UntilDurable {
        let Promise { written, synced } = promise;
        let wait = |lsn, durability| Some(self.journal.as_ref()?.durable(lsn, durability));
        UntilDurable {
            synced: (Lsn(0) < synced).then(|| wait(synced, Durability::Disk)).flatten(),
            written: (synced < written).then(|| wait(written, Durability::Os)).flatten(),
        }
    }

    /// The same for a caller that is alone: what is to be kept for it is written on this thread, if that is
    /// the sooner. Covers all that is durable then.
    pub(crate) fn durable_here(&self, promise: Promise) -> Promise {
        let durable = self.durable_by_now();
        match &self.journal {
            Some(journal) if !durable.covers(promise) => {
                journal.write_here();
                self.durable_by_now()
            }
            _ => durable,
        }
    }

    /// Covers all that is durable by now.
    pub(crate) fn durable_by_now(&self) -> Promise {
        let Some(journal) = &self.journal else { return Promise::NOTHING };
        let (written, synced) = journal.written_and_synced();
        Promise { written: written.max(synced), synced }
    }
}
