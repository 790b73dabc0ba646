//! Where changes of the queues become durable: a log of segments in one directory.
//!
//! A change is a [`Record`]. The engine appends records in the order in which it applies them, which
//! is memory work only; the [`Writer`] takes what has gathered, writes it as one frame with one
//! write, and syncs it while the next frame gathers. A reply waits for its frame's [`Lsn`]. A
//! checkpoint says the same as all records before it and lets their segments be used again, save
//! those with the bodies of live tasks, which are read back by [`Location`].
//!
//! Invariants: a frame is whole or not there; frames become durable in order; after a write or sync
//! that failed nothing is, and nothing is tried again. Not a goal: to know what a record means.
//!
//! The threads are thin loops around [`Writer::step`] and [`Upkeep::step`], and all I/O goes through
//! [`Storage`], so that a test can stop the world between any two calls.

mod bodies;
mod checkpoint;
mod desk;
mod durable;
mod error;
mod fields;
mod files;
mod frame;
mod head;
mod inspect;
mod names;
mod record;
mod recover;
mod relay;
mod room;
mod row;
mod run;
mod salvage;
mod scan;
mod state;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;
mod window;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

pub use self::bodies::Bodies;
pub use self::checkpoint::{Checkpointed, Mark, Straggler, Write};
pub(crate) use self::desk::Desk;
pub use self::durable::Durable;
pub use self::error::JournalError;
pub use self::fields::{Body, TaskOptions};
pub use self::inspect::{Report, check, dump};
pub use self::record::{Record, ResultTask};
pub use self::recover::{Opened, Recovered, open};
pub use self::run::Running;
pub(crate) use self::salvage::{NameOfQueue, OpenSegment, Wreck};
pub use self::scan::Entry;
pub use self::state::OpenFrame;
use self::state::Shared;
pub use self::storage::{Directory, Storage, StorageFile, readable_by_others};
pub use self::upkeep::Upkeep;
pub use self::writer::Writer;

/// Number of a frame, from 1. Every start of the server takes one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Where a body lies, behind its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment.
    pub segment: u32,
    /// Where in it the checksum begins, in bytes.
    pub offset: u32,
    /// Length of the body, in bytes.
    pub len: u32,
}

/// When a record counts as kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Once it was written: survives the process, and of a power cut all but the last moments.
    Os,
    /// Once it was synced: survives a power cut.
    Disk,
}

/// What a record does to the space that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Brings a task: leaves the whole reserve, two segments.
    Admit,
    /// Brings a result, and lets its task go: leaves seven eighths of the reserve, so that the live
    /// bodies of any segment can be copied when it has no room.
    Result,
    /// Begins an attempt, which says more later: leaves a quarter of it on a full disk.
    Lease,
    /// Copies a live body so that its segment can go: leaves five sixteenths of it on a full disk.
    Copy,
    /// Lets a task go, or must not fail for another reason.
    Settle,
}

/// What may still be appended, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rooms {
    /// In one call, for [`Class::Admit`].
    pub puts: u64,
    /// In one call, for [`Class::Result`].
    pub results: u64,
    /// In all, for [`Class::Lease`]; `None` while the disk has room.
    pub leases: Option<u64>,
}

/// Sizes and times. The defaults are for production; tests make everything small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Size of a segment, in bytes; below 1 GiB.
    pub segment_bytes: u32,
    /// From this size on records go to the next frame, in bytes. One call's never part.
    pub frame_bytes_max: usize,
    /// Old segments kept to be written again, at most.
    pub spares_max: usize,
    /// Bytes of log after which a checkpoint is due, at least; and four times the last checkpoint.
    pub checkpoint_bytes_min: u64,
    /// Records of a checkpoint are checked and synced in pieces of about this size, in bytes.
    pub checkpoint_chunk_bytes: usize,
    /// A segment with a smaller share of live bytes, in percent, has its stragglers moved.
    pub sparse_percent: u8,
    /// Longest time that a frame stays written but not synced.
    pub sync_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            frame_bytes_max: 4 << 20,
            spares_max: 4,
            checkpoint_bytes_min: 256 << 20,
            checkpoint_chunk_bytes: 1 << 20,
            sparse_percent: 25,
            sync_interval: Duration::from_millis(50),
        }
    }
}

/// A handle to append with; clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    checkpoints: Arc<Mutex<checkpoint::Sparse>>,
    /// Where the writer is, once others may do its work.
    desk: Arc<OnceLock<Weak<Mutex<Desk>>>>,
}

impl Journal {
    /// Whether records that take up to `bytes` ([`Record::bytes_max`], summed) surely have a place
    /// on the disk. To be asked before anything is changed, under the lock that orders appends.
    ///
    /// Two segments are kept in reserve: when the disk is full, tasks can still be settled, and a
    /// checkpoint can let go of what that frees.
    pub fn has_room(&self, class: Class, bytes: usize) -> bool {
        self.shared.lock().has_room(class, bytes, &self.shared.options)
    }

    /// The largest `bytes` for which [`Self::has_room`] says yes; 0 if there is none.
    pub fn room(&self, class: Class) -> u64 {
        self.shared.lock().room(class, &self.shared.options) as u64
    }

    /// What may still be appended, by class.
    pub fn rooms(&self) -> Rooms {
        let options = &self.shared.options;
        let state = self.shared.lock();
        let [puts, results] = state.rooms(options).map(|room| room as u64);
        Rooms { puts, results, leases: state.lease_room(options) }
    }

    /// Resolves when there is more room than at the call; for a put that must wait. To be called
    /// before [`Self::has_room`] is asked, so that nothing is missed between the two.
    pub fn more_room(&self) -> impl Future<Output = ()> + '_ {
        self.shared.room.notified()
    }

    /// Appends the records of one call, which will be there after a crash all together or not at
    /// all. No I/O. Adds where each body will lie to `locations`, and returns what to wait for.
    pub fn append(
        &self,
        records: &[Record<'_>],
        durability: Durability,
        locations: &mut Vec<Location>,
    ) -> Lsn {
        let bytes = records.iter().map(Record::bytes_max).sum();
        self.append_with(bytes, durability, |frame| {
            for record in records {
                locations.extend(frame.push(record));
            }
        })
    }

    /// The same for records that `write` makes one by one, `bytes_max` in all; it must not call the
    /// journal. Without records nothing is to be waited for.
    pub fn append_with(
        &self,
        bytes_max: usize,
        durability: Durability,
        write: impl FnOnce(&mut OpenFrame<'_>),
    ) -> Lsn {
        self.shared.append(bytes_max, durability, write)
    }

    /// The last frame that is durable.
    pub fn reached(&self, durability: Durability) -> Lsn {
        self.shared.lock().reached(durability)
    }

    /// The last frames that are written, and synced.
    pub fn written_and_synced(&self) -> (Lsn, Lsn) {
        let mut state = self.shared.lock();
        (state.reached(Durability::Os), state.reached(Durability::Disk))
    }

    /// Resolves when nothing becomes durable any more, with the reason; a journal that is closed
    /// counts too.
    pub async fn failed(&self) -> JournalError {
        match self.durable(Lsn(u64::MAX), Durability::Disk).await {
            Err(error) => error,
            Ok(()) => JournalError::Poisoned("there are no more numbers for frames".into()),
        }
    }

    /// Why nothing becomes durable any more, if so.
    pub fn failure(&self) -> Option<JournalError> {
        self.shared.lock().failed.clone()
    }

    /// Makes nothing durable any more, because of an `error` that was met elsewhere.
    pub fn fail(&self, error: &JournalError) {
        self.shared.poison(error);
    }

    /// A reader of bodies.
    pub fn bodies(&self) -> Bodies {
        Bodies::new(self.shared.clone())
    }

    /// A random number of this journal, which never leaves its directory.
    pub fn identity(&self) -> u64 {
        self.shared.journal
    }

    /// Number of this start of the server.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// Ends [`Running`]'s threads once all that was appended is durable.
    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.upkeep.notify_all();
    }
}

impl Lsn {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
