//! Reads bodies back, off the engine's lock.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::error::During;
use super::scan::segment_name;
use super::state::Shared;
use super::storage::StorageFile;
use super::{JournalError, Location, frame};

/// Length of the checksum before a body, in bytes.
const CRC_LEN: usize = 4;

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
        let name = segment_name(location.segment);
        let file = self.shared.file(location.segment).during("open", &name);
        let body = file.and_then(|file| read(&*file, self.shared.journal, location));
        // Only now is it sure that the segment was not written again while we read.
        let is_there = self.shared.lock().segments.contains(&location.segment);
        if is_there { body } else { Err(JournalError::Gone) }
    }
}

/// The body at `location`, if it is intact.
pub(super) fn read(
    file: &dyn StorageFile,
    journal: u64,
    Location { segment, offset, len }: Location,
) -> Result<Bytes, JournalError> {
    let name = segment_name(segment);
    let damaged = |what| JournalError::damaged(&name, offset as usize, what);
    // Nothing is allocated for a length that cannot be true.
    let end = u64::from(offset) + CRC_LEN as u64 + u64::from(len);
    if end > file.size().during("look at", &name)? {
        return Err(damaged("the body goes beyond the segment"));
    }
    let mut bytes = vec![0; CRC_LEN + len as usize];
    file.read_at(&mut bytes, offset.into()).during("read", &name)?;
    let mut bytes = Bytes::from(bytes);
    let crc = bytes.get_u32_le();
    if crc != crc32c::crc32c_append(frame::seed(journal, segment), &bytes) {
        return Err(damaged("the body is not intact"));
    }
    Ok(bytes)
}
