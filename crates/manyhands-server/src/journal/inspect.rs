//! Looks at a journal offline and changes nothing.

use std::path::Path;

use super::error::During;
use super::names::segment_name;
use super::scan::{Scan, scan};
use super::storage::{Directory, Storage};
use super::{Entry, JournalError, Location, Lsn, Record, bodies};

/// What a journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Segments there are.
    pub segments: usize,
    /// The checkpoint that a start would begin with.
    pub checkpoint: Option<Lsn>,
    /// Frames after it.
    pub frames: u64,
    /// Records, with those of the checkpoint.
    pub records: u64,
    /// The last frame.
    pub lsn: Lsn,
    /// Starts of the server so far.
    pub epoch: u64,
    /// Where a start would cut off a frame that was never durable: segment, and byte in it.
    pub torn: Option<(u32, u64)>,
    /// Whether the server was stopped cleanly.
    pub is_closed: bool,
    /// Bodies that the checkpoint refers to; all were read and are intact.
    pub bodies: u64,
}

/// Reads everything that a start would read, and every body that the checkpoint refers to.
///
/// # Errors
///
/// [`JournalError`]: what a start would fail with, or the first body that is not intact.
pub fn check(directory: &Path) -> Result<Report, JournalError> {
    let storage = Directory::open_read_only(directory);
    let mut live = Vec::new();
    let mut is_closed = false;
    let Scan { tail, files, checkpoint, frames, records, .. } = scan(&storage, &mut |entry| {
        is_closed = entry.record == Record::Closed;
        if let Record::Live { location, .. } = entry.record {
            live.push(location);
        }
    })?;
    live.sort_unstable();
    check_bodies(&storage, tail.map_or(0, |tail| tail.journal), &live)?;
    Ok(Report {
        segments: files.segments.len(),
        checkpoint,
        frames,
        records,
        lsn: tail.map(|tail| tail.lsn).unwrap_or_default(),
        epoch: tail.map(|tail| tail.epoch).unwrap_or_default(),
        torn: tail.filter(|tail| tail.torn).map(|tail| (tail.segment, tail.offset as u64)),
        is_closed,
        bodies: live.len() as u64,
    })
}

/// Tells `visit` every record that a start would read, in order.
///
/// # Errors
///
/// [`JournalError`]: what a start would fail with, after the records before it were visited.
pub fn dump(directory: &Path, visit: &mut dyn FnMut(Entry<'_>)) -> Result<(), JournalError> {
    scan(&Directory::open_read_only(directory), visit).map(drop)
}

fn check_bodies(
    storage: &dyn Storage,
    journal: u64,
    live: &[Location],
) -> Result<(), JournalError> {
    for live in live.chunk_by(|a, b| a.segment == b.segment) {
        let Some(first) = live.first() else { continue };
        let name = segment_name(first.segment);
        let file = storage.open(&name).during("open", &name)?;
        for location in live {
            bodies::read(&*file, journal, *location)?;
        }
    }
    Ok(())
}
