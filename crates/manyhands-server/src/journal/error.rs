//! What goes wrong with a journal, and whose turn it is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Location;
use super::names::segment_name;

/// Why a journal cannot be opened, or goes no further.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another server has the directory.
    #[error("another process is using the journal in {}", .0.display())]
    InUse(PathBuf),
    /// The directory cannot be written to.
    #[error("the journal in {} cannot be written: it is read-only", .0.display())]
    ReadOnly(PathBuf),
    /// What was durable is not what was written. Nothing is skipped: restore the file, or accept the
    /// loss by hand.
    #[error("the journal is damaged: {file} at byte {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The body of one task is not what was written; everything else may be.
    #[error(
        "the journal is damaged: {file} at byte {offset}: {what}: task {task} of the queue {queue:?}"
    )]
    DamagedBody {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// Name of the queue.
        queue: String,
        /// The task.
        task: u64,
    },
    /// A file that others refer to is not there.
    #[error("the journal is damaged: {0} is missing")]
    Missing(String),
    /// A newer version wrote the directory.
    #[error("{file} has format {found}; this version reads up to {known}: update manyhands")]
    Newer {
        /// The file.
        file: String,
        /// Its format.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// A newer version wrote a record or option that this one does not know.
    #[error("{file} at byte {offset}: record kind or option {kind} is unknown: update manyhands")]
    UnknownRecord {
        /// The file.
        file: String,
        /// Where its frame begins, in bytes.
        offset: u64,
        /// Its number.
        kind: u8,
    },
    /// The body was let go meanwhile: its task is settled.
    #[error("the body is no longer in the journal")]
    Gone,
    /// There is no room for a segment. Nothing is lost; it goes on once there is.
    #[error(
        "the disk is full: no room for {file}; free at least {bytes} bytes on the disk of the data \
         directory"
    )]
    DiskFull {
        /// The file.
        file: String,
        /// Its size, in bytes.
        bytes: u64,
    },
    /// The system failed us.
    #[error("cannot {action} {file}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// A write or sync failed before; nothing was durable since.
    #[error("the journal stopped: {0}")]
    Poisoned(Arc<str>),
    /// The same, by this.
    #[error("the journal stopped: {0}")]
    Stopped(Arc<Self>),
}

impl JournalError {
    pub(super) fn io(action: &'static str, file: &str, error: io::Error) -> Self {
        Self::Io { action, file: file.to_owned(), error: Arc::new(error) }
    }

    pub(super) fn damaged(file: &str, offset: usize, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset: offset as u64, what: what.into() }
    }

    /// The same with the queue, by name, and the task whose body is damaged, if it is a body.
    pub(crate) fn of_task(self, owner: impl FnOnce() -> Option<(String, u64)>) -> Self {
        match self {
            Self::Damaged { file, offset, what } => match owner() {
                Some((queue, task)) => Self::DamagedBody { file, offset, what, queue, task },
                None => Self::Damaged { file, offset, what },
            },
            error => error,
        }
    }

    /// The same as damage of the body of this task, whatever kept us from reading it.
    pub(crate) fn of_body(self, at: Location, queue: &str, task: u64) -> Self {
        let what = match self {
            Self::Damaged { what, .. } => what,
            error => error.to_string(),
        };
        let (file, offset) = (segment_name(at.segment), at.offset.into());
        Self::DamagedBody { file, offset, what, queue: queue.to_owned(), task }
    }

    /// What stopped the journal, if this only says that it stopped.
    pub fn cause(&self) -> &Self {
        match self {
            Self::Stopped(cause) => cause.cause(),
            cause => cause,
        }
    }

    /// Whether what was written is not there any more, or not as it was.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedBody { .. } | Self::Missing(_))
    }

    /// Whether the disk is full; everything else is worse.
    pub fn is_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { error, .. } => error.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// Says what was tried on which file.
pub(super) trait During<T> {
    fn during(self, action: &'static str, file: &str) -> Result<T, JournalError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, file: &str) -> Result<T, JournalError> {
        self.map_err(|error| JournalError::io(action, file, error))
    }
}
