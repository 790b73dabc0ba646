//! Reads bodies back, off the engine's lock.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::error::During;
use super::frame::{self, CRC_LEN};
use super::names::segment_name;
use super::state::Shared;
use super::storage::StorageFile;
use super::{JournalError, Location};

/// Reads bodies by their locations; clones can be used at once.
#[derive(Debug, Clone)]
pub struct Bodies {
    shared: Arc<Shared>,
}

impl Bodies {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The body at `location`, whose frame must have been written.
    ///
    /// # Errors
    ///
    /// [`JournalError::Gone`] if its task was settled meanwhile and its segment let go;
    /// [`JournalError::Damaged`], [`JournalError::Io`].
    pub fn read(&self, location: Location) -> Result<Bytes, JournalError> {
        self.look(location, |file| read(file, self.shared.journal, location))
    }

    /// The same, unless it would have to wait for the disk: `None` then.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn read_at_once(&self, location: Location) -> Result<Option<Bytes>, JournalError> {
        self.look(location, |file| {
            let mut bytes = room(file, location)?;
            let is_read = file.read_at_once(&mut bytes, location.offset.into());
            let is_read = is_read.during("read", &segment_name(location.segment))?;
            is_read.then(|| intact(bytes, self.shared.journal, location)).transpose()
        })
    }

    fn look<T>(
        &self,
        Location { segment, .. }: Location,
        look: impl FnOnce(&dyn StorageFile) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let file = self.shared.file(segment).during("open", &segment_name(segment));
        let seen = file.and_then(|file| look(&*file));
        // Only now is it sure that the segment was not written again while we read.
        let is_there = self.shared.lock().segments.contains(&segment);
        if is_there { seen } else { Err(JournalError::Gone) }
    }
}

/// The body at `location`, if it is intact.
pub(super) fn read(
    file: &dyn StorageFile,
    journal: u64,
    location: Location,
) -> Result<Bytes, JournalError> {
    let mut bytes = room(file, location)?;
    let read = file.read_at(&mut bytes, location.offset.into());
    read.during("read", &segment_name(location.segment))?;
    intact(bytes, journal, location)
}

/// Room for a body and its checksum.
fn room(
    file: &dyn StorageFile,
    Location { segment, offset, len }: Location,
) -> Result<Vec<u8>, JournalError> {
    // Nothing is allocated for a length that cannot be true.
    let end = u64::from(offset) + u64::from(CRC_LEN) + u64::from(len);
    if end > file.size().during("look at", &segment_name(segment))? {
        return Err(damaged(segment, offset, "the body goes beyond the segment"));
    }
    Ok(vec![0; CRC_LEN as usize + len as usize])
}

/// The body in these bytes, behind its checksum.
fn intact(
    bytes: Vec<u8>,
    journal: u64,
    Location { segment, offset, .. }: Location,
) -> Result<Bytes, JournalError> {
    let mut bytes = Bytes::from(bytes);
    let crc = bytes.get_u32_le();
    if crc != crc32c::crc32c_append(frame::seed(journal, segment), &bytes) {
        return Err(damaged(segment, offset, "the body is not intact"));
    }
    Ok(bytes)
}

fn damaged(segment: u32, offset: u32, what: &str) -> JournalError {
    JournalError::damaged(&segment_name(segment), offset as usize, what)
}
