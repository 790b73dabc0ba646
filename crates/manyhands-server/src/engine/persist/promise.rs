//! What a reply has to wait for, and the wait.

use crate::engine::Engine;
use crate::journal::{Durability, JournalError, Lsn};

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

impl Engine {
    /// Waits until what a promise names is durable.
    ///
    /// # Errors
    ///
    /// If it never will be.
    pub(crate) async fn until_durable(&self, promise: Promise) -> Result<(), JournalError> {
        let Some(journal) = self.journal.as_ref().filter(|_| !promise.is_nothing()) else {
            return Ok(());
        };
        if Lsn(0) < promise.synced {
            journal.durable(promise.synced, Durability::Disk).await?;
        }
        if promise.synced < promise.written {
            journal.durable(promise.written, Durability::Os).await?;
        }
        Ok(())
    }

    /// Covers all that is durable by now.
    pub(crate) fn durable_by_now(&self) -> Promise {
        let Some(journal) = &self.journal else { return Promise::NOTHING };
        let (written, synced) = journal.written_and_synced();
        Promise { written: written.max(synced), synced }
    }
}
